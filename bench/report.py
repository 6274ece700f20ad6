"""`python -m bench report`: tables and plots from the records, written into the pages between their markers.

A page holds `<!-- bench:begin NAME -->` and `<!-- bench:end NAME -->`; what stands between is made here and nowhere
else, and a test compares it with the records.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import images, records, tables
from .console import OUT

PAGES = ("README.md", "docs/benchmarks.md")
IMAGES = Path("docs/images")
GPU_NOTE = (
    "`time` is that of an eager call, the host's part included; so are the overhead and the breakdown. Two ratios in a "
    "cell are of eager calls and of graph replays; a dash stands where a provider could not be captured. There is no "
    "ratio to the floor, as its call is an eager one, which a replayed graph does not make."
)
Record = dict[str, Any]


def fragments(found: dict[str, Record], now: dict[str, str]) -> dict[str, str]:
    """What belongs between the markers, by name.

    `found` as `records.read_all` gives it; `now` as `records.source_hashes`, by which a page says that a record is of
    other sources.
    """
    return {
        "summary": "\n\n".join(_summary(stem, record, now) for stem, record in found.items()),
        "results": "\n\n".join(_results(stem, record, now) for stem, record in found.items()),
    }


def _image(plot: str, stem: str, record: Record, folder: str) -> str:
    return f"![{images.CAPTIONS[plot]}: {records.title(record)}]({folder}/{images.name(plot, stem)})"


def _summary(stem: str, record: Record, now: dict[str, str]) -> str:
    """The latency rows; of a CPU, which most readers have, also the picture."""
    if not records.rows_of(record, "latency"):
        return ""
    device, dtype = records.title(record), records.rows_of(record, "latency")[0]["dtype"]
    if tables.on_gpu(record):
        clocks = "times of an eager call and of the replay of a CUDA graph"
        ratios = "how many times as long the others take, eager / graph"
    else:
        device += f", {record['environment']['threads']} threads"
        clocks, ratios = "times of a call", "how many times as long the others take"
    lines = [
        f"**{device}**, {dtype}, one sample, ID-Selection, {tables.taken(record)}: {clocks}, median and 20th to 80th "
        f"percentile, and {ratios}.",
        tables.stale(record, now),
        "" if tables.on_gpu(record) else _image("latency", stem, record, "docs/images"),
        tables.summary(record),
        tables.extremes(record),
        tables.missing(record),
        f"`{record['command']}` measured this, `python -m bench report` wrote it.",
    ]
    return "\n\n".join(line for line in lines if line)


def _results(stem: str, record: Record, now: dict[str, str]) -> str:
    parts = [f"### {records.title(record)}", tables.about(record), tables.stale(record, now), tables.missing(record)]
    if tables.on_gpu(record):
        parts.append(GPU_NOTE)
    parts.append(tables.floor(record))
    after = {"latency": ("latency", "floor"), "rules": ("speedup",), "scale": ("memory",)}
    for suite, title, table in tables.all_of(record):
        parts += [f"#### {title}", table]
        parts += [_image(plot, stem, record, "images") for plot in after.get(suite, ()) if plot in images.drawn(record)]
    parts.append(f"`{record['command']}` measured this, `python -m bench report` wrote it.")
    return "\n\n".join(part for part in parts if part)


def filled(text: str, made: dict[str, str]) -> str:
    """A page with everything between its markers replaced."""
    for name, fragment in made.items():
        pattern = rf"(<!-- bench:begin {name} -->\n).*?(<!-- bench:end {name} -->)"
        text = re.sub(pattern, lambda found, put=fragment: f"{found[1]}\n{put}\n\n{found[2]}", text, flags=re.DOTALL)
    return text


def parser() -> argparse.ArgumentParser:
    """The command line of `report`."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description="Tables and plots from the records.")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="folder of records (bench/results)")
    parser.add_argument("--root", type=Path, default=records.ROOT, help="where README.md and docs/ are")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a page is out of date")
    parser.add_argument("--print", action="store_true", help="print the tables, and write nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Writes pages and plots; with --check it only says whether the pages are what would be written."""
    arguments = parser().parse_args(argv)
    found = records.read_all(arguments.results)
    made = fragments(found, records.source_hashes())
    if arguments.print:
        print(made["results"])
        return 0
    stale = [page for page in PAGES if _write(arguments.root / page, made, arguments.check)]
    if not arguments.check:
        from . import plots

        for stem, record in found.items():
            for path in plots.draw(record, stem, arguments.root / IMAGES):
                OUT.print(f"wrote {path.relative_to(arguments.root)}", soft_wrap=True)
    for page in stale:
        OUT.print(f"{page}: {'out of date' if arguments.check else 'written'}")
    return 1 if arguments.check and stale else 0


def _write(page: Path, made: dict[str, str], check: bool) -> bool:
    """Whether the page differs from what it should be; then, unless checking, it is written."""
    if not page.exists():
        return False
    text = page.read_text(encoding="utf-8")
    new = filled(text, made)
    if new != text and not check:
        page.write_text(new, encoding="utf-8")
    return new != text

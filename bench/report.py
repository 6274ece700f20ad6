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

from . import records, tables
from .console import OUT

PAGES = ("README.md", "docs/benchmarks.md")
IMAGES = Path("docs/images")
# What the plots show, in words: the alternative text of the pictures.
PLOTS = {
    "latency": "Time of one selection against k and against N",
    "speedup": "Speed-up over the published loop, by rule and input",
    "floor": "The terms of the floor, and the time of one selection",
    "memory": "Peak extra memory against N",
}

Record = dict[str, Any]


def image_name(plot: str, stem: str) -> str:
    """File of a plot of the record named `stem`."""
    return f"bench-{plot}-{stem}.png"


def fragments(found: dict[str, Record]) -> dict[str, str]:
    """What belongs between the markers, by name; `found` as `records.read_all` gives it."""
    return {
        "summary": "\n\n".join(_summary(stem, record) for stem, record in found.items()),
        "results": "\n\n".join(_results(stem, record) for stem, record in found.items()),
    }


def _image(plot: str, stem: str, record: Record, folder: str) -> str:
    return f"![{PLOTS[plot]}: {records.title(record)}]({folder}/{image_name(plot, stem)})"


def _summary(stem: str, record: Record) -> str:
    engine = " or ".join(tables.ours(record))
    lines = [
        f"**{records.title(record)}**, {record['environment']['threads']} threads, "
        f"{tables.records.rows_of(record, 'latency')[0]['dtype']}, one sample, ID-Selection; the time of "
        f'`backend="{engine}"` (20th to 80th percentile), and how many times as long the others take:',
        _image("latency", stem, record, "docs/images"),
        tables.summary(record),
        tables.extremes(record),
        f"`{record['command']}` measured this, `python -m bench report` wrote it.",
    ]
    return "\n\n".join(line for line in lines if line)


def _results(stem: str, record: Record) -> str:
    parts = [f"### {records.title(record)}", tables.about(record), tables.floor(record)]
    after = {"latency": ("latency", "floor"), "rules": ("speedup",), "scale": ("memory",)}
    for suite, title, table in tables.all_of(record):
        parts += [f"#### {title}", table]
        parts += [_image(plot, stem, record, "images") for plot in after.get(suite, ())]
    parts.append(f"`{record['command']}` measured this, `python -m bench report` wrote it.")
    return "\n\n".join(parts)


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
    made = fragments(found)
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

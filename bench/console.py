"""What a run prints: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Row = dict[str, Any]

# A file or a pipe has no width; tables there must not be folded into that of an old terminal.
OUT = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
ERR = Console(stderr=True, highlight=False, markup=False)


class Bar:
    """A progress bar over suites that names what is being measured."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self.progress, self.task = progress, task

    def step(self, label: str) -> None:
        """Names the measurement under way."""
        self.progress.update(self.task, description=label)

    def advance(self) -> None:
        """One suite is done."""
        self.progress.advance(self.task)


@contextmanager
def progress(total: int) -> Iterator[Bar]:
    """A bar on stderr, hidden where that is not a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        yield Bar(bar, bar.add_task("", total=total))


def time_text(microseconds: float) -> str:
    """Three significant digits, in µs below a millisecond and in ms above."""
    if microseconds < 999.5:
        return f"{_three_digits(microseconds)} µs"
    return f"{_three_digits(microseconds / 1000)} ms"


def range_text(low: float, high: float) -> str:
    """Two times, with one unit where it is the same."""
    first, second = time_text(low), time_text(high)
    same = first.split()[1] == second.split()[1]
    return f"{first.split()[0] if same else first} – {second}"


def times_text(factor: float) -> str:
    """A ratio: three digits above 1, two below."""
    return f"{_three_digits(factor)} ×" if factor >= 1 else f"{factor:#.2g} ×"


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def bytes_text(count: float) -> str:
    """In MiB."""
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"


def cell(row: Row, clock: str = "eager") -> str:
    """A row's time, or what there is instead of one."""
    if row["status"] == "wrong":
        return "WRONG"
    timing = row.get(clock)
    return time_text(timing["median_us"]) if timing else "-"


def spread(row: Row) -> str:
    """20th to 80th percentile."""
    timing = row.get("eager")
    return range_text(timing["p20_us"], timing["p80_us"]) if timing else ""


def suite_table(suite: str, rows: list[Row], on_gpu: bool) -> Table:
    """Every row of a suite as it was measured; `python -m bench report` makes the compared tables."""
    table = Table(title=suite, title_justify="left")
    for heading in ("provider", "rule", "input", "BxNxDxk"):
        table.add_column(heading, overflow="fold")
    numbers = ["eager", "p20 – p80", *(["graph"] if on_gpu else []), "× floor", "regret", "else"]
    for heading in numbers:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        shape = "x".join(str(row[axis]) for axis in "BNDk") if "B" in row else ""
        floor = times_text(row["times_floor"]) if "times_floor" in row else ""
        regret = "" if row.get("regret") is None else f"{row['regret']:.1g}"
        graph = [cell(row, "graph")] if on_gpu else []
        cells = [row["provider"], row.get("rule", ""), row.get("input", ""), shape, cell(row), spread(row)]
        table.add_row(*cells, *graph, floor, regret, _rest(row))
    return table


def _rest(row: Row) -> str:
    """What only some suites have."""
    parts = []
    if "value" in row:
        parts.append(f"{row['value']:.4g} {row['unit'].replace('us', 'µs')}")
    if row.get("extra_memory_bytes") is not None:
        parts.append(f"{bytes_text(row['extra_memory_bytes'])} extra")
    if "host_us" in row:
        parts.append(f"{row['host_us']:.1f} µs host, {row['operators']} operators, {row['syncs']} reads by the host")
        parts += [f"{row['launches']} launches"] if row.get("launches") is not None else []
    if row["status"] == "unavailable":
        parts.append(f"not run: {row['note']}")
    return "; ".join(parts)

"""`bench compare` of two records, and `bench verify` of records against the sources."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from . import records
from .console import ERR, OUT, time_text
from .tables import taken

KEY = ("suite", "provider", "rule", "input", "dtype", "B", "N", "D", "k")


# Fewer rows of code that cannot have changed say too little about how the machine has.
LEAST_CONTROLS = 3


class Change(NamedTuple):
    """One row of both records.

    Attributes:
        ratio: median of B over that of A; None where one has no time.
        gap: the factor between their spreads (p20 to p80), 1.0 where these overlap.
        verdict: "faster", "slower", "within the spread", "within the drift", "drift" (of code that cannot have
            changed), "only in A", "only in B", or the states where these differ.
    """

    key: tuple[Any, ...]
    clock: str
    before: float | None
    after: float | None
    ratio: float | None
    verdict: str
    gap: float = 1.0


def changes(a: dict[str, Any], b: dict[str, Any]) -> list[Change]:
    """Compares the rows that are about the same thing.

    A row is faster or slower where its spreads (p20 to p80) lie apart by a larger factor than the medians of anything
    that cannot have changed: what the same clock says of the published loops and of torch is how far the machine itself
    has drifted.
    """
    unchanged = _unchanged(a, b)
    found = list(_differences(a, b))
    most = {clock: drift(found, unchanged, clock) for clock in ("eager", "graph")}
    return [_judged(change, unchanged, most[change.clock]) for change in found]


def drift(found: Sequence[Change], unchanged: Collection[str], clock: str) -> float:
    """The largest factor, up or down, between two times of code that cannot have changed; inf where too few tell."""
    ratios = [c.ratio for c in found if c.clock == clock and c.ratio is not None and _provider(c) in unchanged]
    return max(max(r, 1 / r) for r in ratios) if len(ratios) >= LEAST_CONTROLS else math.inf


def _unchanged(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """Providers of other people's code, and the torch engine where its source is the same."""
    providers = {row["provider"] for record in (a, b) for row in record["rows"]} - records.SOURCES.keys()
    source, *_ = records.SOURCES["torch"]
    same = a["sources"]["files"].get(source) == b["sources"]["files"].get(source)
    return providers | ({"torch"} if same else set())


def _provider(change: Change) -> str:
    return str(change.key[KEY.index("provider")])


def _judged(change: Change, unchanged: Collection[str], most: float) -> Change:
    if change.ratio is None:
        return change
    if _provider(change) in unchanged:
        return change._replace(verdict="drift")
    if change.verdict in ("faster", "slower") and change.gap <= most:
        return change._replace(verdict="within the drift")
    return change


def _differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    first, second = ({_key(row): row for row in record["rows"]} for record in (a, b))
    for key in dict.fromkeys([*first, *second]):
        if key not in first or key not in second:
            yield Change(key, "eager", None, None, None, "only in A" if key in first else "only in B")
            continue
        before, after = first[key], second[key]
        if before["status"] != after["status"]:
            yield Change(key, "eager", None, None, None, f"{before['status']} → {after['status']}")
            continue
        for clock in ("eager", "graph"):
            if before.get(clock) and after.get(clock):
                yield _timed(key, clock, before[clock], after[clock])


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def _timed(key: tuple[Any, ...], clock: str, before: dict[str, float], after: dict[str, float]) -> Change:
    ratio = after["median_us"] / before["median_us"]
    up, down = after["p20_us"] / before["p80_us"], before["p20_us"] / after["p80_us"]
    verdict = "slower" if up > 1 else "faster" if down > 1 else "within the spread"
    return Change(key, clock, before["median_us"], after["median_us"], ratio, verdict, max(up, down, 1.0))


def parser() -> argparse.ArgumentParser:
    """The command line of `compare`."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description="What changed from A to B.")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--all", action="store_true", help="also show what is not a change")
    return parser


def main(argv: Sequence[str]) -> int:
    """`python -m bench compare A.json B.json`; status 1 where one of our engines is slower or no longer right.

    2 where a file is not a record.
    """
    arguments = parser().parse_args(argv)
    try:
        a, b = records.read(arguments.a), records.read(arguments.b)
    except records.NotARecord as error:
        ERR.print(str(error), soft_wrap=True, markup=False)
        return 2
    found = changes(a, b)
    _print_heads(a, b)
    quiet = ("within the spread", "within the drift", "drift")
    shown = [change for change in found if arguments.all or change.verdict not in quiet]
    if shown:
        OUT.print(_table(shown))
    counts = {verdict: sum(c.verdict == verdict for c in found) for verdict in ("faster", "slower", *quiet)}
    _print_drift(found, a, b)
    OUT.print(
        f"{counts['faster']} faster, {counts['slower']} slower, {counts['within the drift']} apart but within the "
        f"drift, {counts['within the spread']} within the spread of p20 to p80",
        soft_wrap=True,
    )
    return 1 if any(_is_regression(change) for change in found) else 0


def _is_regression(change: Change) -> bool:
    return _provider(change) in records.SOURCES and (change.verdict == "slower" or change.verdict.endswith("→ wrong"))


def _print_drift(found: Sequence[Change], a: dict[str, Any], b: dict[str, Any]) -> None:
    unchanged = _unchanged(a, b)
    for clock in dict.fromkeys(change.clock for change in found if change.ratio is not None):
        most = drift(found, unchanged, clock)
        if math.isinf(most):
            OUT.print(f"{clock}: too little that cannot have changed is in both, so there is no verdict")
        else:
            OUT.print(f"{clock}: code that cannot have changed differs by up to x{most:.2f}; a change is more")


def _print_heads(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name, record in (("A", a), ("B", b)):
        commit = record["git"]["commit"] or "unknown commit"
        OUT.print(f"{name}: {records.title(record)}, {record['environment']['taken']}, {commit[:12]}")


def _table(found: list[Change]) -> Table:
    table = Table()
    for heading in ("suite", "provider", "rule", "input", "dtype", "B", "N", "D", "k", "clock"):
        table.add_column(heading)
    for heading in ("A", "B", "B / A", "verdict"):
        table.add_column(heading, justify="right")
    for change in found:
        times = ["" if t is None else time_text(t) for t in (change.before, change.after)]
        ratio = "" if change.ratio is None else f"{change.ratio:.2f}"
        key = ["" if part is None else str(part) for part in change.key]
        table.add_row(*key, change.clock, *times, ratio, change.verdict)
    return table


def verify_parser() -> argparse.ArgumentParser:
    """The command line of `verify`."""
    parser = argparse.ArgumentParser(prog="python -m bench verify", description="Do records match the sources?")
    parser.add_argument("records", nargs="*", type=Path, help="default: all of bench/results")
    return parser


def verify_main(argv: Sequence[str]) -> int:
    """`python -m bench verify`; status 1 where a record is not of the sources as they are."""
    arguments = verify_parser().parse_args(argv)
    paths = arguments.records or sorted(records.RESULTS.glob("*.json"))
    now, stale = records.source_hashes(), 0
    for path in paths:
        try:
            record = records.read(path)
        except records.NotARecord as error:
            ERR.print(str(error), soft_wrap=True, markup=False)
            return 2
        changed = records.changed_sources(record, now)
        stale += bool(changed)
        about = (
            f"{path.name}: {records.title(record)}, engines {', '.join(record['engines']) or 'none'}, {taken(record)}"
        )
        verdict = "STALE, changed since:" if changed else "matches the sources"
        OUT.print(f"{about}: {verdict}", soft_wrap=True)
        for name in changed:
            OUT.print(f"  {name}", soft_wrap=True)
    if not paths:
        OUT.print("no records")
    return 1 if stale else 0

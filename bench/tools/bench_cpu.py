"""The cpu backend against the reference at its best setting: `python -m bench.tools.bench_cpu`.

`python -m bench` has all providers; this has more inputs, and the numbers of similarities. Both run in one process on
the same input, and every selection is checked before it is timed. The reference is the faster of one Gram and one row
per pick (Coverage: the Gram). There are two ratios. *By turns*: one call each in turn, so that a call finds the caches,
its own code included, as the other left them. *Again*: each called 20 times or more in a row, as in a loop over images.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import idsel_kernels as idsel
from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MaxMin, Rule
from idsel_kernels.engines import cpu
from idsel_kernels.env_report import cpu_model
from idsel_kernels.testing import Case, check_selection, clustered, oracle, picture

from ..harness import Budget, host_us, interleave, time_one

CPU = torch.device("cpu")
RULES: dict[str, Rule] = {
    "IDSelection": IDSelection(),
    "MMR": MMR(),
    "MaxMin(start=0)": MaxMin(start=0),
    "HardSuppress": HardSuppress(),
    "DPP": DPP(),
    "Coverage": Coverage(),
}


class Row(NamedTuple):
    """One line of the table; times in milliseconds."""

    rule: str
    features: str
    importance: str
    tokens: int
    dim: int
    k: int
    dtype: str
    ours: float
    reference: float
    ours_again: float
    reference_again: float
    setting: str
    similarities: int
    path: str

    @property
    def by_turns(self) -> float:
        """How many times as long the reference takes, one call each in turn."""
        return self.reference / self.ours

    @property
    def again(self) -> float:
        """The same, each called again and again."""
        return self.reference_again / self.ours_again

    def line(self) -> str:
        """As Markdown."""
        pairs = self.tokens * (self.tokens - 1) // 2
        return (
            f"| {self.rule} | {self.features}, {self.importance} | {self.tokens} x {self.dim} {self.dtype} | {self.k} "
            f"| {self.ours:.3f} | {self.reference:.2f} ({self.setting}) | **{self.by_turns:.1f}** "
            f"| {self.ours_again:.3f} | {self.reference_again:.2f} | **{self.again:.1f}** "
            f"| {self.similarities:,} of {pairs:,} | {self.path.lower()} |"
        )


HEADER = (
    "| rule | features, importance | shape | k | cpu ms | reference ms | ratio by turns "
    "| cpu ms | reference ms | ratio again | similarities | path |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def features_of(kind: str, tokens: int, dim: int, importance: str) -> Case:
    """float32 features: synthetic, or patches of a photograph projected to `dim`."""
    if kind == "clustered":
        return clustered(1, tokens, dim, importance=importance)
    grid = round(tokens**0.5)
    case = picture(grid)
    patches = case.features[0]
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(patches.shape[-1], dim, generator=generator) / patches.shape[-1] ** 0.5
    projected = torch.nn.functional.gelu(patches @ projection)
    scores = torch.ones(1, len(patches)) if importance == "flat" else case.importance
    return Case(projected[None], scores)


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int, int, int]]:
    """(features, importance, tokens, dim, k)."""
    for kind in ("clustered", "picture"):
        for importance in ("skewed", "flat"):
            for k in arguments.k:
                yield kind, importance, 576, arguments.dim, k
            if arguments.large:
                yield kind, importance, 2880 if kind == "clustered" else 54**2, arguments.dim, 16


def compare(name: str, where: tuple[str, str, int, int, int], dtype: torch.dtype, repeats: int) -> Row:
    """Checks and times one case."""
    kind, importance, tokens, dim, k = where
    case, rule = features_of(kind, tokens, dim, importance), RULES[name]
    inputs = {"features": case.features.to(dtype), "importance": case.importance, "k": k, "rule": rule}
    with cpu.record_stats() as recorded:
        picks = idsel.select(**inputs, backend="cpu")
    check_selection(picks, inputs["features"], rule, case.importance).assert_ok()
    settings = ("full",) if isinstance(rule, Coverage) else ("full", "rows")
    calls: dict[str, Callable[[], object]] = {"cpu": lambda: idsel.select(**inputs, backend="cpu")}
    for setting in settings:
        calls[setting] = lambda setting=setting: oracle(**inputs, dtype=torch.float32, gram=setting)
    # A setting that takes twice as long as the other is out of the race.
    once = {setting: min(host_us(calls[setting]) for _ in range(2)) for setting in settings}
    for setting in settings:
        if once[setting] > 2 * min(once.values()):
            del calls[setting]
    budget = Budget(repeats, 0.2)
    timings = interleave({name: [call] for name, call in calls.items()}, CPU, budget)
    best = min(calls.keys() - {"cpu"}, key=lambda setting: timings[setting].median_us)
    again = {setting: time_one(calls[setting], CPU, budget) for setting in ("cpu", best)}
    times = (found[setting].median_us / 1e3 for found in (timings, again) for setting in ("cpu", best))
    stats = recorded[0][0]
    shape = case.features.shape
    return Row(
        name, kind, importance, shape[1], shape[2], k, str(dtype).removeprefix("torch."), *times,
        best, stats.similarities, stats.path.name,
    )  # fmt: skip


def overview(rows: list[Row]) -> str:
    """The ratios alone, by turns / again: a line per rule and input, a column per shape and k."""
    columns = list(dict.fromkeys(("large" if row.tokens > 1000 else row.tokens, row.k, row.dtype) for row in rows))
    cells: dict[tuple[str, str, str], dict[object, str]] = {}
    for row in rows:
        column = ("large" if row.tokens > 1000 else row.tokens, row.k, row.dtype)
        shown = f"{row.by_turns:.3g} / {row.again:.3g}"
        cells.setdefault((row.rule, row.features, row.importance), {})[column] = shown
    head = "".join(f" N={tokens}, k={k}, {dtype} |" for tokens, k, dtype in columns)
    lines = [f"| rule | features, importance |{head}", "|---|---|" + "---:|" * len(columns)]
    for (rule, features, importance), found in cells.items():
        lines.append(f"| {rule} | {features}, {importance} |" + "".join(f" {found.get(c, '')} |" for c in columns))
    return "\n".join(lines)


def main() -> None:
    """Prints the table, its ratios alone and the worst of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--k", nargs="+", type=int, default=[16, 64, 192])
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=20, help="least number of timings of each (default: 20)")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True, help="also N=2880, k=16")
    arguments = parser.parse_args()
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(HEADER)
    rows = []
    for dtype in arguments.dtypes:
        for name in arguments.rules:
            for where in cases(arguments):
                rows.append(compare(name, where, getattr(torch, dtype), arguments.repeats))
                print(rows[-1].line(), flush=True)
    print(f"\nReference / cpu, by turns / again:\n\n{overview(rows)}")
    worst = min(rows, key=lambda row: min(row.by_turns, row.again))
    print(f"\nload {os.getloadavg()[0]:.1f}; worst ratio:\n{worst.line()}")


if __name__ == "__main__":
    main()

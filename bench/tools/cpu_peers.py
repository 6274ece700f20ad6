"""The cpu engine beside NumPy loops, the torch engine and other packages: `python -m bench.tools.cpu_peers --docs`.

    python -m bench.tools.cpu_peers [--rules MMR] [--tokens 576] [--dims 64] [--threads 2] [--docs]
        [--also FILE] [--out FILE]

One sample in float32, ours in a process of its own. Five turns of three calls each, after a call that does not count
and a pause: threads of a library that has nothing to do go on looking for work, OpenBLAS's for 105 ms, and keep a core
busy. Medians; whoever takes more than 4 times as long as the fastest in its first turn cannot be the best and is called
no more. `--docs` puts the table into docs/cpu_engine.md, `--out` writes every time as JSON. Other packages are
compared where they are installed:

    pip install fpsample torch-fps torch-quickfps submodlib-py apricot-select
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import idsel_kernels as idsel
from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MaxMin, Rule
from idsel_kernels.env_report import cpu_model

from ..harness import host_us
from ..providers import numpy_rules, peers
from ..tables import markdown
from ..workloads import Shape, make_case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cpu_engine.md"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
RULES: dict[str, Rule] = {
    "IDSelection": IDSelection(),
    "MMR": MMR(),
    "MaxMin(start=0)": MaxMin(start=0),
    "MaxMin": MaxMin(),
    "HardSuppress": HardSuppress(),
    "DPP": DPP(),
    "Coverage": Coverage(),
}
KINDS = ("clustered", "flat", "picture", "ties")
TOKENS = (576, 2880)
DIMS = (3, 64, 114, 256, 1024, 4096)
TURNS, CALLS = 5, 3
PAUSE_SECONDS = 0.12
LONG_US = 2e5
PATIENCE_SECONDS = 10
HOPELESS = 4
OURS = "ours"
Call = Callable[[], object]


class Cell(NamedTuple):
    """One input and k; times in microseconds by provider, ours first."""

    rule: str
    kind: str
    tokens: int
    dim: int
    k: int
    times: dict[str, float]

    def best(self) -> str:
        """The fastest of the others; where there are few dimensions, of those without a spatial index."""
        others = [name for name in self.times if name != OURS]
        if self.dim <= peers.FEW_DIMENSIONS:
            others = [name for name in others if name not in peers.WITH_INDEX]
        return min(others, key=self.times.__getitem__)

    def ratio(self) -> float:
        """How many times as long as ours the best of the others takes."""
        return self.times[self.best()] / self.times[OURS]

    def line(self) -> str:
        """For the terminal."""
        others = ", ".join(f"{name} {time:.0f}" for name, time in self.times.items() if name != OURS)
        shape = f"{self.tokens} x {self.dim}, k={self.k}"
        return f"{self.ratio():7.2f}  {self.rule}, {self.kind}, {shape}: {self.times['ours']:.0f} us; {others}"


class Problem(NamedTuple):
    """What to select."""

    rule: str
    kind: str
    tokens: int
    dim: int
    k: int


@functools.lru_cache(maxsize=1)
def inputs(kind: str, tokens: int, dim: int, flat: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and importance of one sample; `flat`: as if it had none."""
    case = make_case(kind, Shape(1, tokens, dim, 1), torch.float32)
    return case.features, torch.ones_like(case.importance) if flat else case.importance


@functools.lru_cache(maxsize=1)
def calls(problem: Problem) -> dict[str, Call]:
    """Ours and the others. Packages without importance are compared without it."""
    rule, k = RULES[problem.rule], problem.k
    # Packages have facility location, which is coverage without importance.
    flat = isinstance(rule, Coverage) and problem.kind == "flat"
    features, importance = inputs(problem.kind, problem.tokens, problem.dim, flat)
    x, weight = features[0].numpy(), importance[0].numpy()
    unit = np.ascontiguousarray(torch.nn.functional.normalize(features[0], dim=-1).numpy())
    select = functools.partial(idsel.select, features, k, rule, importance)
    found: dict[str, Call] = {OURS: functools.partial(select, backend="cpu")}
    for name, numpy_loop in numpy_rules.selectors(rule).items():
        found[name] = functools.partial(numpy_loop, x, weight, k)
    found["torch engine"] = functools.partial(select, backend="torch")
    # submodlib does not end where its kernel has no determinant, as with copies or more picks than dimensions.
    singular = isinstance(rule, DPP) and (problem.kind == "ties" or k >= problem.dim)
    if not singular and (flat or not isinstance(rule, Coverage)):
        for name, package in peers.selectors(rule).items():
            found[name] = functools.partial(package, unit, weight, k)
    return found


def names(problem: Problem) -> list[str]:
    """Who can do it; asked of a process that may import packages."""
    return list(calls(problem))


def turn(problem: Problem, name: str) -> list[float]:
    """Some calls of one of them, after a pause and a first call, or this one alone if it is long; microseconds."""
    time.sleep(PAUSE_SECONDS)
    call = calls(problem)[name]
    first = host_us(call)
    return [host_us(call) for _ in range(CALLS)] if first < LONG_US else [first]


class Process:
    """A process of its own, started anew where a call does not end: that of a package, on an input it cannot take."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.start()

    def start(self) -> None:
        """Makes it."""
        context = multiprocessing.get_context("spawn")
        self.pool = context.Pool(1, initializer=torch.set_num_threads, initargs=(self.threads,))

    def turn(self, problem: Problem, name: str) -> list[float]:
        """What `turn` gives; of a call that does not end how long it was waited for."""
        try:
            return self.pool.apply_async(turn, (problem, name)).get(PATIENCE_SECONDS)
        except multiprocessing.TimeoutError:
            self.pool.terminate()
            self.start()
            return [1e6 * PATIENCE_SECONDS]


def measure(problem: Problem, ours: Process, others: Process) -> dict[str, float]:
    """Medians; of those without hope of the first turn."""
    times: dict[str, list[float]] = {name: [] for name in others.pool.apply(names, (problem,))}
    hopeful = list(times)
    for _ in range(TURNS):
        for name in hopeful:
            times[name] += (ours if name == OURS else others).turn(problem, name)
        best = min(statistics.median(found) for found in times.values())
        hopeful = [name for name in hopeful if name == OURS or statistics.median(times[name]) < HOPELESS * best]
    return {name: statistics.median(found) for name, found in times.items()}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """All that was asked for, measured one after the other."""
    ours, others = Process(options.threads), Process(options.threads)
    with ours.pool:
        for rule, kind, tokens, dim in itertools.product(options.rules, options.kinds, options.tokens, options.dims):
            for k in sorted({min(16, tokens), min(64, tokens), tokens // 10}):
                problem = Problem(rule, kind, tokens, dim, k)
                yield Cell(*problem, measure(problem, ours, others))
    others.pool.terminate()


def table(found: Sequence[Cell]) -> str:
    """By rule and number of dimensions."""
    body = []
    for name in dict.fromkeys(cell.rule for cell in found):
        mine = [cell for cell in found if cell.rule == name]
        for title, chosen in (
            (f"D <= {peers.FEW_DIMENSIONS}", [cell for cell in mine if cell.dim <= peers.FEW_DIMENSIONS]),
            (f"D > {peers.FEW_DIMENSIONS}", [cell for cell in mine if cell.dim > peers.FEW_DIMENSIONS]),
        ):
            if chosen:
                body.append([f"`{name}`", title, *_columns(chosen)])
    return markdown(["rule", "", "inputs", "median", "2 x or more", "below 1 / 1.1", "worst"], body, left=2)


def _columns(chosen: Sequence[Cell]) -> list[str]:
    ratios = [cell.ratio() for cell in chosen]
    worst = min(chosen, key=Cell.ratio)
    where = f"{worst.kind}, {worst.tokens} x {worst.dim}, k={worst.k}: {worst.best()}"
    return [
        str(len(chosen)),
        f"{statistics.median(ratios):.1f}",
        f"{sum(ratio >= 2 for ratio in ratios)}",
        f"{sum(ratio < 1 / 1.1 for ratio in ratios)}",
        f"{worst.ratio():.2f} ({where})",
    ]


def write_docs(found: Sequence[Cell], threads: int) -> None:
    """Between the marks of the page."""
    installed = [name for name in peers.PACKAGES.values() if name not in peers.missing()]
    about = f"{cpu_model()}, {threads} threads, PyTorch {torch.__version__.split('+')[0]}, NumPy {np.__version__}"
    about += f"; packages: {', '.join(installed) or 'none'}."
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{about}\n\n{table(found)}\n{END}{rest.split(END)[1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of our engine")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/cpu_engine.md")
    parser.add_argument("--also", type=Path, help="times written by --out before, which belong to the table, too")
    parser.add_argument("--out", type=Path, help="a file for all times, as JSON")
    options = parser.parse_args(arguments)
    if absent := peers.missing():
        print("not installed:", ", ".join(absent))
    found = [Cell(**cell) for cell in json.loads(options.also.read_text())] if options.also else []
    for cell in cells(options):
        found.append(cell)
        print(cell.line(), flush=True)
    print("\n" + table(found))
    if options.out:
        options.out.write_text(json.dumps([cell._asdict() for cell in found], indent=1) + "\n")
    if options.docs:
        write_docs(found, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())

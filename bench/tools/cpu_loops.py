"""Whether the cpu engine chooses its loops well on this machine: `python -m bench.tools.cpu_loops`.

    python -m bench.tools.cpu_loops [--rules MMR] [--kinds flat] [--tokens 576] [--dims 64] [--threads 1] [--worst 20]

Each call as the engine does it, and with the lazy loop, rows and rows of a Gram forced upon it, by turns, each after a
call of its own that does not count; medians. The costs of `csrc/cpu/cost_model.h` are good where the choice takes about
as long as the best of the three: a table says how often, and another which inputs are worst.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

import idsel_kernels as idsel
from idsel_kernels.engines import cpu

from ..harness import host_us
from ..tables import markdown
from ..workloads import Shape, make_case
from .cpu_peers import DIMS, KINDS, RULES, TOKENS

LOOPS = (cpu.Loop.LAZY, cpu.Loop.ROWS, cpu.Loop.GRAM)
# Those that have one loop only are left out.
SEVERAL = ("IDSelection", "MMR", "MaxMin(start=0)", "HardSuppress", "DPP")


class Choice(NamedTuple):
    """One input and k; microseconds by loop."""

    rule: str
    kind: str
    tokens: int
    dim: int
    k: int
    times: dict[cpu.Loop, float]

    def best(self) -> cpu.Loop:
        return min(LOOPS, key=self.times.__getitem__)

    def ratio(self) -> float:
        """How many times as long as the best loop the choice takes."""
        return self.times[cpu.Loop.AUTO] / self.times[self.best()]

    def row(self) -> list[str]:
        """Of the table of the worst."""
        shape = f"{self.kind}, {self.tokens} x {self.dim}, k={self.k}"
        return [self.rule, shape, f"{self.ratio():.2f}", *(f"{time:.0f}" for time in self.times.values())]


def measure(rule: str, kind: str, tokens: int, dim: int, repeats: int) -> list[Choice]:
    """Of some k."""
    case = make_case(kind, Shape(1, tokens, dim, 1), torch.float32)
    found = []
    for k in sorted({min(16, tokens), min(64, tokens), tokens // 10}):
        call = functools.partial(idsel.select, case.features, k, RULES[rule], case.importance, backend="cpu")
        times: dict[cpu.Loop, list[float]] = {loop: [] for loop in cpu.Loop}
        for loop in itertools.chain.from_iterable([cpu.Loop] * repeats):
            with cpu.use_loop(loop):
                call()  # the one before may have emptied the caches
                times[loop].append(host_us(call))
        medians = {loop: statistics.median(of_loop) for loop, of_loop in times.items()}
        found.append(Choice(rule, kind, tokens, dim, k, medians))
    return found


def summary(found: Sequence[Choice]) -> str:
    """By rule: how far from the best loop."""
    body = []
    for rule in dict.fromkeys(choice.rule for choice in found):
        ratios = sorted(choice.ratio() for choice in found if choice.rule == rule)
        near = sum(ratio <= 1.2 for ratio in ratios)
        body.append([f"`{rule}`", str(len(ratios)), f"{statistics.median(ratios):.2f}", str(near), f"{ratios[-1]:.2f}"])
    return markdown(["rule", "inputs", "median", "within 1.2", "worst"], body, left=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=SEVERAL, default=list(SEVERAL))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--dims", nargs="+", type=int, default=[dim for dim in DIMS if dim <= 1024])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of our engine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worst", type=int, default=15, help="how many of the worst inputs to print")
    options = parser.parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        found = [
            choice
            for rule, kind, tokens, dim in itertools.product(options.rules, options.kinds, options.tokens, options.dims)
            for choice in measure(rule, kind, tokens, dim, options.repeats)
        ]
    finally:
        torch.set_num_threads(before)
    worst = sorted(found, key=Choice.ratio, reverse=True)[: options.worst]
    names = ["chosen", *(loop.name.lower() for loop in LOOPS)]
    print(summary(found))
    print("\n" + markdown(["rule", "input", "chosen / best", *names], [choice.row() for choice in worst], left=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

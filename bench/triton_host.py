"""The Python part of a call on the triton engine, without a GPU: everything up to Triton's launcher in C.

    python bench/triton_host.py [--repeats 20000]

The compiled kernel is replaced by a function that does nothing and tensors are on the CPU, so this contains the plan's
look-up, the allocation of outputs and workspace and the assembly of arguments; not the launcher, the driver, nor the
look-ups of device and stream. The second figure goes through `select` and the dispatcher.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

import idsel_kernels as idsel
from idsel_kernels.engines import triton as engine
from idsel_kernels.problem import Inputs, Problem
from idsel_kernels.testing import clustered


class _Nothing:
    """Stands for the kernel, not compiled and compiled."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., _Nothing]:
        return lambda *arguments, **options: self


def _least_us(call: Callable[[], object], repeats: int) -> float:
    """The least of many means of 100 calls: what is above it is other work of the machine."""
    times = []
    for _ in range(repeats // 100):
        begin = time.perf_counter()
        for _ in range(100):
            call()
        times.append((time.perf_counter() - begin) / 100 * 1e6)
    return min(times)


def main(arguments: list[str] | None = None) -> int:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20000)
    options = parser.parse_args(arguments)
    from idsel_kernels.triton_impl import kernels

    kernels.select_kernel = _Nothing()
    engine._installation = lambda: None
    engine._interpreted = lambda: True  # so that it takes CPU tensors
    features, importance, _ = clustered(1, 576, 64, dtype=torch.bfloat16)
    inputs, rule = Inputs(features, importance), idsel.IDSelection()
    problem = Problem.of(inputs, rule, [64], sort=False)
    for name, call in (
        ("the engine alone", lambda: engine.ENGINE.run(problem, inputs)),
        ("select(backend='triton')", lambda: idsel.select(features, 64, rule, importance, backend="triton")),
    ):
        print(f"{name}: {_least_us(call, options.repeats):.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())

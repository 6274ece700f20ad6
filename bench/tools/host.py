"""What a call costs the host, without a GPU: everything up to the library, or up to Triton's launcher in C.

    python -m bench.tools.host [--repeats 20000]

`cuda` and `triton` run on CPU tensors with a launch that does nothing, so their figures contain all the Python: checks,
choice of the engine, allocation of outputs and workspace, assembly of arguments; not the binding, the driver, nor the
look-ups of device and stream. `cpu` is asked for no picks: the binding and the library, and nothing selected.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

import idsel_kernels as idsel
from idsel_kernels.engines import cpu, cuda, triton
from idsel_kernels.problem import Inputs, Problem
from idsel_kernels.testing import clustered


class _WithoutDevice(cuda.CudaEngine):
    """The cuda engine on CPU tensors, with a library that returns at once."""

    device_types = ("cpu",)
    library = SimpleNamespace(
        select_cuda=lambda *arguments: None,
        cuda_plan=lambda *arguments: {"workspace_bytes": 2**21},
        CUDA_COUNTERS_BYTES=1,
    )
    rule_ids = frozenset([idsel.IDSelection.rule_id])

    def _library(self) -> Any:
        return self.library

    def _library_failure(self) -> str | None:
        return None

    def _rule_ids(self) -> frozenset[int]:
        return self.rule_ids

    def _device_failure(self, index: int) -> str | None:
        return None

    def _is_capturing(self) -> bool:
        return False

    def _guard(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def _stream(self, device: torch.device) -> int:
        return 0


class _NoKernel:
    """Stands for Triton's kernel, not compiled and compiled."""

    function = packed_metadata = None

    def warmup(self, *arguments: object, **options: object) -> _NoKernel:
        return self

    def run(self, *arguments: object) -> None:
        pass


def _triton_without_launch() -> Any:
    from idsel_kernels.triton_impl import kernels, launch

    kernels.select_kernel = _NoKernel()  # type: ignore[assignment]
    launch.INTERPRETED = False
    triton._installation = lambda: None  # type: ignore[assignment]
    triton._interpreted = lambda: True  # so that it takes CPU tensors
    return triton.ENGINE


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
    """Prints two figures for each engine: the engine alone, and the public function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20000)
    repeats = parser.parse_args(arguments).repeats
    features, importance, _ = clustered(1, 576, 64)
    inputs, rule = Inputs(features, importance), idsel.IDSelection()
    cuda.ENGINE = _WithoutDevice()
    for name, engine, k in (
        ("cuda", cuda.ENGINE, 64),
        ("triton", _triton_without_launch(), 64),
        ("cpu", cpu.ENGINE, 0),
    ):
        problem = Problem.of(inputs, rule, [k], sort=False)
        alone = _least_us(lambda: engine.run(problem, inputs), repeats)  # noqa: B023
        whole = _least_us(lambda: idsel.select(features, k, rule, importance, backend=name), repeats)  # noqa: B023
        print(f"{name:7} the engine {alone:5.1f} us, select {whole:5.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())

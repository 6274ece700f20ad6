"""What a call costs the host, without a GPU: everything up to the library, or up to Triton's launcher in C.

    python -m bench.tools.host [--repeats 20000] [--check]

Each figure is the least of many means. The multiple beside it is of `torch.topk` on the same importance: the median of
many, each of calls right after one another, so that other work on the machine meets both. The library and the launcher
do nothing, and tensors lie on the CPU, so the figures contain all the Python: checks, choice of the engine, allocation
of outputs and workspace, assembly of arguments; not the binding, the driver, nor the look-ups of device and stream.
"first" is a call of a layout that has not been seen, as each is where lengths vary.
`--check` fails beyond the targets of DESIGN: 4 for `select`, 1.5 for `plan.run`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

import idsel_kernels as idsel
from idsel_kernels import _native, calls, dispatch
from idsel_kernels.engines import base, cpu, cuda, triton
from idsel_kernels.problem import Inputs, Problem
from idsel_kernels.testing import clustered
from idsel_kernels.tracing import must_trace

MOST_OF_TOPK = {"select": 4.0, "plan.run": 1.5}
K = 64


class _NoCall:
    """Stands for the library's `Call`."""

    def __init__(self, *arguments: object) -> None:
        pass

    def on_cpu(self, *arguments: object) -> None:
        pass

    def on_cuda(self, *arguments: object) -> None:
        pass


NO_LIBRARY: Any = SimpleNamespace(
    Call=_NoCall,
    cuda_plan=lambda *arguments: {"workspace_bytes": 2**21, "algorithm": "gram", "launches": 1, "flops": (0, 0)},
    CUDA_COUNTERS_BYTES=1,
    resolve_isa=lambda isa: 0,
)


class _WithoutDevice(cuda.CudaEngine):
    """The cuda engine on CPU tensors, with a library that returns at once."""

    device_types = ("cpu",)
    rule_ids = frozenset([idsel.IDSelection.rule_id])

    def _library(self) -> Any:
        return NO_LIBRARY

    def _library_failure(self) -> str | None:
        return None

    def _rule_ids(self) -> frozenset[int]:
        return self.rule_ids

    def _device_failure(self, index: int) -> str | None:
        return None

    def _current_device(self) -> int | None:
        return None

    def _is_capturing(self) -> bool:
        return False

    def _stream(self, device: torch.device) -> int:
        return 0


class _NoKernel:
    """Stands for Triton's kernel, not compiled and compiled."""

    function = packed_metadata = None

    def warmup(self, *arguments: object, **options: object) -> _NoKernel:
        return self

    def run(self, *arguments: object) -> None:
        pass


def _without_launches() -> Iterator[str]:
    """Makes each engine one that does nothing; their names."""
    cuda.ENGINE = _WithoutDevice()
    yield "cuda"
    if triton._installation() is None:
        from idsel_kernels.triton_impl import kernels, launch

        kernels.select_kernel = _NoKernel()  # type: ignore[assignment]
        launch.INTERPRETED = False
        triton._interpreted = lambda: True  # type: ignore[assignment]  # so that it takes CPU tensors
        yield "triton"
    _native.library = lambda: NO_LIBRARY
    _native.failure = lambda: None  # type: ignore[assignment]
    _native.rule_ids = lambda: frozenset([idsel.IDSelection.rule_id])  # type: ignore[assignment]
    cpu.ENGINE = cpu.CpuEngine()
    yield "cpu"


def _mean_us(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(20):
        call()
    return (time.perf_counter() - begin) / 20 * 1e6


def _measured(call: Callable[[], object], control: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The least time of a call, and how many times as long as the control it takes."""
    times = [(_mean_us(call), _mean_us(control)) for _ in range(repeats // 20)]
    return min(mine for mine, _ in times), statistics.median(mine / other for mine, other in times)


def _parts(name: str, features: torch.Tensor, importance: torch.Tensor) -> dict[str, Callable[[], object]]:
    """A call, and what it is made of."""
    rule, inputs = idsel.IDSelection(), Inputs(features, importance)
    problem = Problem.of(inputs, rule, [K], sort=False)
    plan = idsel.plan(features, K, rule, importance, backend=name)
    out = base.empty_outputs(problem, K)
    launcher = calls.make(inputs, rule, [K], False, name).launcher

    def first() -> None:
        calls.forget()
        idsel.select(features, K, rule, importance, backend=name)

    return {
        "select": lambda: idsel.select(features, K, rule, importance, backend=name),
        "  is anything watching": lambda: must_trace(features, importance, None, None),
        "  finding the call": lambda: calls.find(inputs, rule, K, False, name),
        "  outputs": lambda: base.empty_outputs(problem, K),
        "  launcher, given outputs": lambda: launcher(features, importance, None, None, None, out),
        "plan.run": lambda: plan.run(features, importance),
        "first select": first,
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures of each engine; with `--check` 1 where one is over its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20000)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    features, importance, _ = clustered(1, 576, 64)
    over = 0

    def topk() -> object:
        return torch.topk(importance, K)

    print(f"torch.topk: {_measured(topk, topk, options.repeats)[0]:.1f} us")
    for name in _without_launches():
        assert name in dispatch.BACKENDS
        for part, call in _parts(name, features, importance).items():
            least, times = _measured(call, topk, options.repeats)
            is_over = times > MOST_OF_TOPK.get(part, times)
            over += is_over
            print(f"{name:7} {part:24} {least:6.2f} us, {times:4.1f} x{' OVER' if is_over else ''}")
    return int(options.check and over > 0)


if __name__ == "__main__":
    sys.exit(main())

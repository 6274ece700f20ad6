"""The `cuda` backend: one kernel launch of the compiled library (docs/cuda_engine.md)."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from .. import _native
from ..problem import Inputs, Problem
from ..rules import State
from .base import Launcher, Outputs
from .library_call import LibraryCall, address
from .streams import StreamCounters, current_device, current_stream, own_zeros

__all__ = ["ENGINE", "CudaEngine"]


class CudaEngine:
    """See `engines.base.Engine`. The underscored methods are all that it asks of CUDA, besides the library."""

    name = "cuda"
    device_types: tuple[str, ...] = ("cuda",)
    # What the similarities of a sample may take before it is worked on in panels; 0: what pays, and at most 1 GiB
    # (csrc/cuda/plan.cpp).
    gram_budget_bytes = 0
    # (B,) int64 on the device, to which a call adds how many similarities its picks have read; for measurements.
    similarities_read: torch.Tensor | None = None
    # (B, 2) int64 on the device, to which a call adds how many rounds and panels a sample took; likewise.
    panels_made: torch.Tensor | None = None

    def __init__(self) -> None:
        self._counters = StreamCounters(torch.uint8)
        self._failure = functools.cache(self._any_failure)
        self._failure_of = functools.cache(self._device_failure)
        self._plan_of = functools.lru_cache(1024)(self._plan)

    def unavailable_reasons(self) -> list[str]:
        """Why it cannot run anything on this machine."""
        return [failure] if (failure := self._failure()) else []

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why it cannot run this problem."""
        if problem.device.type not in self.device_types:
            return [f"it runs on {self.device_types[0].upper()} tensors, got a tensor on {problem.device}"]
        reasons = []
        if failure := self._failure_of(problem.device.index or 0):
            reasons.append(failure)
        if problem.rule.rule_id not in self._rule_ids():
            reasons.append(f"the compiled library has no rule {type(problem.rule).__name__}")
        elif isinstance(why := self._workspace_for(problem), str):
            reasons.append(why)
        return reasons

    def algorithm(self, problem: Problem) -> str:
        """How it would run this problem."""
        if not problem.rule.needs_similarities:
            begins = "the diagonal of the similarities given" if problem.similarity else "norms"
            return f"one launch: {begins}, then one CTA per sample picks"
        plan = self._plan_for(problem)
        assert isinstance(plan, dict), plan
        return _described(problem, plan)

    def memory(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Workspace and counters for launches that never run at the same time, ready for every stream."""
        workspace = torch.empty(int(self._workspace_for(problem)), dtype=torch.uint8, device=problem.device)
        return workspace, own_zeros(self._library().CUDA_COUNTERS_BYTES, torch.uint8, problem.device)

    def launcher(
        self, problem: Problem, inputs: Inputs, memory: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> Launcher:
        """Makes a problem ready."""
        return _Launcher(self, problem, inputs, memory)

    def _workspace_for(self, problem: Problem) -> int | str:
        """The bytes, or why the problem cannot run."""
        plan = self._plan_for(problem)
        return plan if isinstance(plan, str) else int(plan["workspace_bytes"])

    def _plan_for(self, problem: Problem) -> dict[str, Any] | str:
        """What the library would do, or why the problem cannot run."""
        return self._plan_of(problem, self.gram_budget_bytes)

    def _plan(self, problem: Problem, gram_budget_bytes: int) -> dict[str, Any] | str:
        rule_id, params = problem.rule.encode()
        shape = (problem.batch, problem.tokens, problem.dim)
        answer: dict[str, Any] | str = self._library().cuda_plan(
            *(shape, problem.k_max, rule_id, params, problem.ragged, gram_budget_bytes, problem.similarity)
        )
        return answer

    def _library(self) -> ModuleType:
        return _native.library()

    def _library_failure(self) -> str | None:
        return _native.failure()

    def _rule_ids(self) -> frozenset[int]:
        return _native.rule_ids()

    def _any_failure(self) -> str | None:
        """Why the library cannot run on any device; which of them a problem is on comes later."""
        if failure := self._library_failure():
            return failure
        failures = [self._failure_of(index) for index in range(max(1, self._device_count()))]
        return None if None in failures else failures[0]

    def _device_failure(self, index: int) -> str | None:
        """Why the library cannot run on a device."""
        library = self._library()
        if failure := library.cuda_failure(-1):
            notes = _native.build_notes()
            return f"{failure} ({notes})" if notes else str(failure)
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        failure = library.cuda_failure(index)
        return f"CUDA device {index}: {failure}" if failure else None

    def _device_count(self) -> int:
        return torch.cuda.device_count()

    def _current_device(self) -> int | None:
        return current_device()

    def _stream(self, device: torch.device) -> int:
        return current_stream(device)

    def _is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()


class _Launcher(LibraryCall):
    """On the current stream of the features' device; nothing waits for it."""

    def __init__(
        self, engine: CudaEngine, problem: Problem, inputs: Inputs, memory: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        library = engine._library()
        super().__init__(library, "cuda", problem, inputs, engine.gram_budget_bytes)
        self.engine, self.memory, self.device = engine, memory, problem.device
        self.workspace_bytes = int(engine._workspace_for(problem))
        self.counters_bytes = library.CUDA_COUNTERS_BYTES

    def __call__(
        self,
        features: torch.Tensor,
        importance: torch.Tensor | None,
        mask: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        counts: torch.Tensor | None,
        grids: torch.Tensor | None,
        given: torch.Tensor | None,
        out: Outputs | None = None,
    ) -> Outputs:
        engine, device = self.engine, self.device
        if device.index != engine._current_device():
            with torch.cuda.device(device):
                return self(features, importance, mask, cu_seqlens, counts, grids, given, out)
        if self.adapts:
            adapted = self.adapted(features, importance, cu_seqlens, counts, grids, given)
            features, importance, cu_seqlens, counts, grids, given = adapted
        indices, scores = out = out or self.outputs()
        stream = engine._stream(device)
        if self.memory is None:
            # Freed when this returns, which is safe: the allocator gives it out again in the order of this stream.
            workspace = torch.empty_strided((self.workspace_bytes,), (1,), dtype=torch.uint8, device=device)
            counters = engine._counters.zeros(self.counters_bytes, device, stream, engine._is_capturing())
        else:
            workspace, counters = self.memory
        self.call.on_cuda(
            features.data_ptr(),
            address(importance),
            address(mask),
            address(cu_seqlens),
            address(grids),
            address(given),
            indices.data_ptr(),
            scores.data_ptr(),
            address(counts),
            workspace.data_ptr(),
            self.workspace_bytes,
            counters.data_ptr(),
            stream,
            address(engine.similarities_read),
            address(engine.panels_made),
        )
        return out


def _described(problem: Problem, plan: dict[str, Any]) -> str:
    """A plan of the library (`idsel_plan` in csrc/include/idsel/select.h) in words."""
    least, most = (_flops(flops) for flops in plan["flops"])
    has_flops = not (problem.ragged or problem.similarity)
    made = "by float32 arithmetic" if problem.dtype is torch.float32 else "by tensor cores"
    made = "from the similarities given" if problem.similarity else made
    if plan["algorithm"] == "gram":
        flops = f" ({most})" if has_flops else ""
        rows = "rows of it, those whose gain could win," if problem.rule.state is State.COVERAGE else "one row of it"
        work = f"the Gram {made}{flops}, then one CTA per sample reads {rows} per pick"
    else:
        panels = "as many as the gains call for"
        if problem.rule.state is not State.COVERAGE:
            flops = f", {least} to {most}" if has_flops else ""
            fewest, most_panels = plan["panels"]
            panels = f"{fewest} to {most_panels}{flops}; fewer where picks change nothing"
        longer = " of the samples that are too long for a whole one" if problem.ragged else ""
        work = (
            f"norms, then panels of {plan['panel_rows']} rows of the Gram{longer} {made} and a group of CTAs "
            f"per sample ({panels})"
        )
    launches = "one launch" if plan["launches"] == 1 else f"{plan['launches']} launches"
    return f"{launches}: {work}; {plan['workspace_bytes'] / 2**20:.1f} MiB of workspace"


def _flops(flops: float) -> str:
    unit = "T" if flops >= 1e12 else "G"
    return f"{flops / {'T': 1e12, 'G': 1e9}[unit]:.3g} {unit}FLOP"


ENGINE = CudaEngine()

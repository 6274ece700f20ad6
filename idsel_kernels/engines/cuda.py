"""The `cuda` backend: one kernel launch of the compiled library (docs/cuda_engine.md)."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from types import ModuleType

import torch

from .. import _native
from ..problem import Inputs, Problem
from ..rules import State, TopK
from . import library_call

__all__ = ["ENGINE", "CudaEngine"]


class CudaEngine:
    """See `engines.base.Engine`. The underscored methods are all that it asks of CUDA, besides the library."""

    name = "cuda"
    device_type = "cuda"

    def __init__(self) -> None:
        self._counters_of: dict[tuple[int | None, int], torch.Tensor] = {}
        self._failure_of = functools.cache(self._device_failure)
        self._workspace_of = functools.lru_cache(1024)(self._workspace)

    def unavailable_reasons(self) -> list[str]:
        """Why it cannot run anything on this machine."""
        if failure := self._library_failure():
            return [failure]
        # One usable device is enough; which of them a problem is on comes later.
        failures = [self._failure_of(index) for index in range(max(1, self._device_count()))]
        return [] if None in failures else [failures[0] or ""]

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why it cannot run this problem."""
        if problem.device.type != self.device_type:
            return [f"it runs on {self.device_type.upper()} tensors, got a tensor on {problem.device}"]
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
        if isinstance(problem.rule, TopK):
            return "one launch: norms, then one block per sample picks"
        arithmetic = "float32 arithmetic" if problem.dtype is torch.float32 else "tensor cores"
        each = "the whole Gram per pick" if problem.rule.state is State.COVERAGE else "one row of it per pick"
        mib = int(self._workspace_for(problem)) / 2**20
        return (
            f"one launch: the Gram by {arithmetic}, then one block per sample reads {each}; {mib:.1f} MiB of workspace"
        )

    def run(self, problem: Problem, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Selects on the current stream of the features' device; nothing waits for it."""
        device = problem.device
        with self._guard(device):
            call = library_call.prepare(problem, inputs)
            workspace_bytes = int(self._workspace_for(problem))
            # Freed when this returns, which is safe: the allocator gives it out again in the order of this stream.
            workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
            stream = self._stream(device)
            counters = self._counters(device, stream)
            self._library().select_cuda(
                *call.arguments, workspace.data_ptr(), workspace_bytes, counters.data_ptr(), stream
            )
        return call.indices, call.scores

    def _workspace_for(self, problem: Problem) -> int | str:
        rule_id, params = problem.rule.encode()
        shape = (problem.batch, problem.tokens, problem.dim)
        return self._workspace_of(shape, problem.k_max, rule_id, tuple(params), problem.ragged)

    def _workspace(
        self, shape: tuple[int, int, int], k_max: int, rule_id: int, params: tuple[float, ...], ragged: bool
    ) -> int | str:
        """The bytes, or why the problem cannot run."""
        answer: int | str = self._library().cuda_workspace_bytes(shape, k_max, rule_id, params, ragged)
        return answer

    def _counters(self, device: torch.device, stream: int) -> torch.Tensor:
        """Zeros, which each launch leaves zero again; launches of two streams may be under way at once."""
        size = self._library().CUDA_COUNTERS_BYTES
        if self._is_capturing():
            # A graph may be replayed on any stream, so it has its own, cleared by a node of the graph.
            return torch.zeros(size, dtype=torch.uint8, device=device)
        key = (device.index, stream)
        if key not in self._counters_of:
            self._counters_of[key] = torch.zeros(size, dtype=torch.uint8, device=device)
        return self._counters_of[key]

    def _library(self) -> ModuleType:
        return _native.library()

    def _library_failure(self) -> str | None:
        return _native.failure()

    def _rule_ids(self) -> frozenset[int]:
        return _native.rule_ids()

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

    def _is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def _guard(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.cuda.device(device)

    def _stream(self, device: torch.device) -> int:
        return torch.cuda.current_stream(device).cuda_stream


ENGINE = CudaEngine()

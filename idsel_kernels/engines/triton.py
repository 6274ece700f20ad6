"""The `triton` backend: the whole selection in one launch (docs/triton_engine.md)."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .. import _copies, _env
from ..counts import on_device
from ..problem import Inputs, Problem
from ..rules import State
from .base import GRAM_BUDGET_BYTES, Launcher, Outputs, empty_outputs, in_int32
from .streams import StreamCounters, current_device, current_stream, own_zeros

__all__ = ["ENGINE", "TritonEngine"]

_LEAST_VERSION = (3, 2)
_KNOWS_BLACKWELL = (3, 3)
# Before this its interpreter makes an integer of an array of one number, which NumPy from that version on refuses
# (triton-lang/triton#9171).
_INTERPRETS_WITH_NEW_NUMPY = (3, 7)
_NEW_NUMPY = (2, 4)
# Tiles of a triangle are counted in 32 bits.
_MAX_TOKENS = 2**21


class TritonEngine:
    """See `engines.base.Engine`."""

    name = "triton"
    # What the dot products of a launch may take. Samples whose Gram alone is larger run on panels of it.
    gram_budget_bytes = GRAM_BUDGET_BYTES

    def __init__(self) -> None:
        self._counters = StreamCounters(torch.int32)

    @property
    def device_types(self) -> tuple[str, ...]:
        """HIP devices have the type `cuda` too; the CPU counts only under the interpreter."""
        return ("cpu", "cuda") if _interpreted() else ("cuda",)

    def unavailable_reasons(self) -> list[str]:
        """Why it cannot run anything on this machine."""
        if (reason := _installation()) is not None:
            return [reason]
        if _interpreted() and (reason := _numpy_too_new()) is not None:
            return [reason]
        if _interpreted() or _has_gpu():
            return [] if isinstance(loaded := _load(), ModuleType) else [loaded]
        return ["no CUDA or HIP device (with TRITON_INTERPRET=1 it runs on the CPU, for tests)"]

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why it cannot run this problem."""
        reasons = []
        on_cpu = problem.device.type == "cpu"
        if on_cpu and not _interpreted():
            reasons.append("it runs on CUDA and HIP tensors (on CPU tensors with TRITON_INTERPRET=1, for tests)")
        elif not on_cpu and problem.device.type != "cuda":
            reasons.append(f"it runs on CUDA and HIP tensors, got a tensor on {problem.device}")
        if problem.rule.rule_id not in _library().RULE_IDS:
            reasons.append(f"its kernel has no branch for {type(problem.rule).__name__}")
        if not on_cpu and problem.device.type == "cuda" and (reason := _too_new(problem.device.index or 0)) is not None:
            reasons.append(reason)
        if problem.tokens > _MAX_TOKENS:
            reasons.append(f"it takes at most 2**21 tokens, got {problem.tokens}")
        if problem.rule.state is State.COVERAGE and not (problem.similarity or self._gram_fits(problem.tokens)):
            whose = "the T x T similarities of a ragged batch" if problem.ragged else "the N x N similarities"
            size, budget = _gram_bytes(problem.tokens) / 2**20, self.gram_budget_bytes / 2**20
            reasons.append(
                f"{type(problem.rule).__name__} reads {whose} after every pick: "
                f"{size:.0f} MiB, more than the budget of {budget:.0f} MiB"
            )
        return reasons

    def only_by_name_reasons(self, problem: Problem) -> list[str]:
        """Why it is not chosen automatically."""
        return ["TRITON_INTERPRET=1 is for tests: it runs only when asked for by name"] if _interpreted() else []

    def algorithm(self, problem: Problem) -> str:
        """How it would run this problem."""
        if not problem.rule.needs_similarities:
            return f"one launch: norms by tiles, then {problem.k_max} greedy steps"
        if problem.similarity:
            return f"one launch: similarities read where they lie, in {problem.k_max} greedy steps"
        if self._gram_fits(problem.tokens):
            return f"one launch: the Gram by tiles, then {problem.k_max} greedy steps by the last program of a sample"
        longer = "where a sample's Gram is too large, " if problem.ragged else ""
        return f"one launch: norms by tiles, then {longer}{problem.k_max} greedy steps on panels of the Gram"

    def memory(self, problem: Problem) -> Memory | None:
        """For launches that never run at the same time, ready for every stream."""
        if _is_empty(problem):
            return None
        plan, device = self._plan(problem), problem.device
        counts = on_device(problem.k, device) if _has_own_counts(problem) else None
        workspace = torch.empty(plan.workspace, dtype=torch.float32, device=device)
        return Memory(workspace, counts, own_zeros(plan.counters, torch.int32, device))

    def launcher(self, problem: Problem, inputs: Inputs, memory: Memory | None = None) -> Launcher:
        """Makes a problem ready."""
        return _Nothing(problem) if _is_empty(problem) else _Launcher(self, problem, inputs, memory)

    def _plan(self, problem: Problem) -> Any:
        arch = _arch(problem.device.index) if problem.device.type == "cuda" else 0
        return _library().make_plan(problem, arch, self.gram_budget_bytes)

    def _gram_fits(self, tokens: int) -> bool:
        """As `launch.make_plan` decides."""
        return _gram_bytes(tokens) <= self.gram_budget_bytes


class Memory(NamedTuple):
    """What a launch needs besides what the caller gives and gets."""

    workspace: torch.Tensor
    counts: torch.Tensor | None  # those of the problem, where samples differ
    counters: torch.Tensor


class _Launcher:
    """On the current stream of the features' device; nothing waits for it."""

    def __init__(self, engine: TritonEngine, problem: Problem, inputs: Inputs, memory: Memory | None) -> None:
        features, importance, mask, *_ = inputs
        self.problem, self.width, self.device = problem, problem.k_max, problem.device
        self.engine, self.memory = engine, memory
        self.plan, self.has_own_counts = engine._plan(problem), _has_own_counts(problem)
        library = _library()
        self.pointers, self.launch = library.pointers, library.Launches(self.plan, features, importance, mask)

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
        device = self.device
        is_gpu = device.type == "cuda"
        if is_gpu and device.index != current_device():
            with torch.cuda.device(device):
                return self(features, importance, mask, cu_seqlens, counts, grids, given, out)
        indices, scores = out = out or empty_outputs(self.problem, self.width)
        stream = current_stream(device) if is_gpu else 0
        workspace, own_counts, counters = self.memory or self._fresh(stream, is_gpu)
        if cu_seqlens is not None:
            cu_seqlens = in_int32(cu_seqlens)
        if grids is not None:
            grids = in_int32(grids)
        if given is not None:
            given = in_int32(given)
        counts = own_counts if counts is None else in_int32(counts, 0, self.width)
        tensors = features, importance, mask, cu_seqlens, counts, grids, given
        self.launch(stream, self.pointers(*tensors, workspace, counters, indices, scores))
        return out

    def _fresh(self, stream: int, is_gpu: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        # Freed when the launch is queued, which is safe: the allocator gives it out again in the order of this stream.
        problem, device = self.problem, self.device
        workspace = torch.empty_strided((self.plan.workspace,), (1,), dtype=torch.float32, device=device)
        is_capturing = is_gpu and torch.cuda.is_current_stream_capturing()
        counters = self.engine._counters.zeros(self.plan.counters, device, stream, is_capturing)
        return workspace, on_device(problem.k, device) if self.has_own_counts else None, counters


class _Nothing:
    """A launcher where there is nothing to select: every place is padding."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.width = problem, problem.k_max

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
        indices, scores = out = out or empty_outputs(self.problem, self.width)
        indices.fill_(-1)
        scores.fill_(-torch.inf)
        return out


def _has_own_counts(problem: Problem) -> bool:
    """Counts by sample that lie on the host."""
    return len(problem.k) > 1 and not problem.has_counts


def _is_empty(problem: Problem) -> bool:
    return 0 in (problem.batch, problem.k_max, problem.tokens)


def _gram_bytes(tokens: int) -> int:
    """float32, in rows of a multiple of 16."""
    return 4 * tokens * (-(-tokens // 16) * 16)


@functools.cache
def _load() -> ModuleType | str:
    """The launcher, which imports Triton, or why it does not load."""
    try:
        _copies.add_triton_impl()
        return importlib.import_module("..triton_impl.launch", __package__)
    except Exception as error:  # a Triton that does not fit its surroundings fails in many ways
        return f"triton does not load: {type(error).__name__}: {error}"


def _library() -> Any:
    """The launcher.

    Raises:
        ImportError: it does not load; the message says why.
    """
    if isinstance(loaded := _load(), str):
        raise ImportError(loaded)
    return loaded


@functools.cache
def _installation() -> str | None:
    """What is wrong with the installed Triton; None where nothing is."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'idsel_kernels[triton]'; it exists for Linux)"
    if (version := _version()) is not None and version < _LEAST_VERSION:
        return f"triton must be at least {_dotted(_LEAST_VERSION)}, got {_dotted(version)}"
    return None


@functools.cache
def _numpy_too_new() -> str | None:
    """Why Triton's interpreter does not run with the NumPy that is installed; None where nothing is known."""
    version, numpy = _version(), _version("numpy")
    if version is None or numpy is None or version >= _INTERPRETS_WITH_NEW_NUMPY or numpy < _NEW_NUMPY:
        return None
    return (
        f"the interpreter of triton {_dotted(version)} does not run with numpy {_dotted(numpy)}: it needs numpy before "
        f"{_dotted(_NEW_NUMPY)}, or triton {_dotted(_INTERPRETS_WITH_NEW_NUMPY)} or later"
    )


def _version(package: str = "triton") -> tuple[int, ...] | None:
    """Of an installed package, major and minor; None where it does not say."""
    try:
        version = importlib.metadata.version(package)
        return tuple(int(part) for part in version.split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None  # built from source or renamed: it may well do


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@functools.cache
def _too_new(index: int) -> str | None:
    """Why the installed Triton does not know a device: it would stop the process."""
    version, arch = _version(), _arch(index)
    if version is None or version >= _KNOWS_BLACKWELL or arch < 100:
        return None
    return f"compute capability {arch // 10}.{arch % 10} needs triton 3.3 or later, got {_dotted(version)}"


@functools.cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _interpreted() -> bool:
    """Whether the kernels run, or would run, under Triton's interpreter."""
    if _load.cache_info().currsize and isinstance(loaded := _load(), ModuleType):
        return bool(loaded.INTERPRETED)
    return _env.triton_interpret()


@functools.cache
def _arch(index: int) -> int:
    """Compute capability times 10, 0 for HIP."""
    if torch.version.hip:
        return 0
    properties: Any = torch.cuda.get_device_properties(index)
    return int(properties.major * 10 + properties.minor)


ENGINE = TritonEngine()

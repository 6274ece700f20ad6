"""The `cpu` backend: exact lazy greedy in C++ (docs/cpu_engine.md)."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch

from .. import _native
from ..problem import Inputs, Problem
from ..rules import DART, Elimination, State
from .base import Launcher, Outputs
from .library_call import LibraryCall, address

__all__ = ["ENGINE", "Isa", "Loop", "Path", "Stats", "record_stats", "use_isa", "use_loop"]

_MAX_TOKENS = 2**31 - 1


class Path(enum.IntEnum):
    """How the picks of a sample were found: `idsel_path` of the C++ interface."""

    LAZY = 0
    LAZY_ROWS = 1
    LAZY_GRAM = 2
    GRAM = 3


class Isa(enum.IntEnum):
    """Instruction sets: `idsel_isa` of the C++ interface."""

    AUTO = 0
    PORTABLE = 1
    AVX2 = 2
    AVX512 = 3
    NEON = 4


class Loop(enum.IntEnum):
    """Loops of rules that have several: `idsel_loop` of the C++ interface."""

    AUTO = 0
    LAZY = 1
    ROWS = 2
    GRAM = 3


class Stats(NamedTuple):
    """What one sample took.

    Attributes:
        similarities: dot products of two different tokens, those of a Gram included.
        norms: dot products of a token with itself.
        lazy_picks: picks made before the change to a dense path, if there was one.
        path: see `Path`.
        isa: see `Isa`.
    """

    similarities: int
    norms: int
    lazy_picks: int
    path: Path
    isa: Isa


T = TypeVar("T")

_stats: ContextVar[list[list[Stats]] | None] = ContextVar("idsel_cpu_stats", default=None)
_isa: ContextVar[Isa] = ContextVar("idsel_cpu_isa", default=Isa.AUTO)
_loop: ContextVar[Loop] = ContextVar("idsel_cpu_loop", default=Loop.AUTO)


@contextmanager
def record_stats() -> Iterator[list[list[Stats]]]:
    """Records what calls inside the block take: one list per call on this engine, with one `Stats` per sample.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> from idsel_kernels.engines import cpu
        >>> with cpu.record_stats() as calls:
        ...     _ = idsel.maxmin_select(torch.eye(3), 2, start=0, backend="cpu")
        >>> calls[0][0].path.name
        'LAZY_ROWS'
    """
    calls: list[list[Stats]] = []
    with _set(_stats, calls):
        yield calls


@contextmanager
def use_isa(isa: Isa) -> Iterator[None]:
    """Runs calls inside the block with one instruction set; a call raises ValueError where it cannot run here."""
    with _set(_isa, isa):
        yield


@contextmanager
def use_loop(loop: Loop) -> Iterator[None]:
    """Runs calls inside the block with one loop where the rule has several and it can be. The picks are the same."""
    with _set(_loop, loop):
        yield


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class CpuEngine:
    """See `engines.base.Engine`."""

    name = "cpu"
    device_types: tuple[str, ...] = ("cpu",)
    # What the similarities of a sample may take; 0: the library's own limit. Tests lower it.
    gram_budget_bytes = 0

    def unavailable_reasons(self) -> list[str]:
        """Why it cannot run anything on this machine."""
        failure = _native.failure()
        return [failure] if failure else []

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why it cannot run this problem."""
        reasons = []
        if problem.device.type != "cpu":
            reasons.append(f"it runs on CPU tensors, got a tensor on {problem.device}")
        if problem.tokens > _MAX_TOKENS:
            reasons.append(f"it takes at most 2**31 - 1 tokens, got {problem.tokens}")
        if problem.rule.rule_id not in _native.rule_ids():
            reasons.append(f"the compiled library has no rule {type(problem.rule).__name__}")
        return reasons

    def algorithm(self, problem: Problem) -> str:
        """How it would run this problem."""
        isa = Isa(_native.library().resolve_isa(_isa.get())).name
        if problem.similarity and problem.rule.needs_similarities:
            how = "similarities looked up where they lie"
            how += ", by lazy greedy or row by row" if problem.rule.is_greedy else ""
        elif isinstance(problem.rule, Elimination):
            how = "rounds that drop up to 8 tokens each, over the Gram, or rows of it where it exceeds 256 MiB"
        elif isinstance(problem.rule, DART):
            how = "the rows of the pivots, then for each of them the tokens least like it"
        elif problem.rule.state is State.CHANNELS:
            how = "lazy greedy over rows of the features"
        elif problem.rule.state is State.COVERAGE:
            how = "lazy greedy over rows of the Gram, or all of it where most are needed and it takes at most 256 MiB"
        else:
            how = "lazy greedy, by rows or with the whole Gram where that is less work"
        return f"{how}; {isa}, at most {torch.get_num_threads()} threads"

    def memory(self, problem: Problem) -> None:
        """The library takes what it turns out to need."""
        return None

    def launcher(self, problem: Problem, inputs: Inputs, memory: None = None) -> Launcher:
        """Makes a problem ready; the library reads the tensors where they lie."""
        return _Launcher(_native.library(), "cpu", problem, inputs, self.gram_budget_bytes)


class _Launcher(LibraryCall):
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
        if self.adapts:
            adapted = self.adapted(features, importance, cu_seqlens, counts, grids, given)
            features, importance, cu_seqlens, counts, grids, given = adapted
        indices, scores = out = out or self.outputs()
        calls = _stats.get()
        stats = self.call.on_cpu(
            features.data_ptr(),
            address(importance),
            address(mask),
            address(cu_seqlens),
            address(grids),
            address(given),
            indices.data_ptr(),
            scores.data_ptr(),
            () if counts is None else counts.tolist(),
            torch.get_num_threads(),
            _isa.get(),
            _loop.get(),
            calls is not None,
        )
        if calls is not None:
            calls.append([Stats(dots, norms, lazy, Path(path), Isa(isa)) for dots, norms, lazy, path, isa in stats])
        return out


ENGINE = CpuEngine()

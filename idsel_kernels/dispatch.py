"""Chooses the engine for a problem, and says why."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from . import _env, checks
from .engines import probe
from .engines.base import Engine
from .problem import Problem

__all__ = [
    "BACKENDS",
    "Explanation",
    "UnsupportedProblem",
    "available_backends",
    "backend_status",
    "choose",
    "device_types",
    "explain_problem",
    "use_backend",
    "wanted",
]

# In the order in which they are tried; an engine refuses what it cannot run, so the order is the whole policy.
_MODULES = {
    "cuda": "idsel_kernels.engines.cuda",
    "triton": "idsel_kernels.engines.triton",
    "cpu": "idsel_kernels.engines.cpu",
    "torch": "idsel_kernels.engines.reference",
}
BACKENDS = tuple(_MODULES)

_override: ContextVar[str | None] = ContextVar("idsel_backend", default=None)


class UnsupportedProblem(ValueError):
    """The backend asked for by name cannot run this problem; the message gives its reasons."""


@dataclass(frozen=True)
class Explanation:
    """Which engine a call would run on, and why. `str()` of it is meant to be read.

    Attributes:
        backend: the engine chosen, or None where the backend asked for by name refuses.
        chosen_by: "argument", "use_backend", "IDSEL_BACKEND" or "automatic".
        algorithm: how that engine would run the problem.
        reasons: for each backend, why it is not available or does not support the problem (empty: it could run).
        problem: the description that the choice was made from.
    """

    backend: str | None
    chosen_by: str
    algorithm: str
    reasons: dict[str, tuple[str, ...]]
    problem: Problem

    def __str__(self) -> str:
        chosen = f"backend: {self.backend or 'none'} (chosen by: {self.chosen_by})"
        lines = [chosen] + ([f"algorithm: {self.algorithm}"] if self.algorithm else [])
        lines += [f"  {name}: {'; '.join(why) or 'can run this'}" for name, why in self.reasons.items()]
        return "\n".join(lines)


@functools.cache
def _load(name: str) -> Engine | str:
    """The engine, or why there is none."""
    module = _MODULES[name]
    if importlib.util.find_spec(module) is None:
        return f"this build of idsel_kernels has no {name} engine"
    engine: Engine = importlib.import_module(module).ENGINE
    return engine


def _refusals(name: str, problem: Problem | None, by_name: bool = True) -> list[str]:
    """Why a backend cannot run a problem, or anything; what it takes to find out grows from check to check."""
    engine = _load(name)
    if isinstance(engine, str):
        return [engine]
    if reasons := engine.unavailable_reasons():
        return reasons
    if problem is not None:
        reasons = engine.unsupported_reasons(problem)
        only_by_name = getattr(engine, "only_by_name_reasons", None)
        if not reasons and not by_name and only_by_name is not None:
            reasons = only_by_name(problem)
        if reasons:
            return reasons
    failure = probe.failure(engine, None if problem is None else problem.device)
    return [failure] if failure is not None else []


def _never_takes(name: str, problem: Problem) -> bool:
    """Whether a backend has no use for a device, whatever its state: so CPU tensors touch no GPU."""
    kinds = device_types(name)
    return bool(kinds) and problem.device.type not in kinds


def backend_status() -> dict[str, list[str]]:
    """For every backend the reasons why it cannot run on this machine; an empty list where it can.

    What has been tried is as for `available_backends`.
    """
    return {name: _refusals(name, None) for name in BACKENDS}


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine, preferred first: the smallest call on each of them has been tried.

    It is tried once in a process. On a GPU only if the process uses it already, since to initialise CUDA would keep it
    from forking; until then a backend for GPUs is judged by what is installed, and its first call there decides.

    Example:
        >>> "torch" in available_backends()
        True
    """
    return tuple(name for name, reasons in backend_status().items() if not reasons)


def device_types(name: str) -> tuple[str, ...]:
    """The types of devices whose tensors a backend takes, the usual one first; empty: of any."""
    engine = _load(name)
    return () if isinstance(engine, str) else engine.device_types


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every call inside the block on one backend, unless the call itself names another.

    Args:
        name: one of "cuda", "triton", "cpu", "torch". It never falls back: a call it cannot run raises.

    Raises:
        ValueError, TypeError: unknown backend.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> with idsel.use_backend("torch"):
        ...     sel = idsel.select(torch.eye(3), 2, rule=idsel.MaxMin(start=0))
    """
    checks.check_backend(name, BACKENDS)
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def wanted(backend: str | None) -> tuple[str | None, str]:
    """The backend asked for, and by what."""
    if backend is not None:
        return backend, "argument"
    if (name := _override.get()) is not None:
        return name, "use_backend"
    if (name := _env.backend()) is not None:
        checks.check_backend(name, BACKENDS, source="IDSEL_BACKEND")
        return name, "IDSEL_BACKEND"
    return None, "automatic"


def choose(problem: Problem, backend: str | None = None) -> Engine:
    """The engine that runs a problem.

    Raises:
        UnsupportedProblem: the backend asked for by name cannot.
    """
    name, source = wanted(backend)
    for candidate in BACKENDS if name is None else (name,):
        if name is None and _never_takes(candidate, problem):
            continue
        reasons = _refusals(candidate, problem, by_name=name is not None)
        if not reasons:
            engine = _load(candidate)
            assert not isinstance(engine, str)  # else it would have been a reason
            return engine
        if name is not None:
            raise UnsupportedProblem(f"backend {name!r} (by {source}) cannot run this: {'; '.join(reasons)}")
    raise UnsupportedProblem(f"no backend can run this: {problem}")


def explain_problem(problem: Problem, backend: str | None = None) -> Explanation:
    """The `Explanation` of what `choose` would."""
    asked, source = wanted(backend)
    reasons = {name: tuple(_refusals(name, problem, by_name=asked is not None)) for name in BACKENDS}
    candidates = BACKENDS if asked is None else (asked,)
    chosen = next((name for name in candidates if not reasons[name]), None)
    engine = _load(chosen) if chosen else None
    algorithm = engine.algorithm(problem) if engine is not None and not isinstance(engine, str) else ""
    return Explanation(chosen, source, algorithm, reasons, problem)

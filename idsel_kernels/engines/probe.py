"""Whether an engine can run at all: the smallest call, tried once in a process and only when somebody asks.

What a machine lacks an engine knows without running anything. This finds what nobody has thought of: two versions that
do not fit each other, a compiler that a just-in-time engine misses. A failure is a reason in words, as any other.
"""

from __future__ import annotations

from contextvars import Context

import torch

from ..problem import Inputs, Problem
from ..rules import TopK
from ..tracing import must_trace
from .base import Engine

__all__ = ["failure", "forget"]

# Why an engine fails on a device, None where it runs. Threads that ask at once try it once each, which does no harm,
# and a lock could be held by another thread when a process forks.
_tried: dict[tuple[Engine, torch.device], str | None] = {}


def failure(engine: Engine, device: torch.device | None = None) -> str | None:
    """Why an engine cannot run the smallest call; None where it can, or where that is not to be tried now.

    Args:
        engine: one that is available as far as it knows itself.
        device: of the call that is about to be made. None: the usual one of the engine. A GPU is tried only in a
            process that uses it already: a mere question must not initialise CUDA, after which a process cannot fork.
    """
    if not engine.device_types:
        return None  # it takes tensors of any device: what it cannot run, torch cannot
    device = device or _usual_device(engine)
    key = (engine, device)
    if key not in _tried:
        if not _may_try(device):
            return None
        try:
            _tried[key] = Context().run(_try, engine, device)  # what the caller records or has chosen is not for this
        except (MemoryError, torch.OutOfMemoryError):
            return None  # which passes
    return _tried[key]


def forget() -> None:
    """After a change to the engines, which otherwise do not change while a process lives."""
    _tried.clear()


def _usual_device(engine: Engine) -> torch.device:
    """Where the engine would run a call that named no device."""
    kind = engine.device_types[0]
    if kind == "cuda" and _uses_gpu():
        return torch.device(kind, torch.cuda.current_device())
    return torch.device(kind)


def _may_try(device: torch.device) -> bool:
    """Nobody must be watching operators; an unused GPU stays unused; a capture would record the call."""
    if must_trace():
        return False
    if device.type == "cuda":
        return _uses_gpu() and not torch.cuda.is_current_stream_capturing()
    return True


def _uses_gpu() -> bool:
    """Also False in a child of a process that does: CUDA does not work there."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _try(engine: Engine, device: torch.device) -> str | None:
    """Makes one pick of one token; only on a CPU the result is read, for nothing may wait for another device."""
    features = torch.ones((1, 1, 1), dtype=torch.float32, device=device)
    inputs = Inputs(features, features[..., 0], None, None, None, None)
    problem = Problem.of(inputs, TopK(), [1], sort=False)
    try:
        indices, _ = engine.launcher(problem, inputs)(*inputs)
        picked = int(indices) if device.type == "cpu" else 0
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever it is, other calls would meet it too
        words = " ".join(str(error).split())
        return f"it fails at the smallest call, one token: {type(error).__name__}: {words}"
    return None if picked == 0 else f"it fails at the smallest call: of one token it picks index {picked}"

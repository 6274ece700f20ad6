"""The operator `torch.ops.idsel.select`, for everything that traces: compile, export, fake tensors, dispatch modes.

An eager call on plain tensors does not come through here: crossing the dispatcher from Python costs more than
the whole host side of a launch (docs/decisions.md).
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import checks, dispatch
from .problem import Inputs, Problem
from .rules import decode

__all__ = ["call", "must_trace"]

_SCHEMA = (
    "select(Tensor features, SymInt[] k, int rule_id, float[] params, Tensor? importance=None, "
    "Tensor? mask=None, Tensor? cu_seqlens=None, bool sort=False, str? backend=None, bool validate=False)"
    " -> (Tensor indices, Tensor scores)"
)

# Kept for the life of the process: the registrations go when the library object goes.
_library = torch.library.Library("idsel", "DEF")  # type: ignore[no-untyped-call]
_library.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


def _select(
    features: torch.Tensor,
    k: list[int],
    rule_id: int,
    params: list[float],
    importance: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    sort: bool = False,
    backend: str | None = None,
    validate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks again: a compiled graph meets new tensors, and the operator can be called without the public function."""
    inputs, rule = Inputs(features, importance, mask, cu_seqlens), decode(rule_id, params)
    checks.check_inputs(inputs, rule)
    if cu_seqlens is None and features.dim() != 3:
        raise ValueError(f"features must be (B, N, D), got shape {tuple(features.shape)}")
    if backend is not None:
        checks.check_backend(backend, dispatch.BACKENDS)
    batch = features.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    problem = Problem.of(inputs, rule, checks.normalise_k(k[0] if len(k) == 1 else list(k), batch), sort)
    return dispatch.execute(problem, inputs, backend, validate)


def _select_fake(
    features: torch.Tensor,
    k: list[int],
    rule_id: int,
    params: list[float],
    importance: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    sort: bool = False,
    backend: str | None = None,
    validate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = features.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    width = k[0] if len(k) == 1 else max(k)
    indices = features.new_empty((batch, width), dtype=torch.int64)
    return indices, features.new_empty((batch, width), dtype=torch.float32)


def _select_without_autograd(*args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Selection has no gradient: outputs never require grad, whatever the inputs do."""
    with torch._C._AutoDispatchBelowAutograd():
        indices, scores = torch.ops.idsel.select.default(*args, **kwargs)
    return indices, scores


_library.impl("select", _select, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("select", _select_without_autograd, "Autograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("idsel::select", _select_fake, lib=_library)


def must_trace(*tensors: torch.Tensor | None) -> bool:
    """Whether something is watching operators, so that the call has to be one.

    `is_compiling()` alone is not enough: it is False under fake tensors, `make_fx` and dispatch modes.
    """
    if torch.compiler.is_compiling():
        return True
    if _get_current_dispatch_mode() is not None or torch._C._get_tracing_state() is not None:
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_function_stack() > 0:
        return True
    for tensor in tensors:  # noqa: SIM110  # any() over a generator takes 1 µs longer
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return True
    return False


_PLAIN = (torch.Tensor, torch.nn.Parameter)

call = torch.ops.idsel.select.default

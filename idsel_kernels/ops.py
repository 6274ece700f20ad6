"""The operators `torch.ops.idsel.select` and `torch.ops.idsel.merge`, for everything that traces: compile, export, fake
tensors, dispatch modes.

An eager call on plain tensors does not come through here: crossing the dispatcher from Python costs more than
the whole host side of a launch (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any

import torch

from . import calls, checks, dispatch
from .combine import combine, weight_dtype
from .counts import device_counts, host_counts
from .given import as_tokens
from .problem import Inputs
from .rules import decode
from .selection import gather_rows

__all__ = ["merge", "select"]

_SCHEMA = (
    "select(Tensor features, SymInt[] k, int rule_id, float[] params, Tensor? importance=None, "
    "Tensor? mask=None, Tensor? cu_seqlens=None, bool sort=False, str? backend=None, bool validate=False, "
    "Tensor? counts=None, Tensor? grids=None, Tensor? given=None, bool similarity=False)"
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
    counts: torch.Tensor | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks again: a compiled graph meets new tensors, and the operator can be called without the public function.

    `similarity` says that `features` are similarities (B, N, N).
    """
    inputs, rule = Inputs(features, importance, mask, cu_seqlens, counts, grids, given), decode(rule_id, params)
    checks.check_inputs(inputs, rule, similarity=similarity)
    if cu_seqlens is None and features.dim() != 3:
        axes = "similarity must be (B, N, N)" if similarity else "features must be (B, N, D)"
        raise ValueError(f"{axes}, got shape {tuple(features.shape)}")
    if backend is not None:
        checks.check_backend(backend, dispatch.BACKENDS)
    batch = features.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if counts is not None:
        inputs = inputs._replace(counts=device_counts(counts, inputs, batch))
    k = host_counts(k[0] if len(k) == 1 else list(k), batch)
    return calls.run(as_tokens(inputs, max(k)), rule, k, sort, backend, validate, similarity=similarity)


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
    counts: torch.Tensor | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: bool = False,
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


# --- merge -----------------------------------------------------------------------------------------------------------

_library.define(  # type: ignore[no-untyped-call]
    "merge(Tensor hidden, Tensor features, Tensor indices, Tensor? mask, Tensor? receivers, Tensor? sizes, "
    "Tensor? cu_seqlens, str how, float beta, SymInt? max_seqlen)"
    " -> (Tensor hidden, Tensor sizes, Tensor assignment, Tensor weights)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _merge_fake(
    hidden: torch.Tensor, features: torch.Tensor, indices: torch.Tensor, *rest: object
) -> tuple[torch.Tensor, ...]:
    return (
        hidden.new_empty((*indices.shape, hidden.shape[-1])),
        hidden.new_empty(indices.shape, dtype=torch.float32),
        hidden.new_empty(hidden.shape[:-1], dtype=torch.int64),
        hidden.new_empty(hidden.shape[:-1], dtype=weight_dtype(hidden)),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(output[2], output[3], inputs[6])
    ctx.mark_non_differentiable(*output[1:])


def _merge_backward(ctx: Any, grad: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
    """A token gets the gradient of the row that it was added to, times its weight there."""
    assignment, weights, cu_seqlens = ctx.saved_tensors
    if cu_seqlens is not None:
        tokens = torch.arange(assignment.shape[0], device=assignment.device)
        sample = (torch.searchsorted(cu_seqlens, tokens, right=True) - 1).clamp(0, grad.shape[0] - 1)
        assignment = torch.where(assignment < 0, -1, sample * grad.shape[1] + assignment)
        rows = gather_rows(grad.flatten(0, 1)[None], assignment[None])[0]
    else:
        rows = gather_rows(grad, assignment)
    weights = weights[..., None]
    return torch.where(weights != 0, rows * weights, 0.0).to(grad.dtype), *[None] * 9


_library.impl("merge", combine, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("idsel::merge", _merge_fake, lib=_library)
torch.library.register_autograd("idsel::merge", _merge_backward, setup_context=_save_for_backward, lib=_library)


select = torch.ops.idsel.select.default
merge = torch.ops.idsel.merge.default

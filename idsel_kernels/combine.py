"""The arithmetic of `merge`: who goes to whom, with which weight, and the weighted sums.

Scalars of a token lie in (B, L), L being the length of the longest sample, dense and ragged batches alike. Rows of
hidden states and features are read where they lie, a part of them at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .alike import first_alike
from .arithmetic import ieee_arithmetic

__all__ = ["combine", "nearest", "weight_dtype"]

# Numbers that a step may hold beside its input: 64 MiB in float32.
_STEP_NUMBERS = 2**24

# Below it a sum of similarities divides nothing: VLM-Pruner's floor.
_LEAST_SUM = 1e-8


class _Layout(NamedTuple):
    """Where tokens lie: `rows` (B, L) of the flattened tensors, valid where `inside` (B, L)."""

    rows: torch.Tensor
    inside: torch.Tensor
    is_dense: bool

    @classmethod
    def dense(cls, batch: int, tokens: int, device: torch.device) -> _Layout:
        rows = torch.arange(batch * tokens, device=device).view(batch, tokens)
        return cls(rows, torch.ones_like(rows, dtype=torch.bool), True)

    @classmethod
    def ragged(cls, cu_seqlens: torch.Tensor, total: int, longest: int | None) -> _Layout:
        lengths = cu_seqlens.diff()
        if longest is None:
            longest = int(lengths.max()) if len(lengths) else 0  # the one thing that is read
        position = torch.arange(longest, device=cu_seqlens.device)
        rows = (cu_seqlens[:-1, None] + position).clamp(0, max(total - 1, 0))
        return cls(rows, (position < lengths[:, None]) & (total > 0), False)

    def part(self, values: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """Rows (B, end - begin, C) of flattened values (R, C); a view where they lie side by side."""
        if self.is_dense:
            return values.view(*self.rows.shape, values.shape[1])[:, begin:end]
        return values[self.rows[:, begin:end]]

    def of(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Scalars of tokens, (B, N) or (T,), as (B, L)."""
        if values.numel() == 0:
            return values.new_full(self.rows.shape, fill)
        return torch.where(self.inside, values.flatten()[self.rows], fill)

    def back(self, values: torch.Tensor, shape: torch.Size, fill: float) -> torch.Tensor:
        """(B, L) as scalars of tokens, (B, N) or (T,)."""
        total = shape.numel()
        at = torch.where(self.inside, self.rows, total).flatten()
        return values.new_full((total + 1,), fill).scatter_(0, at, values.flatten())[:total].view(shape)


def weight_dtype(hidden: torch.Tensor) -> torch.dtype:
    """In which hidden states are summed."""
    return torch.float64 if hidden.dtype is torch.float64 else torch.float32


def combine(
    hidden: torch.Tensor,
    features: torch.Tensor,
    indices: torch.Tensor,
    mask: torch.Tensor | None,
    receivers: torch.Tensor | None,
    sizes: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    how: str,
    beta: float,
    max_seqlen: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`merge` on checked tensors: hidden states, sizes, assignment, and the weight of each token in its sum."""
    tokens = hidden.shape[:-1]
    with torch.no_grad(), ieee_arithmetic(hidden.device):
        layout = (
            _Layout.dense(tokens[0], tokens[1], hidden.device)
            if cu_seqlens is None
            else _Layout.ragged(cu_seqlens, tokens[0], max_seqlen)
        )
        there = layout.inside if mask is None else layout.of(mask, False)
        may_receive = torch.ones_like(there) if receivers is None else layout.of(receivers, False)
        slot, similarity, is_kept = _assign(features.flatten(0, -2), layout, indices, there, may_receive)
        similarity = similarity.to(weight_dtype(hidden))
        size = torch.ones_like(similarity) if sizes is None else layout.of(sizes.to(similarity.dtype), 0.0)
        target = _targets(slot, indices.shape[1])
        weight = _weights(how, beta, similarity, size, is_kept, target, indices.numel())
        total = _sums(torch.where(slot >= 0, size, 0.0).flatten()[:, None], target, indices.numel())
        merged = _weighted_sums(hidden.flatten(0, -2), layout, weight, target, indices.numel())
        return (
            merged.view(*indices.shape, hidden.shape[-1]).to(hidden.dtype),
            total.view(indices.shape).float(),
            layout.back(slot, tokens, -1),
            layout.back(weight.view(slot.shape), tokens, 0.0),
        )


def _assign(
    features: torch.Tensor, layout: _Layout, indices: torch.Tensor, there: torch.Tensor, may_receive: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The slot of each token, -1 for none; its similarity to the pick of that slot; whether it is that pick: (B, L)."""
    batch, width = indices.shape
    longest = layout.rows.shape[1]
    wide = weight_dtype(features)
    slot = torch.full_like(layout.rows, -1)
    similarity = torch.zeros(layout.rows.shape, dtype=wide, device=features.device)
    if 0 in (batch, width, longest, len(features)):
        return slot, similarity, slot >= 0
    picked = (indices >= 0) & (indices < longest)
    at = indices.clamp(0, longest - 1)
    receives = picked & may_receive.gather(1, at)
    kept = features[layout.rows.gather(1, at)].to(wide)
    step = max(1, _STEP_NUMBERS // (batch * (width + features.shape[1])))
    for begin in range(0, longest, step):
        end = min(begin + step, longest)
        best, nearest_slot = nearest(layout.part(features, begin, end).to(wide), kept, receives)
        given = there[:, begin:end] & (best > -torch.inf)
        slot[:, begin:end] = torch.where(given, nearest_slot, -1)
        similarity[:, begin:end] = torch.where(given, best, 0.0)
    # Picks go to themselves; those of padding to a place behind the end.
    own = torch.full((batch, longest + 1), -1, device=indices.device)
    own.scatter_(1, torch.where(picked, at, longest), torch.arange(width, device=indices.device).expand_as(at))
    own = own[:, :longest]
    return torch.where(own >= 0, own, slot), similarity, own >= 0


def nearest(
    tokens: torch.Tensor, kept: torch.Tensor, receives: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most similar of the kept rows that receive, and its slot, the lowest on ties.

    Args:
        tokens: (B, n, D) floating point.
        kept: (B, k, D) of the same dtype, k >= 1.
        receives: (B, k) bool; all, unless given.

    Returns:
        `(similarity, slot)`, (B, n) each: -inf where no kept row is finite and receives, or the token is not finite.
    """
    norms, kept_norms = (torch.linalg.vector_norm(x, dim=2) for x in (tokens, kept))
    usable = torch.isfinite(kept_norms) if receives is None else torch.isfinite(kept_norms) & receives
    kept = torch.where(usable[..., None], kept, torch.nan)
    scale, kept_scale = (torch.where(norm > 0, 1 / norm, 0.0) for norm in (norms, kept_norms))
    cosines = torch.bmm(tokens, kept.mT).mul_(scale[..., None]).mul_(kept_scale[:, None])
    cosines = cosines.clamp_(-1, 1).masked_fill_(~usable[:, None], -torch.inf)
    cosines = cosines.masked_fill_(~torch.isfinite(norms)[..., None], -torch.inf)
    best, slot = cosines.max(2)
    # Products with equal rows may round differently, so equal rows are taken for the first of them.
    return best, first_alike(kept).gather(1, slot)


def _targets(slot: torch.Tensor, width: int) -> torch.Tensor:
    """(B, L) slots as (B * L,) places among all slots of the batch, the place behind them for none."""
    first = torch.arange(len(slot), device=slot.device)[:, None] * width
    return torch.where(slot >= 0, first + slot, len(slot) * width).flatten()


def _weights(
    how: str,
    beta: float,
    similarity: torch.Tensor,
    size: torch.Tensor,
    is_kept: torch.Tensor,
    target: torch.Tensor,
    slots: int,
) -> torch.Tensor:
    """The weight of each token in the sum of its slot: (B * L,), 0 where it has none."""
    size, is_kept, similarity = size.flatten(), is_kept.flatten(), similarity.flatten()
    one = torch.ones_like(size)
    if how == "mean":
        share, is_positive = _normalised(torch.where(target < slots, size, 0.0), target, slots)
        return torch.where(is_kept & ~is_positive, one, share)
    given = (target < slots) & ~is_kept
    if how == "add_mean":
        share, _ = _normalised(torch.where(given, size, 0.0), target, slots)
        return torch.where(is_kept, one, share)
    share, is_positive = _normalised(torch.where(given, size * similarity, 0.0), target, slots, _LEAST_SUM)
    return torch.where(is_kept, torch.where(is_positive, beta * one, one), (1 - beta) * share)


def _normalised(
    share: torch.Tensor, target: torch.Tensor, slots: int, floor: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares divided by their sum over a slot, at least `floor`; 0 where it is not positive; and whether it is."""
    total = _sums(share[:, None], target, slots)[:, 0]
    total = torch.nn.functional.pad(total, (0, 1))[target]
    return torch.where(total > 0, share / total.clamp(min=floor), 0.0), total > 0


def _weighted_sums(
    hidden: torch.Tensor, layout: _Layout, weight: torch.Tensor, target: torch.Tensor, slots: int
) -> torch.Tensor:
    """(slots, C): rows of hidden states times their weights."""
    wide = weight_dtype(hidden)
    sums = torch.zeros((slots + 1, hidden.shape[1]), dtype=wide, device=hidden.device)
    # What has no weight may hold anything, so it is not added at all.
    target = torch.where(weight != 0, target, slots).view(layout.rows.shape)
    weight = weight.view(layout.rows.shape)
    batch, longest = layout.rows.shape
    step = max(1, _STEP_NUMBERS // max(batch * hidden.shape[1], 1))
    for begin in range(0, longest if len(hidden) else 0, step):
        end = min(begin + step, longest)
        values = layout.part(hidden, begin, end).to(wide) * weight[:, begin:end, None]
        _add(sums, target[:, begin:end].flatten(), values.flatten(0, 1))
    return sums[:slots]


def _sums(values: torch.Tensor, target: torch.Tensor, slots: int) -> torch.Tensor:
    """(R, C) values summed over their slots, in the order of the rows."""
    sums = values.new_zeros((slots + 1, values.shape[1]))
    return _add(sums, target, values)[:slots]


def _add(sums: torch.Tensor, target: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Adds rows to the rows `target` of sums, in their order, so that every run gives the same bits."""
    if sums.device.type == "cpu":
        return sums.index_add_(0, target, values)
    # On a GPU index_add_ adds in any order; this sorts by target first.
    return sums.index_put_((target,), values, accumulate=True)

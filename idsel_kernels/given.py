"""Tokens that a selection begins with, made one form: `given` of `select`."""

from __future__ import annotations

import torch

from .problem import Inputs

__all__ = ["as_tokens"]


def as_tokens(inputs: Inputs, most: int) -> Inputs:
    """`given` as indices (B, M) where it is a mask over the tokens: at most `most` of each sample, in index order.

    Nothing is read on the host, so M is `most`, and -1 follows where there are fewer.
    """
    chosen = inputs.given
    if chosen is None or chosen.dtype is not torch.bool:
        return inputs
    if inputs.mask is not None:
        chosen = chosen & inputs.mask
    cu_seqlens, device = inputs.cu_seqlens, chosen.device
    if cu_seqlens is None:
        batch, tokens = chosen.shape
        cu_seqlens = torch.arange(batch + 1, device=device) * tokens
    batch, rows = cu_seqlens.shape[0] - 1, torch.arange(chosen.numel(), device=device)
    sample = (torch.searchsorted(cu_seqlens, rows, right=True) - 1).clamp(0, max(batch - 1, 0))
    so_far = chosen.flatten().cumsum(0)
    before = torch.nn.functional.pad(so_far, (1, 0))[cu_seqlens.clamp(0, chosen.numel())]
    place = so_far - 1 - before[sample]
    inside = chosen.flatten() & (place < most) & (rows < cu_seqlens[-1])
    # What is not asked for goes behind the last sample.
    at = torch.where(inside, sample * most + place, batch * most)
    found = torch.full((batch * most + 1,), -1, device=device).scatter_(0, at, rows - cu_seqlens[sample])
    return inputs._replace(given=found[:-1].view(batch, most))

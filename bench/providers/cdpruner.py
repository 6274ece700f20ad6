"""The greedy DPP loop of CDPruner (NeurIPS 2025, arXiv 2506.10967) as eager torch code, the whole batch at once.

As published it has no floor under what is left of a token: beyond the rank of the features it repeats tokens.
"""

from __future__ import annotations

import torch

from idsel_kernels import DPP


def select(features: torch.Tensor, importance: torch.Tensor, k: int, rule: DPP) -> torch.Tensor:
    """features (B, N, D), importance (B, N) as relevance -> indices (B, k)."""
    batch, tokens, _ = features.shape
    normalized = (features / features.norm(dim=-1, keepdim=True)).float()
    kernel = importance[:, :, None] * (normalized @ normalized.mT) * importance[:, None, :]
    samples = torch.arange(batch, device=features.device)
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    rows = torch.zeros((k, batch, tokens), device=features.device)
    picks = torch.empty((k, batch), dtype=torch.long, device=features.device)
    for step in range(k):
        pick = left.argmax(dim=-1)
        picks[step] = pick
        projected = torch.einsum("tb,tbn->bn", rows[:step, samples, pick], rows[:step])
        row = (kernel[samples, pick] - projected) / left[samples, pick].sqrt()[:, None]
        rows[step] = row
        left = left - row.square()
        left[samples, pick] = -torch.inf
    return picks.T.contiguous()

"""The loop of ID-Selection (arXiv 2604.05601, Eq. 7-9) as eager torch code, one sample at a time."""

from __future__ import annotations

import torch

from idsel_kernels import IDSelection


def select_one(features: torch.Tensor, importance: torch.Tensor, k: int, rule: IDSelection) -> torch.Tensor:
    """features (N, D), importance (N,) -> picks (k,)."""
    normalized = torch.nn.functional.normalize(features, dim=-1)
    distance = (1 - normalized @ normalized.T).clamp(min=0)
    scores = importance.clone()
    picked = torch.zeros_like(scores, dtype=torch.bool)
    picks = []
    for _ in range(k):
        pick = scores.masked_fill(picked, -torch.inf).argmax(dim=0, keepdim=True)
        picks.append(pick)
        picked = picked.scatter(0, pick, True)
        suppression = torch.exp(-rule.gamma * distance.index_select(0, pick)[0] ** 2)
        scores = scores - suppression * scores.gather(0, pick)
        if rule.floor is not None:
            scores = scores.clamp(min=rule.floor)
    return torch.cat(picks)


def select(features: torch.Tensor, importance: torch.Tensor, k: int, rule: IDSelection) -> torch.Tensor:
    """features (B, N, D), importance (B, N) -> indices (B, k)."""
    return torch.stack([select_one(x, s, k, rule) for x, s in zip(features, importance, strict=True)])

"""The maximal-marginal-relevance loop of IDPruner (arXiv 2602.13315) as eager torch code, one sample at a time."""

from __future__ import annotations

import torch

from idsel_kernels import MMR


def select_one(features: torch.Tensor, importance: torch.Tensor, k: int, rule: MMR) -> torch.Tensor:
    """features (N, D), importance (N,) -> picks (k,)."""
    features = features.float()  # as published: this method computes in float32 whatever the model's dtype
    normalized = features / (features.norm(dim=-1, keepdim=True) + 1e-8)
    similarity = normalized @ normalized.T
    picked = torch.zeros_like(importance, dtype=torch.bool)
    nearest = torch.full_like(importance, -torch.inf)
    priority = importance
    picks: list[torch.Tensor] = []
    while len(picks) < k:
        pick = priority.masked_fill(picked, -torch.inf).argmax(dim=0, keepdim=True)
        picks.append(pick)
        picked = picked.scatter(0, pick, True)
        nearest = torch.maximum(nearest, similarity.index_select(0, pick)[0])
        if len(picks) % rule.parallel_k == 0:
            priority = rule.lam * importance - (1 - rule.lam) * nearest
    return torch.cat(picks)


def select(features: torch.Tensor, importance: torch.Tensor, k: int, rule: MMR) -> torch.Tensor:
    """features (B, N, D), importance (B, N) -> indices (B, k)."""
    return torch.stack([select_one(x, s, k, rule) for x, s in zip(features, importance, strict=True)])

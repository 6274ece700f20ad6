"""Greedy non-maximum suppression, as in TRIO (arXiv 2602.04657), as eager torch code, one sample at a time."""

from __future__ import annotations

import torch

from idsel_kernels import HardSuppress


def select_one(features: torch.Tensor, importance: torch.Tensor, k: int, rule: HardSuppress) -> torch.Tensor:
    """features (N, D), importance (N,) -> picks (k,). When all tokens are suppressed, importance decides."""
    normalized = torch.nn.functional.normalize(features, dim=-1)
    alike = (normalized @ normalized.T) > rule.threshold
    picked = torch.zeros_like(importance, dtype=torch.bool)
    suppressed = picked
    picks = []
    for _ in range(k):
        closed = picked | suppressed
        closed = torch.where(closed.all(), picked, closed)
        pick = importance.masked_fill(closed, -torch.inf).argmax(dim=0, keepdim=True)
        picks.append(pick)
        picked = picked.scatter(0, pick, True)
        suppressed = suppressed | alike.index_select(0, pick)[0]
    return torch.cat(picks)


def select(features: torch.Tensor, importance: torch.Tensor, k: int, rule: HardSuppress) -> torch.Tensor:
    """features (B, N, D), importance (B, N) -> indices (B, k); similarity alone, without the rule's grid."""
    return torch.stack([select_one(x, s, k, rule) for x, s in zip(features, importance, strict=True)])

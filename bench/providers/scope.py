"""The coverage loop of SCOPE (NeurIPS 2025, arXiv 2510.24214) as eager torch code, the whole batch at once."""

from __future__ import annotations

import torch

from idsel_kernels import Coverage


def select(features: torch.Tensor, importance: torch.Tensor, k: int, rule: Coverage) -> torch.Tensor:
    """features (B, N, D), importance (B, N) as saliency -> indices (B, k)."""
    normalized = features / features.norm(dim=-1, keepdim=True)
    similarity = normalized @ normalized.mT
    saliency = importance.to(features.dtype) ** rule.alpha
    cover = similarity.new_zeros(importance.shape)
    picked = torch.zeros_like(importance, dtype=torch.bool)
    picks = []
    for _ in range(k):
        gain = (similarity - cover[:, :, None]).clamp(min=0).sum(dim=1)
        priority = gain * saliency if rule.combine == "mul" else gain + saliency
        pick = priority.masked_fill(picked, -torch.inf).argmax(dim=-1, keepdim=True)
        picks.append(pick)
        picked = picked.scatter(1, pick, True)
        nearest = similarity.gather(1, pick[:, :, None].expand(-1, -1, similarity.shape[-1]))
        cover = torch.maximum(cover, nearest[:, 0])
    return torch.cat(picks, dim=1)

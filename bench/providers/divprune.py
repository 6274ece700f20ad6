"""The farthest-point loop of DivPrune (CVPR 2025, arXiv 2503.02175) as eager torch code, one sample at a time.

As published it gathers the rows of all picks anew at every step, and does not exclude tokens already picked: they
compete with a distance of about 0, so a sample with fewer than k distinct tokens gets some of them twice.
"""

from __future__ import annotations

import torch

from idsel_kernels import MaxMin


def select_one(features: torch.Tensor, k: int, start: int | None = None) -> torch.Tensor:
    """features (N, D) -> picks (k,)."""
    normalized = features / features.norm(dim=-1, keepdim=True)
    distance = 1.0 - normalized @ normalized.T
    picks = torch.zeros(k, dtype=torch.long, device=features.device)
    for step in range(k):
        if step > 0:
            nearest = distance.index_select(0, picks[:step]).amin(dim=0)
            picks[step] = nearest.argmax()
        elif start is not None:
            picks[step] = start
        else:
            # The smallest entry of a column is the token itself; the second smallest its nearest neighbour.
            picks[step] = distance.topk(min(2, len(distance)), dim=0, largest=False).values[-1].argmax()
    return picks


def select(features: torch.Tensor, importance: torch.Tensor, k: int, rule: MaxMin) -> torch.Tensor:
    """features (B, N, D) -> indices (B, k); importance is not used."""
    return torch.stack([select_one(sample, k, rule.start) for sample in features])

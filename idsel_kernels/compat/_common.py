"""What several modules of the package need."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..api import topk_select
from ..checks import FEATURE_DTYPES, check_tensor
from ..counts import check_count

__all__ = ["at_positions", "check_at_most", "check_shape", "check_tokens", "cosines", "top"]


def check_shape(name: str, value: Any, *axes: int | str) -> None:
    """A tensor of these axes; a word stands for any size."""
    check_tensor(name, value)
    fits = len(value.shape) == len(axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must be ({', '.join(map(str, axes))}), got shape {tuple(value.shape)}")


def check_tokens(name: str, value: Any, *axes: int | str) -> None:
    """A tensor of these axes that can be compared."""
    check_shape(name, value, *axes)
    if value.dtype not in FEATURE_DTYPES:
        hint = "; pass .float()" if value.dtype is torch.float64 else ""
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {value.dtype}{hint}")


def check_at_most(name: str, value: Any, most: int, what: str, low: int = 0) -> int:
    """An int from `low` to the number of tokens there are: beyond it there is nothing to return."""
    count = check_count(name, value, low)
    if count > most:
        raise ValueError(f"{name} must be at most {most}, {what}, got {count}")
    return count


def cosines(features: Tensor) -> Tensor:
    """(..., N, N) float32 cosine similarities of features (..., N, D); 0 for rows of zeros."""
    unit = F.normalize(features.float(), dim=-1)
    return (unit @ unit.mT).float()  # of autocast it comes in half precision


def top(scores: Tensor, k: int) -> Tensor:
    """(B, k) int64 positions of the highest of scores (B, N), highest first, ties by index."""
    # Nothing is compared, so any features do.
    features = torch.ones(1, device=scores.device).expand(*scores.shape, 1)
    return topk_select(features, k, scores).indices


def at_positions(positions: Tensor, tokens: int) -> Tensor:
    """(B, tokens) bool, True at positions (B, k)."""
    mask = torch.zeros(positions.shape[0], tokens, dtype=torch.bool, device=positions.device)
    return mask.scatter_(1, positions, True)

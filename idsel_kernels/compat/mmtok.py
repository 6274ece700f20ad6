"""MMTok (ICLR 2026, arXiv 2508.18264): the matrix that its selection covers, as github.com/Ironieser/MMTok has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import ieee_arithmetic
from ._common import check_tokens

__all__ = ["matrix"]

_SHORTEST = 1e-8  # rows are divided by no less
_LEAST_TEMPERATURE = 1e-6  # below it logits may overflow


def matrix(
    features: Tensor,
    text: Tensor,
    clip_features: Tensor | None = None,
    *,
    text_temperature: float = 0.02,
    vision_temperature: float = 0.2,
    alpha: float = 0.5,
) -> Tensor:
    """How well each visual token covers each text token, and each visual one: W = [P; alpha * Q].

    With all rows divided by their lengths (at least 1e-8), x of the features, t of the text and q of the clip features,
    P is the softmax over tokens of `<t, x> / text_temperature`, divided by M, and Q the softmax over tokens of
    `<q, q> / vision_temperature`, divided by N. MMTok picks tokens greedily so that the sum over rows of the largest
    picked entry grows most: facility location with W in the place of similarities.

    There it is a part of `SemanticTokenSelector.mm_coverage_selection`, in
    github.com/Ironieser/MMTok/mmtok/core/semantic_selector.py at commit d1522cda0ac4. That normalises in the dtype of
    the model, which in half precision changes W; here all is float32.

    Args:
        features: (N, D) or (B, N, D) visual tokens in the space of the text, float32, float16 or bfloat16.
        text: (M, D), shared by all samples, or (B, M, D), M >= 1.
        clip_features: (N, C) or (B, N, C), the same tokens before the projection, which are compared with each other.
            None: `features`.
        text_temperature: >= 1e-6; 0.02 is that of the project's pipeline, the selector itself has 0.01.
        vision_temperature: >= 1e-6; 0.2 as there.
        alpha: >= 0, the weight of covering visual tokens; 0.5 as there.

    Returns:
        (M + N, N) or (B, M + N, N) float32, >= 0. A row of P sums to 1 / M, one of `alpha * Q` to alpha / N. A NaN
        spoils its sample.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.mmtok import matrix
        >>> matrix(torch.eye(2), torch.tensor([[1.0, 1.0]]))
        tensor([[0.5000, 0.5000],
                [0.2483, 0.0017],
                [0.0017, 0.2483]])
    """
    clip = _check(features, text, clip_features)
    _check_number("text_temperature", text_temperature, least=_LEAST_TEMPERATURE)
    _check_number("vision_temperature", vision_temperature, least=_LEAST_TEMPERATURE)
    _check_number("alpha", alpha, least=0)
    x, t, q = _unit(features), _unit(text), _unit(clip)
    with ieee_arithmetic(features.device):
        to_text, to_vision = t @ x.mT, q @ q.mT
    p = (to_text / text_temperature).softmax(-1) / t.shape[-2]
    weighted = alpha * (to_vision / vision_temperature).softmax(-1) / q.shape[-2]
    return torch.cat([p, weighted], -2)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.float()
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / lengths.clamp(min=_SHORTEST)


def _check(features: Tensor, text: Any, clip_features: Tensor | None) -> Tensor:
    """What stands for the clip features."""
    batched = isinstance(features, Tensor) and features.dim() == 3
    check_tokens("features", features, *("B", "N", "D") if batched else ("N", "D"))
    *batch, tokens, width = features.shape
    of_samples = batch if isinstance(text, Tensor) and text.dim() == 3 else []
    check_tokens("text", text, *of_samples, "M", width)
    if text.shape[-2] == 0:
        raise ValueError(f"text must have at least one token, got shape {tuple(text.shape)}")
    _check_device("text", text, features)
    if clip_features is None:
        return features
    check_tokens("clip_features", clip_features, *batch, tokens, "C")
    _check_device("clip_features", clip_features, features)
    return clip_features


def _check_device(name: str, value: Tensor, features: Tensor) -> None:
    if value.device != features.device:
        raise ValueError(f"{name} must be on the device of features ({features.device}), got {value.device}")


def _check_number(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not value >= least or math.isinf(value):
        raise ValueError(f"{name} must be finite and >= {least}, got {value}")

"""SCOPE (NeurIPS 2025, arXiv 2510.24214): its selection, as github.com/kinredon/SCOPE has it."""

from __future__ import annotations

from torch import Tensor

from .. import _env
from ..api import coverage_select
from ..checks import check_choice
from ..rules import Combine
from ._common import check_at_most, check_shape, check_tokens, cosines

__all__ = ["SCOPE", "combined", "select_scope"]

_COMBINED: dict[str, Combine] = {"multi": "mul", "add": "add"}


def SCOPE(
    visual_feature_vectors: Tensor,
    num_selected_token: int,
    cls_attn: Tensor | None = None,
    *,
    with_matrix: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The tokens that cover the others best, weighted by the attention of CLS.

    Signature and result are those of github.com/kinredon/SCOPE/scope/clip_encoder.py at commit 6bf73069e0d6. As there,
    two environment variables are read at every call: `ALPHA`, the exponent of the attention, 1.0 unless set, and
    `COMBINED`, "multi" (the default) or "add", how it meets the coverage.

    Its similarities, gains and powers are in the dtype of the model, ours in float32: in half precision some picks
    differ. A row of zeros, which spoils its whole selection, is similar to nothing.

    Args:
        visual_feature_vectors: (B, N, D) patch tokens, float32, float16 or bfloat16.
        num_selected_token: tokens to keep of each image, at most N.
        cls_attn: (B, N) attention of CLS to each, summed over the heads, >= 0; all alike unless given.
        with_matrix: ours. False does not compute the similarities, which the project does not read.

    Returns:
        The picks, (B, k) int64, in pick order, counted from the first token given; and (B, N, N) cosine similarities
        in the dtype of the features, None where `with_matrix` is False.

    Raises:
        TypeError, ValueError: an argument or environment variable is not as above.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.scope import SCOPE
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> picks, cosines = SCOPE(features, 2, torch.tensor([[0.5, 0.4, 0.1]]))
        >>> picks, cosines.shape
        (tensor([[0, 2]]), torch.Size([1, 3, 3]))
    """
    alpha = _env.scope_alpha()
    try:
        power = float(alpha)
    except ValueError:
        raise ValueError(f"the environment variable ALPHA must be a number, got {alpha!r}") from None
    return select_scope(visual_feature_vectors, num_selected_token, cls_attn, power, with_matrix)


def select_scope(
    visual_feature_vectors: Tensor,
    num_selected_token: int,
    cls_attn: Tensor | None,
    alpha: float,
    with_matrix: bool,
) -> tuple[Tensor, Tensor | None]:
    """`SCOPE` with `alpha` as an argument, as two projects share it."""
    check_tokens("visual_feature_vectors", visual_feature_vectors, "B", "N", "D")
    tokens = visual_feature_vectors.shape[1]
    if cls_attn is not None:
        check_shape("cls_attn", cls_attn, *visual_feature_vectors.shape[:2])
    k = check_at_most("num_selected_token", num_selected_token, tokens, "the tokens of an image")
    picks = coverage_select(visual_feature_vectors, k, cls_attn, alpha=alpha, combine=combined()).indices
    return picks, cosines(visual_feature_vectors).to(visual_feature_vectors.dtype) if with_matrix else None


def combined() -> Combine:
    """What the environment variable COMBINED stands for."""
    value = _env.scope_combined()
    check_choice("the environment variable COMBINED", value, tuple(_COMBINED))
    return _COMBINED[value]

"""DivPrune (CVPR 2025, arXiv 2503.02175): its selection, as github.com/vbdi/divprune has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..api import maxmin_select
from ._common import check_at_most, check_tokens, cosines

__all__ = ["DivPrune"]


def DivPrune(
    self: Any,
    visual_feature_vectors: Tensor,
    image_feature_length: int,
    cosine_matrix: Tensor | None = None,
    threshold_ratio: float = 0.1,
    *,
    with_matrix: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The tokens that are farthest apart, as the method of `LlavaMetaForCausalLM`.

    Signature and result are those of github.com/vbdi/divprune/LLaVA/llava/model/llava_arch.py at commit 799e2d950aa0.

    Its arithmetic is in the dtype of the features, ours in float32: on half-precision features many of its distances
    tie or swap, and one other pick changes all later ones. Where only copies of picked tokens are left it picks one of
    these again; here all are distinct. A row of zeros, which spoils its whole selection, has distance 1 to every token.

    Args:
        self: not used; so the function also serves as a method.
        visual_feature_vectors: (N, D) float32, float16 or bfloat16.
        image_feature_length: the length that `threshold_ratio` is a share of; N in the project.
        cosine_matrix: (N, N) distances of the same tokens, from an earlier call. It is returned, and not read: the
            picks follow from the features.
        threshold_ratio: share of the tokens to keep; `round(threshold_ratio * image_feature_length)` are, half to even.
        with_matrix: ours. False does not compute the distances, which the project does not read.

    Returns:
        The picks and the distances. Picks: (k,) int64, in pick order, counted from the first token given, on the device
        of the features. Distances: (N, N) `1 - cosine` in the dtype of the features; with a `cosine_matrix` that,
        else None where `with_matrix` is False.

    Raises:
        TypeError, ValueError: an argument is not as above, or more tokens are wanted than given.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.divprune import DivPrune
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
        >>> picks, distances = DivPrune(None, features, 4, threshold_ratio=0.5)
        >>> picks, distances.shape
        (tensor([3, 0]), torch.Size([4, 4]))
    """
    check_tokens("visual_feature_vectors", visual_feature_vectors, "N", "D")
    wanted = round(threshold_ratio * image_feature_length)
    name = f"round(threshold_ratio * image_feature_length) = round({threshold_ratio} * {image_feature_length})"
    k = check_at_most(name, wanted, visual_feature_vectors.shape[0], "the rows of visual_feature_vectors")
    picks = maxmin_select(visual_feature_vectors, k).indices[0]
    if cosine_matrix is None and with_matrix:
        cosine_matrix = (1.0 - cosines(visual_feature_vectors)).to(visual_feature_vectors.dtype)
    return picks, cosine_matrix

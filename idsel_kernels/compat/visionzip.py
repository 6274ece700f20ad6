"""VisionZip (CVPR 2025, arXiv 2412.04467): its selection and merging, as github.com/dvlab-research/VisionZip has it.

There they are the method `CLIPVisionTower_VisionZip.forward`, in
github.com/dvlab-research/VisionZip/visionzip/clip_encoder.py at commit 3151f6df4fca. The class here has that method;
`zip_tokens` is what it does after the vision tower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..merging import merge
from ..selection import Selection
from ._common import at_positions, check_at_most, check_shape, top

__all__ = ["CLIPVisionTower_VisionZip", "dominant_and_targets", "zip_tokens"]


class CLIPVisionTower_VisionZip(nn.Module):
    """Holds `forward`, which VisionZip puts into LLaVA's `CLIPVisionTower`."""

    vision_tower: Any
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What VisionZip leaves of the last layer but one of the vision tower; see `zip_tokens`.

        Args:
            images: (B, 3, H, W). A list, with which the published method fails too, raises.

        Returns:
            `(hidden_states_save, all_indices)` of `zip_tokens`, the tokens in the dtype of the images.
        """
        check_shape("images", images, "B", "channels", "height", "width")
        tower = self.vision_tower
        given = images.to(device=self.device, dtype=self.dtype)
        outputs = tower(given, output_hidden_states=True, output_attentions=True)
        tokens, all_indices = zip_tokens(
            outputs.hidden_states[-2],
            tower.vision_model.encoder.layers[-2].metric,
            outputs.attentions[-2][:, :, 0, 1:].sum(dim=1, dtype=torch.float32),
            tower._info["dominant"],
            tower._info["contextual"],
        )
        return tokens.to(images.dtype), all_indices


def zip_tokens(
    hidden_states: Tensor, metric: Tensor, cls_attention_sum: Tensor, dominant_num: int, contextual_num: int
) -> tuple[Tensor, Tensor]:
    """Keeps CLS and the dominant tokens, and merges the others into evenly spaced contextual ones.

    The project sums attention and merged tokens and compares keys in the dtype of the model, here all is float32: in
    half precision dominant tokens swap where their attention ties, some tokens go to another contextual one, and rows
    differ by roundings.

    Args:
        hidden_states: (B, N + 1, C) floating point, row 0 is CLS.
        metric: (B, N + 1, D) keys of that layer, the mean over its heads; rows as in `hidden_states`.
        cls_attention_sum: (B, N) attention of CLS to each patch, summed over the heads.
        dominant_num: tokens to keep for their attention, beside CLS.
        contextual_num: tokens that the rest is merged into, from 1 to the N - `dominant_num` that are left.

    Returns:
        `(hidden_states_save, all_indices)`: (B, 1 + dominant_num + contextual_num, C) in the dtype of the hidden
        states, CLS and the dominant tokens as they stood, then the contextual ones; and (B, 1 + dominant_num) int64,
        rows of `hidden_states`, 0 for CLS and then the dominant ones by falling attention.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.visionzip import zip_tokens
        >>> hidden, attention = torch.arange(5.0).view(1, 5, 1), torch.tensor([[0.1, 0.2, 0.6, 0.1]])
        >>> tokens, all_indices = zip_tokens(hidden, torch.ones(1, 5, 2), attention, 1, 1)
        >>> tokens.flatten(), all_indices  # 1 and the mean of 2 and 4 are added up
        (tensor([0., 3., 4.]), tensor([[0, 3]]))
    """
    check_shape("hidden_states", hidden_states, "B", "N + 1", "C")
    batch, rows = hidden_states.shape[:2]
    check_shape("metric", metric, batch, rows, "D")
    check_shape("cls_attention_sum", cls_attention_sum, batch, rows - 1)
    check_at_most("dominant_num", dominant_num, rows - 1, "the tokens beside CLS")
    rest = rows - 1 - dominant_num
    check_at_most("contextual_num", contextual_num, rest, "the tokens that are not dominant", low=1)

    dominant, targets = (at + 1 for at in dominant_and_targets(cls_attention_sum, dominant_num, contextual_num))
    cls = dominant.new_zeros(batch, 1)
    kept = Selection.of(torch.cat([cls, dominant.sort(dim=1).values, targets], 1))
    receivers = at_positions(targets, rows)
    merged = merge(hidden_states, kept, metric, "add_mean", receivers=receivers)
    return merged.hidden, torch.cat([cls, dominant], 1)


def dominant_and_targets(scores: Tensor, dominant_num: int, contextual_num: int) -> tuple[Tensor, Tensor]:
    """Positions of the highest scores (B, N), falling, and of evenly spaced tokens among the others, ascending."""
    tokens = scores.shape[1]
    dominant = top(scores, dominant_num)
    # A stable sort puts those that are not dominant first, as they stood.
    rest = at_positions(dominant, tokens).int().argsort(dim=1, stable=True)[:, : tokens - dominant_num]
    step = max(1, rest.shape[1] // contextual_num)
    return dominant, rest[:, ::step][:, :contextual_num]

"""FastV (ECCV 2024, arXiv 2403.06764): which tokens go on, as github.com/pkunlp-icler/FastV chooses them.

There it is a part of `LlamaModel.forward`, in
github.com/pkunlp-icler/FastV/src/transformers/src/transformers/models/llama/modeling_llama.py at commit d1659729b5bf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_at_most, check_shape, top

__all__ = ["keep_indexs"]


def keep_indexs(
    last_layer_attention: Tensor,
    fast_v_sys_length: int,
    fast_v_image_token_length: int,
    fast_v_attention_rank: int,
) -> Tensor:
    """The tokens of a sequence that go on: all of its text, and the image tokens that its last token attends to most.

    The arguments have the names of the configuration, the function that of the result there. The project averages the
    heads in the dtype of the model and gives ties to whatever token `torch.topk` does, here they are averaged in
    float32 and ties go to the lowest index: in half precision tokens of nearly equal attention may swap.

    Args:
        last_layer_attention: (B, H, Q, S) attention weights of the layer before, floating point. Only those of the
            first sample and its last query are read, as there.
        fast_v_sys_length: tokens before the image.
        fast_v_image_token_length: image tokens.
        fast_v_attention_rank: image tokens to keep, of these.

    Returns:
        (S - fast_v_image_token_length + fast_v_attention_rank,) int64 positions in the sequence, ascending.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.fastv import keep_indexs
        >>> attention = torch.tensor([0.1, 0.1, 0.3, 0.0, 0.2, 0.3]).expand(1, 2, 6, 6)
        >>> keep_indexs(attention, 1, 4, 2)
        tensor([0, 2, 4, 5])
    """
    check_shape("last_layer_attention", last_layer_attention, "B", "H", "Q", "S")
    length = last_layer_attention.shape[3]
    start = check_at_most("fast_v_sys_length", fast_v_sys_length, length, "the length of the sequence")
    room = length - start
    image = check_at_most(
        "fast_v_image_token_length", fast_v_image_token_length, room, "the tokens behind the system's"
    )
    rank = check_at_most("fast_v_attention_rank", fast_v_attention_rank, image, "fast_v_image_token_length")
    attention = last_layer_attention[0, :, -1, start : start + image].float().mean(0)
    kept = top(attention[None], rank)[0].sort().values + start
    positions = torch.arange(length, device=kept.device)
    return torch.cat([positions[:start], kept, positions[start + image :]])

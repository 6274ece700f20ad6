"""CDPruner (NeurIPS 2025, arXiv 2506.10967): its selection, as github.com/Theia-4869/CDPruner has it.

There it is a part of the method `encode_images`, in github.com/Theia-4869/CDPruner/llava/model/llava_arch.py at commit
9541616c40fc. `encode_images` here has the signature and results of that method, `index_masks` is its selection alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..api import dpp_select
from ..counts import check_count
from ..importance import text_relevance
from ._common import check_shape, check_tokens

__all__ = ["encode_images", "index_masks"]


def encode_images(self: Any, images: Tensor, texts: Any = None) -> tuple[Tensor, Tensor]:
    """Image features and which of them to keep, as the method of `LlavaMetaForCausalLM`.

    In half precision see `index_masks`.

    Args:
        self: the model. `get_model().get_vision_tower()` gives features, image and text embeddings, and
            `get_model().mm_projector` projects the features; `visual_token_num` of them are to be kept.
        images, texts: what the vision tower takes.

    Returns:
        Features and masks: (B, N, D) all image features, projected, and (B, N) bool, True where kept.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.cdpruner import encode_images
        >>> class Model:
        ...     mm_projector, visual_token_num = torch.nn.Identity(), 2
        ...     encode_images = encode_images
        ...
        ...     def get_model(self):
        ...         return self
        ...
        ...     def get_vision_tower(self):
        ...         image, text = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]]), torch.tensor([[1.0, 0.0]])
        ...         return lambda images, texts: (torch.eye(3)[None], image, text)
        >>> features, index_masks = Model().encode_images(torch.zeros(1, 3, 8, 8), ["a cat"])
        >>> features.shape, index_masks
        (torch.Size([1, 3, 3]), tensor([[False,  True,  True]]))
    """
    model = self.get_model()
    image_features, image_embeds, text_embeds = model.get_vision_tower()(images, texts=texts)
    image_features = model.mm_projector(image_features)
    return image_features, index_masks(image_features, image_embeds, text_embeds, self.visual_token_num)


def index_masks(image_features: Tensor, image_embeds: Tensor, text_embeds: Tensor, visual_token_num: int) -> Tensor:
    """Which tokens a determinantal point process keeps, conditioned on the text.

    The project normalises features and embeddings in the dtype of the model, and computes the relevance in it; here
    all is float32, so in half precision some picks differ. Where `visual_token_num` exceeds the rank of the features it
    meets NaN and picks tokens twice; here those that are spanned follow by relevance, once each.

    As there, minimum and maximum of the relevance are taken over the whole batch, so the masks of an image depend on
    those beside it.

    Args:
        image_features: (B, N, D) tokens after the projector, float32, float16 or bfloat16.
        image_embeds: (B, N, C) the same tokens in CLIP's joint space, floating point.
        text_embeds: (M, C) embeddings of the texts in that space.
        visual_token_num: tokens to keep of each image; N or more keeps all.

    Returns:
        (B, N) bool on the device of the features, True where kept.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.cdpruner import index_masks
        >>> image, text = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]]), torch.tensor([[1.0, 0.0]])
        >>> index_masks(torch.eye(3)[None], image, text, 2)
        tensor([[False,  True,  True]])
    """
    check_tokens("image_features", image_features, "B", "N", "D")
    check_shape("image_embeds", image_embeds, *image_features.shape[:2], "C")
    check_shape("text_embeds", text_embeds, "M", image_embeds.shape[2])
    k = check_count("visual_token_num", visual_token_num)
    relevance = text_relevance(image_embeds, text_embeds, convention="cdpruner")
    return dpp_select(image_features, k, relevance).keep_mask(image_features.shape[1])

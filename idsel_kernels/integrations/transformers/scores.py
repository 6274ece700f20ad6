"""The importance of the tokens of an image or a video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from ... import checks
from ...importance import minmax, text_relevance, unify

__all__ = ["NAMES", "Importance", "Modality", "Visual", "importance_of", "needs_attention", "needs_text"]

Modality = Literal["image", "video"]
Importance: TypeAlias = "Literal['cls', 'text', 'unified'] | Callable[[Visual], Tensor]"

NAMES = ("cls", "text", "unified")


class Visual(NamedTuple):
    """An image or a video as the language model is about to see it: what an importance is computed from.

    Attributes:
        features: (n, D) the projected tokens, in the dtype of the model.
        text: (m, D) the embeddings of the sample's text after its last image or video; all its text if there is none.
        attention: (n,) what the class token of the vision tower pays to each token; None where it has no class token.
        selectable: (n,) bool, False for newline tokens, which are kept without being selected, and for tokens that the
            attention mask hides, which are not.
        modality: "image" or "video".
    """

    features: Tensor
    text: Tensor
    attention: Tensor | None
    selectable: Tensor
    modality: Modality


def needs_attention(how: Importance | None) -> bool:
    """Whether the attention of the class token may be asked for."""
    return callable(how) or how in ("cls", "unified")


def needs_text(how: Importance | None) -> bool:
    """Whether the text may be asked for."""
    return callable(how) or how in ("text", "unified")


def importance_of(visual: Visual, how: Importance) -> Tensor:
    """The score of each token, (n,): in [0, 1] unless a function gives it."""
    if callable(how):
        given = how(visual)
        checks.check_tensor("what importance returns", given)
        if given.shape != visual.selectable.shape:
            wanted = tuple(visual.selectable.shape)
            raise ValueError(f"importance must return (n,) = {wanted} scores, got shape {tuple(given.shape)}")
        return given
    if how != "text" and visual.attention is None:
        raise ValueError(
            f"importance must be 'text' or a function for a {visual.modality} without attention of a class token "
            f"(vision_feature_select_strategy must be 'default' for it), got {how!r}"
        )
    if how != "cls" and not len(visual.text):
        raise ValueError(f"input_ids must have text beside the images for importance={how!r}, got none in a sample")
    if how == "text":
        return minmax(text_relevance(visual.features, visual.text), visual.selectable)
    assert visual.attention is not None
    if how == "cls":
        return minmax(visual.attention, visual.selectable)
    return unify(visual.attention, text_relevance(visual.features, visual.text), mask=visual.selectable)

"""Tokens of a picture from a CLIP vision tower, as LLaVA-1.5 and the published pruners see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..importance import minmax
from ..picture import PictureTokens

__all__ = ["clip_tokens"]

CLIP_TYPES = ("clip", "clip_vision_model")
LAYER = -2
"""LLaVA-1.5 takes its visual tokens from the last layer but one; pruners take the attention from there too."""


def clip_tokens(picture: Image.Image, model: str) -> PictureTokens:
    """Runs a CLIP vision tower on a picture.

    Args:
        picture: RGB picture; the tower's own processor resizes and crops it.
        model: folder with the weights, or a name on the Hugging Face hub, such as
            "openai/clip-vit-large-patch14-336". It must already be on this machine: nothing is downloaded.

    Returns:
        The crop the tower saw; the patch tokens of its last layer but one; as importance the attention that
        the class token pays to each patch there, averaged over heads and scaled to [0, 1].

    Raises:
        ValueError: transformers is missing, or the weights are not there, or they are not a CLIP tower.
    """
    tower, processor = _load(model)
    config = tower.config
    if config.num_hidden_layers < 2:
        raise ValueError(f"model {model!r} must have at least 2 layers, got {config.num_hidden_layers}")
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        seen = tower(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    return PictureTokens(
        picture=_undo_normalisation(pixels[0], processor),
        features=seen.hidden_states[LAYER][0, 1:].float(),
        importance=minmax(seen.attentions[LAYER][0, :, 0, 1:].float().mean(0)),
        grid=config.image_size // config.patch_size,
        source=f"layer {LAYER} of {Path(model).name}, attention of its class token",
    )


def _load(model: str) -> tuple[Any, Any]:
    """The tower and its image processor, from files on this machine."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"a model needs the extra: pip install 'idsel_kernels[model]' ({error})") from error
    # Anything, to the type checker: few of its functions are annotated.
    library: Any = transformers
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    config = _from_files(library.AutoConfig, model)
    if config.model_type not in CLIP_TYPES:
        raise ValueError(f"model {model!r} must be a CLIP model, got one of type {config.model_type!r}")
    # Fused attention does not return its weights, which are the importance here.
    tower = _from_files(library.CLIPVisionModel, model, attn_implementation="eager")
    return tower.eval(), _processor(library, model, tower.config.image_size)


def _from_files(kind: Any, model: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(model, local_files_only=True, **options)
    except Exception as error:  # damaged or unfit files fail in as many ways as there are readers
        advice = "" if Path(model).exists() else f"; `hf download {model}` fetches a model of the hub"
        raise ValueError(f"no CLIP vision tower at {model!r} on this machine{advice} ({error})") from error


def _processor(library: Any, model: str, side: int) -> Any:
    try:
        return library.CLIPImageProcessor.from_pretrained(model, local_files_only=True)
    except OSError:  # weights alone, without preprocessor_config.json: CLIP's settings at the tower's size
        crop = {"height": side, "width": side}
        return library.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop)


def _undo_normalisation(pixels: torch.Tensor, processor: Any) -> Image.Image:
    """The (3, S, S) input of the tower as the picture it shows."""
    mean = torch.tensor(processor.image_mean)[:, None, None]
    deviation = torch.tensor(processor.image_std)[:, None, None]
    shown = (pixels * deviation + mean).clamp(0, 1) * 255
    return Image.fromarray(shown.round().to(torch.uint8).permute(1, 2, 0).numpy())

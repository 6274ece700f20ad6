"""What differs between model families: their encoders' outputs, newline tokens, tiles and positions."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import watch_class_token
from .scores import Modality
from .sequence import text_positions

__all__ = [
    "MODALITIES",
    "Encoded",
    "Family",
    "arguments_for",
    "family_of",
    "placeholders",
    "setting",
    "takes_encoder_outputs",
    "uncompiled",
]

# What a batch may hold, and the argument that has its pixels, in the order in which models encode them.
MODALITIES: dict[Modality, str] = {"image": "pixel_values", "video": "pixel_values_videos"}

_Maps = tuple[list[Tensor], list[Tensor] | None]


class Encoded(NamedTuple):
    """What the encoder made of all images, or of all videos.

    Attributes:
        modality: which of the two.
        output: what the model's `get_image_features` returned.
        units: (n, D) of each image or video; of each tile where `Family.joins_tiles`.
        newlines: (n,) bool of each unit.
        attention: (n,) of each unit, or None.
        deepstack: (T, D) of each layer to whose output the language model adds visual features, rows as in `units`.
    """

    modality: Modality
    output: Any
    units: list[Tensor]
    newlines: list[Tensor]
    attention: list[Tensor] | None
    deepstack: list[Tensor]


class Family:
    """LLaVA-1.5, and what the others have in common with it."""

    name = "LLaVA"
    has_mrope = False
    joins_tiles = False  # whether the encoder returns the tiles of an image one by one

    def encode(self, base: Any, modality: Modality, inputs: Mapping[str, Any], with_attention: bool) -> Encoded:
        """Runs the vision tower and the projector."""
        encoder = getattr(base, f"get_{modality}_features")
        # Older versions demand what newer ones take from the configuration, and call any pixels `pixel_values`.
        settings = {name: setting(name, base, inputs) for name in ("vision_feature_layer", _STRATEGY)}
        given = {**inputs, **settings, "pixel_values": inputs[MODALITIES[modality]]}
        watch: Any = contextlib.nullcontext()
        if with_attention and settings[_STRATEGY] == "default":  # else the class token is one of the features
            watch = watch_class_token(base, settings["vision_feature_layer"])
        with watch as rows:
            output = encoder(**arguments_for(encoder, given))
        units, deepstack = self._split(base, modality, output)
        newlines, attention = self._maps(base, modality, inputs, None if rows is None else torch.cat(rows), units)
        return Encoded(modality, output, units, newlines, attention, deepstack)

    def _split(self, base: Any, modality: Modality, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The features of each unit, and those of each deepstack layer."""
        return list(getattr(output, "pooler_output", output)), []

    def _maps(
        self, base: Any, modality: Modality, inputs: Mapping[str, Any], tiles: Tensor | None, units: list[Tensor]
    ) -> _Maps:
        """Newlines and attention of each unit; `tiles` (tiles, patches) is the attention as the tower gave it."""
        newlines = [torch.zeros(len(unit), dtype=torch.bool, device=unit.device) for unit in units]
        return newlines, None if tiles is None else list(tiles)

    def positions(self, base: Any, inputs: Mapping[str, Any], mask: Tensor, token_types: Tensor) -> Tensor:
        """The positions that the model gives the whole sequences: (B, L), or (4, B, L) with mrope."""
        given = inputs.get("position_ids")
        return text_positions(mask) if given is None else given.expand(mask.shape)


class LlavaNext(Family):
    """LLaVA-NeXT: several tiles an image, laid side by side, with a newline token behind every row."""

    name = "LLaVA-NeXT"

    def _maps(
        self, base: Any, modality: Modality, inputs: Mapping[str, Any], tiles: Tensor | None, units: list[Tensor]
    ) -> _Maps:
        counts = self._tiles_per_image(base, inputs)
        vision, device = base.config.vision_config, units[0].device
        patches = (vision.image_size // vision.patch_size) ** 2
        attention = torch.zeros(sum(counts), patches, device=device) if tiles is None else tiles
        # Packed by the model's own function, as its features are: a channel of attention, one that marks newlines.
        channels = torch.stack([attention, torch.zeros_like(attention)], -1)
        newline = torch.tensor([0.0, 1.0], device=device, dtype=attention.dtype)
        packed, _ = self._pack(base, torch.split(channels, counts), inputs, newline)
        return [x[:, 1] > 0.5 for x in packed], None if tiles is None else [x[:, 0] for x in packed]

    def _tiles_per_image(self, base: Any, inputs: Mapping[str, Any]) -> list[int]:
        count = importlib.import_module(type(base).__module__).image_size_to_num_patches
        pinpoints, side = base.config.image_grid_pinpoints, base.config.vision_config.image_size
        return [count(size, pinpoints, side) for size in inputs["image_sizes"]]

    def _pack(self, base: Any, maps: Any, inputs: Mapping[str, Any], newline: Tensor) -> Any:
        strategy = setting(_STRATEGY, base, inputs)
        return base.pack_image_features(maps, inputs["image_sizes"], strategy, image_newline=newline)


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: as NeXT, but an image beside others is one tile, and a video ends with a newline."""

    name = "LLaVA-OneVision"

    def _split(self, base: Any, modality: Modality, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        units, none = super()._split(base, modality, output)
        if modality == "video":  # before 5.18 `forward` added the newline itself
            newline = base.image_newline[None].to(units[0])
            units = [unit if unit[-1:].equal(newline) else torch.cat([unit, newline]) for unit in units]
        return units, none

    def _maps(
        self, base: Any, modality: Modality, inputs: Mapping[str, Any], tiles: Tensor | None, units: list[Tensor]
    ) -> _Maps:
        if modality == "image":
            return super()._maps(base, modality, inputs, tiles, units)
        return [torch.arange(len(unit), device=unit.device) == len(unit) - 1 for unit in units], None

    def _tiles_per_image(self, base: Any, inputs: Mapping[str, Any]) -> list[int]:
        counts = super()._tiles_per_image(base, inputs)
        images = inputs.get("batch_num_images")
        if images is None:
            return counts
        is_alone = itertools.chain.from_iterable([int(n) == 1] * int(n) for n in images)
        return [count if alone else 1 for count, alone in zip(counts, is_alone, strict=True)]

    def _pack(self, base: Any, maps: Any, inputs: Mapping[str, Any], newline: Tensor) -> Any:
        ratio = setting("vision_aspect_ratio", base, inputs)
        return base.pack_image_features(maps, inputs["image_sizes"], image_newline=newline, vision_aspect_ratio=ratio)


class InternVL(Family):
    """InternVL: tiles whose patches are merged by four."""

    name = "InternVL"
    joins_tiles = True

    def _maps(
        self, base: Any, modality: Modality, inputs: Mapping[str, Any], tiles: Tensor | None, units: list[Tensor]
    ) -> _Maps:
        if tiles is not None:
            side = round(tiles.shape[1] ** 0.5)
            ratio = base.config.downsample_ratio
            tiles = base.pixel_shuffle(tiles.view(-1, side, side, 1), scale_factor=ratio).mean(-1).flatten(1)
        return super()._maps(base, modality, inputs, tiles, units)


class Qwen25VL(Family):
    """Qwen2.5-VL: positions on three axes, which depend on the sizes of all images before."""

    name = "Qwen2.5-VL"
    has_mrope = True

    def positions(self, base: Any, inputs: Mapping[str, Any], mask: Tensor, token_types: Tensor) -> Tensor:
        axes = inputs.get("position_ids")
        if axes is None:
            everything = {**inputs, "attention_mask": mask, "mm_token_type_ids": token_types}
            axes, _ = base.get_rope_index(**arguments_for(base.get_rope_index, everything, return_dict=False))
        axes = axes.expand(3, *mask.shape) if axes.dim() == 2 else axes
        # As in `generate`: the first row is for the mask alone, the last three are what is embedded.
        return axes if len(axes) == 4 else torch.cat([text_positions(mask)[None], axes])


class Qwen3VL(Qwen25VL):
    """Qwen3-VL: visual features of several layers of the tower, added inside the language model."""

    name = "Qwen3-VL"

    def _split(self, base: Any, modality: Modality, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        is_object = hasattr(output, "pooler_output")
        units, layers = (output.pooler_output, output.deepstack_features) if is_object else output
        return list(units), [layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in layers]


_STRATEGY = "vision_feature_select_strategy"

_FAMILIES: dict[str, Family] = {
    "internvl": InternVL(),
    "llava": Family(),
    "llava_next": LlavaNext(),
    "llava_onevision": LlavaOnevision(),
    "qwen2_5_vl": Qwen25VL(),
    "qwen3_vl": Qwen3VL(),
}


def family_of(model: Any) -> tuple[Family, Any]:
    """How this kind of model is pruned, and the part of it that has the vision tower and the language model.

    Raises:
        TypeError: it is not a model of a known family.
    """
    model = uncompiled(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    base = getattr(model, "model", None)
    if kind not in _FAMILIES or not (hasattr(base, "get_image_features") and hasattr(base, "language_model")):
        known = ", ".join(_FAMILIES)
        raise TypeError(
            f"model must be a ...ForConditionalGeneration of type {known}, without a wrapper, "
            f"got {type(model).__name__} of type {kind!r}"
        )
    return _FAMILIES[kind], base


def placeholders(config: Any) -> dict[Modality, int]:
    """The id of the token that stands for one of an image in a prompt, and that for one of a video."""
    ids = {modality: getattr(config, f"{modality}_token_id", None) for modality in MODALITIES}
    return {modality: token for modality, token in ids.items() if token is not None}


def uncompiled(model: Any) -> Any:
    """What `torch.compile` was given."""
    return getattr(model, "_orig_mod", model)


def takes_encoder_outputs(model: Any) -> bool:
    """Whether this version of transformers (5.18 and later) lets a model be given what its encoders returned."""
    return "mm_encoder_outputs" in inspect.signature(uncompiled(model).forward).parameters


def arguments_for(function: Any, inputs: Mapping[str, Any], return_dict: bool = True) -> dict[str, Any]:
    """Those of the inputs that a method of a model takes, and `return_dict` if it takes options at all."""
    parameters = inspect.signature(function).parameters
    takes_options = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    # LLaVA with a Pixtral tower had the sizes among its options once.
    names = [*parameters, "image_sizes"] if takes_options else parameters
    given = {name: inputs[name] for name in names if inputs.get(name) is not None}
    return {**given, "return_dict": True} if return_dict and takes_options else given


def setting(name: str, base: Any, inputs: Mapping[str, Any]) -> Any:
    """What the caller gave, or else what the configuration says."""
    given = inputs.get(name)
    return getattr(base.config, name, None) if given is None else given

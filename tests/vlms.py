"""Tiny random vision-language models in float64, and batches for them, of every family that is pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

IMAGE, VIDEO, START, PAD = 60, 61, 62, 0
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
_VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
_PINPOINTS = [[16, 32], [32, 16], [32, 32]]


class Batch(NamedTuple):
    """Inputs as a processor gives them, and how many tokens each image or video has, newlines apart."""

    inputs: dict[str, torch.Tensor]
    units: list[int]
    newlines: list[int]


class Vlm(NamedTuple):
    model: Any
    batch: Callable[[], Batch]


def build(name: str) -> Vlm:
    """The model of a family and its batch: two samples with one and two images, so of different lengths."""
    torch.manual_seed(0)
    model, batch = _BUILDERS[name]()
    model = model.double().eval()
    for parameter in model.parameters():  # larger than at the start of training, so that tokens differ
        parameter.data.mul_(4) if parameter.dim() > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    return Vlm(model, batch)


def _sequences(*samples: list[int]) -> dict[str, torch.Tensor]:
    """Padded on the left."""
    width = max(map(len, samples))
    ids = torch.tensor([[PAD] * (width - len(sample)) + sample for sample in samples])
    mask = torch.tensor([[0] * (width - len(sample)) + [1] * len(sample) for sample in samples])
    return {"input_ids": ids, "attention_mask": mask}


def _two_samples(units: list[int]) -> dict[str, torch.Tensor]:
    """The first image in the first sample, the others in the second, with text around each."""
    one, *others = [[5, START, *[IMAGE] * unit, 6] for unit in units]
    return _sequences([1, 2, *one, 7, 8, 9], [1, *[token for image in others for token in image], 10, 11])


def _before_the_end(sequences: dict[str, torch.Tensor], tokens: list[list[int]]) -> dict[str, torch.Tensor]:
    """With so many tokens more in each sample, before the last two."""
    more = torch.tensor(tokens)
    insert = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    return {name: torch.cat([x[:, :-2], insert[name], x[:, -2:]], 1) for name, x in sequences.items()}


def _llava() -> tuple[Any, Callable[[], Batch]]:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION, image_size=16, patch_size=4, projection_dim=24),
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
    )

    def batch() -> Batch:
        units = [16, 16, 16]
        pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
        return Batch({**_two_samples(units), "pixel_values": pixels}, units, [0, 0, 0])

    return transformers.LlavaForConditionalGeneration(config), batch


def _llava_next() -> tuple[Any, Callable[[], Batch]]:
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION, image_size=16, patch_size=4, projection_dim=24),
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_id=IMAGE,
        image_grid_pinpoints=_PINPOINTS,
    )
    return transformers.LlavaNextForConditionalGeneration(config), _tiled


def _tiled() -> Batch:
    # The base tile of 4 x 4 tokens, then the tiles side by side, unpadded to the picture's shape, a newline a row.
    sizes = torch.tensor([[16, 32], [32, 30], [32, 16]])
    units, newlines = [16 + 4 * 8, 16 + 8 * 8, 16 + 8 * 4], [4, 8, 8]
    together = [a + b for a, b in zip(units, newlines, strict=True)]
    pixels = torch.randn(3, 5, 3, 16, 16, dtype=torch.float64)
    return Batch({**_two_samples(together), "pixel_values": pixels, "image_sizes": sizes}, units, newlines)


def _llava_onevision() -> tuple[Any, Callable[[], Batch]]:
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**_VISION, image_size=16, patch_size=4, vision_use_head=False),
        text_config=transformers.Qwen2Config(**_TEXT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
    )

    def batch() -> Batch:
        # A picture alone has tiles, two in a sample have one each, with a newline behind it.
        pixels = torch.randn(3, 3, 3, 16, 16, dtype=torch.float64)
        sizes = torch.tensor([[16, 32], [16, 16], [16, 16]])
        sequences = _two_samples([16 + 4 * 8 + 4, 17, 17])
        film = [VIDEO] * 13  # 3 frames of 2 x 2 and a newline
        inputs = {
            **_before_the_end(sequences, [film, [14] * len(film)]),
            "pixel_values": pixels,
            "image_sizes": sizes,
            "batch_num_images": torch.tensor([1, 2]),
            "pixel_values_videos": torch.randn(1, 3, 3, 16, 16, dtype=torch.float64),
        }
        return Batch(inputs, [16 + 4 * 8, 16, 16, 12], [4, 1, 1, 1])

    return transformers.LlavaOnevisionForConditionalGeneration(config), batch


def _internvl() -> tuple[Any, Callable[[], Batch]]:
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**_VISION, image_size=[16, 16], patch_size=[4, 4]),
        text_config=transformers.Qwen2Config(**_TEXT),
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )

    def batch() -> Batch:
        units = [4 * 3, 4, 4 * 2]  # tiles of 2 x 2 tokens
        pixels = torch.randn(6, 3, 16, 16, dtype=torch.float64)
        return Batch({**_two_samples(units), "pixel_values": pixels}, units, [0, 0, 0])

    return transformers.InternVLForConditionalGeneration(config), batch


def _qwen(kind: str) -> tuple[Any, Callable[[], Batch]]:
    vision = {
        "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 2, "temporal_patch_size": 2, "spatial_merge_size": 2,
    }  # fmt: skip
    if kind == "Qwen3VL":
        vision |= {"deepstack_visual_indexes": [0, 2], "num_position_embeddings": 64}
    else:
        vision |= {"window_size": 8, "fullatt_block_indexes": [1, 3]}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0} | (
        {"mrope_interleaved": True} if kind == "Qwen3VL" else {}
    )
    name = "rope_parameters" if transformers.__version__ >= "5" else "rope_scaling"
    config = getattr(transformers, f"{kind}Config")(
        text_config={**_TEXT, name: rope, "head_dim": 8}, vision_config=vision, image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=START,
    )  # fmt: skip

    def batch() -> Batch:
        grids, video = torch.tensor([[1, 8, 6], [1, 4, 8], [1, 6, 4]]), torch.tensor([[2, 4, 6]])
        units = [12, 8, 6]
        frames = [[START, *[VIDEO] * 6]] * 2 if kind == "Qwen3VL" else [[START, *[VIDEO] * 12]]
        film = [token for frame in frames for token in [12, *frame, 13]]
        sequences = _before_the_end(_two_samples(units), [[14] * len(film), film])
        ids = sequences["input_ids"]
        rows = int(grids.prod(1).sum()), int(video.prod())
        inputs = {
            **sequences,
            "mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long(),
            "pixel_values": torch.randn(rows[0], 3 * 2 * 2 * 2, dtype=torch.float64),
            "image_grid_thw": grids,
            "pixel_values_videos": torch.randn(rows[1], 3 * 2 * 2 * 2, dtype=torch.float64),
            "video_grid_thw": video,
        }
        if transformers.__version__ < "5":
            del inputs["mm_token_type_ids"]  # which its processors did not give yet
        return Batch(inputs, [*units, 12], [0, 0, 0, 0])

    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), batch


_BUILDERS: dict[str, Callable[[], tuple[Any, Callable[[], Batch]]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_5_vl": lambda: _qwen("Qwen2_5_VL"),
    "qwen3_vl": lambda: _qwen("Qwen3VL"),
}
FAMILIES = sorted(_BUILDERS)

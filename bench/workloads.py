"""Shapes and inputs. Every suite has a list for GPUs and one, shorter, for CPUs; what the second leaves out is printed.

Shapes are real token counts: 576 (LLaVA-1.5), 729 (SigLIP), 1024, 2304 and 2880 (LLaVA-NeXT), and up to 16384 of
Qwen2.5-VL video; D is that of CLIP (1024), SigLIP (1152), Qwen2.5-VL-7B (3584) and LLaVA-7B (4096).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from idsel_kernels.testing import Case, clustered, near_duplicates, picture

# Inputs rotate through at least this many bytes, more than the last-level caches of CPUs and GPUs hold, as far as
# MAX_SLOTS allows. MAX_SETS of them differ, each of which is checked; the rest are copies elsewhere in memory.
ROTATE_BYTES = 128 * 2**20
MAX_SLOTS = 64
MAX_SETS = 3


class Shape(NamedTuple):
    """features (batch, tokens, dim), of which k are picked."""

    batch: int
    tokens: int
    dim: int
    k: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.tokens}x{self.dim}x{self.k}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From BxNxDxk."""
        parts = text.lower().split("x")
        if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"a shape is BxNxDxk, four positive integers, got {text!r}")
        shape = cls(*map(int, parts))
        if shape.k > shape.tokens:
            raise ValueError(f"a shape needs k <= N, got {text!r}")
        return shape


def _latency(tokens: Iterable[int], dims: Iterable[int], ks: Iterable[int | None]) -> list[Shape]:
    dims, ks = list(dims), list(ks)
    grid = [Shape(1, n, d, k or round(0.25 * n)) for n in tokens for d in dims for k in ks]
    return sorted(set(grid))


# (N, D) at which a run that is cut short has been: LLaVA-1.5 by CLIP and by its own features, LLaVA-NeXT, video.
CORNERS = ((576, 1024), (576, 4096), (2880, 4096), (16384, 3584))

GPU_SHAPES = {
    "latency": _latency((576, 729, 1024, 2304, 2880), (1024, 1152, 3584, 4096), (16, 64, 128, 192, None)),
    "batch": [Shape(b, 576, d, 64) for d in (1024, 4096) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
    "scale": [Shape(1, n, 3584, n // 10) for n in (576, 1024, 2304, 4096, 8192, 16384)],
    "overhead": [Shape(1, 576, 1024, 64)],
    "breakdown": [Shape(1, n, d, 64) for n in (576, 2880) for d in (1024, 4096)],
    "ragged": [Shape(16, 2304, 3584, 64)],
    "rules": [Shape(1, 576, 1024, 64)],
}
CPU_SHAPES = {
    "latency": sorted(
        _latency((576,), (1024, 4096), (16, 64, 128, 192, None)) + _latency((729, 1024, 2304, 2880), (1024,), (16, 64))
    ),
    "batch": [Shape(b, 576, 1024, 64) for b in (1, 4, 16)],
    "scale": [Shape(1, n, 1024, n // 10) for n in (576, 1024, 2304, 4096)],
    "overhead": [Shape(1, 576, 1024, 64)],
    "breakdown": [Shape(1, 576, 1024, 64), Shape(1, 576, 4096, 64)],
    "ragged": [Shape(4, 1024, 1024, 64)],
    "rules": [Shape(1, 576, 1024, 64)],
}
QUICK_SHAPES = {
    "latency": [Shape(1, 576, 1024, 16), Shape(1, 576, 1024, 64)],
    "batch": [Shape(1, 576, 256, 16), Shape(4, 576, 256, 16)],
    "scale": [Shape(1, 576, 256, 57), Shape(1, 1024, 256, 102)],
    "overhead": [Shape(1, 576, 256, 16)],
    "breakdown": [Shape(1, 576, 256, 64)],
    "ragged": [Shape(4, 576, 256, 16)],
    "rules": [Shape(1, 196, 256, 16)],
}
# The shapes of the latency suite at which the loop also runs under torch.compile: compiling its unrolled form takes
# half a minute each.
COMPILED_SHAPES = {
    "cpu": [Shape(1, 576, 1024, 16), Shape(1, 576, 1024, 64)],
    "cuda": [Shape(1, 576, 1024, 64), Shape(1, 576, 4096, 64)],
}


def shapes(suite: str, device: torch.device, quick: bool, given: list[Shape] | None) -> list[Shape]:
    """The shapes of a suite: those given on the command line, or its list for the device."""
    if given:
        return given
    if quick:
        return QUICK_SHAPES[suite]
    return (GPU_SHAPES if device.type == "cuda" else CPU_SHAPES)[suite]


def turn(shape: Shape) -> tuple[object, ...]:
    """By which shapes are sorted before they are measured."""
    corner = (shape.tokens, shape.dim)
    return CORNERS.index(corner) if corner in CORNERS else len(CORNERS), shape[:3], -shape.k


def left_out(suite: str, chosen: list[Shape]) -> list[Shape]:
    """What the full list of a suite has and a run does not."""
    return [shape for shape in GPU_SHAPES.get(suite, []) if shape not in chosen]


def slot_count(shape: Shape, dtype: torch.dtype) -> int:
    """How many inputs to rotate through."""
    size = shape.batch * shape.tokens * shape.dim * torch.empty((), dtype=dtype).element_size()
    return max(MAX_SETS, min(MAX_SLOTS, math.ceil(ROTATE_BYTES / size)))


def make_case(kind: str, shape: Shape, dtype: torch.dtype, seed: int = 0) -> Case:
    """float32 is the dtype of a CPU model, bfloat16 that of a GPU's. Kinds: see docs/benchmarks.md."""
    if kind == "picture":
        return _picture(shape, dtype, seed)
    if kind == "ties":
        # Every token eight times, and importance of four levels.
        case = near_duplicates(*shape[:3], copies=8, seed=seed, dtype=dtype, importance="ties")
        return Case(case.features, case.importance)
    return clustered(*shape[:3], seed=seed, dtype=dtype, importance="flat" if kind == "flat" else "skewed")


def _picture(shape: Shape, dtype: torch.dtype, seed: int) -> Case:
    """Patches of a photograph, their descriptors projected to D by a random layer; `seed` draws the layer."""
    patches = picture(math.ceil(shape.tokens**0.5))
    rows = patches.features[0, : shape.tokens]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape.batch, rows.shape[-1], shape.dim, generator=generator) / rows.shape[-1] ** 0.5
    features = torch.nn.functional.gelu(rows @ weights)
    importance = patches.importance[:, : shape.tokens].expand(shape.batch, -1).contiguous()
    return Case(features.to(dtype), importance)


def make_sets(kind: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Case]:
    """The different inputs of a benchmark."""
    return [to_device(make_case(kind, shape, dtype, seed), device) for seed in range(MAX_SETS)]


def make_slots(sets: list[Case], count: int) -> list[Case]:
    """`count` inputs to rotate through, by turns copies of the different ones, each in memory of its own."""
    copies = [Case(*(None if t is None else t.clone() for t in sets[i % len(sets)])) for i in range(len(sets), count)]
    return [*sets, *copies]  # type: ignore[list-item]


def to_device(case: Case, device: torch.device) -> Case:
    """The same tensors on another device."""
    return Case(*(None if t is None else t.to(device) for t in case))  # type: ignore[arg-type]

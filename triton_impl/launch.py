"""From a problem to a grid: sizes, strides and scalars of a launch, and the cheapest way to repeat it."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton

from ..problem import Problem
from ..rules import State
from . import config, kernels
from .rules import PARAMS, RULE_IDS, STATES

__all__ = ["INTERPRETED", "RULE_IDS", "Plan", "Tensors", "launch", "make_plan"]

# Whether TRITON_INTERPRET was set when Triton was imported: the kernels then run on NumPy.
INTERPRETED = not isinstance(kernels.select_kernel, triton.JITFunction)

# Since 3.3 a compiled kernel takes its constexprs too.
_TAKES_CONSTEXPRS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)

# More than this would hardly run at once on any GPU; the programs of a sample share its tiles.
_MOST_PROGRAMS = 65536
_INT32 = 2**31 - 1
_IS_HIP = torch.version.hip is not None


class Tensors(NamedTuple):
    """The tensors of a launch; what a call lacks is None.

    Shapes: features (B, N, D) or (T, D), importance and mask (B, N) or (T,), cu_seqlens (B+1,) int32, counts (B,)
    int32, workspace (Plan.workspace,) float32, counters (Plan.samples,) int32 zeros, indices (B, k) int64, scores (B,
    k) float32.
    """

    features: torch.Tensor
    importance: torch.Tensor | None
    mask: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    counts: torch.Tensor | None
    workspace: torch.Tensor
    counters: torch.Tensor
    indices: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """Everything about a call that does not depend on its tensors.

    Attributes:
        samples: per launch; a batch whose Grams do not fit the budget together takes several.
        programs: per sample.
        workspace: float32 elements.
        dots: how dot products are kept, see `kernels`: none, whole Grams, or panels where those are too large.
        scalars: of the kernel, in its order, from `tokens` to `programs` and from `gram_width` to `p3`.
        constexprs: of the kernel, in its order.
        options: of the compiler.
    """

    batch: int
    samples: int
    programs: int
    workspace: int
    dots: int
    scalars: tuple[float, ...]
    constexprs: dict[str, Any]
    options: dict[str, int]
    compiled: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False)

    def first_samples(self) -> Iterator[tuple[int, int]]:
        """(first sample, number of samples) of each launch."""
        for first in range(0, self.batch, self.samples):
            yield first, min(self.samples, self.batch - first)


def _param_bits(params: list[float]) -> tuple[int, ...]:
    """The numbers of `Rule.encode()` as the kernel takes them: the bits of float64."""
    return struct.unpack(f"<{PARAMS}q", struct.pack(f"<{PARAMS}d", *params, *[0.0] * (PARAMS - len(params))))


def _padded(count: int) -> int:
    """Rows of a multiple of 16 floats begin where vector loads may."""
    return -(-count // 16) * 16


def _triangle(tiles: int) -> int:
    return tiles * (tiles + 1) // 2


def _programs(tiles: int, batch: int) -> int:
    return max(1, min(tiles, _MOST_PROGRAMS, _INT32 // max(batch, 1)))


@functools.lru_cache(maxsize=512)
def make_plan(problem: Problem, arch: int, budget_bytes: int) -> Plan:
    """The launch of a call.

    Args:
        problem: the call.
        arch: compute capability times 10, 0 for HIP.
        budget_bytes: what dot products may take.
    """
    rule_id, params = problem.rule.encode()
    batch, tokens, dim, k_max, ragged = problem.batch, problem.tokens, problem.dim, problem.k_max, problem.ragged
    itemsize = problem.dtype.itemsize
    nearest_first, coverage = problem.rule.needs_nearest, problem.rule.state is State.COVERAGE
    history = problem.rule.state is State.HISTORY
    budget = budget_bytes // 4
    gram_width = _padded(tokens)
    if not problem.rule.needs_similarities:
        dots = kernels.NO_ROWS.value
    else:
        dots = kernels.WHOLE.value if tokens * gram_width <= budget else kernels.PANEL.value
    if coverage and dots == kernels.PANEL.value:
        name = type(problem.rule).__name__
        raise ValueError(f"{name} needs the whole Gram, which for {tokens} tokens exceeds {budget_bytes} bytes")
    streamed = dots == kernels.PANEL.value
    sizes = config.choose(
        arch, itemsize, tokens, dim, streamed=streamed, coverage=coverage, history=history, nearest_first=nearest_first
    )
    block_m = sizes.tile.block_m
    tiles = -(-tokens // block_m)
    all_pairs = nearest_first or dots == kernels.WHOLE.value
    programs = _triangle(tiles) if all_pairs else tiles
    arrays = kernels.ARRAYS + (tiles if nearest_first else min(k_max, tokens) if history else 0)
    if ragged:
        samples = batch
        scratch_width = _padded(tokens)
        if dots == kernels.PANEL.value:
            gram_width = max(budget // tokens // 16 * 16, _padded(block_m))
        gram = tokens * gram_width
        # Twice the tiles of a sample of mean length: where one is longer, its programs take more tiles each.
        mean = -(-tokens // (batch * block_m))
        programs = min(programs, 2 * _triangle(mean))
    else:
        gram = (block_m if dots == kernels.PANEL.value else tokens) * gram_width
        gram = 0 if dots == kernels.NO_ROWS.value else gram
        samples = max(1, min(batch, budget // (gram + arrays * _padded(tokens))))
        scratch_width = samples * _padded(tokens)
        gram *= samples
    gram = 0 if dots == kernels.NO_ROWS.value else _padded(gram)
    programs = _programs(programs, samples)
    constexprs = {
        "RULE": rule_id,
        "RULE_STATE": STATES.index(problem.rule.state),
        "NEAREST_FIRST": nearest_first,
        "DOTS": dots,
        "RAGGED": ragged,
        "HAS_IMPORTANCE": problem.has_importance,
        "HAS_MASK": problem.has_mask,
        "HAS_COUNTS": len(problem.k) > 1 or problem.has_counts,
        "SORT": problem.sort,
        # The interpreter multiplies bfloat16 as integers; in float32 the products are the same.
        "WIDEN": INTERPRETED and problem.dtype is torch.bfloat16,
        "RESIDENT": sizes.resident,
        "BLOCK_M": block_m,
        "BLOCK_K": sizes.tile.block_k,
        "BLOCK_N": sizes.block_n,
        "COVER_I": config.COVER_BLOCK[0],
        "COVER_J": config.COVER_BLOCK[1],
    }
    # Said aloud, because Triton's default is about to change and the bits of a score with it.
    options = {"num_warps": sizes.num_warps, "num_stages": sizes.tile.num_stages, "enable_fp_fusion": True}
    if sizes.max_registers is not None:
        options["maxnreg"] = sizes.max_registers
    return Plan(
        batch=batch,
        samples=samples,
        programs=programs,
        workspace=gram + arrays * scratch_width,
        dots=dots,
        scalars=(tokens, dim, k_max, k_max, programs, gram_width, scratch_width, gram, *_param_bits(params)),
        constexprs=constexprs,
        options=options,
    )


def launch(plan: Plan, tensors: Tensors) -> None:
    """Launches on the current stream of the current device.

    The first call with a plan, strides and alignment goes through Triton's own look-up, which compiles; the next ones
    hand their arguments to the compiled kernel.
    """
    features, importance, mask, cu_seqlens, counts, workspace, counters, indices, scores = tensors
    stride = features.stride()
    # A pointer that the kernel does not read still has to be one.
    pointers = (
        features,
        features if importance is None else importance,
        features if mask is None else mask,
        counters if cu_seqlens is None else cu_seqlens,
        counters if counts is None else counts,
        workspace,
        counters,
        indices,
        scores,
    )
    strides = (0, *stride) if len(stride) == 2 else stride
    companions = (*_row_strides(importance), *_row_strides(mask))
    key = (
        features.device.index,
        strides,
        features.data_ptr() % 16 == 0,
        None if importance is None else importance.dtype,
        _is_large(features, importance, mask) if _IS_HIP else None,
    )
    kernel = plan.compiled.get(key)
    for first, samples in plan.first_samples():
        grid = (samples * plan.programs, 1, 1)
        arguments = (*pointers, *strides, *companions, first, *plan.scalars)
        if kernel is not None:
            kernel[grid](*arguments, *(plan.constexprs.values() if _TAKES_CONSTEXPRS else ()))
        else:
            kernel = kernels.select_kernel[grid](*arguments, **plan.constexprs, **plan.options)
            if kernel is not None:  # the interpreter compiles nothing
                plan.compiled[key] = kernel


def _is_large(*tensors: torch.Tensor | None) -> tuple[bool, ...]:
    """For HIP Triton compiles shorter addresses where a storage is below 2 GiB."""
    return tuple(tensor is not None and tensor.untyped_storage().nbytes() >= 2**31 for tensor in tensors)


def _row_strides(value: torch.Tensor | None) -> tuple[int, int]:
    if value is None:
        return 0, 0
    stride = value.stride()
    return (0, stride[0]) if len(stride) == 1 else (stride[0], stride[1])

"""From a problem to a grid: sizes, strides and scalars of a launch, and the cheapest way to repeat it."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

from ..problem import Problem
from ..rules import State
from . import config, kernels, workspace
from .rules import PARAMS, RULE_IDS, STATES

__all__ = ["INTERPRETED", "RULE_IDS", "Launches", "Plan", "make_plan", "pointers"]

# Whether TRITON_INTERPRET was set when Triton was imported: the kernels then run on NumPy.
INTERPRETED = not isinstance(kernels.select_kernel, triton.JITFunction)

# Since 3.3 a compiled kernel takes its constexprs too.
_TAKES_CONSTEXPRS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)

# More than this would hardly run at once on any GPU; the programs of a sample share its tiles.
_MOST_PROGRAMS = 65536
_INT32 = 2**31 - 1
_IS_HIP = torch.version.hip is not None
# Where a profiler leaves its hooks.
_RUNTIME: Any = triton.knobs.runtime if hasattr(triton, "knobs") else CompiledKernel


@dataclass(frozen=True)
class Plan:
    """Everything about a call that does not depend on its tensors.

    Attributes:
        samples: per launch; a batch whose Grams do not fit the budget together takes several.
        programs: per sample.
        workspace: float32 elements.
        counters: int32, zero when a launch begins: one per sample, and one per tile whose D is shared out.
        dots: how dot products are kept, see `workspace`: none, whole Grams, or panels where those are too large.
        scalars: of the kernel, in its order, from `tokens` to `p3`.
        constexprs: of the kernel, in its order.
        options: of the compiler.
    """

    batch: int
    samples: int
    programs: int
    workspace: int
    counters: int
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
    rule, batch, tokens, dim, k_max = problem.rule, problem.batch, problem.tokens, problem.dim, problem.k_max
    ragged = problem.ragged
    coverage, history = rule.state is State.COVERAGE, rule.state is State.HISTORY
    channels = rule.state is State.CHANNELS
    # Tiles say what each token starts from, for which they need norms.
    norms = rule.needs_nearest or coverage
    budget = budget_bytes // 4
    gram_width = _padded(tokens)
    if not rule.needs_similarities:
        dots = workspace.NO_ROWS.value
    else:
        fits = problem.similarity or tokens * gram_width <= budget
        dots = workspace.WHOLE.value if fits else workspace.PANEL.value
    is_panel = dots == workspace.PANEL.value
    if coverage and is_panel:
        name = type(rule).__name__
        raise ValueError(f"{name} needs the whole Gram, which for {tokens} tokens exceeds {budget_bytes} bytes")
    sizes = config.choose(
        arch, problem.dtype.itemsize, tokens, dim, streamed=is_panel, short=ragged and tokens <= 1024 * batch,
        history=history, norms=norms or channels, products=not problem.similarity,
    )  # fmt: skip
    block_m = sizes.tile.block_m
    rows = -(-tokens // block_m)
    if problem.similarity:  # read where they lie: the diagonal alone, or all of them once
        tiles = rows * rows if norms else rows
    else:
        tiles = _triangle(rows) if norms or dots == workspace.WHOLE.value else rows
    # The kernel takes fewer parts where a sample of a ragged batch has more tiles.
    parts = 1 if problem.similarity else config.parts_of(1 if ragged else _triangle(rows), dim)
    split = parts > 1 and not ragged and batch * tiles <= config.FEW_TILES
    arrays = workspace.ARRAYS + (rows if norms else min(k_max, tokens) if history else 0)
    sums = tiles * parts * block_m * (block_m + 2) if split else 0
    if ragged:
        samples = batch
        scratch_width = _padded(tokens) + 16 * batch
        if is_panel:
            gram_width = max(budget // tokens // 16 * 16, _padded(block_m))
        gram = tokens * gram_width
        # Twice the tiles of a sample of mean length: where one is longer, its programs take more tiles each.
        mean = -(-tokens // (batch * block_m))
        programs = min(tiles, 2 * _triangle(mean))
    else:
        gram = (block_m if is_panel else tokens) * gram_width
        gram = 0 if dots == workspace.NO_ROWS.value or problem.similarity else gram
        samples = max(1, min(batch, budget // (gram + arrays * _padded(tokens))))
        scratch_width = samples * _padded(tokens)
        gram *= samples
        programs = tiles * (parts if split else 1)
    if dots == workspace.NO_ROWS.value:
        gram = samples * _padded(dim) if channels else 0  # in its place, how well channels are covered
    gram = _padded(gram)
    sums *= samples
    programs = _programs(programs, samples)
    counter_stride = 1 + (tiles if split else 0)
    constexprs = {
        "RULE": rule_id,
        "RULE_STATE": STATES.index(rule.state),
        "NORMS": norms,
        "DOTS": dots,
        "RAGGED": ragged,
        "SIMILARITY": problem.similarity,
        "HAS_IMPORTANCE": problem.has_importance,
        "HAS_MASK": problem.has_mask,
        "HAS_COUNTS": len(problem.k) > 1 or problem.has_counts,
        "HAS_GRIDS": problem.has_grids,
        "HAS_GIVEN": problem.given > 0,
        "SORT": problem.sort,
        # The interpreter multiplies bfloat16 as integers; in float32 the products are the same.
        "WIDEN": INTERPRETED and problem.dtype is torch.bfloat16,
        "RESIDENT": sizes.resident,
        "SPLIT": split,
        "PARTS": parts,
        "FEW_TILES": config.FEW_TILES,
        "BLOCK_M": block_m,
        "BLOCK_K": sizes.tile.block_k,
        "BLOCK_N": sizes.block_n,
        "COVER_M": config.COVER_BLOCK[0],
        "COVER_N": config.COVER_BLOCK[1],
        "COVER_STRIDE": config.COVER_BLOCK[2],
    }
    # Said aloud, because Triton's default is about to change and the bits of a score with it.
    options = {"num_warps": sizes.num_warps, "num_stages": sizes.tile.num_stages, "enable_fp_fusion": True}
    if sizes.max_registers is not None:
        options["maxnreg"] = sizes.max_registers
    sizes_and_offsets = (programs, counter_stride, gram_width, scratch_width, gram + sums, gram)
    return Plan(
        batch=batch,
        samples=samples,
        programs=programs,
        workspace=gram + sums + arrays * scratch_width,
        counters=samples * counter_stride,
        dots=dots,
        scalars=(tokens, dim, k_max, k_max, problem.given, *sizes_and_offsets, *_param_bits(params)),
        constexprs=constexprs,
        options=options,
    )


def pointers(
    features: torch.Tensor,
    importance: torch.Tensor | None,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    counts: torch.Tensor | None,
    grids: torch.Tensor | None,
    given: torch.Tensor | None,
    workspace: torch.Tensor,
    counters: torch.Tensor,
    indices: torch.Tensor,
    scores: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The kernel's first arguments; what a call lacks is None.

    Args:
        features: (B, N, D), of a batch of one also (N, D); or (T, D). In their place, where the problem says so,
            similarities (B, N, N) or (N, N).
        importance, mask: (B, N), of a batch of one also (N,); or (T,).
        cu_seqlens: (B+1,) int32.
        counts: (B,) int32.
        grids: (B, 2) int32.
        given: (B, M) int32.
        workspace: (Plan.workspace,) float32.
        counters: (Plan.counters,) int32, zeros.
        indices, scores: (B, k) int64 and float32.
    """
    # A pointer that the kernel does not read still has to be one.
    return (
        features,
        features if importance is None else importance,
        features if mask is None else mask,
        counters if cu_seqlens is None else cu_seqlens,
        counters if counts is None else counts,
        counters if grids is None else grids,
        counters if given is None else given,
        workspace,
        counters,
        indices,
        scores,
    )


class Launches:
    """The launches of a plan for tensors of one layout: what is left is to fill in addresses.

    Args:
        plan: of the call.
        features, importance, mask: tensors of the layout, as for `pointers`.
    """

    def __init__(
        self, plan: Plan, features: torch.Tensor, importance: torch.Tensor | None, mask: torch.Tensor | None
    ) -> None:
        stride = features.stride()
        strides = (*((0, *stride) if len(stride) == 2 else stride), *_row_strides(importance), *_row_strides(mask))
        self._plan = plan
        # Grid and numbers of each.
        self._each = [
            ((samples * plan.programs, 1, 1), (*strides, first, *plan.scalars))
            for first, samples in plan.first_samples()
        ]
        self._constexprs = tuple(plan.constexprs.values()) if _TAKES_CONSTEXPRS else ()
        # What the compiler may know of the tensors beyond the plan, but for their addresses.
        self._layout = (features.device.index, stride, None if importance is None else importance.dtype)
        self._kernels: dict[Any, Any] = {}

    def __call__(self, stream: int, tensors: tuple[torch.Tensor, ...]) -> None:
        """Launches on a stream of the current device (nothing under the interpreter), given `pointers`."""
        if INTERPRETED:
            self._interpret(tensors)
            return
        addresses = list(map(torch.Tensor.data_ptr, tensors))
        is_aligned = addresses[0] % 16 == 0
        key = (is_aligned, *map(_is_large, tensors[:3])) if _IS_HIP else is_aligned
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self.compiled(tensors)
        if _is_watched():
            for grid, numbers in self._each:
                kernel[grid](*tensors, *numbers, *self._constexprs)
            return
        # Triton's launcher in C, without look-ups: it asks the driver about every pointer that is not a number.
        run = kernel.run  # loads the kernel, and with it the function
        for grid, numbers in self._each:
            run(*grid, stream, kernel.function, kernel.packed_metadata, None, None, None,
                *addresses, *numbers, *self._constexprs)  # fmt: skip

    def compiled(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        """The kernel that Triton compiles for `pointers` on the current device; nothing runs."""
        large = tuple(map(_is_large, tensors[:3])) if _IS_HIP else ()
        key = (*self._layout, tensors[0].data_ptr() % 16 == 0, *large)
        known, plan = self._plan.compiled, self._plan
        if key not in known:
            arguments = (*tensors, *self._each[0][1])
            known[key] = kernels.select_kernel.warmup(*arguments, grid=(1, 1, 1), **plan.constexprs, **plan.options)
        return known[key]

    def _interpret(self, tensors: tuple[torch.Tensor, ...]) -> None:
        tensors = tuple(tensor.detach() for tensor in tensors)
        for grid, numbers in self._each:
            kernels.select_kernel[grid](*tensors, *numbers, **self._plan.constexprs, **self._plan.options)


def _is_watched() -> bool:
    """Whether a profiler has asked Triton to tell it of launches."""
    before, after = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))  # since 3.6 a chain of hooks


def _is_large(tensor: torch.Tensor) -> bool:
    """For HIP Triton compiles shorter addresses where a storage is below 2 GiB."""
    return tensor.untyped_storage().nbytes() >= 2**31


def _row_strides(value: torch.Tensor | None) -> tuple[int, int]:
    if value is None:
        return 0, 0
    stride = value.stride()
    return (0, stride[0]) if len(stride) == 1 else (stride[0], stride[1])

"""The kernel: tiles of dot products, an arrival counter per sample, and the loop in the program that arrives last.

Grid: (B * programs,). Program p of a sample works on its tiles p, p + programs, ..., or on parts of tiles with SPLIT.
What it writes is a function of the tile alone, so neither the number of programs nor their order changes a bit.

The dot products of a sample are its whole Gram where that fits into rows of `gram_width`, else a *panel*: the rows of
the BLOCK_M tokens that rank highest. The loop runs on a panel until the best token has no row in it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .loops import cover_loop, first_picks, pad, row_loop, sort_picks, start_tokens, take_rest
from .rules import STATE_CHANNELS, STATE_COVERAGE, encoded
from .tiles import dots, finish_tile, part_length, place_of, read_tile, sum_parts
from .workspace import NO_ROWS, PANEL, WHOLE, padded

__all__ = ["select_kernel"]


@triton.jit
def _greedy(
    features_ptr, importance_ptr, mask_ptr, given_ptr, gram_ptr, scratch_ptr, indices_ptr, scores_ptr,
    n, dim, length, parts, count, width, given_count, stride_fn, stride_fd, stride_in, stride_mn,
    gram_width, scratch_width, whole, p0, p1, p2, p3,
    SIMILARITY: tl.constexpr, HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_GIVEN: tl.constexpr,
    NORMS: tl.constexpr, DOTS: tl.constexpr, SORT: tl.constexpr, WIDEN: tl.constexpr, RULE: tl.constexpr,
    RULE_STATE: tl.constexpr, RESIDENT: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    COVER_M: tl.constexpr, COVER_N: tl.constexpr, COVER_STRIDE: tl.constexpr,
):  # fmt: skip
    """All picks of a sample."""
    there = start_tokens(
        importance_ptr, mask_ptr, scratch_ptr, n, stride_in, stride_mn, scratch_width, p0, p1,
        HAS_IMPORTANCE, HAS_MASK, NORMS, RULE, RULE_STATE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    steps = tl.minimum(count, there)
    first = tl.full((), 0, dtype=tl.int32)
    if HAS_GIVEN:
        first = first_picks(
            given_ptr, given_count, steps, scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, RULE
        )  # fmt: skip
    picked = first
    if RULE_STATE == STATE_COVERAGE or RULE_STATE == STATE_CHANNELS:  # noqa: SIM109 (Triton knows no other way)
        picked = cover_loop(
            features_ptr, gram_ptr, scratch_ptr, indices_ptr, scores_ptr, first, steps, n, dim, stride_fn, stride_fd,
            gram_width, scratch_width, p1, SIMILARITY, HAS_GIVEN, RULE, RULE_STATE, BLOCK_N, COVER_M, COVER_N,
            COVER_STRIDE,
        )  # fmt: skip
    elif DOTS != NO_ROWS:
        picked = row_loop(
            features_ptr, gram_ptr, scratch_ptr, indices_ptr, scores_ptr,
            first, steps, n, dim, length, parts, stride_fn, stride_fd, gram_width, scratch_width, whole,
            p0, p1, p2, p3, SIMILARITY, HAS_GIVEN, DOTS, RULE, RULE_STATE, RESIDENT, PARTS, WIDEN,
            BLOCK_M, BLOCK_K, BLOCK_N,
        )  # fmt: skip
    if picked < steps:
        take_rest(picked, steps, scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, RULE, BLOCK_N)
    if SORT:
        sort_picks(steps, scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, BLOCK_N)
    pad(steps, width, indices_ptr, scores_ptr, BLOCK_N)


# Strides of features are not annotated, so that the compiler knows which is 1: without that there are neither vector
# loads nor asynchronous copies. Multiples of 16 it knows of annotated integers too. What differs from call to call for
# no gain is not specialised.
@triton.jit(
    do_not_specialize=[
        "stride_ib", "stride_in", "stride_mb", "stride_mn", "tokens", "count", "width",
        "given_count", "programs", "first_sample", "counter_stride", "p0", "p1", "p2", "p3",
    ],
    do_not_specialize_on_alignment=[
        "importance_ptr", "mask_ptr", "cu_seqlens_ptr", "counts_ptr", "grids_ptr", "given_ptr", "counters_ptr",
    ],
)  # fmt: skip
def select_kernel(
    features_ptr, importance_ptr, mask_ptr, cu_seqlens_ptr, counts_ptr, grids_ptr, given_ptr,
    workspace_ptr, counters_ptr, indices_ptr, scores_ptr,
    stride_fb, stride_fn, stride_fd,
    stride_ib: tl.int64, stride_in: tl.int64, stride_mb: tl.int64, stride_mn: tl.int64,
    first_sample: tl.int32, tokens: tl.int32, dim, count: tl.int32, width: tl.int32,
    given_count: tl.int32, programs: tl.int32, counter_stride: tl.int32,
    gram_width: tl.int64, scratch_width: tl.int64, scratch_offset: tl.int64, sums_offset: tl.int64,
    p0: tl.int64, p1: tl.int64, p2: tl.int64, p3: tl.int64,
    RULE: tl.constexpr, RULE_STATE: tl.constexpr, NORMS: tl.constexpr, DOTS: tl.constexpr, RAGGED: tl.constexpr,
    SIMILARITY: tl.constexpr, HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_COUNTS: tl.constexpr,
    HAS_GRIDS: tl.constexpr, HAS_GIVEN: tl.constexpr, SORT: tl.constexpr, WIDEN: tl.constexpr, RESIDENT: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, FEW_TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr, COVER_M: tl.constexpr, COVER_N: tl.constexpr, COVER_STRIDE: tl.constexpr,
):  # fmt: skip
    """Selects for the samples from `first_sample` on.

    Dense: features (B, N, D), importance and mask (B, N), `tokens` = N; a sample has N rows of `gram_width` dot
    products (BLOCK_M rows for a panel). With SIMILARITY similarities (B, N, N) are in the place of features, and of the
    dot products. Ragged: features (T, D), importance and mask (T,), `tokens` = T; a sample of n
    tokens has n * `gram_width` dot products: whole rows if that is enough for n * n, else a panel with rows of n.
    Outputs: indices (B, width) int64, scores (B, width) float32.
    """
    local = (tl.program_id(0) // programs).to(tl.int64)
    sample = first_sample + local
    program = tl.program_id(0) % programs
    if RAGGED:
        begin = tl.load(cu_seqlens_ptr + sample).to(tl.int64)
        n = (tl.load(cu_seqlens_ptr + sample + 1) - begin).to(tl.int32)
        features_ptr += begin * stride_fn
        importance_ptr += begin * stride_in
        mask_ptr += begin * stride_mn
        gram_ptr = workspace_ptr + begin * gram_width
        scratch_ptr = workspace_ptr + scratch_offset + (begin // 16 + local) * 16  # each sample has its rows padded
        whole = DOTS == WHOLE
        if DOTS == PANEL:
            whole = n <= gram_width
            gram_width = tl.where(whole, gram_width, n)
    else:
        n = tokens
        features_ptr += sample * stride_fb
        importance_ptr += sample * stride_ib
        mask_ptr += sample * stride_mb
        if DOTS == PANEL:
            gram_ptr = workspace_ptr + local * BLOCK_M * gram_width
        else:
            gram_ptr = workspace_ptr + local * tokens * gram_width
        scratch_ptr = workspace_ptr + scratch_offset + local * padded(tokens)
        whole = DOTS == WHOLE
    if RULE_STATE == STATE_CHANNELS:
        gram_ptr = workspace_ptr + local * padded(dim)
    if SIMILARITY:
        gram_ptr, gram_width = features_ptr, stride_fn
    counter_ptr = counters_ptr + local * counter_stride

    # Without a Gram to fill, the diagonal tiles alone: they hold the norms.
    if NORMS:
        all_pairs = True
    elif DOTS == NO_ROWS or SIMILARITY:
        all_pairs = False
    else:
        all_pairs = whole
    tile_rows = tl.cdiv(n, BLOCK_M)
    triangle = tile_rows * (tile_rows + 1) // 2
    tiles = tile_rows
    if all_pairs:
        tiles = tile_rows * tile_rows if SIMILARITY else triangle
    # The parts of D whose sums are added: a function of the sample alone.
    parts = tl.full((), PARTS, dtype=tl.int32)
    if RAGGED:
        parts = tl.where(triangle <= FEW_TILES, parts, 1)
    length = part_length(dim, parts, BLOCK_K)
    for item in range(program, tiles * PARTS if SPLIT else tiles, programs):
        tile = tl.full((), 0, dtype=tl.int32) + item  # under the interpreter a loop counts in Python integers
        if SIMILARITY:
            tile_i, tile_j = tile, tile
            if NORMS:
                tile_i, tile_j = tile // tile_rows, tile % tile_rows
            read_tile(
                tile_i, tile_j, features_ptr, importance_ptr, mask_ptr, scratch_ptr,
                n, stride_fn, stride_fd, stride_in, stride_mn, scratch_width,
                HAS_IMPORTANCE, HAS_MASK, NORMS, RULE_STATE, BLOCK_M,
            )  # fmt: skip
        else:
            first, last = tl.full((), 0, dtype=tl.int32), parts
            if SPLIT:
                first = tile % PARTS
                tile, last = tile // PARTS, first + 1
            tile_i, tile_j = place_of(tile, all_pairs)
            rows = tile_i * BLOCK_M + tl.arange(0, BLOCK_M)
            columns = tile_j * BLOCK_M + tl.arange(0, BLOCK_M)
            products, squares_i, squares_j = dots(
                first, last, length, features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
                NORMS, PARTS, WIDEN, BLOCK_M, BLOCK_K,
            )  # fmt: skip
            is_whole = True
            if SPLIT:
                sums_ptr = workspace_ptr + sums_offset + local * tiles * PARTS * BLOCK_M * (BLOCK_M + 2)
                is_whole, products, squares_i, squares_j = sum_parts(
                    tile, first, products, squares_i, squares_j, sums_ptr, counter_ptr + 1 + tile, NORMS, PARTS, BLOCK_M
                )
            if is_whole:
                finish_tile(
                    tile_i, tile_j, products, squares_i, squares_j, importance_ptr, mask_ptr, gram_ptr, scratch_ptr,
                    n, stride_in, stride_mn, gram_width, scratch_width, whole,
                    HAS_IMPORTANCE, HAS_MASK, NORMS, DOTS, RULE_STATE, BLOCK_M,
                )  # fmt: skip

    # All threads' stores come before the arrival, and the program that arrives last sees those of every program.
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    if arrived == programs - 1:
        tl.debug_barrier()
        tl.store(counter_ptr, 0)  # for the next launch
        if HAS_COUNTS:
            count = tl.minimum(tl.maximum(tl.load(counts_ptr + sample), 0), width)
        if HAS_GRIDS:  # the width of the sample's own
            p2 = encoded(tl.load(grids_ptr + 2 * sample + 1))
        _greedy(
            features_ptr, importance_ptr, mask_ptr, given_ptr + sample * given_count, gram_ptr, scratch_ptr,
            indices_ptr + sample * width, scores_ptr + sample * width,
            n, dim, length, parts, count, width, given_count, stride_fn, stride_fd, stride_in, stride_mn, gram_width,
            scratch_width, whole, p0, p1, p2, p3, SIMILARITY, HAS_IMPORTANCE, HAS_MASK, HAS_GIVEN, NORMS, DOTS, SORT,
            WIDEN, RULE, RULE_STATE, RESIDENT, PARTS, BLOCK_M, BLOCK_K, BLOCK_N, COVER_M, COVER_N, COVER_STRIDE,
        )  # fmt: skip

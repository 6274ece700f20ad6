"""Tiles of dot products, and what they say of their tokens before the first pick.

The order of additions is a function of D and of the number of parts it is cut into, so a similarity has the same bits
in every tile, with every number of programs, in every batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rules import INF, STATE_COVERAGE, given_similarity, similarity
from .workspace import NO_ROWS, OF_TILES, SQUARES, padded

__all__ = [
    "dots",
    "finish_tile",
    "importance_of",
    "part_length",
    "place_of",
    "read_tile",
    "reciprocal_norm",
    "sum_parts",
    "takes_part",
]


@triton.jit
def part_length(dim, parts, BLOCK_K: tl.constexpr):
    """How much of D a part has, in whole k-tiles."""
    return tl.cdiv(tl.cdiv(dim, parts), BLOCK_K) * BLOCK_K


@triton.jit
def place_of(tile, all_pairs):
    """(tile row, tile column) in the upper triangle, or on the diagonal alone."""
    tile_i, tile_j = tile, tile
    if all_pairs:
        # Tile column j begins at j * (j + 1) / 2; the square root is rounded, so look on both sides.
        tile_j = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
        tile_j = tl.where(tile_j * (tile_j + 1) // 2 > tile, tile_j - 1, tile_j)
        tile_j = tl.where((tile_j + 1) * (tile_j + 2) // 2 <= tile, tile_j + 1, tile_j)
        tile_i = tile - tile_j * (tile_j + 1) // 2
    return tile_i, tile_j


@triton.jit
def _products(
    begin, end, features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
    NORMS: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Products of rows and columns over [begin, end) of D; with NORMS also of rows with rows, columns with columns."""
    k = begin + tl.arange(0, BLOCK_K)
    row_ptr = features_ptr + rows.to(tl.int64)[:, None] * stride_fn + k.to(tl.int64)[None, :] * stride_fd
    column_ptr = features_ptr + columns.to(tl.int64)[None, :] * stride_fn + k.to(tl.int64)[:, None] * stride_fd
    k_step = tl.full((), BLOCK_K, dtype=tl.int64) * stride_fd
    row_mask = ((rows >= 0) & (rows < n))[:, None]
    column_mask = ((columns >= 0) & (columns < n))[None, :]
    products = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
    of_rows = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
    of_columns = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
    for first in range(begin, end, BLOCK_K):
        inside = first + tl.arange(0, BLOCK_K) < dim
        a = tl.load(row_ptr, mask=row_mask & inside[None, :], other=0.0)
        b = tl.load(column_ptr, mask=column_mask & inside[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision="ieee")
        if NORMS:
            of_rows = tl.dot(a, tl.trans(a), of_rows, input_precision="ieee")
            of_columns = tl.dot(tl.trans(b), b, of_columns, input_precision="ieee")
        row_ptr += k_step
        column_ptr += k_step
    return products, of_rows, of_columns


@triton.jit
def _dots_between(
    begin, end, features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
    NORMS: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The part of the dot products that lies in [begin, end) of D; with NORMS also the squares of rows and columns."""
    # Operands of float32 are in registers, too many for three products at once.
    AT_ONCE: tl.constexpr = NORMS and features_ptr.dtype.element_ty != tl.float32
    products, of_rows, of_columns = _products(
        begin, end, features_ptr, rows, columns, n, dim, stride_fn, stride_fd, AT_ONCE, WIDEN, BLOCK_M, BLOCK_K
    )
    if NORMS and not AT_ONCE:
        of_rows, _, _ = _products(
            begin, end, features_ptr, rows, rows, n, dim, stride_fn, stride_fd, False, WIDEN, BLOCK_M, BLOCK_K
        )
        of_columns, _, _ = _products(
            begin, end, features_ptr, columns, columns, n, dim, stride_fn, stride_fd, False, WIDEN, BLOCK_M, BLOCK_K
        )
    return products, _diagonal(of_rows, BLOCK_M), _diagonal(of_columns, BLOCK_M)


@triton.jit
def dots(
    first, last, length, features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
    NORMS: tl.constexpr, PARTS: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The parts [first, last) of (BLOCK_M, BLOCK_M) dot products, float32; those of indices outside [0, n) are 0."""
    if PARTS == 1:
        return _dots_between(
            0, dim, features_ptr, rows, columns, n, dim, stride_fn, stride_fd, NORMS, WIDEN, BLOCK_M, BLOCK_K
        )  # fmt: skip
    else:
        products = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
        of_rows = tl.zeros((BLOCK_M,), dtype=tl.float32)
        of_columns = tl.zeros((BLOCK_M,), dtype=tl.float32)
        for part in range(first, last):
            begin = part * length
            more, more_of_rows, more_of_columns = _dots_between(
                begin, tl.minimum(begin + length, dim), features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
                NORMS, WIDEN, BLOCK_M, BLOCK_K,
            )  # fmt: skip
            products += more
            of_rows += more_of_rows
            of_columns += more_of_columns
        return products, of_rows, of_columns


@triton.jit
def sum_parts(
    tile, part, products, of_rows, of_columns, sums_ptr, counter_ptr,
    NORMS: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Leaves a part of a tile in the workspace; the program that arrives last gets the sum of all, in their order.

    Returns (whether this is the last one, products, squares of rows, squares of columns).
    """
    SIZE: tl.constexpr = BLOCK_M * (BLOCK_M + 2)
    slots = tl.arange(0, BLOCK_M)
    in_tile = slots[:, None] * BLOCK_M + slots[None, :]
    first_ptr = sums_ptr + tile.to(tl.int64) * (PARTS * SIZE)
    here = first_ptr + part * SIZE
    tl.store(here + in_tile, products)
    if NORMS:
        tl.store(here + BLOCK_M * BLOCK_M + slots, of_rows)
        tl.store(here + BLOCK_M * BLOCK_M + BLOCK_M + slots, of_columns)
    # All threads' stores come before the arrival, and the program that arrives last sees those of every program.
    tl.debug_barrier()
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == PARTS - 1
    if is_last:
        tl.debug_barrier()
        tl.store(counter_ptr, 0)  # for the next launch
        products = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
        of_rows = tl.zeros((BLOCK_M,), dtype=tl.float32)
        of_columns = tl.zeros((BLOCK_M,), dtype=tl.float32)
        for other in range(PARTS):
            here = first_ptr + other * SIZE
            products += tl.load(here + in_tile, cache_modifier=".cg")
            if NORMS:
                of_rows += tl.load(here + BLOCK_M * BLOCK_M + slots, cache_modifier=".cg")
                of_columns += tl.load(here + BLOCK_M * BLOCK_M + BLOCK_M + slots, cache_modifier=".cg")
    return is_last, products, of_rows, of_columns


@triton.jit
def reciprocal_norm(squares):
    """1 / norm, 0 for a row of zeros."""
    positive = squares > 0.0
    return tl.where(positive, tl.div_rn(1.0, tl.sqrt_rn(tl.where(positive, squares, 1.0))), 0.0)


@triton.jit
def importance_of(
    importance_ptr, mask_ptr, stride_in, stride_mn, tokens, n, HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr
):
    """(importance float32, whether the token may be picked at all)."""
    exists = tokens < n
    at = tokens.to(tl.int64)
    if HAS_IMPORTANCE:
        importance = tl.load(importance_ptr + at * stride_in, mask=exists, other=0.0).to(tl.float32)
    else:
        importance = tl.where(exists, 1.0, 0.0)
    if HAS_MASK:
        exists = exists & (tl.load(mask_ptr + at * stride_mn, mask=exists, other=0) != 0)
    return importance, exists


@triton.jit
def takes_part(importance, exists, squares):
    """Not NaN, not -inf, and features whose squares have a finite sum; NaN compares false."""
    return exists & (importance > -INF) & (squares < INF)


@triton.jit
def _diagonal(products, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    return tl.sum(tl.where(i[:, None] == i[None, :], products, 0.0), axis=1)


@triton.jit
def _usable(
    tokens, squares, importance_ptr, mask_ptr, stride_in, stride_mn, n,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    importance, exists = importance_of(
        importance_ptr, mask_ptr, stride_in, stride_mn, tokens, n, HAS_IMPORTANCE, HAS_MASK
    )
    return takes_part(importance, exists, squares)


@triton.jit
def _over_tokens(c, AXIS: tl.constexpr, RULE_STATE: tl.constexpr):
    """What a tile says of its tokens: their nearest other one (MaxMin), or what they cover of an axis (Coverage)."""
    if RULE_STATE == STATE_COVERAGE:
        return tl.sum(tl.where(c > 0.0, c, 0.0), axis=AXIS)
    else:
        return tl.max(c, axis=AXIS)


@triton.jit
def finish_tile(
    tile_i, tile_j, products, squares_i, squares_j, importance_ptr, mask_ptr, gram_ptr, scratch_ptr,
    n, stride_in, stride_mn, gram_width, scratch_width, whole,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, NORMS: tl.constexpr, DOTS: tl.constexpr,
    RULE_STATE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes a tile and its mirror, the squared norms of a diagonal one, and with NORMS what it says of its tokens."""
    rows = tile_i * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_j * BLOCK_M + tl.arange(0, BLOCK_M)
    if tile_i == tile_j:
        tl.store(scratch_ptr + scratch_width * SQUARES + rows, _diagonal(products, BLOCK_M), mask=rows < n)
    if DOTS != NO_ROWS:
        if whole:
            row_ptr = gram_ptr + rows.to(tl.int64)[:, None] * gram_width + columns[None, :]
            tl.store(row_ptr, products, mask=(rows < n)[:, None] & (columns < padded(n))[None, :])
            if tile_i != tile_j:
                mirror_ptr = gram_ptr + columns.to(tl.int64)[:, None] * gram_width + rows[None, :]
                tl.store(mirror_ptr, tl.trans(products), mask=(columns < n)[:, None] & (rows < padded(n))[None, :])
    if NORMS:
        usable_i = _usable(rows, squares_i, importance_ptr, mask_ptr, stride_in, stride_mn, n, HAS_IMPORTANCE, HAS_MASK)
        usable_j = _usable(
            columns, squares_j, importance_ptr, mask_ptr, stride_in, stride_mn, n, HAS_IMPORTANCE, HAS_MASK
        )
        c = similarity(products, reciprocal_norm(squares_i)[:, None], reciprocal_norm(squares_j)[None, :])
        if RULE_STATE != STATE_COVERAGE:
            c = tl.where(rows[:, None] == columns[None, :], -INF, c)
        here = scratch_ptr + scratch_width * OF_TILES
        of_columns = _over_tokens(tl.where(usable_i[:, None], c, -INF), 0, RULE_STATE)
        tl.store(here + tile_i * scratch_width + columns, of_columns, mask=columns < n)
        if tile_i != tile_j:
            of_rows = _over_tokens(tl.where(usable_j[None, :], c, -INF), 1, RULE_STATE)
            tl.store(here + tile_j * scratch_width + rows, of_rows, mask=rows < n)


@triton.jit
def _squares_given(tokens, features_ptr, n, stride_fn, stride_fd):
    """The squared norms that the diagonal stands for: 1, 0 for no direction, infinite for what is not finite."""
    at = tokens.to(tl.int64)
    own = tl.load(features_ptr + at * stride_fn + at * stride_fd, mask=tokens < n, other=0.0)
    return tl.where(tl.abs(own) < INF, tl.where(own > 0.0, 1.0, 0.0), INF)


@triton.jit
def read_tile(
    tile_i, tile_j, features_ptr, importance_ptr, mask_ptr, scratch_ptr,
    n, stride_fn, stride_fd, stride_in, stride_mn, scratch_width,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, NORMS: tl.constexpr, RULE_STATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """As `finish_tile`, of similarities in the place of features, which stay where they are.

    A tile speaks for its rows alone: the matrix need not be symmetric, and loops read rows.
    """
    rows = tile_i * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_j * BLOCK_M + tl.arange(0, BLOCK_M)
    squares_i = _squares_given(rows, features_ptr, n, stride_fn, stride_fd)
    if tile_i == tile_j:
        tl.store(scratch_ptr + scratch_width * SQUARES + rows, squares_i, mask=rows < n)
    if NORMS:
        squares_j = _squares_given(columns, features_ptr, n, stride_fn, stride_fd)
        usable_j = _usable(
            columns, squares_j, importance_ptr, mask_ptr, stride_in, stride_mn, n, HAS_IMPORTANCE, HAS_MASK
        )
        at = rows.to(tl.int64)[:, None] * stride_fn + columns.to(tl.int64)[None, :] * stride_fd
        given = tl.load(features_ptr + at, mask=(rows < n)[:, None] & (columns < n)[None, :], other=0.0)
        is_own = rows[:, None] == columns[None, :]
        c = given_similarity(given, is_own)
        c = similarity(c, reciprocal_norm(squares_i)[:, None], reciprocal_norm(squares_j)[None, :])
        if RULE_STATE != STATE_COVERAGE:
            c = tl.where(is_own, -INF, c)
        of_rows = _over_tokens(tl.where(usable_j[None, :], c, -INF), 1, RULE_STATE)
        tl.store(scratch_ptr + scratch_width * (OF_TILES + tile_j) + rows, of_rows, mask=rows < n)

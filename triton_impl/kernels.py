"""The kernel: tiles of the Gram, an arrival counter per sample, and the greedy loop in the program that arrives last.

Grid: (B * programs,). Program p of a sample computes the tiles p, p + programs, ... of that sample. What it writes is a
function of the tile alone, so neither the number of programs nor their order changes a bit.

Workspace, float32: first `scratch_offset` elements of dot products (raw, without norms), then arrays of `scratch_width`
elements, one element per token of the batch, in the order of the constants below.

The dot products of a sample are its whole Gram where that fits into rows of `gram_width`, else a *panel*: the rows of
the BLOCK_M tokens that rank highest. The loop runs on a panel until the best token has no row in it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rules import (
    HIGHEST_KEY,
    INF,
    LOWEST_KEY,
    NO_PRIORITY,
    STATE_COVERAGE,
    STATE_HISTORY,
    absorb,
    clamp_importance,
    dpp_component,
    gain_priority,
    is_there,
    key_priority,
    key_tier,
    key_token,
    rank_floor,
    rank_key,
    reported,
    similarity,
    start,
)

__all__ = ["ARRAYS", "select_kernel"]

# The arrays of the workspace. NEAREST has one per tile row, the history of DPP one per pick; they share their place.
SQUARES = tl.constexpr(0)
SCALE = tl.constexpr(1)
STANDING = tl.constexpr(2)
PRIORITY = tl.constexpr(3)
STATE = tl.constexpr(4)
SCORE = tl.constexpr(5)
GAIN = tl.constexpr(6)
COVER = tl.constexpr(7)
NEAREST = tl.constexpr(8)
HISTORY = tl.constexpr(8)
ARRAYS = 8

# Where dot products come from: none are needed, every sample has its whole Gram, or a panel where that is too large.
NO_ROWS = tl.constexpr(0)
WHOLE = tl.constexpr(1)
PANEL = tl.constexpr(2)

# Rows of DPP's history whose loads are in flight together.
HISTORY_UNROLL = tl.constexpr(8)


@triton.jit
def _dots(
    features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
    WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) float32 dot products of tokens; the products of indices outside [0, n) are 0."""
    row_ptr = features_ptr + rows.to(tl.int64)[:, None] * stride_fn
    column_ptr = features_ptr + columns.to(tl.int64)[None, :] * stride_fn
    row_mask = ((rows >= 0) & (rows < n))[:, None]
    column_mask = ((columns >= 0) & (columns < n))[None, :]
    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for begin in range(0, dim, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        inside = k < dim
        offset = k.to(tl.int64) * stride_fd
        a = tl.load(row_ptr + offset[None, :], mask=row_mask & inside[None, :], other=0.0)
        b = tl.load(column_ptr + offset[:, None], mask=column_mask & inside[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision="ieee")
    return products


@triton.jit
def _reciprocal_norm(squares):
    """1 / norm, 0 for a row of zeros."""
    positive = squares > 0.0
    return tl.where(positive, tl.div_rn(1.0, tl.sqrt_rn(tl.where(positive, squares, 1.0))), 0.0)


@triton.jit
def _importance_of(
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
def _takes_part(importance, exists, squares):
    """Not NaN, not -inf, and features whose squares have a finite sum; NaN compares false."""
    return exists & (importance > -INF) & (squares < INF)


@triton.jit
def _diagonal(products, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    return tl.sum(tl.where(i[:, None] == i[None, :], products, 0.0), axis=1)


@triton.jit
def _squares(
    features_ptr, rows, n, dim, stride_fn, stride_fd,
    WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Squared norms with the bits that a diagonal tile gives them."""
    products = _dots(features_ptr, rows, rows, n, dim, stride_fn, stride_fd, WIDEN, BLOCK_M, BLOCK_M, BLOCK_K)
    return _diagonal(products, BLOCK_M)


@triton.jit
def _tile(
    tile, features_ptr, importance_ptr, mask_ptr, gram_ptr, scratch_ptr,
    n, dim, stride_fn, stride_fd, stride_in, stride_mn, gram_width, scratch_width, whole, all_pairs,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, NEAREST_FIRST: tl.constexpr, DOTS: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile (of the upper triangle, or of the diagonal where there is no Gram to fill) and its mirror."""
    tile = tl.full((), 0, dtype=tl.int32) + tile  # under the interpreter a loop counts in Python integers
    tile_i, tile_j = tile, tile
    if all_pairs:
        # Tile column j begins at j * (j + 1) / 2; the square root is rounded, so look on both sides.
        tile_j = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
        tile_j = tl.where(tile_j * (tile_j + 1) // 2 > tile, tile_j - 1, tile_j)
        tile_j = tl.where((tile_j + 1) * (tile_j + 2) // 2 <= tile, tile_j + 1, tile_j)
        tile_i = tile - tile_j * (tile_j + 1) // 2
    rows = tile_i * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_j * BLOCK_M + tl.arange(0, BLOCK_M)
    products = _dots(features_ptr, rows, columns, n, dim, stride_fn, stride_fd, WIDEN, BLOCK_M, BLOCK_M, BLOCK_K)
    if tile_i == tile_j:
        tl.store(scratch_ptr + scratch_width * SQUARES + rows, _diagonal(products, BLOCK_M), mask=rows < n)
    if DOTS != NO_ROWS:
        if whole:
            row_ptr = gram_ptr + rows.to(tl.int64)[:, None] * gram_width + columns[None, :]
            tl.store(row_ptr, products, mask=(rows < n)[:, None] & (columns < n)[None, :])
            if tile_i != tile_j:
                mirror_ptr = gram_ptr + columns.to(tl.int64)[:, None] * gram_width + rows[None, :]
                tl.store(mirror_ptr, tl.trans(products), mask=(columns < n)[:, None] & (rows < n)[None, :])
    if NEAREST_FIRST:
        # Norms here and now: other programs have the diagonal tiles.
        squares_i = _squares(features_ptr, rows, n, dim, stride_fn, stride_fd, WIDEN, BLOCK_M, BLOCK_K)
        squares_j = _squares(features_ptr, columns, n, dim, stride_fn, stride_fd, WIDEN, BLOCK_M, BLOCK_K)
        importance_i, exists_i = _importance_of(
            importance_ptr, mask_ptr, stride_in, stride_mn, rows, n, HAS_IMPORTANCE, HAS_MASK
        )
        importance_j, exists_j = _importance_of(
            importance_ptr, mask_ptr, stride_in, stride_mn, columns, n, HAS_IMPORTANCE, HAS_MASK
        )
        usable_i = _takes_part(importance_i, exists_i, squares_i)
        usable_j = _takes_part(importance_j, exists_j, squares_j)
        scale_i, scale_j = _reciprocal_norm(squares_i), _reciprocal_norm(squares_j)
        c = similarity(products, scale_i[:, None], scale_j[None, :])
        c = tl.where(rows[:, None] == columns[None, :], -INF, c)
        nearest_ptr = scratch_ptr + scratch_width * NEAREST
        of_columns = tl.max(tl.where(usable_i[:, None], c, -INF), axis=0)
        tl.store(nearest_ptr + tile_i * scratch_width + columns, of_columns, mask=columns < n)
        if tile_i != tile_j:
            of_rows = tl.max(tl.where(usable_j[None, :], c, -INF), axis=1)
            tl.store(nearest_ptr + tile_j * scratch_width + rows, of_rows, mask=rows < n)


@triton.jit
def _start_block(
    begin, importance_ptr, mask_ptr, scratch_ptr, n, stride_in, stride_mn, scratch_width, p0,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, NEAREST_FIRST: tl.constexpr,
    RULE: tl.constexpr, RULE_STATE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of tokens before the first pick: (standing, priority, state, scale), also written to the workspace."""
    tokens = begin + tl.arange(0, BLOCK_N)
    inside = tokens < n
    here = scratch_ptr + tokens
    squares = tl.load(here + scratch_width * SQUARES, mask=inside, other=0.0, cache_modifier=".cg")
    importance, exists = _importance_of(
        importance_ptr, mask_ptr, stride_in, stride_mn, tokens, n, HAS_IMPORTANCE, HAS_MASK
    )
    takes_part = _takes_part(importance, exists, squares)
    importance = clamp_importance(importance)
    standing = tl.where(exists, tl.where(takes_part, importance, -INF), float("nan"))
    scale = _reciprocal_norm(squares)
    nearest = tl.full((BLOCK_N,), -INF, dtype=tl.float32)
    if NEAREST_FIRST:
        nearest_ptr = here + scratch_width * NEAREST
        for _ in range(tl.cdiv(n, BLOCK_M)):
            nearest = tl.maximum(nearest, tl.load(nearest_ptr, mask=inside, other=-INF, cache_modifier=".cg"))
            nearest_ptr += scratch_width
    priority, state = start(importance, takes_part, squares > 0.0, nearest, tokens, p0, NEAREST_FIRST, RULE)
    tl.store(here + scratch_width * SCALE, scale, mask=inside)
    tl.store(here + scratch_width * STANDING, standing, mask=inside)
    tl.store(here + scratch_width * PRIORITY, priority, mask=inside)
    tl.store(here + scratch_width * STATE, state, mask=inside)
    tl.store(here + scratch_width * SCORE, tl.full((BLOCK_N,), float("nan"), dtype=tl.float32), mask=inside)
    if RULE_STATE == STATE_COVERAGE:
        # Nothing is left to cover of a token that does not take part.
        tl.store(here + scratch_width * COVER, tl.where(takes_part, 0.0, INF), mask=inside)
    return standing, priority, state, scale


@triton.jit
def _load_block(begin, scratch_ptr, n, scratch_width, BLOCK_N: tl.constexpr):
    """What `_start_block` and `_step_block` left in the workspace."""
    tokens = begin + tl.arange(0, BLOCK_N)
    inside = tokens < n
    here = scratch_ptr + tokens
    standing = tl.load(here + scratch_width * STANDING, mask=inside, other=float("nan"))
    priority = tl.load(here + scratch_width * PRIORITY, mask=inside, other=0.0)
    state = tl.load(here + scratch_width * STATE, mask=inside, other=0.0)
    scale = tl.load(here + scratch_width * SCALE, mask=inside, other=0.0)
    return standing, priority, state, scale


@triton.jit
def _overlap(pick, step, tokens, n, history_ptr, scratch_width, BLOCK_N: tl.constexpr):
    """DPP: the sum over earlier picks t of r_t[pick] * r_t[j], added in the order of t whatever the block size."""
    overlap = tl.zeros((BLOCK_N,), dtype=tl.float32)
    rows = tl.where(tokens < n, step, 0)
    for first in range(0, step, HISTORY_UNROLL):
        for u in tl.static_range(HISTORY_UNROLL):
            t = first + u
            # Past the end: the last row of the pick times 0.
            row_ptr = history_ptr + tl.minimum(t, step - 1) * scratch_width
            at_pick = tl.load(row_ptr + pick)
            overlap += at_pick * tl.load(row_ptr + tokens, mask=rows > t, other=0.0)
    return overlap


@triton.jit
def _step_block(
    begin, pick, score, step, row_ptr, scratch_ptr, n, scratch_width, scale_i, state_i,
    standing, priority, state, scale, p0, p1, p2, p3,
    RULE: tl.constexpr, RULE_STATE: tl.constexpr, DOTS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of tokens after a pick: (priority, state)."""
    tokens = begin + tl.arange(0, BLOCK_N)
    inside = tokens < n
    if RULE_STATE == STATE_COVERAGE:
        gain = tl.load(scratch_ptr + scratch_width * GAIN + tokens, mask=inside, other=0.0)
        return gain_priority(gain, state, p1), state
    elif DOTS == NO_ROWS:
        return priority, state
    else:
        dot = tl.load(row_ptr + tokens, mask=inside, other=0.0, cache_modifier=".cg")
        c = similarity(dot, scale_i, scale)
        if RULE_STATE == STATE_HISTORY:
            history_ptr = scratch_ptr + scratch_width * HISTORY
            overlap = _overlap(pick, step, tokens, n, history_ptr, scratch_width, BLOCK_N)
            c = dpp_component(c, overlap, state_i, state, score)
            tl.store(history_ptr + step * scratch_width + tokens, c, mask=inside)
        return absorb(c, pick, score, step, tokens, standing, priority, state, p0, p1, p2, p3, RULE)


@triton.jit
def _cover(pick, gram_ptr, scratch_ptr, n, gram_width, scratch_width, scale_i, BLOCK_N: tl.constexpr):
    """Coverage: how well each token is covered, the pick included."""
    row_ptr = gram_ptr + pick.to(tl.int64) * gram_width
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        inside = tokens < n
        here = scratch_ptr + tokens
        dot = tl.load(row_ptr + tokens, mask=inside, other=0.0, cache_modifier=".cg")
        scale = tl.load(here + scratch_width * SCALE, mask=inside, other=0.0)
        covered = tl.load(here + scratch_width * COVER, mask=inside, other=INF)
        c = similarity(dot, scale_i, scale)
        tl.store(here + scratch_width * COVER, tl.where(c > covered, c, covered), mask=inside)
    tl.debug_barrier()


@triton.jit
def _gains(gram_ptr, scratch_ptr, n, gram_width, scratch_width, COVER_I: tl.constexpr, COVER_J: tl.constexpr):
    """Coverage: the sum over i of max(0, c_ij - cover_i), in blocks whose size is the same for every N.

    So the order of the additions is a function of N alone.
    """
    for begin_j in range(0, n, COVER_J):
        j = begin_j + tl.arange(0, COVER_J)
        scale_j = tl.load(scratch_ptr + scratch_width * SCALE + j, mask=j < n, other=0.0)
        gain = tl.zeros((COVER_I, COVER_J), dtype=tl.float32)
        for begin_i in range(0, n, COVER_I):
            i = begin_i + tl.arange(0, COVER_I)
            scale_i = tl.load(scratch_ptr + scratch_width * SCALE + i, mask=i < n, other=0.0)
            covered = tl.load(scratch_ptr + scratch_width * COVER + i, mask=i < n, other=INF)
            dot_ptr = gram_ptr + i.to(tl.int64)[:, None] * gram_width + j[None, :]
            dot = tl.load(dot_ptr, mask=(i < n)[:, None] & (j < n)[None, :], other=0.0, cache_modifier=".cg")
            c = similarity(dot, scale_i[:, None], scale_j[None, :])
            uncovered = c - covered[:, None]
            gain += tl.where(uncovered > 0.0, uncovered, 0.0)
        tl.store(scratch_ptr + scratch_width * GAIN + j, tl.sum(gain, axis=0), mask=j < n)
    tl.debug_barrier()


@triton.jit
def _best_below(bound, limit, scratch_ptr, n, scratch_width, BLOCK_N: tl.constexpr):
    """The largest key below `bound` among all tokens."""
    best = tl.full((), LOWEST_KEY, dtype=tl.int64)
    for begin in range(0, n, BLOCK_N):
        standing, priority, _state, _scale = _load_block(begin, scratch_ptr, n, scratch_width, BLOCK_N)
        key = rank_key(standing, priority, limit, begin + tl.arange(0, BLOCK_N))
        best = tl.maximum(best, tl.max(tl.where(key < bound, key, LOWEST_KEY), axis=0))
    return best


@triton.jit
def _panel_rows(limit, scratch_ptr, n, scratch_width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The BLOCK_M tokens that rank highest, best first; -1 where there are fewer."""
    slots = tl.arange(0, BLOCK_M)
    rows = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    bound = tl.full((), HIGHEST_KEY, dtype=tl.int64)
    for slot in range(BLOCK_M):
        bound = _best_below(bound, limit, scratch_ptr, n, scratch_width, BLOCK_N)
        token = tl.where(is_there(bound), key_token(bound), -1)
        rows = tl.where(slots == slot, token, rows)
    return rows


@triton.jit
def _fill_panel(
    rows, features_ptr, panel_ptr, n, dim, stride_fn, stride_fd, gram_width,
    WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The dot products of the panel's tokens with all, by the tiles of the Gram, hence with its bits."""
    slots = tl.arange(0, BLOCK_M)
    tl.debug_barrier()
    for begin in range(0, n, BLOCK_M):
        columns = begin + tl.arange(0, BLOCK_M)
        products = _dots(
            features_ptr, rows, columns, n, dim, stride_fn, stride_fd, WIDEN, BLOCK_M, BLOCK_M, BLOCK_K
        )  # fmt: skip
        tl.store(panel_ptr + slots.to(tl.int64)[:, None] * gram_width + columns[None, :], products,
                 mask=(columns < n)[None, :] & (slots >= 0)[:, None])  # fmt: skip
    tl.debug_barrier()


@triton.jit
def _write_ascending(scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, RULE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The picks in index order, from the scores noted per token; returns how many there are."""
    tl.debug_barrier()
    written = tl.full((), 0, dtype=tl.int32)
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        score = tl.load(scratch_ptr + scratch_width * SCORE + tokens, mask=tokens < n, other=float("nan"))
        picked = score == score
        place = written + tl.cumsum(picked.to(tl.int32), axis=0) - 1
        tl.store(indices_ptr + place, tokens.to(tl.int64), mask=picked)
        tl.store(scores_ptr + place, reported(score, RULE), mask=picked)
        written += tl.sum(picked.to(tl.int32), axis=0)
    return written


@triton.jit
def _greedy(
    features_ptr, importance_ptr, mask_ptr, gram_ptr, scratch_ptr, indices_ptr, scores_ptr,
    n, dim, count, width, stride_fn, stride_fd, stride_in, stride_mn, gram_width, scratch_width, whole,
    p0, p1, p2, p3,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, NEAREST_FIRST: tl.constexpr, DOTS: tl.constexpr,
    SORT: tl.constexpr, WIDEN: tl.constexpr, RULE: tl.constexpr, RULE_STATE: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    COVER_I: tl.constexpr, COVER_J: tl.constexpr,
):  # fmt: skip
    """The loop over picks. With RESIDENT all tokens are one block, whose values stay in registers."""
    for begin in range(0, n, BLOCK_N):
        _start_block(
            begin, importance_ptr, mask_ptr, scratch_ptr, n, stride_in, stride_mn, scratch_width, p0,
            HAS_IMPORTANCE, HAS_MASK, NEAREST_FIRST, RULE, RULE_STATE, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    tl.debug_barrier()
    if RULE_STATE == STATE_COVERAGE:
        _gains(gram_ptr, scratch_ptr, n, gram_width, scratch_width, COVER_I, COVER_J)
        for begin in range(0, n, BLOCK_N):
            tokens = begin + tl.arange(0, BLOCK_N)
            here = scratch_ptr + tokens
            gain = tl.load(here + scratch_width * GAIN, mask=tokens < n, other=0.0)
            saliency = tl.load(here + scratch_width * STATE, mask=tokens < n, other=0.0)
            tl.store(here + scratch_width * PRIORITY, gain_priority(gain, saliency, p1), mask=tokens < n)
        tl.debug_barrier()

    limit = tl.full((), -INF, dtype=tl.float32)
    best = _best_below(tl.full((), HIGHEST_KEY, dtype=tl.int64), limit, scratch_ptr, n, scratch_width, BLOCK_N)
    if RULE_STATE == STATE_HISTORY:
        limit = rank_floor(key_priority(best), p0)
        best = _best_below(tl.full((), HIGHEST_KEY, dtype=tl.int64), limit, scratch_ptr, n, scratch_width, BLOCK_N)
    if RESIDENT:
        standing, priority, state, scale = _load_block(0, scratch_ptr, n, scratch_width, BLOCK_N)

    rows = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    steps = tl.minimum(count, n)
    for step in range(steps):
        there = is_there(best)
        pick = tl.where(there, key_token(best), 0)
        score = key_priority(best)
        if SORT:
            tl.store(scratch_ptr + scratch_width * SCORE + pick, score, mask=there)
        else:
            tl.store(indices_ptr + step, tl.where(there, pick, -1).to(tl.int64))
            tl.store(scores_ptr + step, reported(score, RULE))

        row_ptr = gram_ptr
        if DOTS == WHOLE:
            row_ptr = gram_ptr + pick.to(tl.int64) * gram_width
        if DOTS == PANEL:
            row = pick
            if whole == 0:
                slots = tl.arange(0, BLOCK_M)
                if tl.max(tl.where(rows == pick, 1, 0), axis=0) == 0:
                    rows = _panel_rows(limit, scratch_ptr, n, scratch_width, BLOCK_M, BLOCK_N)
                    _fill_panel(
                        rows, features_ptr, gram_ptr, n, dim, stride_fn, stride_fd, gram_width, WIDEN, BLOCK_M, BLOCK_K
                    )
                row = tl.max(tl.where(rows == pick, slots, 0), axis=0)
            row_ptr = gram_ptr + row.to(tl.int64) * gram_width

        # Unusable tokens are picked after all others, whose priorities no longer matter.
        matters = key_tier(best) >= NO_PRIORITY
        if RULE_STATE == STATE_HISTORY:
            matters = score > -INF  # when no token has a priority, none will have one again
        scale_i = tl.load(scratch_ptr + scratch_width * SCALE + pick)
        state_i = tl.load(scratch_ptr + scratch_width * STATE + pick)
        if RULE_STATE == STATE_COVERAGE:
            if matters:
                _cover(pick, gram_ptr, scratch_ptr, n, gram_width, scratch_width, scale_i, BLOCK_N)
                _gains(gram_ptr, scratch_ptr, n, gram_width, scratch_width, COVER_I, COVER_J)
        if RESIDENT:
            tokens = tl.arange(0, BLOCK_N)
            standing = tl.where(tokens == pick, float("nan"), standing)
            if matters:
                priority, state = _step_block(
                    0, pick, score, step, row_ptr, scratch_ptr, n, scratch_width, scale_i, state_i,
                    standing, priority, state, scale, p0, p1, p2, p3, RULE, RULE_STATE, DOTS, BLOCK_N,
                )  # fmt: skip
            best = tl.max(rank_key(standing, priority, limit, tokens), axis=0)
        else:
            best = tl.full((), LOWEST_KEY, dtype=tl.int64)
            for begin in range(0, n, BLOCK_N):
                tokens = begin + tl.arange(0, BLOCK_N)
                here = scratch_ptr + tokens
                standing, priority, state, scale = _load_block(begin, scratch_ptr, n, scratch_width, BLOCK_N)
                standing = tl.where(tokens == pick, float("nan"), standing)
                if matters:
                    priority, state = _step_block(
                        begin, pick, score, step, row_ptr, scratch_ptr, n, scratch_width, scale_i, state_i,
                        standing, priority, state, scale, p0, p1, p2, p3, RULE, RULE_STATE, DOTS, BLOCK_N,
                    )  # fmt: skip
                    tl.store(here + scratch_width * PRIORITY, priority, mask=tokens < n)
                    tl.store(here + scratch_width * STATE, state, mask=tokens < n)
                tl.store(here + scratch_width * STANDING, standing, mask=tokens < n)
                best = tl.maximum(best, tl.max(rank_key(standing, priority, limit, tokens), axis=0))
        if RULE_STATE == STATE_HISTORY or not RESIDENT:
            tl.debug_barrier()  # the next step reads what other threads have written

    written = steps
    if SORT:
        written = _write_ascending(scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, RULE, BLOCK_N)
    for begin in range(written, width, BLOCK_N):
        places = begin + tl.arange(0, BLOCK_N)
        tl.store(indices_ptr + places, tl.full((BLOCK_N,), -1, dtype=tl.int64), mask=places < width)
        tl.store(scores_ptr + places, tl.full((BLOCK_N,), -INF, dtype=tl.float32), mask=places < width)


# Only what the compiler can use is specialised: vector loads need the alignment of features, rows and workspace.
@triton.jit(
    do_not_specialize=[
        "stride_ib", "stride_in", "stride_mb", "stride_mn", "tokens", "count", "width", "programs",
        "first_sample", "p0", "p1", "p2", "p3",
    ],
    do_not_specialize_on_alignment=["importance_ptr", "mask_ptr", "cu_seqlens_ptr", "counts_ptr", "counters_ptr"],
)  # fmt: skip
def select_kernel(
    features_ptr, importance_ptr, mask_ptr, cu_seqlens_ptr, counts_ptr,
    workspace_ptr, counters_ptr, indices_ptr, scores_ptr,
    stride_fb: tl.int64, stride_fn: tl.int64, stride_fd: tl.int64,
    stride_ib: tl.int64, stride_in: tl.int64, stride_mb: tl.int64, stride_mn: tl.int64,
    first_sample: tl.int32, tokens: tl.int32, dim: tl.int32, count: tl.int32, width: tl.int32, programs: tl.int32,
    gram_width: tl.int64, scratch_width: tl.int64, scratch_offset: tl.int64,
    p0: tl.int64, p1: tl.int64, p2: tl.int64, p3: tl.int64,
    RULE: tl.constexpr, RULE_STATE: tl.constexpr, NEAREST_FIRST: tl.constexpr, DOTS: tl.constexpr, RAGGED: tl.constexpr,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_COUNTS: tl.constexpr, SORT: tl.constexpr,
    WIDEN: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    COVER_I: tl.constexpr, COVER_J: tl.constexpr,
):  # fmt: skip
    """Selects for the samples from `first_sample` on.

    Dense: features (B, N, D), importance and mask (B, N), `tokens` = N; a sample has N rows of `gram_width` dot
    products (BLOCK_M rows for a panel). Ragged: features (T, D), importance and mask (T,), `tokens` = T; a sample of n
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
        scratch_ptr = workspace_ptr + scratch_offset + begin
        whole = DOTS == WHOLE
        if DOTS == PANEL:
            whole = n <= gram_width
            gram_width = tl.where(whole, gram_width, n.to(tl.int64))
    else:
        n = tokens
        features_ptr += sample * stride_fb
        importance_ptr += sample * stride_ib
        mask_ptr += sample * stride_mb
        padded = (tokens + 15) // 16 * 16
        if DOTS == PANEL:
            gram_ptr = workspace_ptr + local * BLOCK_M * gram_width
        else:
            gram_ptr = workspace_ptr + local * tokens * gram_width
        scratch_ptr = workspace_ptr + scratch_offset + local * padded
        whole = DOTS == WHOLE

    # Without a Gram to fill, the diagonal tiles alone: they hold the norms.
    if NEAREST_FIRST:
        all_pairs = True
    elif DOTS == NO_ROWS:
        all_pairs = False
    else:
        all_pairs = whole
    tiles = tl.cdiv(n, BLOCK_M)
    if all_pairs:
        tiles = tiles * (tiles + 1) // 2
    for tile in range(program, tiles, programs):
        _tile(
            tile, features_ptr, importance_ptr, mask_ptr, gram_ptr, scratch_ptr,
            n, dim, stride_fn, stride_fd, stride_in, stride_mn, gram_width, scratch_width, whole, all_pairs,
            HAS_IMPORTANCE, HAS_MASK, NEAREST_FIRST, DOTS, WIDEN, BLOCK_M, BLOCK_K,
        )  # fmt: skip

    # All threads' stores come before the arrival, and the program that arrives last sees those of every program.
    tl.debug_barrier()
    arrived = tl.atomic_add(counters_ptr + local, 1, sem="acq_rel", scope="gpu")
    if arrived == programs - 1:
        tl.debug_barrier()
        tl.store(counters_ptr + local, 0)  # for the next launch
        if HAS_COUNTS:
            count = tl.minimum(tl.maximum(tl.load(counts_ptr + sample), 0), width)
        _greedy(
            features_ptr, importance_ptr, mask_ptr, gram_ptr, scratch_ptr,
            indices_ptr + sample * width, scores_ptr + sample * width,
            n, dim, count, width, stride_fn, stride_fd, stride_in, stride_mn, gram_width, scratch_width, whole,
            p0, p1, p2, p3, HAS_IMPORTANCE, HAS_MASK, NEAREST_FIRST, DOTS, SORT, WIDEN, RULE, RULE_STATE, RESIDENT,
            BLOCK_M, BLOCK_K, BLOCK_N, COVER_I, COVER_J,
        )  # fmt: skip

"""Greedy loops of one program over one sample, once its dot products are there.

A loop ends with the last token that has a priority; `take_rest` picks what is still asked for by importance.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rules import (
    INF,
    MMR,
    STATE_CHANNELS,
    STATE_COVERAGE,
    STATE_HISTORY,
    absorb,
    absorbed,
    clamp_importance,
    dpp_component,
    gain_bound,
    gain_priority,
    given_similarity,
    limit_of,
    order_of,
    priority_of_given,
    ranked,
    reported,
    reported_without_priority,
    similarity,
    start,
)
from .tiles import dots, importance_of, reciprocal_norm, takes_part
from .workspace import (
    CHOSEN,
    COVER,
    GAIN,
    HISTORY,
    OF_TILES,
    PANEL,
    PRIORITY,
    SCALE,
    SCORE,
    SQUARES,
    STAMP,
    STANDING,
    STATE,
    padded,
)

__all__ = ["cover_loop", "first_picks", "pad", "row_loop", "sort_picks", "start_tokens", "take_rest"]

# Rows of DPP's history whose loads are in flight together.
HISTORY_UNROLL = tl.constexpr(8)
# A digit has 4 bits, so that 8 passes over the tokens find the value of a rank.
DIGITS = tl.constexpr(16)
# Tokens that are compared with each other at once when they are put in order.
ORDER_ROWS = tl.constexpr(32)
ORDER_COLUMNS = tl.constexpr(128)
NO_TOKEN = tl.constexpr(2**31 - 1)


# --- Before the first pick --------------------------------------------------------------------------------------------


@triton.jit
def start_tokens(
    importance_ptr, mask_ptr, scratch_ptr, n, stride_in, stride_mn, scratch_width, p0, p1,
    HAS_IMPORTANCE: tl.constexpr, HAS_MASK: tl.constexpr, NORMS: tl.constexpr,
    RULE: tl.constexpr, RULE_STATE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes what the loops start from: scale, standing, priority and state of every token; returns how many exist."""
    there = n
    if HAS_MASK:
        there = tl.full((), 0, dtype=tl.int32)
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        inside = tokens < padded(n)
        here = scratch_ptr + tokens
        squares = tl.load(here + scratch_width * SQUARES, mask=inside, other=0.0, cache_modifier=".cg")
        importance, exists = importance_of(
            importance_ptr, mask_ptr, stride_in, stride_mn, tokens, n, HAS_IMPORTANCE, HAS_MASK
        )
        usable = takes_part(importance, exists, squares)
        importance = clamp_importance(importance)
        of_tiles = tl.full((BLOCK_N,), 0.0 if RULE_STATE == STATE_COVERAGE else -INF, dtype=tl.float32)
        if NORMS:
            tile_ptr = here + scratch_width * OF_TILES
            for _ in range(tl.cdiv(n, BLOCK_M)):
                of_tile = tl.load(tile_ptr, mask=inside, other=0.0, cache_modifier=".cg")
                of_tiles = of_tiles + of_tile if RULE_STATE == STATE_COVERAGE else tl.maximum(of_tiles, of_tile)
                tile_ptr += scratch_width
        priority, state = start(importance, usable, squares > 0.0, of_tiles, tokens, p0, p1, NORMS, RULE)
        if RULE_STATE == STATE_COVERAGE or RULE_STATE == STATE_CHANNELS:  # noqa: SIM109 (Triton knows no other way)
            # Nothing is left to cover of a token that does not take part.
            tl.store(here + scratch_width * COVER, tl.where(usable, 0.0, INF), mask=inside)
            tl.store(here + scratch_width * STAMP, tl.full((BLOCK_N,), -1.0, dtype=tl.float32), mask=inside)
            priority = tl.where(usable, priority, float("nan"))
        else:
            priority = tl.where(usable, ranked(priority, -INF), -INF)
        standing = tl.where(exists, tl.where(usable, importance, -INF), float("nan"))
        tl.store(here + scratch_width * SCALE, reciprocal_norm(squares), mask=inside)
        tl.store(here + scratch_width * STANDING, standing, mask=inside)
        tl.store(here + scratch_width * PRIORITY, priority, mask=inside)
        tl.store(here + scratch_width * STATE, state, mask=inside)
        if HAS_MASK:
            there += tl.sum(exists.to(tl.int32), axis=0)
    tl.debug_barrier()
    return there


@triton.jit
def first_picks(
    given_ptr, given_count, most, scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, RULE: tl.constexpr
):  # fmt: skip
    """Writes to the outputs the tokens to begin with, at most `most`: those that take part, each once.

    Returns how many. Their scores are what a loop leaves of a token without a priority; loops write theirs over them.
    """
    place = tl.full((), 0, dtype=tl.int32)
    first = tl.full((), 0, dtype=tl.int32)
    while (place < given_count) & (first < most):
        token = tl.load(given_ptr + place)
        inside = (token >= 0) & (token < n)
        here = scratch_ptr + tl.where(inside, token, 0)
        standing = tl.load(here + scratch_width * STANDING)
        # Nobody needs the squared norms any more, and none is negative: -1 marks a token that is listed.
        squares = tl.load(here + scratch_width * SQUARES, cache_modifier=".cg")
        is_next = inside & (standing > -INF) & (squares >= 0.0)
        tl.debug_barrier()
        # Without branch or mask: the place of a token that is not the next is written again by what follows.
        tl.store(here + scratch_width * SQUARES, tl.where(is_next, -1.0, squares))
        tl.store(indices_ptr + first, token.to(tl.int64))
        tl.store(scores_ptr + first, reported_without_priority(standing, RULE))
        tl.debug_barrier()
        first += is_next.to(tl.int32)
        place += 1
    return first


@triton.jit
def _dots_of(row_ptr, token, others, inside, dim, stride_fd, SIMILARITY: tl.constexpr):
    """Dot products of a token with others, from its row of the Gram, or of the similarities that are given."""
    if SIMILARITY:
        # Nobody has padded these rows. Their length is `dim` too, of which the compiler knows whether 16 divides it.
        given = tl.load(
            row_ptr + others.to(tl.int64) * stride_fd, mask=inside & (others < dim), other=0.0, cache_modifier=".cg"
        )
        return given_similarity(given, others == token)
    else:
        return tl.load(row_ptr + others, mask=inside, other=0.0, cache_modifier=".cg")


# --- Rules that need a row of similarities per pick -------------------------------------------------------------------


@triton.jit
def _overlap(pick, step, tokens, n, history_ptr, scratch_width, BLOCK_N: tl.constexpr):
    """DPP: the sum over earlier picks t of r_t[pick] * r_t[j], added in the order of t whatever the block size."""
    overlap = tl.zeros((BLOCK_N,), dtype=tl.float32)
    rows = tl.where(tokens < padded(n), step, 0)
    for first in range(0, step, HISTORY_UNROLL):
        for u in tl.static_range(HISTORY_UNROLL):
            t = first + u
            # Past the end: the last row of the pick times 0.
            row_ptr = history_ptr + tl.minimum(t, step - 1) * scratch_width
            at_pick = tl.load(row_ptr + pick)
            overlap += at_pick * tl.load(row_ptr + tokens, mask=rows > t, other=0.0)
    return overlap


@triton.jit
def _after_pick(
    pick, score, step, limit, row_ptr, scratch_ptr, tokens, n, dim, stride_fd, scratch_width, scale_i, state_i,
    priority, state, scale, p0, p1, p2, p3,
    SIMILARITY: tl.constexpr, RULE: tl.constexpr, RULE_STATE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(priority, state) of a block of tokens after a pick."""
    inside = tokens < padded(n)
    dot = _dots_of(row_ptr, pick, tokens, inside, dim, stride_fd, SIMILARITY)
    c = similarity(dot, scale_i, scale)
    standing = priority
    if RULE == MMR:
        standing = tl.load(scratch_ptr + scratch_width * STANDING + tokens, mask=inside, other=0.0)
    if RULE_STATE == STATE_HISTORY:
        history_ptr = scratch_ptr + scratch_width * HISTORY
        overlap = _overlap(pick, step, tokens, n, history_ptr, scratch_width, BLOCK_N)
        c = dpp_component(c, overlap, state_i, state, score)
        tl.store(history_ptr + step * scratch_width + tokens, c, mask=inside)
    lowered, state = absorb(c, pick, score, step, tokens, standing, priority, state, p0, p1, p2, p3, RULE)
    remains = (priority > -INF) & (tokens != pick)
    return tl.where(remains, ranked(lowered, limit), -INF), state


@triton.jit
def row_loop(
    features_ptr, gram_ptr, scratch_ptr, indices_ptr, scores_ptr,
    first, steps, n, dim, length, parts, stride_fn, stride_fd, gram_width, scratch_width, whole, p0, p1, p2, p3,
    SIMILARITY: tl.constexpr, HAS_GIVEN: tl.constexpr, DOTS: tl.constexpr, RULE: tl.constexpr,
    RULE_STATE: tl.constexpr, RESIDENT: tl.constexpr, PARTS: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Picks while tokens have priorities, after the `first` that are listed; returns how many it picked in all.

    With RESIDENT one block has all tokens, in registers.
    """
    tokens, end = tl.arange(0, BLOCK_N), padded(n)
    priority_ptr, state_ptr = scratch_ptr + scratch_width * PRIORITY, scratch_ptr + scratch_width * STATE
    scale_ptr = scratch_ptr + scratch_width * SCALE
    if RESIDENT:
        priority = tl.load(priority_ptr + tokens, mask=tokens < end, other=-INF)
        state = tl.load(state_ptr + tokens, mask=tokens < end, other=0.0)
        scale = tl.load(scale_ptr + tokens, mask=tokens < end, other=0.0)
    best = tl.full((), -INF, dtype=tl.float32)
    pick = tl.full((), 0, dtype=tl.int32)
    for begin in range(0, n, BLOCK_N):
        values = tl.load(priority_ptr + begin + tokens, mask=begin + tokens < end, other=-INF)
        best, pick = _better_of(best, pick, begin, values)

    largest = best
    limit = limit_of(largest, p0, p1, p2, RULE)
    best = ranked(best, limit)
    if RESIDENT:
        priority = ranked(priority, limit)

    rows = tl.full((BLOCK_M,), -1, dtype=tl.int32)
    step = tl.full((), 0, dtype=tl.int32)
    while (step < steps) & _goes_on(best, step, first, HAS_GIVEN):
        if HAS_GIVEN:
            pick = tl.where(step < first, _listed(step, first, indices_ptr), pick)
            if RESIDENT:
                priority_there = tl.max(tl.where(tokens == pick, priority, -INF), axis=0)
            else:
                priority_there = ranked(tl.load(priority_ptr + pick), limit)
                tl.debug_barrier()  # which the pick loses below
            best = tl.where(step < first, priority_of_given(priority_there, largest, RULE), best)
        tl.store(indices_ptr + step, pick.to(tl.int64))
        tl.store(scores_ptr + step, reported(best, RULE))
        if HAS_GIVEN:
            best = absorbed(best, RULE)
        row = pick
        if DOTS == PANEL:
            if whole == 0:
                slots = tl.arange(0, BLOCK_M)
                if tl.max(tl.where(rows == pick, 1, 0), axis=0) == 0:
                    rows = _panel_rows(scratch_ptr, n, scratch_width, BLOCK_M)
                    if HAS_GIVEN:  # those that are still listed, whatever their priorities
                        rows = tl.where(step < first, _listed(step + slots, first, indices_ptr), rows)
                    _fill_panel(
                        rows, features_ptr, gram_ptr, n, dim, length, parts, stride_fn, stride_fd, gram_width,
                        PARTS, WIDEN, BLOCK_M, BLOCK_K,
                    )  # fmt: skip
                row = tl.max(tl.where(rows == pick, slots, 0), axis=0)
        row_ptr = gram_ptr + row.to(tl.int64) * gram_width
        scale_i = tl.load(scale_ptr + pick)
        state_i = scale_i
        if RULE_STATE == STATE_HISTORY:
            state_i = tl.load(state_ptr + pick)
        if RESIDENT:
            priority, state = _after_pick(
                pick, best, step, limit, row_ptr, scratch_ptr, tokens, n, dim, stride_fd, scratch_width,
                scale_i, state_i, priority, state, scale, p0, p1, p2, p3, SIMILARITY, RULE, RULE_STATE, BLOCK_N,
            )  # fmt: skip
            best, pick = _best_of(priority)
        else:
            next_best = tl.full((), -INF, dtype=tl.float32)
            next_pick = tl.full((), 0, dtype=tl.int32)
            for begin in range(0, n, BLOCK_N):
                at = begin + tokens
                priority = tl.load(priority_ptr + at, mask=at < end, other=-INF)
                state = tl.load(state_ptr + at, mask=at < end, other=0.0)
                scale = tl.load(scale_ptr + at, mask=at < end, other=0.0)
                priority, state = _after_pick(
                    pick, best, step, limit, row_ptr, scratch_ptr, at, n, dim, stride_fd, scratch_width,
                    scale_i, state_i, priority, state, scale, p0, p1, p2, p3, SIMILARITY, RULE, RULE_STATE, BLOCK_N,
                )  # fmt: skip
                tl.store(priority_ptr + at, priority, mask=at < end)
                if RULE == MMR:
                    tl.store(state_ptr + at, state, mask=at < end)
                next_best, next_pick = _better_of(next_best, next_pick, begin, priority)
            best, pick = next_best, next_pick
        if RULE_STATE == STATE_HISTORY or not RESIDENT:
            tl.debug_barrier()  # the next step reads what other threads have written
        step += 1
    return step


@triton.jit
def _goes_on(best, step, first, HAS_GIVEN: tl.constexpr):
    """Whether there is a token for this step: the best one, or one that is listed."""
    goes_on = best > -INF
    if HAS_GIVEN:
        goes_on = goes_on | (step < first)
    return goes_on


@triton.jit
def _listed(places, first, indices_ptr):
    """Tokens that `first_picks` left in the first places, -1 behind them."""
    return tl.load(indices_ptr + places, mask=places < first, other=-1).to(tl.int32)


@triton.jit
def _best_of(priority):
    """The largest priority and its place, the first one among equals."""
    return tl.max(priority, axis=0, return_indices=True)


@triton.jit
def _better_of(best, pick, begin, priority):
    """The same for one block after another."""
    value, place = _best_of(priority)
    pick = tl.where(value > best, begin + place, pick)
    return tl.maximum(best, value), pick


@triton.jit
def _panel_rows(scratch_ptr, n, scratch_width, BLOCK_M: tl.constexpr):
    """The BLOCK_M tokens that rank highest, in the order of their indices; -1 where there are fewer."""
    tl.debug_barrier()
    count = _choose(scratch_ptr, n, BLOCK_M, scratch_width)
    return _chosen(tl.arange(0, BLOCK_M), count, scratch_ptr, scratch_width)


@triton.jit
def _fill_panel(
    rows, features_ptr, panel_ptr, n, dim, length, parts, stride_fn, stride_fd, gram_width,
    PARTS: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The dot products of the panel's tokens with all, by the tiles of the Gram, hence with its bits."""
    slots = tl.arange(0, BLOCK_M)
    tl.debug_barrier()
    for begin in range(0, n, BLOCK_M):
        columns = begin + tl.arange(0, BLOCK_M)
        products, _, _ = dots(
            0, parts, length, features_ptr, rows, columns, n, dim, stride_fn, stride_fd,
            False, PARTS, WIDEN, BLOCK_M, BLOCK_K,
        )  # fmt: skip
        tl.store(panel_ptr + slots.to(tl.int64)[:, None] * gram_width + columns[None, :], products,
                 mask=(columns < n)[None, :] & (slots >= 0)[:, None])  # fmt: skip
    tl.debug_barrier()


# --- Coverage, of tokens and of channels ------------------------------------------------------------------------------


@triton.jit
def _cover(
    pick, row_ptr, scratch_ptr, n, dim, stride_fd, scratch_width, SIMILARITY: tl.constexpr, BLOCK_N: tl.constexpr
):
    """How well each token is covered, the pick included."""
    scale_i = tl.load(scratch_ptr + scratch_width * SCALE + pick)
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        inside = tokens < padded(n)
        here = scratch_ptr + tokens
        dot = _dots_of(row_ptr, pick, tokens, inside, dim, stride_fd, SIMILARITY)
        scale = tl.load(here + scratch_width * SCALE, mask=inside, other=0.0)
        covered = tl.load(here + scratch_width * COVER, mask=inside, other=INF)
        c = similarity(dot, scale_i, scale)
        tl.store(here + scratch_width * COVER, tl.where(c > covered, c, covered), mask=inside)


@triton.jit
def _sum_gains(
    candidates, wanted, gram_ptr, scratch_ptr, n, dim, stride_fd, gram_width, scratch_width,
    SIMILARITY: tl.constexpr, COVER_M: tl.constexpr, COVER_N: tl.constexpr,
):  # fmt: skip
    """The sums over i of max(0, c_ij - cover_i) of the candidates j, in blocks whose size is the same for every N.

    So the order of the additions is a function of N alone.
    """
    scale_j = tl.load(scratch_ptr + scratch_width * SCALE + candidates, mask=wanted, other=0.0)
    row_ptr = gram_ptr + candidates.to(tl.int64) * gram_width
    gain = tl.zeros((COVER_M, COVER_N), dtype=tl.float32)
    for begin in range(0, n, COVER_N):
        i = begin + tl.arange(0, COVER_N)
        scale_i = tl.load(scratch_ptr + scratch_width * SCALE + i, mask=i < padded(n), other=0.0)
        covered = tl.load(scratch_ptr + scratch_width * COVER + i, mask=i < padded(n), other=INF)
        inside = wanted[:, None] & (i < padded(n))[None, :]
        dot = _dots_of(row_ptr[:, None], candidates[:, None], i[None, :], inside, dim, stride_fd, SIMILARITY)
        uncovered = similarity(dot, scale_j[:, None], scale_i[None, :]) - covered[None, :]
        gain += tl.where(uncovered > 0.0, uncovered, 0.0)
    return tl.sum(gain, axis=1)


@triton.jit
def _cover_channels(pick, features_ptr, cover_ptr, dim, stride_fn, stride_fd, BLOCK_N: tl.constexpr):
    """How well each channel is covered, the pick included."""
    row_ptr = features_ptr + pick.to(tl.int64) * stride_fn
    for begin in range(0, dim, BLOCK_N):
        d = begin + tl.arange(0, BLOCK_N)
        x = tl.load(row_ptr + d.to(tl.int64) * stride_fd, mask=d < dim, other=0.0).to(tl.float32)
        covered = tl.load(cover_ptr + d, mask=d < dim, other=0.0)
        tl.store(cover_ptr + d, tl.where(x > covered, x, covered), mask=d < dim)


@triton.jit
def _sum_channels(
    candidates, wanted, features_ptr, cover_ptr, dim, stride_fn, stride_fd,
    COVER_M: tl.constexpr, COVER_N: tl.constexpr,
):  # fmt: skip
    """The sums over channels d of max(0, x_jd - cover_d) of the candidates j, in blocks as those of `_sum_gains`."""
    row_ptr = features_ptr + candidates.to(tl.int64) * stride_fn
    gain = tl.zeros((COVER_M, COVER_N), dtype=tl.float32)
    for begin in range(0, dim, COVER_N):
        d = begin + tl.arange(0, COVER_N)
        inside = wanted[:, None] & (d < dim)[None, :]
        x = tl.load(row_ptr[:, None] + (d.to(tl.int64) * stride_fd)[None, :], mask=inside, other=0.0).to(tl.float32)
        uncovered = x - tl.load(cover_ptr + d, mask=d < dim, other=INF)[None, :]
        gain += tl.where(uncovered > 0.0, uncovered, 0.0)
    return tl.sum(gain, axis=1)


@triton.jit
def _first_gains(
    features_ptr, cover_ptr, scratch_ptr, n, dim, stride_fn, stride_fd, scratch_width,
    BLOCK_N: tl.constexpr, COVER_M: tl.constexpr, COVER_N: tl.constexpr,
):  # fmt: skip
    """All of them: before it has been summed nothing is known of a gain of channels."""
    for begin in range(0, dim, BLOCK_N):
        d = begin + tl.arange(0, BLOCK_N)
        tl.store(cover_ptr + d, tl.zeros((BLOCK_N,), dtype=tl.float32), mask=d < dim)
    tl.debug_barrier()
    for begin in range(0, n, COVER_M):
        tokens = begin + tl.arange(0, COVER_M)
        here = scratch_ptr + tokens
        known = tl.load(here + scratch_width * GAIN, mask=tokens < n, other=float("nan"))
        wanted = known == known
        gain = _sum_channels(tokens, wanted, features_ptr, cover_ptr, dim, stride_fn, stride_fd, COVER_M, COVER_N)
        tl.store(here + scratch_width * GAIN, gain, mask=wanted)
        tl.store(here + scratch_width * STAMP, tl.zeros_like(gain), mask=wanted)
    tl.debug_barrier()


@triton.jit
def _candidates(step, scratch_ptr, n, scratch_width, p1, COVER_M: tl.constexpr, COVER_STRIDE: tl.constexpr):
    """The best token of each class modulo COVER_M, by what its priority can be at most: (bounds, tokens)."""
    bounds = tl.full((COVER_M,), -INF, dtype=tl.float32)
    candidates = tl.arange(0, COVER_M)
    for begin in range(0, n, COVER_M * COVER_STRIDE):
        tokens = begin + tl.arange(0, COVER_STRIDE)[None, :] * COVER_M + tl.arange(0, COVER_M)[:, None]
        here = scratch_ptr + tokens
        gain = tl.load(here + scratch_width * GAIN, mask=tokens < padded(n), other=float("nan"))
        saliency = tl.load(here + scratch_width * STATE, mask=tokens < padded(n), other=0.0)
        stamp = tl.load(here + scratch_width * STAMP, mask=tokens < padded(n), other=-1.0)
        is_exact = stamp == step.to(tl.float32)
        bound = tl.where(is_exact, gain_priority(gain, saliency, p1), gain_bound(gain, saliency, p1))
        best, place = tl.max(ranked(bound, -INF), axis=1, return_indices=True)
        better = best > bounds
        candidates = tl.where(better, begin + place * COVER_M + tl.arange(0, COVER_M), candidates)
        bounds = tl.where(better, best, bounds)
    return bounds, candidates


@triton.jit
def _priority_now(here, scratch_width, p1):
    """Of the token at `here`, whose gain was summed in this step."""
    gain, saliency = tl.load(here + scratch_width * GAIN), tl.load(here + scratch_width * STATE)
    return ranked(gain_priority(gain, saliency, p1), -INF)


@triton.jit
def cover_loop(
    features_ptr, gram_ptr, scratch_ptr, indices_ptr, scores_ptr, first, steps, n, dim, stride_fn, stride_fd,
    gram_width, scratch_width, p1, SIMILARITY: tl.constexpr, HAS_GIVEN: tl.constexpr, RULE: tl.constexpr,
    RULE_STATE: tl.constexpr, BLOCK_N: tl.constexpr, COVER_M: tl.constexpr, COVER_N: tl.constexpr,
    COVER_STRIDE: tl.constexpr,
):  # fmt: skip
    """Coverage while tokens have priorities, after the `first` that are listed; returns how many it picked in all.

    For channels `gram_ptr` is their cover.

    Gains only fall, so a gain that was summed before later picks bounds the present one. Only tokens whose bound is as
    large as any are summed again, until the best of all has its gain of this step: the picks are those of all gains.
    """
    if RULE_STATE == STATE_CHANNELS:
        _first_gains(
            features_ptr, gram_ptr, scratch_ptr, n, dim, stride_fn, stride_fd, scratch_width, BLOCK_N, COVER_M, COVER_N
        )  # fmt: skip
    step = tl.full((), 0, dtype=tl.int32)
    has_more = n > 0
    while (step < steps) & has_more:
        bounds, candidates = _candidates(step, scratch_ptr, n, scratch_width, p1, COVER_M, COVER_STRIDE)
        if HAS_GIVEN:  # the one that is listed for this step, as if nothing could be better
            is_given, lanes = step < first, tl.arange(0, COVER_M)
            given = _listed(step, first, indices_ptr)
            candidates = tl.where(is_given & (lanes == given % COVER_M), given, candidates)
            bounds = tl.where(is_given, tl.where(lanes == given % COVER_M, INF, -INF), bounds)
        best = tl.max(bounds, axis=0)
        has_more = best > -INF
        if has_more:
            pick = tl.min(tl.where(bounds == best, candidates, NO_TOKEN), axis=0)
            stamp = tl.load(scratch_ptr + scratch_width * STAMP + pick)
            tl.debug_barrier()
            if stamp == step.to(tl.float32):
                if HAS_GIVEN:
                    best = _priority_now(scratch_ptr + pick, scratch_width, p1)
                    tl.debug_barrier()
                tl.store(indices_ptr + step, pick.to(tl.int64))
                tl.store(scores_ptr + step, reported(best, RULE))
                tl.store(scratch_ptr + scratch_width * GAIN + pick, float("nan"))
                if RULE_STATE == STATE_CHANNELS:
                    _cover_channels(pick, features_ptr, gram_ptr, dim, stride_fn, stride_fd, BLOCK_N)
                else:
                    row_ptr = gram_ptr + pick.to(tl.int64) * gram_width
                    _cover(pick, row_ptr, scratch_ptr, n, dim, stride_fd, scratch_width, SIMILARITY, BLOCK_N)
                step += 1
            else:
                stamps = tl.load(scratch_ptr + scratch_width * STAMP + candidates, mask=bounds > -INF, other=0.0)
                wanted = (bounds > -INF) & (stamps != step.to(tl.float32))
                if RULE_STATE == STATE_CHANNELS:
                    gain = _sum_channels(
                        candidates, wanted, features_ptr, gram_ptr, dim, stride_fn, stride_fd, COVER_M, COVER_N
                    )
                else:
                    gain = _sum_gains(
                        candidates, wanted, gram_ptr, scratch_ptr, n, dim, stride_fd, gram_width, scratch_width,
                        SIMILARITY, COVER_M, COVER_N,
                    )  # fmt: skip
                tl.debug_barrier()
                here = scratch_ptr + candidates
                tl.store(here + scratch_width * GAIN, gain, mask=wanted)
                tl.store(here + scratch_width * STAMP, tl.zeros_like(gain) + step.to(tl.float32), mask=wanted)
            tl.debug_barrier()
    return step


# --- Tokens without a priority, and what is written at the end --------------------------------------------------------


@triton.jit
def _chosen(places, count, scratch_ptr, scratch_width):
    """Tokens that `_choose` left in the first `count` places, -1 behind them."""
    bits = tl.load(scratch_ptr + scratch_width * CHOSEN + places, mask=places < count, other=0.0)
    return tl.where(places < count, bits.to(tl.int32, bitcast=True), -1)


@triton.jit
def _orders(begin, scratch_ptr, n, scratch_width, BLOCK: tl.constexpr):
    tokens = begin + tl.arange(0, BLOCK)
    return order_of(tl.load(scratch_ptr + scratch_width * PRIORITY + tokens, mask=tokens < n, other=float("nan")))


@triton.jit
def _choose(scratch_ptr, n, want, scratch_width, BLOCK: tl.constexpr = 512):
    """Writes the `want` tokens with the largest PRIORITY in index order, the first ones among equals; NaN is no token.

    A radix select from the highest digit, whose last value is taken in index order. Returns how many there are.
    """
    digits = tl.arange(0, DIGITS)
    threshold = tl.full((), 0, dtype=tl.uint32)
    for digit in range(8):
        shift = 28 - 4 * digit
        candidates = threshold + (digits << shift).to(tl.uint32, bitcast=True)
        counts = tl.zeros((DIGITS,), dtype=tl.int32)
        for begin in range(0, n, BLOCK):
            order = _orders(begin, scratch_ptr, n, scratch_width, BLOCK)
            counts += tl.sum((order[:, None] >= candidates[None, :]).to(tl.int32), axis=0)
        best = tl.max(tl.where(counts >= want, digits, 0), axis=0)
        threshold += (best << shift).to(tl.uint32, bitcast=True)

    above = tl.full((), 0, dtype=tl.int32)
    for begin in range(0, n, BLOCK):
        order = _orders(begin, scratch_ptr, n, scratch_width, BLOCK)
        above += tl.sum((order > threshold).to(tl.int32), axis=0)
    equals = tl.full((), 0, dtype=tl.int32)
    count = tl.full((), 0, dtype=tl.int32)
    for begin in range(0, n, BLOCK):
        order = _orders(begin, scratch_ptr, n, scratch_width, BLOCK)
        equal = ((order == threshold) & (order > 0)).to(tl.int32)
        is_chosen = (order > threshold) | ((equal != 0) & (above + equals + tl.cumsum(equal, axis=0) <= want))
        place = count + tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
        token_bits = (begin + tl.arange(0, BLOCK)).to(tl.float32, bitcast=True)
        tl.store(scratch_ptr + scratch_width * CHOSEN + place, token_bits, mask=is_chosen)
        equals += tl.sum(equal, axis=0)
        count += tl.sum(is_chosen.to(tl.int32), axis=0)
    tl.debug_barrier()
    return count


@triton.jit
def take_rest(
    done, steps, scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, RULE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The picks from `done` to `steps`: tokens that take part by importance, then unusable ones by index."""
    priority_ptr = scratch_ptr + scratch_width * PRIORITY
    tl.debug_barrier()
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        standing = tl.load(scratch_ptr + scratch_width * STANDING + tokens, mask=tokens < n, other=0.0)
        tl.store(priority_ptr + tokens, standing, mask=tokens < n)
    tl.debug_barrier()
    for begin in range(0, done, BLOCK_N):
        places = begin + tl.arange(0, BLOCK_N)
        picked = tl.load(indices_ptr + places, mask=places < done, other=0)
        tl.store(priority_ptr + picked, tl.full((BLOCK_N,), float("nan"), dtype=tl.float32), mask=places < done)
    tl.debug_barrier()

    count = steps - done
    _choose(scratch_ptr, n, count, scratch_width)
    for begin in range(0, count, ORDER_ROWS):
        places = begin + tl.arange(0, ORDER_ROWS)
        tokens = _chosen(places, count, scratch_ptr, scratch_width)
        standing = tl.load(priority_ptr + tokens, mask=places < count, other=0.0)
        rank = tl.zeros((ORDER_ROWS,), dtype=tl.int32)
        for first in range(0, count, ORDER_COLUMNS):
            others = first + tl.arange(0, ORDER_COLUMNS)
            other_tokens = _chosen(others, count, scratch_ptr, scratch_width)
            other = tl.load(priority_ptr + other_tokens, mask=others < count, other=0.0)
            is_before = (others[None, :] < places[:, None]) & (other[None, :] == standing[:, None])
            is_before = (is_before | (other[None, :] > standing[:, None])) & (others < count)[None, :]
            rank += tl.sum(is_before.to(tl.int32), axis=1)
        tl.store(indices_ptr + done + rank, tokens.to(tl.int64), mask=places < count)
        tl.store(scores_ptr + done + rank, reported_without_priority(standing, RULE), mask=places < count)


@triton.jit
def sort_picks(count, scratch_ptr, indices_ptr, scores_ptr, n, scratch_width, BLOCK_N: tl.constexpr):
    """Puts the picks into the order of their indices."""
    score_ptr = scratch_ptr + scratch_width * SCORE
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        tl.store(score_ptr + tokens, tl.full((BLOCK_N,), float("nan"), dtype=tl.float32), mask=tokens < n)
    tl.debug_barrier()
    for begin in range(0, count, BLOCK_N):
        places = begin + tl.arange(0, BLOCK_N)
        picked = tl.load(indices_ptr + places, mask=places < count, other=0)
        tl.store(score_ptr + picked, tl.load(scores_ptr + places, mask=places < count, other=0.0), mask=places < count)
    tl.debug_barrier()
    written = tl.full((), 0, dtype=tl.int32)
    for begin in range(0, n, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        score = tl.load(score_ptr + tokens, mask=tokens < n, other=float("nan"))
        picked = score == score
        place = written + tl.cumsum(picked.to(tl.int32), axis=0) - 1
        tl.store(indices_ptr + place, tokens.to(tl.int64), mask=picked)
        tl.store(scores_ptr + place, score, mask=picked)
        written += tl.sum(picked.to(tl.int32), axis=0)


@triton.jit
def pad(begin, end, indices_ptr, scores_ptr, BLOCK_N: tl.constexpr):
    """What no token is left for."""
    for first in range(begin, end, BLOCK_N):
        places = first + tl.arange(0, BLOCK_N)
        tl.store(indices_ptr + places, tl.full((BLOCK_N,), -1, dtype=tl.int64), mask=places < end)
        tl.store(scores_ptr + places, tl.full((BLOCK_N,), -INF, dtype=tl.float32), mask=places < end)

"""The rules as constexpr branches: how priorities start, how a pick changes them, how tokens rank.

Everything here works on values in registers; loads, stores and loops are in `kernels`. A rule arrives as its id and
five numbers, `f0`, `f1`, `f2`, `i0`, `i1`, which `launch.rule_scalars` makes of `Rule.encode()`:

| rule | f0 | f1 | f2 | i0 | i1 |
|---|---|---|---|---|---|
| IDSelection | gamma | floor | | | |
| MMR | lam | 1 - lam | | parallel_k | |
| MaxMin | | | | start (-1: none) | |
| HardSuppress | threshold | | | grid width (0: none) | radius |
| DPP | eps | | | | |
| Coverage | alpha | what float32 loses of alpha | combine is "add" | alpha is 0: no, 1: odd, 2: even integer | |
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "COVERAGE",
    "DPP",
    "HARD_SUPPRESS",
    "ID_SELECTION",
    "MAX_MIN",
    "MMR",
    "TOP_K",
    "absorb",
    "dpp_component",
    "gain_priority",
    "is_closed",
    "key_priority",
    "key_tier",
    "key_token",
    "rank_key",
    "reported",
    "similarity",
    "start",
]

ID_SELECTION = tl.constexpr(0)
MMR = tl.constexpr(1)
MAX_MIN = tl.constexpr(2)
HARD_SUPPRESS = tl.constexpr(3)
DPP = tl.constexpr(4)
COVERAGE = tl.constexpr(5)
TOP_K = tl.constexpr(6)

INF = tl.constexpr(float("inf"))
# What +inf stands for: as in the reference, so that priorities stay finite where they are squared or multiplied.
LARGEST = tl.constexpr(3.4028234663852886e38)
LARGEST_QUALITY = tl.constexpr(2.0**63)
LARGEST_SALIENCY = tl.constexpr(2.0**100)
# No distance 1 - c lies above 2.
ABOVE_ALL_DISTANCES = tl.constexpr(4.0)

# A key is (tier: 2 bits, priority: 32 bits, token counted backwards: 30 bits), so its signed order is the order of
# preference with the lowest index first among equals, and one reduction finds pick and score together.
TOKEN_BITS = tl.constexpr(30)
LAST_TOKEN = tl.constexpr(2**30 - 1)
HAS_PRIORITY = tl.constexpr(1)
TAKES_PART = tl.constexpr(0)
LEFT_FOR_LAST = tl.constexpr(-1)
CLOSED = tl.constexpr(-2)
LOWEST_KEY = tl.constexpr(-(2**63))
HIGHEST_KEY = tl.constexpr(2**63 - 1)


@triton.jit
def rank_key(standing, priority, limit, tokens):
    """int64 keys of tokens; the largest is the next pick.

    Args:
        standing: float32, the importance of a token that takes part, -inf for one left for last, NaN for one that
            cannot be picked (any more).
        priority: float32; it counts where it lies above `limit`. NaN does not.
        limit: scalar, -inf for every rule but DPP.
        tokens: int32 indices.
    """
    takes_part = standing > -INF
    has_priority = takes_part & (priority > limit)
    tier = tl.where(standing == standing, LEFT_FOR_LAST, CLOSED)
    tier = tl.where(takes_part, TAKES_PART, tier)
    tier = tl.where(has_priority, HAS_PRIORITY, tier)
    value = tl.where(has_priority, priority, tl.where(takes_part, standing, 0.0))
    value = tl.where(value == 0.0, 0.0, value)  # -0.0 ties with 0.0
    bits = value.to(tl.int32, bitcast=True)
    # Floats order like sign-magnitude integers.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
    return (tier.to(tl.int64) << 62) | (ordered << TOKEN_BITS) | (-tokens + LAST_TOKEN).to(tl.int64)


@triton.jit
def key_tier(key):
    return (key >> 62).to(tl.int32)


@triton.jit
def is_closed(key):
    return (key >> 62) == CLOSED


@triton.jit
def key_token(key):
    return (-(key & LAST_TOKEN) + LAST_TOKEN).to(tl.int32)


@triton.jit
def key_priority(key):
    """The priority in a key, -inf where its token has none."""
    ordered = (((key >> TOKEN_BITS) & 0xFFFFFFFF) - 2147483648).to(tl.int32)
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where((key >> 62) == HAS_PRIORITY, value, -INF)


@triton.jit
def reported(score, RULE: tl.constexpr):
    """The score as the caller sees it. Before MaxMin's given start no distance constrains anybody."""
    if RULE == MAX_MIN:
        return tl.where(score >= ABOVE_ALL_DISTANCES, INF, score)
    else:
        return score


@triton.jit
def similarity(dot, scale_i, scale_j, i, j):
    """c_ij from a raw dot product and the reciprocal norms; i and j are indices.

    The smaller index scales first: c_ij and c_ji then have the same bits, whichever row they are read from.
    """
    i_first = i < j
    c = dot * tl.where(i_first, scale_i, scale_j) * tl.where(i_first, scale_j, scale_i)
    c = tl.minimum(tl.maximum(c, -1.0), 1.0)
    return tl.where(i == j, tl.where(scale_i > 0.0, 1.0, 0.0), c)


@triton.jit
def start(importance, takes_part, nonzero, nearest, tokens, f0, f1, i0, FIRST_PAIRS: tl.constexpr, RULE: tl.constexpr):
    """(priority, state) before the first pick; `nearest` is the largest similarity to another that takes part."""
    state = tl.zeros_like(importance)
    if RULE == MMR:
        return importance, state - INF
    elif RULE == MAX_MIN:
        if FIRST_PAIRS:
            return 1.0 - nearest, state
        else:
            return tl.where(tokens == i0, INF, state + ABOVE_ALL_DISTANCES), state
    elif RULE == DPP:
        quality = tl.minimum(tl.maximum(importance, -LARGEST_QUALITY), LARGEST_QUALITY)
        quality = tl.where(takes_part, quality, 0.0)
        return tl.where(nonzero, quality * quality, 0.0), quality
    elif RULE == COVERAGE:
        return state, _saliency(importance, f0, f1, i0)
    else:
        return importance, state


@triton.jit
def _saliency(importance, alpha_high, alpha_low, integer_kind):
    """importance**alpha, rounded from float64."""
    wide = importance.to(tl.float64)
    alpha = tl.full((), alpha_high, dtype=tl.float64) + tl.full((), alpha_low, dtype=tl.float64)
    positive = tl.where(wide == 0.0, 1.0, tl.abs(wide))
    magnitude = tl.where(wide == 0.0, 0.0, tl.exp2(alpha * tl.log2(positive)))
    of_negative = tl.where(integer_kind == 1, -magnitude, tl.where(integer_kind == 2, magnitude, float("nan")))
    power = tl.where(wide < 0.0, of_negative, magnitude).to(tl.float32)
    power = tl.where(alpha == 0.0, 1.0, power)  # also 0**0
    power = tl.where(alpha == 1.0, importance, power)
    return tl.where(power > LARGEST_SALIENCY, LARGEST_SALIENCY, power)


@triton.jit
def gain_priority(gain, saliency, f2):
    """Coverage: the priority of a token with this gain."""
    return tl.where(f2 != 0.0, gain + saliency, gain * saliency)


@triton.jit
def dpp_component(c, overlap, pick_quality, quality, pick_d):
    """DPP: e_j, what the picks leave of token j along pick i; `overlap` is the sum over t of r_t[i] * r_t[j]."""
    return tl.div_rn(pick_quality * c * quality - overlap, tl.sqrt_rn(pick_d))


@triton.jit
def absorb(c, pick, score, step, tokens, standing, priority, state, f0, f1, i0, i1, RULE: tl.constexpr):
    """(priority, state) of tokens after a pick, from their similarity `c` to it (DPP: from e_j in its place)."""
    if RULE == ID_SELECTION:
        distance = tl.maximum(1.0 - c, 0.0)
        lowered = priority - tl.exp(-f0 * (distance * distance)) * score
        return tl.maximum(lowered, f1), state
    elif RULE == MMR:
        state = tl.maximum(state, c)
        refreshed = (step + 1) % i0 == 0
        return tl.where(refreshed, f0 * standing - f1 * state, priority), state
    elif RULE == MAX_MIN:
        # The first pick was ranked by another quantity.
        return tl.minimum(tl.where(step == 0, INF, priority), 1.0 - c), state
    elif RULE == HARD_SUPPRESS:
        width = tl.maximum(i0, 1)
        rows = tl.abs(tokens // width - pick // width)
        columns = tl.abs(tokens % width - pick % width)
        near = (i0 > 0) & (rows <= i1) & (columns <= i1)
        return tl.where((c > f0) | near, -INF, priority), state
    elif RULE == DPP:
        return priority - c * c, state
    else:
        return priority, state

"""The rules as constexpr branches: how priorities start, how a pick changes them, how tokens rank.

Everything here works on values in registers; loads, stores and loops are in `kernels`. A rule arrives as its id and
the numbers of `Rule.encode()` in their order, `p0` to `p3`, which its branch unpacks. They are the bits of float64 in
integers, because Triton before 3.4 knows no float64 arguments. A function without a branch for a rule does what most
rules do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..rules import DPP as _DPP
from ..rules import MMR as _MMR
from ..rules import Coverage, HardSuppress, IDSelection, MatrixCoverage, MaxMin, Rule, State, TopK

__all__ = [
    "PARAMS",
    "RULE_IDS",
    "STATES",
    "STATE_CHANNELS",
    "STATE_COVERAGE",
    "STATE_HISTORY",
    "absorb",
    "absorbed",
    "clamp_importance",
    "dpp_component",
    "encoded",
    "gain_bound",
    "gain_priority",
    "given_similarity",
    "limit_of",
    "order_of",
    "priority_of_given",
    "ranked",
    "reported",
    "reported_without_priority",
    "similarity",
    "start",
]

# The rules that the kernel can run, and how many numbers of `encode()` it takes.
RULE_IDS: set[int] = set()
PARAMS = 4


def _known(rule: type[Rule]) -> tl.constexpr:
    """The id of a rule, for its branches below."""
    RULE_IDS.add(rule.rule_id)
    return tl.constexpr(rule.rule_id)


ID_SELECTION = _known(IDSelection)
MMR = _known(_MMR)
MAX_MIN = _known(MaxMin)
HARD_SUPPRESS = _known(HardSuppress)
DPP = _known(_DPP)
COVERAGE = _known(Coverage)
TOP_K = _known(TopK)
MATRIX_COVERAGE = _known(MatrixCoverage)

# What the loop carries besides a priority and a number per token.
STATES = tuple(State)
STATE_HISTORY = tl.constexpr(STATES.index(State.HISTORY))
STATE_COVERAGE = tl.constexpr(STATES.index(State.COVERAGE))
STATE_CHANNELS = tl.constexpr(STATES.index(State.CHANNELS))

INF = tl.constexpr(float("inf"))
# What +inf stands for: as in the reference, so that priorities stay finite where they are squared or multiplied.
LARGEST = tl.constexpr(3.4028234663852886e38)
LARGEST_INTEGER = tl.constexpr(2.0**30)
LARGEST_QUALITY = tl.constexpr(2.0**63)
LARGEST_SALIENCY = tl.constexpr(2.0**100)  # and the largest weight of a distance
# Gains before the first pick are summed in another order than later ones, which they must not lie below.
GAIN_MARGIN = tl.constexpr(1.0 + 2.0**-12)
# No distance 1 - c lies above 2, no weighted one above twice the largest weight.
ABOVE_ALL_DISTANCES = tl.constexpr(2.0**102)


@triton.jit
def ranked(priority, limit):
    """Priorities as loops rank them: -inf for none at all, for NaN and for what lies not above `limit`.

    Under no rule does a token without a priority get one again.
    """
    return tl.where(priority > limit, priority, -INF)


@triton.jit
def order_of(value):
    """uint32 in the order of float32 values, 0.0 like -0.0; 0 for NaN, which comes before all numbers."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    # Floats order like sign-magnitude integers.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) ^ -0x80000000
    return tl.where(value == value, ordered, 0).to(tl.uint32, bitcast=True)


@triton.jit
def reported(score, RULE: tl.constexpr):
    """The score as the caller sees it. Before MaxMin's given start no distance constrains anybody."""
    if RULE == MAX_MIN:
        score = tl.where(score >= ABOVE_ALL_DISTANCES, INF, score)
    return tl.where(score == 0.0, 0.0, score)  # -0.0 ties with 0.0


@triton.jit
def reported_without_priority(standing, RULE: tl.constexpr):
    """The score of a token that is picked by its importance, or by its index where `standing` is -inf."""
    if RULE == TOP_K:
        return tl.where(standing == 0.0, 0.0, standing)
    else:
        return tl.full(standing.shape, -INF, dtype=tl.float32)


@triton.jit
def priority_of_given(priority, largest, RULE: tl.constexpr):
    """The priority of a token that is given, not chosen, from the largest before the first pick.

    Before MaxMin's given start only that one has a priority, or all where it cannot be picked.
    """
    if RULE == MAX_MIN:
        priority = tl.where((priority >= ABOVE_ALL_DISTANCES) & (priority < largest), -INF, priority)
    return priority


@triton.jit
def absorbed(score, RULE: tl.constexpr):
    """What counts as the priority of a pick that was given: one without a priority takes none off others."""
    return tl.where(score > -INF, score, INF if RULE == DPP else 0.0)  # DPP divides by it


@triton.jit
def clamp_importance(importance):
    """+inf counts as the largest float32, as in the reference."""
    return tl.where(importance > LARGEST, LARGEST, importance)


@triton.jit
def _wide(param):
    """An encoded number, in float64."""
    return param.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _number(param):
    """The same in float32."""
    return _wide(param).to(tl.float32)


@triton.jit
def _integer(param):
    """An encoded integer. What lies beyond the number of tokens of any call may as well be less."""
    return tl.minimum(_wide(param), LARGEST_INTEGER).to(tl.int32)


@triton.jit
def encoded(integer):
    """An integer as the rules take it in a `param`."""
    return integer.to(tl.float64).to(tl.int64, bitcast=True)


@triton.jit
def similarity(dot, scale_i, scale_j):
    """c_ij from a raw dot product and the reciprocal norms.

    Symmetric in i and j to the last bit, so that a copy of either token has the same similarity.
    """
    return tl.clamp(dot * (scale_i * scale_j), -1.0, 1.0)


@triton.jit
def given_similarity(value, is_own):
    """What stands for the dot product of unit vectors where the caller gives similarities.

    NaN counts as -1, and compares false: a maximum of both is NaN in the interpreter of Triton 3.2. What a token's own
    similarity says of it is another matter, see `tiles.read_tile`.
    """
    return tl.where(is_own, 1.0, tl.where(value > -1.0, tl.minimum(value, 1.0), -1.0))


@triton.jit
def start(importance, takes_part, nonzero, of_tiles, tokens, p0, p1, NORMS: tl.constexpr, RULE: tl.constexpr):
    """(priority, state) before the first pick; of coverage (what a gain is at most, saliency), of MaxMin (.., weight).

    With NORMS `of_tiles` is the largest similarity to another token that takes part (MaxMin), or the gain (Coverage).
    """
    state = tl.zeros_like(importance)
    if RULE == MMR:
        return importance, state - INF
    elif RULE == MAX_MIN:
        weight = tl.where(_integer(p1) != 0, tl.minimum(tl.maximum(importance, 0.0), LARGEST_SALIENCY), 1.0)
        if NORMS:
            return tl.where(weight > 0.0, weight * (1.0 - of_tiles), 0.0), weight  # also where there is no other token
        else:
            return tl.where(tokens == _integer(p0), INF, state + ABOVE_ALL_DISTANCES), weight
    elif RULE == DPP:
        quality = tl.minimum(tl.maximum(importance, -LARGEST_QUALITY), LARGEST_QUALITY)
        quality = tl.where(takes_part, quality, 0.0)
        return tl.where(nonzero, quality * quality, 0.0), quality
    elif RULE == COVERAGE:
        return of_tiles * GAIN_MARGIN, _saliency(importance, _wide(p0))
    elif RULE == MATRIX_COVERAGE:  # what is known of a gain that was never summed
        return state + INF, state + 1.0
    else:
        return importance, state


@triton.jit
def _saliency(importance, alpha):
    """importance**alpha, rounded from float64."""
    wide = importance.to(tl.float64)
    remainder = alpha - 2.0 * tl.floor(alpha * 0.5)  # 1: an odd integer, 0: an even one
    positive = tl.where(wide == 0.0, 1.0, tl.abs(wide))
    magnitude = tl.where(wide == 0.0, 0.0, tl.exp2(alpha * tl.log2(positive)))
    of_negative = tl.where(remainder == 1.0, -magnitude, tl.where(remainder == 0.0, magnitude, float("nan")))
    power = tl.where(wide < 0.0, of_negative, magnitude).to(tl.float32)
    power = tl.where(alpha == 0.0, 1.0, power)  # also 0**0
    power = tl.where(alpha == 1.0, importance, power)
    below = tl.where(power > LARGEST_SALIENCY, LARGEST_SALIENCY, power)
    return tl.where(below < -LARGEST_SALIENCY, -LARGEST_SALIENCY, below)


@triton.jit
def gain_priority(gain, saliency, p1):
    """Coverage: the priority of a token with this gain."""
    return tl.where(_integer(p1) != 0, gain + saliency, gain * saliency)


@triton.jit
def gain_bound(gain, saliency, p1):
    """Coverage: no priority is larger while the gain, which only falls, lies between 0 and this one."""
    return tl.where(_integer(p1) != 0, gain + saliency, gain * tl.where(saliency < 0.0, 0.0, saliency))


@triton.jit
def limit_of(largest, p0, p1, p2, RULE: tl.constexpr):
    """A priority at or below it is none, given the largest before the first pick."""
    if RULE == DPP:  # what is spanned by the picks, or has no direction at all
        return _number(p0) * tl.maximum(largest, 0.0)
    elif RULE == ID_SELECTION:
        return tl.where(_integer(p2) != 0, _number(p1), -INF)
    else:
        return tl.full((), -INF, dtype=tl.float32)


@triton.jit
def dpp_component(c, overlap, pick_quality, quality, pick_d):
    """DPP: e_j, what the picks leave of token j along pick i; `overlap` is the sum over t of r_t[i] * r_t[j]."""
    return tl.div_rn(pick_quality * c * quality - overlap, tl.sqrt_rn(pick_d))


@triton.jit
def absorb(c, pick, score, step, tokens, standing, priority, state, p0, p1, p2, p3, RULE: tl.constexpr):
    """(priority, state) of tokens after a pick, from their similarity `c` to it (DPP: from e_j in its place)."""
    if RULE == ID_SELECTION:
        distance = tl.maximum(1.0 - c, 0.0)
        lowered = priority - tl.exp(-_number(p0) * (distance * distance)) * score
        return tl.maximum(lowered, tl.maximum(_number(p1), -LARGEST)), state
    elif RULE == MMR:
        state = tl.maximum(state, c)
        refreshed = (step + 1) % _integer(p1) == 0
        one_minus_lam = (1.0 - _wide(p0)).to(tl.float32)
        # Said aloud which of the two products is not rounded: every loop has to agree.
        return tl.where(refreshed, tl.fma(_number(p0), standing, -(one_minus_lam * state)), priority), state
    elif RULE == MAX_MIN:
        # The first pick was ranked by another quantity.
        return tl.minimum(tl.where(step == 0, INF, priority), state * (1.0 - c)), state
    elif RULE == HARD_SUPPRESS:
        width, radius = tl.maximum(_integer(p2), 1), _integer(p3)
        rows = tl.abs(tokens // width - pick // width)
        columns = tl.abs(tokens % width - pick % width)
        near = (_integer(p2) > 0) & (rows <= radius) & (columns <= radius)
        return tl.where((c > _number(p0)) | near, -INF, priority), state
    elif RULE == DPP:
        return priority - c * c, state
    else:
        return priority, state

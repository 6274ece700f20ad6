"""The selection rules: how priorities start and how they change after a pick.

A rule is a small frozen dataclass. It validates its parameters, says what the greedy loop has to carry for it, and
crosses every boundary (operator schema, C++ interface, kernel launch) as `encode()`: an integer id and a list of
floats. The formulas below use c_ij for the cosine similarity of tokens i and j, and p for the priority of the pick.

Parameters are checked against what every engine computes in, so that none can mean two things: a number is 0 or within
the normal range of float32, an integer is one of int32. They are kept as Python's float and int, whatever they came as.

Two rules, `Elimination` and `DART`, are not greedy: they decide on all picks at once.
"""

from __future__ import annotations

import enum
import functools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

__all__ = [
    "DART",
    "DPP",
    "LARGEST_INTEGER",
    "MMR",
    "RULES",
    "Combine",
    "Coverage",
    "Elimination",
    "HardSuppress",
    "IDSelection",
    "MatrixCoverage",
    "MaxMin",
    "ResidualOrder",
    "Rule",
    "State",
    "Tier",
    "Ties",
    "TopK",
    "by_name",
    "decode",
]


# Of int32, in which engines count tokens, picks and cells.
LARGEST_INTEGER = 2**31 - 1
# The normal range of float32.
_LEAST_NORMAL = 2.0**-126
_LARGEST_FLOAT = (2.0 - 2.0**-23) * 2.0**127


class State(enum.Enum):
    """What the greedy loop carries for a rule; engines choose their algorithm by this, never by a rule's name."""

    TOKEN = "one value per token"
    HISTORY = "one value per token and earlier pick"
    COVERAGE = "a reduction over the whole Gram per pick"
    CHANNELS = "one value per channel of the features, which are not compared"
    ALL = "nothing: all picks are decided at once"


class Tier(enum.IntEnum):
    """How a token ranks for the next pick: the higher tier first, then the higher value, then the lower index."""

    HAS_PRIORITY = 1  # by priority
    NO_PRIORITY = 0  # the rule has nothing left to say about it: by importance
    UNUSABLE = -1  # its importance or features are not usable: by index
    NOT_THERE = -2  # outside the sample, masked, or picked


@dataclass(frozen=True)
class Rule:
    """Base class of all rules; not a rule itself.

    A rule says here what engines ask about it, where it differs from most.

    Attributes:
        rule_id: its number at every boundary.
        state: what the loop carries for it.
        needs_importance: whether `select` demands an importance.
        needs_similarities: False: no pick changes a priority, so that no similarity is needed.
        needs_nearest: whether it needs the similarities of all pairs of tokens before the first pick.
        is_greedy: False: it decides on all picks at once, as the `torch` and the `cpu` engine can.
        rows_aside: how many rows at the end of each sample are no tokens, so that they are never picked.
    """

    rule_id: ClassVar[int]
    state: ClassVar[State] = State.TOKEN
    needs_similarities: ClassVar[bool] = True
    is_greedy: ClassVar[bool] = True
    is_complete: ClassVar[bool] = False
    short_name: ClassVar[str]  # of the rule on the command line; the class name in lower case unless a rule has another

    def __init_subclass__(cls) -> None:
        cls.short_name = cls.__dict__.get("short_name", cls.__name__.lower())
        # A class derived from a rule is not one itself: engines know rules by their exact type.
        cls.is_complete = "rule_id" in cls.__dict__

    @property
    def needs_importance(self) -> bool:
        return True

    @property
    def needs_nearest(self) -> bool:
        return False

    @property
    def rows_aside(self) -> int:
        return 0

    def _set(self, **parameters: float | int | tuple[int, ...]) -> None:
        """Parameters in the form that engines compute with, for which they were checked."""
        for name, value in parameters.items():
            object.__setattr__(self, name, value)

    def encode(self) -> tuple[int, list[float]]:
        """The rule as `(rule_id, params)`, the only form in which it crosses into an operator or a kernel."""
        return self.rule_id, self._params()

    def _params(self) -> list[float]:
        return []

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        return cls(*params)


Ties = Literal["index", "importance"]
"""What decides between tokens that `IDSelection` has lowered to its floor; a number at every boundary, its position."""


@dataclass(frozen=True)
class IDSelection(Rule):
    """Importance, lowered around every pick: ID-Selection, arXiv 2604.05601, Eq. 7-9.

    Priorities start as the importance. After pick i with priority p, every other token gets
    `s_j = max(floor, s_j - exp(-gamma * max(0, 1 - c_ij)**2) * p)`.

    Args:
        gamma: sharpness of the suppression, finite and >= 0. 20.0 is the published setting.
        floor: lower bound of a priority, or None for none: then what would overflow is the least float32. Public
            re-implementations clamp at 0.0.
        ties: what decides between tokens at the floor, where on strongly clustered features most picks are made:
            "index", the rule as published, or "importance" (ours; needs a floor >= 0): a token at or below the floor
            has no priority any more, and those follow by importance with a reported priority of -inf.

    Raises:
        TypeError, ValueError: a parameter has the wrong type or is out of range, or `ties` does not fit `floor`.

    Example:
        >>> IDSelection(gamma=5.0, floor=None)
        IDSelection(gamma=5.0, floor=None, ties='index')
    """

    gamma: float = 20.0
    floor: float | None = 0.0
    ties: Ties = "index"
    rule_id: ClassVar[int] = 0
    short_name: ClassVar[str] = "id"

    _TIES: ClassVar[tuple[Ties, ...]] = get_args(Ties)

    def __post_init__(self) -> None:
        self._set(gamma=_number("IDSelection", "gamma", self.gamma, low=0.0))
        if self.floor is not None:
            self._set(floor=_number("IDSelection", "floor", self.floor, hint=" (None means no floor)"))
        _check_word("IDSelection", "ties", self.ties, self._TIES)
        if self.ties == "importance" and (self.floor is None or self.floor < 0):
            raise ValueError(f"IDSelection: ties='importance' needs a floor >= 0, got floor={self.floor!r}")

    def _params(self) -> list[float]:
        floor = -math.inf if self.floor is None else float(self.floor)
        return [float(self.gamma), floor, float(self._TIES.index(self.ties))]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        gamma, floor, ties = params
        return cls(gamma, None if floor == -math.inf else floor, cls._TIES[int(ties)])


@dataclass(frozen=True)
class MMR(Rule):
    """Maximal marginal relevance: IDPruner, arXiv 2602.13315, as in the official code (AngelSlim).

    The first pick maximises the importance. After that `s_j = lam * importance_j - (1 - lam) * m_j`, where m_j is
    the largest similarity of j to any pick.

    Args:
        lam: weight of the importance against the redundancy, in [0, 1]. 0.5 is the official default.
        parallel_k: priorities are refreshed after every `parallel_k` picks, >= 1 (so the first `parallel_k` picks
            maximise the importance). 1 is the exact rule; more is the official code's shortcut.

    Raises:
        TypeError, ValueError: a parameter is not a number or out of range.

    Example:
        >>> MMR(lam=0.3)
        MMR(lam=0.3, parallel_k=1)
    """

    lam: float = 0.5
    parallel_k: int = 1
    rule_id: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._set(lam=_number("MMR", "lam", self.lam, low=0.0, high=1.0))
        self._set(parallel_k=_integer("MMR", "parallel_k", self.parallel_k, low=1))

    def _params(self) -> list[float]:
        return [float(self.lam), float(self.parallel_k)]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        lam, parallel_k = params
        return cls(lam, int(parallel_k))


@dataclass(frozen=True)
class MaxMin(Rule):
    """Farthest point sampling in cosine distance: DivPrune, CVPR 2025 (arXiv 2503.02175); FlashVID (arXiv 2602.08024).

    The first pick is the token whose nearest other token is farthest; then always the token whose nearest picked
    token is farthest: `s_j = min over picked i of (1 - c_ij)`. Weighted, it is `s_j = w_j * min over picked i of
    (1 - c_ij)`, at the start over all i but j, where `w_j` is the importance, at least 0 and at most 2**100; else
    importance is not used, except that a NaN or -inf there makes a token unselectable, as with every rule. A sample of
    one token reports a priority of +inf (weighted, of 0 where it weighs nothing).

    Weights that differ by 10**7 and more are beyond float32: what rounding leaves of the distance to a copy, times the
    larger one, then outranks every token of the smaller.

    Args:
        start: index of the first pick, >= 0 and < N, or None for the published first pick, which costs N**2
            similarities. In a sample where that token cannot be selected the lowest selectable index starts.
            The priority reported for a given start is +inf: no distance constrains it yet.
        weighted: distances weighted by importance, the selection step of FlashVID's ADTS.

    Raises:
        TypeError, ValueError: `start` is not an integer or negative, or `weighted` is not a bool.

    Example:
        >>> MaxMin(start=0)
        MaxMin(start=0, weighted=False)
    """

    start: int | None = None
    weighted: bool = False
    rule_id: ClassVar[int] = 2

    @property
    def needs_importance(self) -> bool:
        return self.weighted

    @property
    def needs_nearest(self) -> bool:
        return self.start is None

    def __post_init__(self) -> None:
        if self.start is not None:
            self._set(start=_integer("MaxMin", "start", self.start, low=0))
        if not isinstance(self.weighted, bool):
            raise TypeError(f"MaxMin: weighted must be True or False, got {self.weighted!r}")

    def _params(self) -> list[float]:
        return [-1.0 if self.start is None else float(self.start), float(self.weighted)]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        start, weighted = params
        return cls(None if start < 0 else int(start), weighted != 0)


@dataclass(frozen=True)
class HardSuppress(Rule):
    """Greedy non-maximum suppression: TRIO (arXiv 2602.04657), D2Pruner's second stage (arXiv 2512.19443).

    Priorities start as the importance. A pick i sets `s_j = -inf` where c_ij > threshold and, if a grid is given,
    where j lies within `radius` cells of i (Chebyshev distance: radius 1 is the 8 neighbours). When every token is
    suppressed the rest follow by importance, with a reported priority of -inf.

    Args:
        threshold: similarity above which a token is suppressed, in [-1, 1]. 0.8 is the value in TRIO's official code.
        grid: (height, width) of the token grid in row-major order, height * width = N, of all samples alike. None:
            there is none, or each sample has its own, which the call is given as `grids`.
        radius: suppressed neighbourhood in cells, >= 0; needs a grid: `select` refuses it with neither.

    Raises:
        TypeError, ValueError: a parameter has the wrong type or is out of range.

    Example:
        >>> HardSuppress(threshold=0.9, grid=(24, 24), radius=1)
        HardSuppress(threshold=0.9, grid=(24, 24), radius=1)
    """

    threshold: float = 0.8
    grid: tuple[int, int] | None = None
    radius: int = 0
    rule_id: ClassVar[int] = 3
    short_name: ClassVar[str] = "nms"

    def __post_init__(self) -> None:
        self._set(threshold=_number("HardSuppress", "threshold", self.threshold, low=-1.0, high=1.0))
        self._set(radius=_integer("HardSuppress", "radius", self.radius, low=0))
        if self.grid is None:
            return
        if not isinstance(self.grid, tuple) or len(self.grid) != 2:
            raise TypeError(f"HardSuppress: grid must be a tuple (height, width) or None, got {self.grid!r}")
        height, width = (_integer("HardSuppress", "grid", side, low=1) for side in self.grid)
        if height * width > LARGEST_INTEGER:
            raise ValueError(f"HardSuppress: grid must have at most {LARGEST_INTEGER} cells, got {height} x {width}")
        self._set(grid=(height, width))

    def _params(self) -> list[float]:
        height, width = self.grid or (0, 0)
        return [float(self.threshold), float(height), float(width), float(self.radius)]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        threshold, height, width, radius = params
        return cls(threshold, (int(height), int(width)) if height else None, int(radius))


@dataclass(frozen=True)
class DPP(Rule):
    """Greedy MAP of a determinantal point process: CDPruner, NeurIPS 2025 (arXiv 2506.10967).

    The kernel is `L_ij = q_i * c_ij * q_j` with the importance as relevance q. Priorities start as `d_j = L_jj`.
    After pick i, `e_j = (L_ij - sum_t r_t[i] * r_t[j]) / sqrt(d_i)` over the rows r_t kept so far, e is kept, and
    `d_j = d_j - e_j**2`. Tokens with `d_j <= eps * max L_jj` are spanned by the picks; when all are, the rest
    follow by q with a reported priority of -inf (the official code divides by a vanishing d there and repeats
    tokens).

    Args:
        eps: rank tolerance relative to the largest L_jj, in [1e-6, 1]. The default is ours: a few float32 roundings,
            below which a remainder cannot be told from none.

    Raises:
        TypeError, ValueError: `eps` is not a number or out of range.

    Example:
        >>> DPP()
        DPP(eps=1e-06)
    """

    eps: float = 1e-6
    rule_id: ClassVar[int] = 4
    state: ClassVar[State] = State.HISTORY

    def __post_init__(self) -> None:
        self._set(eps=_number("DPP", "eps", self.eps, low=1e-6, high=1.0))

    def _params(self) -> list[float]:
        return [float(self.eps)]


Combine = Literal["mul", "add"]
"""How `Coverage` joins gain and saliency; a number at every boundary, its position here."""


@dataclass(frozen=True)
class Coverage(Rule):
    """Facility location times saliency: SCOPE (arXiv 2510.24214), as in the official code.

    With `cover_i` the best similarity of token i to any pick, at least 0, the priority of j is its gain
    `sum_i max(0, c_ij - cover_i)` times (`combine="mul"`) or plus (`combine="add"`) `importance_j**alpha`.

    Importance is the saliency. It is optional: without it every token has saliency 1. It should be >= 0.

    Args:
        alpha: exponent of the saliency, finite and >= 0. 1.0 is the official default, and weighs it linearly.
        combine: "mul", the official default, or "add".

    Raises:
        TypeError, ValueError: a parameter has the wrong type or is out of range.

    Example:
        >>> Coverage(alpha=0.5, combine="add")
        Coverage(alpha=0.5, combine='add')
    """

    alpha: float = 1.0
    combine: Combine = "mul"
    rule_id: ClassVar[int] = 5
    state: ClassVar[State] = State.COVERAGE

    _COMBINE: ClassVar[tuple[Combine, ...]] = get_args(Combine)

    @property
    def needs_importance(self) -> bool:
        return False

    def __post_init__(self) -> None:
        self._set(alpha=_number("Coverage", "alpha", self.alpha, low=0.0))
        _check_word("Coverage", "combine", self.combine, self._COMBINE)

    def _params(self) -> list[float]:
        return [float(self.alpha), float(self._COMBINE.index(self.combine))]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        alpha, combine = params
        return cls(alpha, cls._COMBINE[int(combine)])


@dataclass(frozen=True)
class TopK(Rule):
    """Importance alone: FastV (arXiv 2403.06764), FasterVLM (arXiv 2412.01818).

    Example:
        >>> TopK()
        TopK()
    """

    rule_id: ClassVar[int] = 6
    needs_similarities: ClassVar[bool] = False


@dataclass(frozen=True)
class MatrixCoverage(Rule):
    """Coverage of a matrix that is given: MMTok, ICLR 2026 (arXiv 2508.18264), as in the official code.

    Row j of the features is what token j covers, of anything there is to cover: R numbers W_jr >= 0, not compared with
    those of other tokens. With `cover_r` the largest W_ir of any pick i, at least 0, the priority of j is its gain
    `sum_r max(0, W_jr - cover_r)`. A number below 0 covers nothing. As with every rule a row whose squares overflow
    float32, here one with a number above 1e19, is unusable.

    Importance is not used, except that a NaN or -inf there makes a token unselectable, as with every rule.

    Example:
        >>> MatrixCoverage()
        MatrixCoverage()
    """

    rule_id: ClassVar[int] = 7
    short_name: ClassVar[str] = "matrix"
    state: ClassVar[State] = State.CHANNELS
    needs_similarities: ClassVar[bool] = False

    @property
    def needs_importance(self) -> bool:
        return False


ResidualOrder = Literal["score", "position"]
"""How `Elimination` orders the tokens between its rounds; a number at every boundary, its position here."""


@dataclass(frozen=True)
class Elimination(Rule):
    """Important tokens, and what rounds of elimination leave of the others: VisPruner, ICCV 2025 (arXiv 2412.01818).

    A share of the k tokens is kept for its importance. The others form a list. Each round splits it into every second
    token A and the rest B, gives every token of A its largest similarity to one of B, and drops up to 8 of A for which
    that is largest, until as many are left as are still wanted. Code: Theia-4869/VisPruner; also in AngelSlim.

    It is not greedy: all picks are decided at once, by the `torch` or the `cpu` engine. Picks are the important tokens
    by falling importance, then the list as the rounds leave it. The score reported is the importance of the token.

    Args:
        important: share of the k tokens that is kept for its importance, in [0, 1]. 0.5 is the official default.
        order: how the list is ordered, which decides on the next split. "score", as published: by falling importance,
            and after a round the rest of A by falling similarity, then B. "position", as in AngelSlim: always by
            index. It also says how the share is rounded: down for "score"; half to even for "position", but below k
            where k > 1.

    Raises:
        TypeError, ValueError: a parameter has the wrong type or is out of range.

    Example:
        >>> Elimination(important=0.25)
        Elimination(important=0.25, order='score')
    """

    important: float = 0.5
    order: ResidualOrder = "score"
    rule_id: ClassVar[int] = 8
    state: ClassVar[State] = State.ALL
    is_greedy: ClassVar[bool] = False

    _ORDERS: ClassVar[tuple[ResidualOrder, ...]] = get_args(ResidualOrder)

    @property
    def needs_nearest(self) -> bool:
        return True

    def __post_init__(self) -> None:
        self._set(important=_number("Elimination", "important", self.important, low=0.0, high=1.0))
        _check_word("Elimination", "order", self.order, self._ORDERS)

    def _params(self) -> list[float]:
        return [float(self.important), float(self._ORDERS.index(self.order))]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        important, order = params
        return cls(important, cls._ORDERS[int(order)])


@dataclass(frozen=True)
class DART(Rule):
    """A few important pivots, and the tokens least like each of them: DART, EMNLP 2025 (arXiv 2502.11494).

    The `pivots` most important tokens are kept, at most k. Then every pivot in turn takes the t free tokens with the
    lowest similarity to it, t being the same share for each, rounded up, until k tokens are picked; late pivots may
    get fewer, or none. Code: ZichenWen1/DART, and AngelSlim, whose budget and order of pivots these are.

    It is not greedy: all picks are decided at once, by the `torch` or the `cpu` engine. Picks are the image pivots
    by falling importance, then those of each pivot, least similar first. The score reported is the importance of an
    image pivot, and the negative similarity of any other token to its pivot.

    Args:
        pivots: tokens kept as pivots, >= 0. 4 is the official default.
        text_pivots: how many rows at the end of each sample are pivots and no tokens, >= 0: states of the text, with
            their norms as importance. They come after the image pivots, by falling importance, and are never picked.
            `dart_select` puts them there. The official default is 4 as well.

    Raises:
        TypeError, ValueError: a parameter is not an integer or negative, or there is no pivot at all.

    Example:
        >>> DART()
        DART(pivots=4, text_pivots=0)
    """

    pivots: int = 4
    text_pivots: int = 0
    rule_id: ClassVar[int] = 9
    state: ClassVar[State] = State.ALL
    is_greedy: ClassVar[bool] = False

    @property
    def rows_aside(self) -> int:
        return self.text_pivots

    def __post_init__(self) -> None:
        self._set(pivots=_integer("DART", "pivots", self.pivots, low=0))
        self._set(text_pivots=_integer("DART", "text_pivots", self.text_pivots, low=0))
        if self.pivots == self.text_pivots == 0:
            raise ValueError("DART: pivots + text_pivots must be >= 1, got 0 and 0")

    def _params(self) -> list[float]:
        return [float(self.pivots), float(self.text_pivots)]

    @classmethod
    def _from_params(cls, params: Sequence[float]) -> Rule:
        pivots, text_pivots = params
        return cls(int(pivots), int(text_pivots))


RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (IDSelection, MMR, MaxMin, HardSuppress, DPP, Coverage, TopK, MatrixCoverage, Elimination, DART)
}

_BY_ID = {rule.rule_id: rule for rule in RULES.values()}


def by_name(name: str) -> type[Rule]:
    """The rule with this short name or class name, in any case.

    Raises:
        ValueError: no rule has this name.

    Example:
        >>> by_name("nms").__name__, by_name("MaxMin").short_name
        ('HardSuppress', 'maxmin')
    """
    known = {key.lower(): rule for full, rule in RULES.items() for key in (rule.short_name, full)}
    if name.lower() not in known:
        short = ", ".join(rule.short_name for rule in RULES.values())
        raise ValueError(f"rule must be one of {short} or a class name, got {name!r}")
    return known[name.lower()]


def decode(rule_id: int, params: Sequence[float]) -> Rule:
    """The rule that `encode()` turned into `(rule_id, params)`.

    Raises:
        ValueError: no rule has this id, or the parameters do not fit it.
    """
    return _decode(rule_id, tuple(params))


@functools.lru_cache(maxsize=256)
def _decode(rule_id: int, params: tuple[float, ...]) -> Rule:
    if rule_id not in _BY_ID:
        raise ValueError(f"rule_id must be one of {sorted(_BY_ID)}, got {rule_id}")
    name = _BY_ID[rule_id].__name__
    try:
        rule = _BY_ID[rule_id]._from_params(params)
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"params do not fit {name}: got {list(params)} ({error})") from error
    if rule._params() != list(params):  # half a flag, a NaN
        raise ValueError(f"params do not fit {name}: got {list(params)}, which stand for no {name}")
    return rule


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float
        return math.inf


def _number(rule: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf, hint: str = "") -> float:
    """A parameter as a float that every engine can hold."""
    is_number = isinstance(value, (int, float, numbers.Real))
    if isinstance(value, bool) or not is_number:
        raise TypeError(f"{rule}: {name} must be a number{hint}, got {value!r}")
    number = _as_float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{rule}: {name} must be {_interval(low, high)}{hint}, got {value!r}")
    # Beyond float32 some engines raise and others compute with infinity; a subnormal of it is 0 to some.
    if number != 0 and not _LEAST_NORMAL <= abs(number) <= _LARGEST_FLOAT:
        sizes = f"{_LEAST_NORMAL:.9g} to {_LARGEST_FLOAT:.9g} in size"
        raise ValueError(f"{rule}: {name} must be 0 or {sizes}, as float32 holds it{hint}, got {value!r}")
    return number + 0.0  # -0.0 + 0.0 is 0.0


def _integer(rule: str, name: str, value: Any, low: int) -> int:
    """A parameter as an int that every engine can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{rule}: {name} must be an integer, got {value!r}")
    number = int(value)
    if number < low:
        raise ValueError(f"{rule}: {name} must be >= {low}, got {value}")
    if number > LARGEST_INTEGER:
        raise ValueError(f"{rule}: {name} must be <= {LARGEST_INTEGER}, the largest int32, got {value}")
    return number


def _interval(low: float, high: float) -> str:
    if low == -math.inf:
        return "finite"
    return f"finite and >= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"


def _check_word(rule: str, name: str, value: Any, words: Sequence[str]) -> None:
    if value not in words:
        raise ValueError(f"{rule}: {name} must be {' or '.join(map(repr, words))}, got {value!r}")

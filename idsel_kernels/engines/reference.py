"""The `torch` backend: what right means. Readable first, float64 on request, any device torch has.

Everything with one value per token is vectorised over the batch. Whatever sums (dot products, norms, DPP's history,
coverage gains) is computed sample by sample on that sample's own shape, because the rounding of a batched sum may
depend on the batch; so a sample's picks never depend on its batch mates, bit for bit.

Where in a matrix a sum stands may change its rounding too, and equal tokens must tie. So whatever sums is taken from
one token of those that are alike, `Batch.first`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch

from ..alike import differ_early, first_alike, first_equal
from ..arithmetic import ieee_arithmetic
from ..counts import on_device
from ..problem import Inputs, Problem
from ..rules import (
    DPP,
    MMR,
    Coverage,
    HardSuppress,
    IDSelection,
    MatrixCoverage,
    MaxMin,
    Rule,
    State,
    Tier,
    TopK,
)
from . import at_once
from .base import GRAM_BUDGET_BYTES, Launcher, Outputs
from .coverage_gains import BandGains, GramGains

__all__ = [
    "ENGINE",
    "ENORMOUS",
    "Batch",
    "RuleState",
    "Standing",
    "reference_select",
    "rule_state",
    "standing",
    "state_type",
]

# What the Gram of a chunk of samples may take. A step holds up to four matrices of its size, which together keep to the
# budget. Above it, row rules compute the rows they need and batches run in chunks.
GRAM_BYTES = GRAM_BUDGET_BYTES // 4
# Where that is too little for all rows, `Coverage` keeps some from pick to pick. A step then holds little else.
_KEPT_BANDS_BYTES = 3 * GRAM_BYTES

# A row by matrix-vector product costs about as much time per element as this many elements of a matrix product
# (docs/decisions.md has the measurement), so the whole Gram pays only when k rows would cost more.
_ROW_COST = 12

# Side of the tiles in which all pairs are visited without keeping them: 1 MiB each in float32.
_TILE = 512

# What +inf stands for: the largest float32, and what it may be where it is squared or multiplied by a gain of up
# to N, so that priorities stay finite.
_LARGEST = torch.finfo(torch.float32).max
_LARGEST_QUALITY = 2.0**63
_LARGEST_SALIENCY = 2.0**100  # and the largest weight of a distance

# A priority of this size comes from an importance of +inf, or nearly, and says nothing about the size of the others.
ENORMOUS = 2.0**62

# A float32 similarity may lie this far from the exact one (D up to about 16k), so a threshold on it may fall either
# way inside this band.
SIMILARITY_SLACK = 1e-5
# The smallest Schur complements that float32 can tell from zero vary by about this factor around `DPP.eps`.
RANK_SLACK = 16.0


class Batch:
    """The samples of a call as the rules see them: (B, N) padded state and similarities on demand.

    Attributes:
        importance: (B, N), -inf where a token does not exist or does not take part.
        exists: (B, N) bool, the token may be picked at all (inside the sample, not masked).
        takes_part: (B, N) bool, it also competes and counts as a neighbour: importance is not NaN or -inf,
            features are finite.
        ends: (B,), how many rows each sample has.
        nonzero: (B, N), 1 where the norm of the token is positive: its similarity to itself.
        lower_tier, fallback: (B, N), tier and value of a token for which its rule has no priority, see `Standing`.
        grids: (B, 2), height and width of the grid of each sample; None unless the call has them.

    Where `similarity` says that features are similarities, the full Gram is made of them, and no row can be computed.
    """

    def __init__(self, inputs: Inputs, dtype: torch.dtype, full_gram: bool, similarity: bool = False) -> None:
        self.samples = [_aligned(sample.to(dtype)) for sample in _split(inputs.features, inputs.cu_seqlens)]
        self.lengths = [len(sample) for sample in self.samples]
        self.shape = (len(self.samples), max(self.lengths, default=0))
        device = inputs.features.device
        if similarity:
            norms = norms32 = _norms_of_diagonal(inputs.features)
        else:
            norms = self.padded([torch.linalg.vector_norm(x, dim=1) for x in self.samples], 0.0)
            # What is zero and what is finite is a matter of float32 in every precision: a replay must agree on it.
            norms32 = self.padded([torch.linalg.vector_norm(x.float(), dim=1) for x in self.samples], 0.0)
        self.nonzero = (norms32 > 0).to(dtype)
        self.scale = torch.where(norms32 > 0, 1 / norms, 0.0)
        self.ends = torch.tensor(self.lengths, device=device)
        inside = torch.arange(self.shape[1], device=device) < self.ends[:, None]
        self.exists = inside if inputs.mask is None else inside & self._unpack(inputs.mask, inputs, False)
        if inputs.importance is None:
            self.importance = torch.ones(self.shape, dtype=dtype, device=device)
        else:
            self.importance = self._unpack(inputs.importance.float().to(dtype), inputs, -math.inf)
        self.takes_part = self.exists & (self.importance > -math.inf) & torch.isfinite(norms32)
        self.importance = torch.where(self.takes_part, self.importance.clamp(max=_LARGEST), -math.inf)
        self.gram = None
        if full_gram:
            self.gram = self._gram_of(inputs.features.to(dtype)) if similarity else self._full_gram()
        self.lower_tier = torch.where(self.takes_part, int(Tier.NO_PRIORITY), int(Tier.UNUSABLE))
        self.fallback = torch.where(self.takes_part, self.importance, 0.0)
        self.grids = inputs.grids

    @functools.cached_property
    def first(self) -> torch.Tensor:
        """(B, N), the first of the tokens that are alike: equal rows, of which all take part or none does."""
        rows = self.padded([_first_alike(x) for x in self.samples], 0)
        return _first_of_value(rows, self.takes_part)

    def _unpack(self, value: torch.Tensor, inputs: Inputs, fill: float) -> torch.Tensor:
        return self.padded(_split(value, inputs.cu_seqlens), fill)

    def padded(self, rows: Sequence[torch.Tensor], fill: float) -> torch.Tensor:
        """One row per sample, filled up to the longest."""
        return torch.stack([torch.nn.functional.pad(row, (0, self.shape[1] - len(row)), value=fill) for row in rows])

    def _row(self, sample: int, token: torch.Tensor) -> torch.Tensor:
        """c_ij of a sample's token i, (1,) on the device, with all its tokens: (n,)."""
        n, x = self.lengths[sample], self.samples[sample]
        first, scale = self.first[sample, :n], self.scale[sample, :n]
        token = first[token]
        row = _cosines(x @ x.index_select(0, token)[0], scale[token], scale)
        return torch.where(first == token, self.nonzero[sample, :n], row[first])

    def _rows(self, sample: int, tokens: torch.Tensor) -> torch.Tensor:
        """c_ij of some of a sample's tokens i, (P,), with all its tokens: (P, n)."""
        n, x = self.lengths[sample], self.samples[sample]
        first, scale = self.first[sample, :n], self.scale[sample, :n]
        tokens = first[tokens]
        rows = _cosines(x.index_select(0, tokens) @ x.T, scale[tokens, None], scale)
        return torch.where(first == tokens[:, None], self.nonzero[sample, :n], rows[:, first])

    def _full_gram(self) -> torch.Tensor:
        batch, width = self.shape
        gram = self.importance.new_zeros((batch, width, width))
        for b, (x, n) in enumerate(zip(self.samples, self.lengths, strict=True)):
            first, scale = self.first[b, :n], self.scale[b, :n]
            c = _cosines(x @ x.T, scale[:, None], scale)
            c.diagonal().copy_(self.nonzero[b, :n])
            gram[b, :n, :n] = c.index_select(0, first).gather(1, first.expand(n, n))
        return gram

    def _gram_of(self, similarity: torch.Tensor) -> torch.Tensor:
        """The Gram from similarities (B, N, N) that are given. Tokens are alike where their rows of it are."""
        gram = torch.nan_to_num(similarity.contiguous(), nan=-1.0).clamp_(-1, 1)
        gram.diagonal(dim1=1, dim2=2).copy_(self.nonzero)
        self.samples = list(gram.unbind())
        return gram

    def similarity(self, pick: torch.Tensor) -> torch.Tensor:
        """c_ij of each sample's pick i with its tokens j: pick (B,) -> (B, N). A pick of -1 gives any row."""
        pick = pick.clamp(min=0)
        if self.gram is not None:
            return self.gram[torch.arange(len(pick), device=pick.device), pick]
        blank = self.importance.new_zeros(0)
        rows = [self._row(b, pick[b : b + 1]) if n else blank for b, n in enumerate(self.lengths)]
        return self.padded(rows, 0.0)

    def similarities(self, tokens: torch.Tensor) -> torch.Tensor:
        """c_ij of several tokens i of each sample with its tokens j: tokens (B, P) -> (B, P, N).

        Of a sample of fewer rows than P, those behind as many tokens are zero.
        """
        if self.gram is not None:
            return self.gram.gather(1, tokens[:, :, None].expand(-1, -1, self.shape[1]))
        similarities = self.importance.new_zeros((*tokens.shape, self.shape[1]))
        for b, n in enumerate(self.lengths):
            few = tokens[b, :n]  # as many as if the sample were alone, because the size of a product has a say in it
            similarities[b, : len(few), :n] = self._rows(b, few)
        return similarities

    def nearest_other(self) -> torch.Tensor:
        """min over i != j of (1 - c_ij), i taking part: (B, N). +inf where there is no other."""
        return 1 - self.padded([self._nearest(b) for b in range(len(self.samples))], -math.inf)

    def _nearest(self, b: int) -> torch.Tensor:
        """The largest c_ij of each token j with another that takes part, in tiles so that memory stays O(N * D)."""
        n = self.lengths[b]
        nearest = self.importance.new_full((n,), -math.inf)
        tiles = [slice(begin, min(begin + _TILE, n)) for begin in range(0, n, _TILE)]
        for rows, columns in itertools.product(tiles, tiles):
            c = self.tile(b, rows, columns).masked_fill(~self.takes_part[b, rows, None], -math.inf)
            if rows == columns:
                c.fill_diagonal_(-math.inf)
            nearest[columns] = torch.maximum(nearest[columns], c.amax(0))
        return nearest

    def tile(self, b: int, rows: slice, columns: slice) -> torch.Tensor:
        """c_ij of some of a sample's tokens i with some of its tokens j: (rows, columns)."""
        if self.gram is not None:
            return self.gram[b, rows, columns]
        x, scale, first = self.samples[b], self.scale[b], self.first[b]
        c = _cosines(x[rows] @ x[columns].T, scale[rows, None], scale[columns])
        # The nearest to a token that is alike to another is that other, whatever rounding says of the rest.
        return torch.where(first[rows, None] == first[columns], self.nonzero[b, columns], c)


def _cosines(products: torch.Tensor, scale_i: torch.Tensor, scale_j: torch.Tensor) -> torch.Tensor:
    """c_ij from dot products, which it overwrites, and reciprocal norms."""
    return products.mul_(scale_i).mul_(scale_j).clamp_(-1, 1)


def _norms_of_diagonal(similarity: torch.Tensor) -> torch.Tensor:
    """1 for a token with a direction, 0 for one without, NaN for one that is not finite: (B, N, N) to (B, N)."""
    own = similarity.diagonal(dim1=1, dim2=2)
    return torch.where(own.isfinite(), (own > 0).float(), math.nan)


def _first_alike(sample: torch.Tensor) -> torch.Tensor:
    """`first_alike`, on a CPU without a look at all of D where no rows are."""
    if sample.device.type == "cpu" and differ_early(sample):
        return torch.arange(len(sample))
    return first_alike(sample)


def _first_of_value(first: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The first of the tokens that have the same `first` and the same value, which float32 can hold: (B, N) all."""
    bits = (value.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return first_equal(first * 2**32 + bits)


def _split(value: torch.Tensor, cu_seqlens: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """The samples of a dense or ragged tensor."""
    if cu_seqlens is None:
        return value.unbind()
    parts: Sequence[torch.Tensor] = torch.split(value, cu_seqlens.diff().tolist())
    return parts


def _aligned(sample: torch.Tensor) -> torch.Tensor:
    """Contiguous at an aligned address: BLAS may round differently otherwise, depending on where a sample lies."""
    sample = sample.contiguous()
    return sample if sample.data_ptr() % 64 == 0 else sample.clone()


# --- The rules. `start` gives the priorities before the first pick, `update` those after one. -----------------------


_STATES: dict[type[Rule], type[RuleState]] = {}


class RuleState:
    """What a rule carries through the loop. `pick` and `score` are (B,): the tokens just taken, their priorities.

    Attributes:
        takes_shares: whether a pick takes shares of its priority off all others, which are then rounded relative to it
            even where it is enormous.
        no_priority: the priority at which a pick lowers no other.
        steepness: how many times as much as with the default parameters rounding of a similarity changes a priority.
    """

    takes_shares: ClassVar[bool] = False
    no_priority: ClassVar[float] = 0.0
    steepness: float = 1.0

    def __init_subclass__(cls, rule: type[Rule]) -> None:
        _STATES[rule] = cls

    def __init__(self, rule: Rule, batch: Batch, max_picks: int) -> None:
        self.batch = batch

    def start(self) -> torch.Tensor:
        return self.batch.importance

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        return priority

    def absorbed(self, score: torch.Tensor) -> torch.Tensor:
        """What counts as the priority of picks that were given, (B,): one without a priority takes none off others."""
        return score.masked_fill(score == -math.inf, self.no_priority)

    def least_unit(self) -> float:
        """What the rounding of a priority is relative to, if that is more than the largest priority: 1 where
        priorities hold similarities, however small the distances left.
        """
        return 0.0

    def coarseness(self) -> torch.Tensor:
        """(B, N), what the rounding of a token's priority is relative to in samples where the factor of one is so large
        that the largest priority says nothing about the others; 0 in others.
        """
        return torch.zeros_like(self.batch.importance)

    @classmethod
    def has_edge(cls, rule: Rule) -> bool:
        """Whether tokens lose their priorities at an edge, on either side of which rounding may put them."""
        return cls.move_edge is not RuleState.move_edge

    def move_edge(self, slack: int) -> None:
        """Moves this edge by what rounding may do: 1 keeps more tokens, -1 fewer."""
        raise NotImplementedError


class IDSelectionState(RuleState, rule=IDSelection):
    takes_shares = True

    def __init__(self, rule: IDSelection, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        # Without a floor a priority still stays a number, however much is taken off it.
        self.gamma, self.floor = rule.gamma, -_LARGEST if rule.floor is None else rule.floor
        # A weight changes with a distance by at most sqrt(2 gamma / e), so many times as much as a similarity is off.
        self.steepness = max(1.0, math.sqrt(rule.gamma / IDSelection.gamma))
        # At or below it a token has no priority.
        self.limit = torch.full_like(batch.importance[:, :1], self.floor if rule.ties == "importance" else -math.inf)

    def start(self) -> torch.Tensor:
        importance = self.batch.importance
        return torch.where(importance > self.limit, importance, -math.inf)

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        distance = (1 - self.batch.similarity(pick)).clamp(min=0)
        priority = priority - torch.exp(-self.gamma * distance**2) * score[:, None]
        priority = priority.clamp(min=self.floor)  # first, because a difference may overflow
        return torch.where(priority > self.limit, priority, -math.inf)

    @classmethod
    def has_edge(cls, rule: Rule) -> bool:
        return isinstance(rule, IDSelection) and rule.ties == "importance"

    def move_edge(self, slack: int) -> None:
        if self.batch.shape[1]:
            self.limit -= slack * SIMILARITY_SLACK * self.batch.importance.amax(1, keepdim=True).clamp(min=0)


class MMRState(RuleState, rule=MMR):
    def __init__(self, rule: MMR, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        self.lam, self.parallel_k = rule.lam, rule.parallel_k
        self.nearest = torch.full_like(batch.importance, -math.inf)

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        self.nearest = torch.maximum(self.nearest, self.batch.similarity(pick))
        if (step + 1) % self.parallel_k:
            return priority
        return self.lam * self.batch.importance - (1 - self.lam) * self.nearest

    def least_unit(self) -> float:
        return 1.0


class MaxMinState(RuleState, rule=MaxMin):
    def __init__(self, rule: MaxMin, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        self.first = rule.start
        self.distance = torch.full_like(batch.importance, math.inf)
        self.weight = batch.importance.clamp(0, _LARGEST_SALIENCY) if rule.weighted else None

    def _priorities(self, distance: torch.Tensor) -> torch.Tensor:
        if self.weight is None:
            return distance
        return torch.where(self.weight > 0, self.weight * distance, 0.0)  # also where there is no other token

    def start(self) -> torch.Tensor:
        if self.first is None:
            return self._priorities(self.batch.nearest_other())
        # Nothing is picked, so no distance constrains anybody: all at +inf, and only the start may be taken.
        tokens = torch.arange(self.batch.shape[1], device=self.distance.device)
        is_start = (tokens == self.first) & self.batch.takes_part
        startable = torch.where(is_start.any(1, keepdim=True), is_start, self.batch.takes_part)
        return torch.where(startable, self.distance, -math.inf)

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        self.distance = torch.minimum(self.distance, 1 - self.batch.similarity(pick))
        return self._priorities(self.distance)

    def least_unit(self) -> float:
        if self.weight is None:
            return 1.0
        return float(self.weight.max()) if self.weight.numel() else 0.0


class HardSuppressState(RuleState, rule=HardSuppress):
    def __init__(self, rule: HardSuppress, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        self.threshold, self.radius = rule.threshold, rule.radius
        # Of each sample's grid, (B, 1), or of all; not positive where a sample has none.
        self.width: torch.Tensor | int = rule.grid[1] if rule.grid is not None else 0
        if batch.grids is not None:
            self.width = batch.grids[:, 1:]

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        suppressed = self.batch.similarity(pick) > self.threshold
        if isinstance(self.width, torch.Tensor):
            suppressed |= (self.width > 0) & self._within_radius(pick[:, None], self.width.clamp(min=1))
        elif self.width > 0:
            suppressed |= self._within_radius(pick[:, None], self.width)
        return priority.masked_fill(suppressed, -math.inf)

    def move_edge(self, slack: int) -> None:
        self.threshold += slack * SIMILARITY_SLACK

    def _within_radius(self, pick: torch.Tensor, width: torch.Tensor | int) -> torch.Tensor:
        tokens = torch.arange(self.batch.shape[1], device=pick.device)
        rows = (tokens // width - pick // width).abs()
        columns = (tokens % width - pick % width).abs()
        return torch.maximum(rows, columns) <= self.radius


class DPPState(RuleState, rule=DPP):
    no_priority = math.inf  # which is divided by

    def __init__(self, rule: DPP, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        quality = batch.importance.clamp(-_LARGEST_QUALITY, _LARGEST_QUALITY)
        self.quality = torch.where(batch.takes_part, quality, 0.0)
        self.d = self.quality**2 * batch.nonzero
        self.rank_floor = rule.eps * self.d.amax(1, keepdim=True) if batch.shape[1] else self.d
        self.history = [self.d.new_zeros((max_picks, n)) for n in batch.lengths]
        self.first = _first_of_value(batch.first, self.quality)  # the history holds the quality of a token too

    def _priorities(self) -> torch.Tensor:
        return torch.where(self.d > self.rank_floor, self.d, -math.inf)

    def move_edge(self, slack: int) -> None:
        self.rank_floor = self.rank_floor * RANK_SLACK**-slack

    def start(self) -> torch.Tensor:
        return self._priorities()

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        at = pick.clamp(min=0)[:, None]
        row = self.quality.gather(1, at) * self.batch.similarity(pick) * self.quality
        for b, history in enumerate(self.history):
            n, r = history.shape[1], history[:step]  # r (t, n)
            if n:
                row[b, :n] -= (r.T @ r.index_select(1, at[b])[:, 0])[self.first[b, :n]]
        e = row / torch.where(score == math.inf, math.inf, self.d.gather(1, at)[:, 0]).sqrt()[:, None]
        for b, history in enumerate(self.history):
            history[step] = e[b, : history.shape[1]]
        self.d = self.d - e**2
        return self._priorities()


class CoverageState(RuleState, rule=Coverage):
    def __init__(self, rule: Coverage, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        self.gains = BandGains(batch, _KEPT_BANDS_BYTES) if batch.gram is None else GramGains(batch)
        self.saliency = _power(batch.importance, rule.alpha).clamp(-_LARGEST_SALIENCY, _LARGEST_SALIENCY)
        self.combine = rule.combine

    def _priorities(self, gain: torch.Tensor) -> torch.Tensor:
        priority = gain * self.saliency if self.combine == "mul" else gain + self.saliency
        return torch.where(self.batch.takes_part, priority, -math.inf)

    def start(self) -> torch.Tensor:
        return self._priorities(self.gains.first())

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        return self._priorities(self.gains.after(pick))

    def coarseness(self) -> torch.Tensor:
        if self.combine == "add" or 0 in self.batch.shape:
            return super().coarseness()
        # A gain is rounded relative to the largest ones, however little of it is left.
        gain = torch.where(self.batch.takes_part, self.gains.first(), 0.0).amax(1, keepdim=True)
        coarse = torch.where(self.batch.takes_part, gain * self.saliency.abs(), 0.0)
        return torch.where(coarse.amax(1, keepdim=True) < ENORMOUS, 0.0, coarse)


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """x**exponent, rounded from float64: torch's float32 power depends on where in a row an element stands."""
    if exponent == 1:
        return x
    wide = x if x.device.type == "mps" else x.double()  # which has no float64
    return (wide**exponent).to(x.dtype)


class TopKState(RuleState, rule=TopK):
    """No pick changes a priority."""


class MatrixCoverageState(RuleState, rule=MatrixCoverage):
    def __init__(self, rule: MatrixCoverage, batch: Batch, max_picks: int) -> None:
        super().__init__(rule, batch, max_picks)
        self.cover = [sample.new_zeros(sample.shape[1]) for sample in batch.samples]

    def start(self) -> torch.Tensor:
        return self.batch.padded([self._gains(b) for b in range(len(self.cover))], 0.0)

    def _gains(self, b: int) -> torch.Tensor:
        sample = self.batch.samples[b]
        gain = (sample - self.cover[b]).clamp_(min=0).sum(1)
        return gain[self.batch.first[b, : len(sample)]]

    def update(self, step: int, pick: torch.Tensor, score: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        for b, sample in enumerate(self.batch.samples):
            if len(sample):
                picked = sample.index_select(0, pick[b : b + 1].clamp(min=0))[0]
                self.cover[b] = torch.maximum(self.cover[b], picked)
        return self.start()


def state_type(rule: Rule) -> type[RuleState]:
    """The class of `rule_state`."""
    return _STATES[type(rule)]


def rule_state(rule: Rule, batch: Batch, max_picks: int) -> RuleState:
    """The state of `rule` for a loop of at most `max_picks` picks."""
    return state_type(rule)(rule, batch, max_picks)


# --- The greedy loop --------------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """How tokens rank for the next pick, (B, N) each: the higher `Tier` first, then the higher value."""

    tier: torch.Tensor
    value: torch.Tensor

    def best(self) -> torch.Tensor:
        """The token to pick, lowest index first among equals: (B,), -1 where there is none."""
        top = self.tier.amax(1, keepdim=True)
        value = torch.where(self.tier == top, self.value, -math.inf)
        return torch.where(top[:, 0] == Tier.NOT_THERE, -1, value.argmax(1))

    def priority_of(self, pick: torch.Tensor) -> torch.Tensor:
        """The rule's priority of each sample's token, (B,) to (B,); -inf where it has none."""
        at = pick.clamp(min=0)[:, None]
        return torch.where(self.tier.gather(1, at) == Tier.HAS_PRIORITY, self.value.gather(1, at), -math.inf)[:, 0]


def standing(batch: Batch, open_: torch.Tensor, priority: torch.Tensor) -> Standing:
    """Ranks the tokens still open, (B, N) bool, under the rule's priorities."""
    # NaN compares false, so a priority that is not a number is none.
    has_priority = batch.takes_part & (priority > -math.inf)
    tier = torch.where(has_priority, int(Tier.HAS_PRIORITY), batch.lower_tier)
    value = torch.where(has_priority, priority, batch.fallback)
    return Standing(torch.where(open_, tier, int(Tier.NOT_THERE)), value)


def reference_select(
    inputs: Inputs,
    rule: Rule,
    k: list[int],
    sort: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    gram: str = "auto",
    similarity: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The selection as the formulas say it.

    Args:
        inputs: checked tensors, see `Inputs`.
        rule: the rule.
        k: counts, one for all samples or one per sample.
        sort: ascending indices.
        dtype: float32 or float64, the precision of everything.
        gram: "full" computes all similarities at once, "rows" those of each pick when it is made, "auto" whichever
            is faster within `GRAM_BYTES`. `Coverage` reads all similarities at every pick, "rows" of them band by
            band. `Elimination` needs the full Gram.
        similarity: whether similarities lie in the place of features: then they are the full Gram, whatever `gram`.

    Returns:
        indices (B, k_max) int64 and scores (B, k_max) float32 (`dtype`, if that is float64).
    """
    inputs = Inputs(*(None if t is None else t.detach() for t in inputs))  # type: ignore[arg-type]
    problem = Problem.of(inputs, rule, k, sort)
    if problem.batch == 0:
        empty = inputs.features.new_empty((0, problem.k_max), dtype=dtype)
        return empty.to(torch.int64), empty
    offsets = _offsets(inputs)
    lengths = [end - begin for begin, end in itertools.pairwise(offsets)]
    full = [_wants_gram(rule, n, count, gram) for n, count in zip(lengths, problem.k_per_sample, strict=True)]
    if similarity:
        full = [rule.needs_similarities] * len(full)
    device, counts = inputs.features.device, inputs.counts
    counts = on_device(problem.k_per_sample, device) if counts is None else counts
    with torch.no_grad(), ieee_arithmetic(device):
        parts = []
        for begin, end, whole in _chunks(lengths, full, _reads_all_pairs(rule)):
            batch = Batch(_part(inputs, offsets, begin, end), dtype, whole, similarity)
            if rule.is_greedy:
                given = None if inputs.given is None else inputs.given[begin:end]
                parts.append(_greedy(batch, rule, counts[begin:end], problem.k_max, given))
            else:
                known = None if inputs.counts is not None else problem.k_per_sample[begin:end]
                parts.append(at_once.decide(batch, rule, counts[begin:end], known, problem.k_max))
    indices, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    scores = scores if dtype is torch.float64 else scores.float()
    return _sorted(indices, scores) if sort else (indices, scores)


def _greedy(
    batch: Batch, rule: Rule, counts: torch.Tensor, width: int, given: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.full((batch.shape[0], width), -1, device=batch.exists.device)
    scores = torch.full(indices.shape, -math.inf, dtype=batch.importance.dtype, device=indices.device)
    if 0 in batch.shape or width == 0:
        return indices, scores
    steps = min(width, batch.shape[1])
    state = rule_state(rule, batch, steps)
    open_, priority = batch.exists.clone(), state.start()
    first = first_picks(batch, given, steps)
    for step in range(steps):
        rank = standing(batch, open_, priority)
        pick = rank.best()
        if step < first.shape[1]:
            pick = torch.where(first[:, step] >= 0, first[:, step], pick)
        score = rank.priority_of(pick)
        indices[:, step], scores[:, step] = pick, score
        # A sample without open tokens has a pick of -1, for which position 0 stands in: it is closed already.
        open_.scatter_(1, pick.clamp(min=0)[:, None], False)
        if step + 1 < steps:
            if step < first.shape[1]:
                score = state.absorbed(score)
            priority = state.update(step, pick, score, priority)
    asked = torch.arange(width, device=indices.device) < counts[:, None]
    return torch.where(asked, indices, -1), torch.where(asked, scores, -math.inf)


def first_picks(batch: Batch, given: torch.Tensor | None, most: int) -> torch.Tensor:
    """The first picks (B, at most `most`) where `given` (B, M) come first: those that take part, each once; then -1."""
    samples, tokens = batch.shape
    if given is None or tokens == 0:
        return torch.full((samples, 0), -1, device=batch.exists.device)
    places = torch.arange(given.shape[1], device=given.device).expand_as(given)
    token = torch.where((given >= 0) & (given < batch.ends[:, None]), given, tokens).to(torch.int64)
    takes_part = torch.nn.functional.pad(batch.takes_part, (0, 1))
    earliest = torch.full(takes_part.shape, given.shape[1], device=given.device)
    earliest.scatter_reduce_(1, token, places, "amin")
    good = takes_part.gather(1, token) & (earliest.gather(1, token) == places)
    # Behind one another: a token's place is how many good ones come before it.
    into = torch.where(good, good.cumsum(1) - 1, given.shape[1])
    found = torch.full((samples, given.shape[1] + 1), -1, device=given.device).scatter_(1, into, token)
    return found[:, : min(most, given.shape[1])]


def _sorted(indices: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices, the padding still last."""
    last = torch.iinfo(indices.dtype).max
    order = torch.where(indices < 0, last, indices).argsort(1)
    return indices.gather(1, order), scores.gather(1, order)


# --- What to compute at once ------------------------------------------------------------------------------------------


def _needs_gram(rule: Rule) -> bool:
    return rule.state is State.ALL and rule.needs_nearest


def _reads_all_pairs(rule: Rule) -> bool:
    """At every step, so that a Gram that fits always pays."""
    return rule.state is State.COVERAGE or _needs_gram(rule)


def _wants_gram(rule: Rule, tokens: int, k: int, gram: str = "auto") -> bool:
    """Whether a sample's similarities are computed all at once. Its batch mates must not decide: rounding differs."""
    if _needs_gram(rule):
        return True
    return gram == "full" or (gram == "auto" and _full_gram_pays(rule, tokens, k))


def _full_gram_pays(rule: Rule, tokens: int, k: int) -> bool:
    """Whether the whole Gram takes less time than one row per pick, and fits the budget."""
    if not rule.needs_similarities or tokens**2 * 4 > GRAM_BYTES:
        return False
    if rule.state is State.ALL:
        return False  # the few rows that it needs are one product
    return _reads_all_pairs(rule) or rule.needs_nearest or k * _ROW_COST > tokens


def _offsets(inputs: Inputs) -> list[int]:
    """Where each sample begins in `features` flattened to rows. Reading `cu_seqlens` waits for a GPU."""
    if inputs.cu_seqlens is not None:
        offsets: list[int] = inputs.cu_seqlens.tolist()
        return offsets
    batch, tokens, _ = inputs.features.shape
    return [b * tokens for b in range(batch + 1)]


def _chunks(lengths: list[int], full: list[bool], all_pairs: bool) -> Iterator[tuple[int, int, bool]]:
    """Runs of samples that go the same way and whose Grams, padded to the longest, fit the budget together: of those
    that have Grams or read as much.
    """
    begin = 0
    for whole, run in itertools.groupby(full):
        end = begin + len(list(run))
        longest = max(lengths[begin:end])
        step = max(1, GRAM_BYTES // max(1, longest**2 * 4)) if whole or all_pairs else end - begin
        for first in range(begin, end, step):
            yield first, min(first + step, end), whole
        begin = end


def _part(inputs: Inputs, offsets: list[int], begin: int, end: int) -> Inputs:
    """The samples from `begin` to `end`."""
    if inputs.cu_seqlens is None:
        return Inputs(*(None if t is None else t[begin:end] for t in inputs))  # type: ignore[arg-type]
    rows = slice(offsets[begin], offsets[end])
    features, importance, mask = (None if t is None else t[rows] for t in inputs[:3])
    cu_seqlens = inputs.cu_seqlens[begin : end + 1] - offsets[begin]
    grids, given = (None if t is None else t[begin:end] for t in (inputs.grids, inputs.given))
    return Inputs(features, importance, mask, cu_seqlens, grids=grids, given=given)  # type: ignore[arg-type]


class _TorchEngine:
    name = "torch"
    device_types: tuple[str, ...] = ()

    def unavailable_reasons(self) -> list[str]:
        return []

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        return []

    def algorithm(self, problem: Problem) -> str:
        rule, k = problem.rule, problem.k_max
        if not rule.is_greedy:
            _, similarities, then = at_once.of_rule(rule)
            return f"{similarities} {'as given' if problem.similarity else 'by matrix product'}, then {then}"
        if not rule.needs_similarities:
            return f"{k} greedy steps on the {'features' if rule.state is State.CHANNELS else 'importance'}"
        if problem.similarity:
            return f"{k} greedy steps on the similarities given"
        whole = f"the whole Gram by matrix product, then {k} greedy steps"
        by_rows = f"{k} greedy steps, each with one row of similarities by matrix-vector product"
        if rule.state is State.COVERAGE:
            by_rows = f"{k} greedy steps, each over all similarities in bands of rows by matrix product"
        if problem.ragged or len(set(problem.k)) > 1:
            return f"by each sample's N and k, {whole}, or {by_rows}"
        return whole if _wants_gram(rule, problem.tokens, k) else by_rows

    def memory(self, problem: Problem) -> None:
        return None

    def launcher(self, problem: Problem, inputs: Inputs, memory: None = None) -> Launcher:
        return functools.partial(self.run, problem)

    def run(
        self,
        problem: Problem,
        features: torch.Tensor,
        importance: torch.Tensor | None,
        mask: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        counts: torch.Tensor | None,
        grids: torch.Tensor | None,
        given: torch.Tensor | None,
        out: Outputs | None = None,
    ) -> Outputs:
        if cu_seqlens is None and features.dim() == 2:
            features = features.unsqueeze(0)
            importance, mask = (None if t is None else t.unsqueeze(0) for t in (importance, mask))
            given = given.unsqueeze(0) if given is not None and given.dim() == 1 else given
        inputs = Inputs(features, importance, mask, cu_seqlens, counts, grids, given)
        found = reference_select(inputs, problem.rule, list(problem.k), problem.sort, similarity=problem.similarity)
        if out is None:
            return found
        for to, tensor in zip(out, found, strict=True):
            to.copy_(tensor)
        return out


ENGINE = _TorchEngine()

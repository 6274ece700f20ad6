"""Checks a selection against the formulas in float64; `idsel_kernels.inputs` makes inputs to check on.

Rounding may legitimately flip two tokens whose priorities nearly tie, and everything after them. So a selection is
right when every pick was (nearly) the best one available given the picks before it: when its *regret* is small. On
the leading picks whose margin over the runner-up is clear, the indices must be those of the float64 selection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import api, checks, dispatch
from .counts import Count
from .engines.reference import (
    ENORMOUS,
    Batch,
    RuleState,
    Standing,
    first_picks,
    reference_select,
    rule_state,
    standing,
    state_type,
)
from .inputs import Case, clustered, exact, near_duplicates, picture, ragged
from .problem import Inputs, Problem
from .rules import IDSelection, Rule, Tier
from .selection import Selection

# The makers are part of this module's interface from before they had their own.
__all__ = [
    "Case",
    "SelectionReport",
    "assert_parity",
    "check_selection",
    "clustered",
    "exact",
    "near_duplicates",
    "oracle",
    "picture",
    "ragged",
]

_TINY = 2.0**-126
# Replays keep the Gram in float64 up to this size, and compute rows, or bands of rows, above it.
_FULL_GRAM_BYTES = 2**30


@dataclass(frozen=True)
class SelectionReport:
    """How a selection compares with the float64 rule. All tensors are (B, k) float64 on the CPU.

    Attributes:
        regret: best available priority minus the priority of the pick, after replaying the picks before it; inf
            where a pick was made while a better kind of token was left, NaN where padded.
        margin: along the float64 selection, best minus second-best priority; inf where nothing else was left.
        oracle_indices: (B, k) int64, the float64 selection.
        score_error: difference between a reported score and the float64 priority of the same pick, NaN where padded.
        unit: the size of priorities, in which tolerances are given: the largest of the sample, and at least 1 for rules
            whose priorities hold similarities (`MMR`, `MaxMin`; weighted, the largest weight). Where +inf importance
            makes one enormous, its own; under `Coverage` with a saliency that does, that times the largest gain.
        first_difference: per sample the first position at which the picks part from `oracle_indices`, or None.
        defects: what is wrong whatever the priorities: repeated, masked, missing or out-of-range picks.
        ascending: whether the indices of every sample ascend, as with `sort=True`.
    """

    regret: torch.Tensor
    margin: torch.Tensor
    score_error: torch.Tensor
    unit: torch.Tensor
    oracle_indices: torch.Tensor
    first_difference: list[int | None]
    defects: list[str]
    ascending: bool

    @property
    def worst_regret(self) -> float:
        """The largest regret; inf if there are defects."""
        return math.inf if self.defects else _largest(self.regret)

    @property
    def relative_regret(self) -> float:
        """The largest regret in terms of `unit`; inf if there are defects."""
        return math.inf if self.defects else _largest(self.regret / self.unit)

    def clear_prefix(self, margin: float = 1e-5) -> list[int]:
        """Per sample, how many leading picks have a margin above `margin` times `unit`."""
        clear = (self.margin > margin * self.unit).to(torch.int64)
        return [int(n) for n in clear.cumprod(1).sum(1)]

    def assert_ok(self, tolerance: float = 1e-5, margin: float = 1e-5) -> None:
        """Raises AssertionError unless the selection is right.

        Args:
            tolerance: largest regret and score error allowed, times `unit`.
            margin: up to the first margin below this times `unit` the indices must equal the float64 ones.
        """
        if self.defects:
            raise AssertionError("; ".join(self.defects))
        if self.relative_regret > tolerance:
            hint = "; the indices ascend: a selection made with sort=True cannot be replayed" if self.ascending else ""
            raise AssertionError(f"regret {self.relative_regret:.3g} exceeds {tolerance:.3g} of the priorities{hint}")
        error = _largest(self.score_error / self.unit)
        if error > tolerance:
            raise AssertionError(f"score error {error:.3g} exceeds {tolerance:.3g} of the priorities")
        for sample, (first, clear) in enumerate(zip(self.first_difference, self.clear_prefix(margin), strict=True)):
            if first is not None and first < clear:
                raise AssertionError(
                    f"sample {sample}: pick {first} differs from the float64 selection, "
                    f"whose margins are clear for {clear} picks"
                )


def _largest(errors: torch.Tensor) -> float:
    """The largest of (B, k) errors, those of padding being NaN."""
    errors = errors[~errors.isnan()]
    return float(errors.max()) if errors.numel() else 0.0


def check_selection(
    sel: Selection,
    features: torch.Tensor | None = None,
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    k: Count | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
) -> SelectionReport:
    """Replays the picks in float64 on the CPU and reports how good each was.

    Args:
        sel: the selection, in pick order (not sorted).
        features, rule, importance, mask, cu_seqlens, grids, given, similarity: as for `select`.
        k: as given to `select`, where it was a list or a tensor; otherwise the width of `sel` tells.

    Returns:
        A `SelectionReport`; `report.assert_ok()` is the parity criterion.

    Raises:
        TypeError, ValueError: the inputs are not valid for `select`, `sel` does not have their shape, or the rule
            decides on all picks at once (`Elimination`, `DART`), so that there are no steps to replay.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> case = idsel.inputs.clustered(tokens=50, dim=16)
        >>> sel = idsel.select(**case.inputs(), k=8)
        >>> idsel.testing.check_selection(sel, **case.inputs()).assert_ok()
    """
    indices, scores = (t.detach().cpu() for t in sel)
    if indices.dtype is not torch.int64:
        raise TypeError(f"sel.indices must be torch.int64, got {indices.dtype}")
    width = indices.shape[-1]
    k = width if k is None else k.tolist() if isinstance(k, torch.Tensor) else k
    of_samples = {"grids": grids, "given": given}
    inputs, counts, rule = _on_cpu(features, k, rule, importance, mask, cu_seqlens, similarity, **of_samples)
    if not rule.is_greedy:
        name = type(rule).__name__
        raise ValueError(f"rule must pick one by one to be replayed, got {name}; compare with idsel.testing.oracle")
    is_similarity = similarity is not None
    problem = Problem.of(inputs, rule, counts, False, is_similarity)._replace(width=max(width, *counts))
    if indices.shape != (problem.batch, problem.k_max) or scores.shape != indices.shape:
        wanted = (problem.batch, problem.k_max)
        raise ValueError(f"sel must hold (B, k) = {wanted} indices and scores, got {tuple(indices.shape)}")
    with torch.device("cpu"):  # whatever the caller's default is
        replays = [
            _replay(sample, rule, indices[b], scores[b].double(), problem.k_per_sample[b], b, is_similarity)
            for b, sample in enumerate(_samples(inputs, problem))
        ]
        return _report(replays, indices)


def oracle(
    features: torch.Tensor | None,
    k: int | Sequence[int],
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    sort: bool = False,
    *,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    gram: str = "auto",
) -> Selection:
    """The reference selection in a precision of choice: float64 unless told, where `select` computes in float32.

    Args:
        features, k, rule, importance, mask, cu_seqlens, sort, grids, given, similarity: as for `select`; features are
            None with `similarity`.
        dtype: torch.float64 or torch.float32.
        gram: "full", "rows" or "auto": all similarities at once, one row per pick, or the faster of them; of no effect
            with `similarity`.

    Returns:
        A `Selection`; its scores have the dtype asked for.

    Raises:
        TypeError, ValueError: as `select`, or `dtype` or `gram` is none of those.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.testing.oracle(torch.eye(3), 2, importance=torch.tensor([0.1, 0.9, 0.5])).indices
        tensor([[1, 2]])
    """
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
    if gram not in ("auto", "full", "rows"):
        raise ValueError(f"gram must be 'auto', 'full' or 'rows', got {gram!r}")
    compared, is_similarity = checks.check_either(features, similarity), similarity is not None
    more: dict[str, Any] = {"grids": grids, "given": given, "similarity": is_similarity}
    inputs, counts, rule = api.prepare(compared, k, rule, importance, mask, cu_seqlens, sort, None, **more)
    found = reference_select(inputs, rule, counts, sort, dtype=dtype, gram=gram, similarity=is_similarity)
    return Selection(*found)


def assert_parity(
    engine_a: str,
    engine_b: str,
    features: torch.Tensor | None,
    k: int | Sequence[int],
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    *,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    tolerance: float = 1e-5,
    margin: float = 1e-5,
    exact: bool = False,
) -> tuple[SelectionReport, SelectionReport]:
    """Runs two backends on the same input and asserts that both are right, so that they agree where that is defined.

    Args:
        engine_a, engine_b: backend names.
        features, k, rule, importance, mask, cu_seqlens, grids, given, similarity: as for `select`; copied to where a
            backend runs if that is elsewhere. Features are None with `similarity`.
        tolerance, margin: see `SelectionReport.assert_ok`.
        exact: demand the same indices throughout, for inputs on which all arithmetic is exact (see `inputs.exact`).

    Returns:
        Both reports.

    Raises:
        AssertionError: a selection is wrong; the message names the backend.

    Example:
        >>> import idsel_kernels as idsel
        >>> case = idsel.inputs.exact(tokens=33)
        >>> _ = idsel.testing.assert_parity("torch", "torch", **case.inputs(), k=5, rule=idsel.MMR(), exact=True)
    """
    reports, picks = [], []
    more = {"mask": mask, "cu_seqlens": cu_seqlens, "grids": grids, "given": given, "similarity": similarity}
    tensors = {"features": features, "importance": importance, **more}
    for engine in (engine_a, engine_b):
        checks.check_backend(engine, dispatch.BACKENDS)
        sel = api.select(**_where_it_runs(engine, tensors), k=k, rule=rule, backend=engine)
        report = check_selection(sel, features, rule, importance, k=k, **more)
        try:
            report.assert_ok(tolerance, margin)
        except AssertionError as error:
            raise AssertionError(f"{engine}: {error}") from error
        reports.append(report)
        picks.append(sel.indices.cpu())
    if exact and not torch.equal(*picks):
        raise AssertionError(f"{engine_a} and {engine_b} pick differently on exact input")
    return reports[0], reports[1]


def _where_it_runs(backend: str, tensors: dict[str, torch.Tensor | None]) -> dict[str, Any]:
    """The tensors on a device that the backend takes: as they are where that will do."""
    compared = tensors["features"] if tensors["similarity"] is None else tensors["similarity"]
    types = dispatch.device_types(backend)
    if not types or not isinstance(compared, torch.Tensor) or compared.device.type in types:
        return tensors
    return {name: None if tensor is None else tensor.to(types[0]) for name, tensor in tensors.items()}


# --- The replay -------------------------------------------------------------------------------------------------------


class _Replay(NamedTuple):
    """One sample; the tensors are (k,)."""

    regret: torch.Tensor
    margin: torch.Tensor
    score_error: torch.Tensor
    unit: torch.Tensor
    oracle: torch.Tensor
    defects: list[str]


def _replay(
    inputs: Inputs,
    rule: Rule,
    picks: torch.Tensor,
    scores: torch.Tensor,
    count: int,
    sample: int,
    similarity: bool,
) -> _Replay:
    """`picks` (k,) with `scores`, of which `count` were asked for."""
    full = similarity or inputs.features.shape[1] ** 2 * 8 <= _FULL_GRAM_BYTES
    batch = Batch(inputs, torch.float64, full, similarity)
    first = first_picks(batch, inputs.given, count)[0]
    first = first[first >= 0]
    state = rule_state(rule, batch, 1)
    coarse = state.coarseness()[0]
    oracle, oracle_scores, margin, room = _oracle_run(batch, rule, len(picks), count, first, coarse)
    defects = [f"sample {sample}: {defect}" for defect in _defects(picks, scores, batch, count, first)]
    taken = int((oracle >= 0).sum())
    regret, score_error = torch.full((2, len(picks)), math.nan, dtype=torch.float64)
    unit = torch.maximum(_unit(state, oracle_scores[None]), _of_picks(coarse, oracle))
    if not defects:
        if not _has_hard_edge(rule) and torch.equal(picks, oracle):  # a replay would repeat the oracle's own run
            regret[:taken], priorities = 0.0, oracle_scores[None, :taken]
        else:
            regret[:taken], priorities, best = _replay_picks(batch, rule, picks[:taken], scores[: len(first)])
            unit[:taken] = torch.maximum(unit[:taken], _of_picks(coarse, best))
        score_error[:taken] = _score_error(scores[:taken], priorities)
        unit[:taken] = torch.maximum(unit[:taken], _unit(state, priorities))
        unit[:taken] = torch.maximum(unit[:taken], _of_picks(coarse, picks[:taken]))
        if len(first):  # what is given need not be what had the largest priority, of which rounding takes its share
            unit = torch.maximum(unit, _unit(state, state.start().amax(1, keepdim=True)))
    margin = torch.minimum(margin, room * unit)
    return _Replay(regret=regret, margin=margin, score_error=score_error, unit=unit, oracle=oracle, defects=defects)


def _of_picks(values: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """The values (n,) of picks (k,), 0 for padding."""
    if not len(values):
        return torch.zeros(len(picks), dtype=values.dtype)
    return torch.where(picks >= 0, values[picks.clamp(min=0)], 0.0)


def _oracle_run(
    batch: Batch, rule: Rule, width: int, count: int, first: torch.Tensor, coarse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The float64 selection, its priorities, its margins and, in terms of their own `coarse` (n,), the margins over
    tokens that have one: (width,) each. `first` are the picks that are given.

    Of those the margin is inf. It is 0 where the pick hangs on which side of a hard edge rounding puts a token.
    """
    picks = torch.full((width,), -1)
    scores = torch.full((width,), -math.inf, dtype=torch.float64)
    margins, rooms = torch.full((2, width), math.inf, dtype=torch.float64)
    steps = min(count, int(batch.exists.sum()))
    states = [rule_state(rule, batch, steps), *(_edge_states(rule, batch, steps) if _has_hard_edge(rule) else [])]
    open_, priorities = batch.exists.clone(), [state.start() for state in states]
    for step in range(steps):
        rank, *variants = (standing(batch, open_, priority) for priority in priorities)
        is_given = step < len(first)
        pick = first[step : step + 1] if is_given else rank.best()
        picks[step], scores[step] = pick, rank.priority_of(pick)
        if not is_given:
            agreed = all(v.best() == pick and v.tier[0, pick] == rank.tier[0, pick] for v in variants)
            margins[step] = _margin(rank, pick) if agreed else 0.0
            rooms[step] = _room(rank, pick, coarse)
        open_[0, pick] = False
        of_pick = [r.priority_of(pick) for r in (rank, *variants)]
        if is_given:
            of_pick = [_absorbed(state, score, scores[step]) for state, score in zip(states, of_pick, strict=True)]
        each = zip(states, of_pick, priorities, strict=True)
        priorities = [state.update(step, pick, score, priority) for state, score, priority in each]
    return picks, scores, margins, rooms


def _absorbed(state: RuleState, score: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """At what priority a pick that was given is absorbed. Where an edge leaves open whether it has one, `told` says."""
    told = told.to(score.dtype).expand_as(score)
    return state.absorbed(torch.where((told > -math.inf) & (score > -math.inf), score, told))


def _replay_picks(
    batch: Batch, rule: Rule, picks: torch.Tensor, told: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Regret (k,) of some picks, their priorities (variants, k) and the tokens that were best (k,).

    As many as have scores `told` were given: for them the best is what was given.

    A token on a rule's hard edge counts for the pick and not against it.
    """
    open_, states = batch.exists.clone(), _edge_states(rule, batch, len(picks))
    priorities = [state.start() for state in states]
    regret, bests = torch.zeros(len(picks), dtype=torch.float64), torch.full_like(picks, -1)
    options = torch.zeros((len(states), len(picks)), dtype=torch.float64)
    for step, pick in enumerate(picks[:, None]):
        ranks = [standing(batch, open_, priority) for priority in priorities]
        bests[step] = pick
        if step >= len(told):
            regret[step], bests[step] = _regret(ranks[0], ranks[-1], pick), ranks[0].best()
        scores = [rank.priority_of(pick) for rank in ranks]
        options[:, step] = torch.cat(scores)
        if step < len(told):
            scores = [_absorbed(state, score, told[step]) for state, score in zip(states, scores, strict=True)]
        open_[0, pick] = False
        each = zip(states, scores, priorities, strict=True)
        priorities = [state.update(step, pick, score, priority) for state, score, priority in each]
    return regret, options, bests


def _has_hard_edge(rule: Rule) -> bool:
    return state_type(rule).has_edge(rule)


def _edge_states(rule: Rule, batch: Batch, max_picks: int) -> list[RuleState]:
    """The rule with its hard edge moved by what rounding may do: fewest tokens left, most tokens left."""
    if not _has_hard_edge(rule):
        return [rule_state(rule, batch, max_picks)]
    strict, lenient = (rule_state(rule, batch, max_picks) for _ in range(2))
    strict.move_edge(-1)
    lenient.move_edge(1)
    return [strict, lenient]


def _unit(state: RuleState, priorities: torch.Tensor) -> torch.Tensor:
    """(k,) from the priorities (variants, k) of the picks."""
    sizes = torch.where(priorities.isfinite(), priorities.abs(), 0.0).amax(0)
    alike = state.takes_shares
    ordinary = sizes if alike else sizes[sizes < ENORMOUS]
    usual = float(ordinary.max()) if ordinary.numel() else 0.0
    least = max(state.least_unit(), _TINY)
    usual = max(usual, least) * state.steepness
    return torch.full_like(sizes, usual) if alike else torch.where(sizes < ENORMOUS, usual, sizes).clamp(min=least)


def _score_error(scores: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
    """Difference (k,) of each score from the nearer of its priorities; equal infinities are 0 apart, NaN is inf off."""
    apart = torch.where(options == scores, 0.0, (options - scores).abs())
    return apart.nan_to_num(nan=math.inf, posinf=math.inf).amin(0)


def _regret(strict: Standing, lenient: Standing, pick: torch.Tensor) -> float:
    best = strict.best()
    best_tier, pick_tier = int(strict.tier[0, best]), int(lenient.tier[0, pick])
    if pick_tier != best_tier:
        return math.inf if pick_tier < best_tier else 0.0
    if pick_tier == Tier.UNUSABLE:
        return float(pick - best)
    return max(0.0, float(strict.value[0, best]) - float(lenient.value[0, pick]))


def _margin(rank: Standing, pick: torch.Tensor) -> float:
    rivals = rank.tier[0] == rank.tier[0, pick]
    rivals[pick] = False
    if not bool(rivals.any()):
        return math.inf
    return float(rank.value[0, pick]) - float(rank.value[0][rivals].max())


def _room(rank: Standing, pick: torch.Tensor, coarse: torch.Tensor) -> float:
    """How far the pick is above rivals in terms of their own coarseness, where that is positive."""
    rivals = (rank.tier[0] == rank.tier[0, pick]) & (coarse > 0)
    rivals[pick] = False
    if not bool(rivals.any()):
        return math.inf
    return float(((rank.value[0, pick] - rank.value[0][rivals]) / coarse[rivals]).min())


def _defects(picks: torch.Tensor, scores: torch.Tensor, batch: Batch, count: int, first: torch.Tensor) -> list[str]:
    exists = batch.exists[0]
    wanted = min(count, int(exists.sum()))
    taken, padding = picks[:wanted], picks[wanted:]
    valid = (taken >= 0) & (taken < len(exists))
    if not bool(valid.all()):
        return [f"picks must lie in [0, {len(exists)}) at the first {wanted} positions, got {taken[~valid].tolist()}"]
    defects = []
    if not torch.equal(picks[: len(first)], first):
        defects.append(f"the first picks must be those given, {first.tolist()}, got {picks[: len(first)].tolist()}")
    if bool((padding != -1).any()):
        defects.append(f"padding must be -1 after {wanted} picks, got {padding.tolist()}")
    if not bool(scores[wanted:].isneginf().all()):
        defects.append(f"scores must be -inf after {wanted} picks, got {scores[wanted:].tolist()}")
    if len(set(taken.tolist())) != len(taken):
        defects.append("a token is picked twice")
    if not bool(exists[taken].all()):
        defects.append(f"masked tokens are picked: {taken[~exists[taken]].tolist()}")
    return defects


def _report(replays: list[_Replay], indices: torch.Tensor) -> SelectionReport:
    width = indices.shape[1]
    empty = torch.empty((0, width), dtype=torch.float64)

    def stacked(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(rows) if rows else empty

    oracle = stacked([r.oracle for r in replays]).to(torch.int64)
    parts = [(row != expected).nonzero()[:, 0].tolist() for row, expected in zip(indices, oracle, strict=True)]
    return SelectionReport(
        regret=stacked([r.regret for r in replays]),
        margin=stacked([r.margin for r in replays]),
        score_error=stacked([r.score_error for r in replays]),
        unit=stacked([r.unit for r in replays]),
        oracle_indices=oracle,
        first_difference=[where[0] if where else None for where in parts],
        defects=[defect for r in replays for defect in r.defects],
        ascending=width > 2 and all(_ascends(row[row >= 0]) for row in indices),
    )


def _ascends(picks: torch.Tensor) -> bool:
    return bool((picks.diff() > 0).all())


def _on_cpu(
    features: torch.Tensor | None,
    k: int | Sequence[int],
    rule: Rule | str,
    importance: torch.Tensor | None,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    similarity: torch.Tensor | None,
    **of_samples: Any,
) -> tuple[Inputs, list[int], Rule]:
    compared, of_samples["similarity"] = checks.check_either(features, similarity), similarity is not None
    inputs, counts, rule = api.prepare(compared, k, rule, importance, mask, cu_seqlens, False, None, **of_samples)
    return Inputs(*(None if t is None else t.detach().cpu() for t in inputs)), counts, rule  # type: ignore[arg-type]


def _samples(inputs: Inputs, problem: Problem) -> list[Inputs]:
    """Each sample as a dense batch of one."""
    features, importance, mask, cu_seqlens, _counts, *of_samples = inputs
    lengths = None if cu_seqlens is None else cu_seqlens.diff().tolist()

    def split(value: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        if value is None:
            return [None] * problem.batch
        parts = value.unbind() if lengths is None else torch.split(value, lengths)
        return [part[None] for part in parts]

    own = [[None if t is None else t[b : b + 1] for t in of_samples] for b in range(problem.batch)]
    parts = zip(split(features), split(importance), split(mask), own, strict=True)
    return [Inputs(f, i, m, None, None, *more) for f, i, m, more in parts if f is not None]

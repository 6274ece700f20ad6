"""Rules that decide on all picks at once, for the `torch` engine: `Elimination` and `DART`.

Vectorised over the batch like the greedy loop, and with the same care: similarities come from `Batch`, which computes
them sample by sample and lets equal rows tie; sorts are stable; nothing is read back from a device. How often a loop
turns is bounded by what the host knows, and turns that are too many for a sample change nothing in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..rules import DART, Elimination, Rule

if TYPE_CHECKING:
    from .reference import Batch

__all__ = ["AtOnce", "decide", "of_rule"]

# Tokens that a round of `Elimination` drops at most, fixed in the official code.
_PER_ROUND = 8


class Task(NamedTuple):
    """What is asked of the samples of a batch.

    `counts` (B,) lie on the device. `known` are the same numbers on the host, None where nothing there tells them.
    """

    batch: Batch
    counts: torch.Tensor
    known: list[int] | None
    width: int


class AtOnce(NamedTuple):
    """How the `torch` engine runs a rule.

    `decide` gives picks (B, width) int64, their scores, and how many there are of each sample, (B,); what lies behind
    those is of no meaning. `similarities` and `then` are for `explain`: which it needs, and what it does with them.
    """

    decide: Callable[[Any, Task], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    similarities: str
    then: str


def of_rule(rule: Rule) -> AtOnce:
    """How to run `rule`."""
    return _RULES[type(rule)]


def decide(batch: Batch, rule: Rule, counts: torch.Tensor, known: list[int] | None, width: int) -> Any:
    """Indices (B, width) int64, -1 where padded, and scores (B, width) of the selection in pick order."""
    if 0 in batch.shape or width == 0:
        indices = torch.full((batch.shape[0], width), -1, device=batch.exists.device)
        return indices, torch.full(indices.shape, -math.inf, dtype=batch.importance.dtype, device=indices.device)
    counts = counts.to(torch.int64).clamp(0, width)
    picks, scores, filled = of_rule(rule).decide(rule, Task(batch, counts, known, width))
    aside = _aside(batch, rule.rows_aside)
    return _with_unusable(picks, scores, filled, batch.exists & ~batch.takes_part & ~aside, counts)


def _with_unusable(
    picks: torch.Tensor, scores: torch.Tensor, filled: torch.Tensor, unusable: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unusable tokens (B, N) behind the `filled` picks, by index, as far as `counts` go."""
    place = filled[:, None] + unusable.cumsum(1) - 1
    tokens = torch.arange(unusable.shape[1], device=picks.device).expand_as(place)
    places = torch.arange(picks.shape[1], device=picks.device)
    picks = _put(picks, place, tokens, unusable)
    wanted = torch.minimum(counts, filled + unusable.sum(1))[:, None]
    scores = torch.where(places < torch.minimum(filled, counts)[:, None], scores, -math.inf)
    return torch.where(places < wanted, picks, -1), scores


def _put(into: torch.Tensor, place: torch.Tensor, values: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """`into` (B, width) with those `values` (B, M) that `which` selects at their `place`, as far as it has that."""
    width = into.shape[1]
    place = torch.where(which, place.clamp(max=width), width)
    return torch.nn.functional.pad(into, (0, 1)).scatter_(1, place, values)[:, :width]


def _aside(batch: Batch, rows: int) -> torch.Tensor:
    """(B, N) bool, the last `rows` of each sample."""
    tokens = torch.arange(batch.shape[1], device=batch.exists.device)
    ends = batch.ends[:, None]
    return (tokens >= ends - rows) & (tokens < ends)


def _by_importance(importance: torch.Tensor, takes_part: torch.Tensor) -> torch.Tensor:
    """(B, N) int64, tokens by falling importance, ties by index; those that do not take part come last."""
    # -0.0 + 0.0 is 0.0: what compares equal must not be told apart by a sort of bits.
    key = torch.where(takes_part, importance + 0.0, -math.inf)
    return key.sort(dim=1, descending=True, stable=True).indices


# --- Elimination ------------------------------------------------------------------------------------------------------


def _eliminate(rule: Elimination, task: Task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, counts, _known, width = task
    tokens = batch.takes_part.sum(1)
    keep = torch.minimum(counts, tokens)
    important = _important(rule, keep)
    ranked = _by_importance(batch.importance, batch.takes_part)
    rest = _run_rounds(rule, task, _residual(rule, ranked, important, tokens), tokens - important, keep - important)
    # The important ones, then the list: both begin at the start of their own row.
    places = torch.arange(width, device=keep.device)
    behind = (places - important[:, None]).clamp(0, rest.shape[1] - 1)
    first = ranked.gather(1, places.clamp(max=ranked.shape[1] - 1).expand_as(behind))
    picks = torch.where(places < important[:, None], first, rest.gather(1, behind))
    picks = picks.clamp(max=batch.shape[1] - 1)  # behind those kept stand places of no token
    return picks, batch.importance.gather(1, picks), keep


def _important(rule: Elimination, keep: torch.Tensor) -> torch.Tensor:
    """How many of `keep` tokens are kept for their importance."""
    wide = torch.float32 if keep.device.type == "mps" else torch.float64
    share = keep.to(wide) * rule.important
    if rule.order == "score":
        return share.floor().to(torch.int64)
    return torch.minimum(share.round().to(torch.int64), (keep - 1).clamp(min=1))


def _important_on_host(rule: Elimination, keep: int) -> int:
    """The same for one sample."""
    share = keep * rule.important
    return math.floor(share) if rule.order == "score" else min(round(share), max(keep - 1, 1))


def _residual(rule: Elimination, ranked: torch.Tensor, important: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, N) int64, the tokens that are not important in the order of the first round, then N for no token."""
    width = ranked.shape[1]
    places = torch.arange(width, device=ranked.device)
    if rule.order == "position":
        is_rest = (places >= important[:, None]) & (places < tokens[:, None])
        return torch.where(is_rest, ranked, width).sort(1).values
    shifted = ranked.gather(1, (places + important[:, None]).clamp_(max=width - 1))
    return torch.where(places < (tokens - important)[:, None], shifted, width)


def _run_rounds(
    rule: Elimination, task: Task, listed: torch.Tensor, left: torch.Tensor, aim: torch.Tensor
) -> torch.Tensor:
    """The list after its rounds, of which `aim` (B,) tokens count; before them `left` (B,) do."""
    batch = task.batch
    assert batch.gram is not None
    # Where nothing is wanted of the list, no round is needed.
    left = torch.where(aim > 0, left, 0)
    # No token, which ends a list, has a row and a column that are less than all others. -0.0 + 0.0 is 0.0.
    none = batch.shape[1]
    gram = torch.nn.functional.pad(batch.gram + 0.0, (0, 1, 0, 1), value=-math.inf)
    listed = torch.nn.functional.pad(listed, (0, 2), value=none)
    places = torch.arange(none + 2, device=left.device)
    begins = torch.arange(0, len(gram) * (none + 1), none + 1, device=left.device)[:, None]
    lengths = [_even_with_room(length) for length in _longest(rule, batch.lengths, task)]
    for now, then in itertools.pairwise(lengths):
        even, odd = listed[:, 0:now:2], listed[:, 1:now:2]
        nearest = _nearest(gram, even, odd, begins)
        even = even.gather(1, nearest.sort(dim=1, descending=True, stable=True).indices)
        drop = torch.minimum(left - aim, _droppable(rule, left)).clamp_(max=_PER_ROUND)
        if rule.order == "position":
            even = even.masked_fill(places[: even.shape[1]] < drop[:, None], none)
            listed = torch.cat([even, odd], 1).sort(1).values
        else:
            # From the sorted even places what is not dropped, then all odd ones, the last of which is no token.
            stay, skip = ((left + 1) // 2 - drop)[:, None], drop[:, None]
            source = places[:then] + torch.where(places[:then] < stay, skip, even.shape[1] - stay)
            kept = torch.cat([even, odd], 1).gather(1, source.clamp_(max=now - 1))
            listed = torch.where(skip > 0, kept, listed[:, :then])  # a sample that is done keeps its order
        left = left - drop
    return listed


def _even_with_room(length: int) -> int:
    """Of a list that holds up to `length` tokens, so that both halves are as long and the second ends with no token."""
    return 2 * (length // 2 + 1)


def _nearest(gram: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """The largest similarity of each of `rows` (B, R) with one of `columns` (B, C): (B, R)."""
    taken = gram.flatten(0, 1).index_select(0, (rows + begins).flatten()).view(*rows.shape, -1)
    return taken.gather(2, columns[:, None].expand(-1, rows.shape[1], -1)).amax(2)


def _droppable(rule: Elimination, left: Any) -> Any:
    """Of a list of `left` tokens, a tensor or a number, how many a round may drop."""
    return (left + 1) // 2 if rule.order == "score" else left // 2


def _longest(rule: Elimination, tokens: Sequence[int], task: Task) -> list[int]:
    """How long a list can be before each round, and after the last: no shorter than those of samples that are done.

    A list that starts shorter is never longer than one that starts longer, so tokens that do not take part, which the
    host does not know of, only make lists shorter than these.
    """
    # Where there is no float64, the host cannot foresee how a share is rounded.
    if task.known is None or task.counts.device.type == "mps":
        lists = [[n, *_lengths(rule, n, 1), min(task.width, n)] for n in [max(tokens)]]
        least = min(task.width, max(tokens))
    else:
        lists, least = [], 1
        for n, k in zip(tokens, task.known, strict=True):
            keep = min(n, k)
            important = _important_on_host(rule, keep)
            lists.append(_lengths(rule, n - important, keep - important) if keep > important else [1])
            least = max(least, keep - important)
    rounds = max(map(len, lists))
    return [max(least, *(each[min(turn, len(each) - 1)] for each in lists)) for turn in range(rounds)]


def _lengths(rule: Elimination, left: int, aim: int) -> list[int]:
    """The lengths of a list that starts with `left` tokens, down to `aim`."""
    lengths = [left]
    while lengths[-1] > aim:
        left = lengths[-1]
        lengths.append(left - min(_PER_ROUND, left - aim, _droppable(rule, left)))
    return lengths


# --- DART -------------------------------------------------------------------------------------------------------------


def _pivoted(rule: DART, task: Task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, counts, _known, width = task
    aside = _aside(batch, rule.text_pivots)
    free = batch.takes_part & ~aside
    keep = torch.minimum(counts, free.sum(1))
    own = keep.clamp(max=rule.pivots)
    picks, ranked = own.new_zeros((len(own), width)), _by_importance(batch.importance, free)
    every = torch.arange(ranked.shape[1], device=ranked.device)
    is_own = every < own[:, None]
    picks = _put(picks, every.expand_as(ranked), ranked, is_own)
    free.scatter_(1, ranked, ~is_own & free.gather(1, ranked))
    scores = batch.importance.gather(1, picks)

    similarity, there = _pivots(rule, task, ranked, own, aside)
    share = -(-(keep - own) // there.sum(1).clamp(min=1))
    filled = own
    for pivot in range(there.shape[1]):
        least_like = torch.where(free, similarity[:, pivot], math.inf).sort(dim=1, stable=True)
        take = torch.minimum(torch.minimum(share, keep - filled), free.sum(1)) * there[:, pivot]
        taken = every < take[:, None]
        place = filled[:, None] + every
        picks = _put(picks, place, least_like.indices, taken)
        scores = _put(scores, place, 0 - least_like.values, taken)
        free.scatter_(1, least_like.indices, ~taken & free.gather(1, least_like.indices))
        filled = filled + take
    # Without any pivot the others follow by importance, as where a greedy rule has no priority left.
    rest = _by_importance(batch.importance, free)
    place = filled[:, None] + every
    picks = _put(picks, place, rest, every < (keep - filled)[:, None])
    scores = _put(scores, place, torch.full_like(batch.importance, -math.inf), every < (keep - filled)[:, None])
    return picks, scores, keep


def _pivots(
    rule: DART, task: Task, ranked: torch.Tensor, own: torch.Tensor, aside: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities (B, P, N) of the pivots in the order of their turns, image before text; which are there, (B, P)."""
    batch = task.batch
    text = aside & batch.takes_part
    by_text = _by_importance(batch.importance, text)
    columns = [(ranked[:, : rule.pivots], own), (by_text[:, : rule.text_pivots], text.sum(1))]
    places = [torch.arange(tokens.shape[1], device=own.device) for tokens, _ in columns]
    there = [place < number[:, None] for place, (_, number) in zip(places, columns, strict=True)]
    similarity = torch.cat([batch.similarities(tokens) for tokens, _ in columns], 1)
    return similarity + 0.0, torch.cat(there, 1)  # -0.0 + 0.0 is 0.0


_RULES = {
    Elimination: AtOnce(_eliminate, "the whole Gram", "rounds that drop up to 8 tokens each"),
    DART: AtOnce(_pivoted, "the rows of the pivots", "one sort for each"),
}

"""Each rule as some fifteen lines of NumPy, which is what a package has to beat on a CPU.

Features are normalised within the call. A similarity comes from a row that is computed for its pick, `X @ x`, or from
one product of all with all, `X @ X.T`; what follows is the same.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable

import numpy as np

from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MaxMin, Rule

Rows = Callable[[int], np.ndarray]
"""c of a token with all."""


def by_row(x: np.ndarray) -> Rows:
    """Rows that are computed when they are asked for."""
    unit = _unit(x)
    return lambda i: unit @ unit[i]


def by_gram(x: np.ndarray) -> Rows:
    """Rows of one product."""
    unit = _unit(x)
    return (unit @ unit.T).__getitem__


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def id_selection(row: Rows, importance: np.ndarray, k: int, rule: IDSelection) -> np.ndarray:
    """Priorities fall by those of picks, weighted by likeness."""
    priority, picks = importance.copy(), np.empty(k, np.int64)
    gamma, floor = np.float32(rule.gamma), np.float32(-np.inf if rule.floor is None else rule.floor)
    for t in range(k):
        i = picks[t] = priority.argmax()
        distance = np.maximum(1 - row(i), 0)
        priority = np.maximum(priority - np.exp(-gamma * distance * distance) * priority[i], floor)
        priority[picks[: t + 1]] = -np.inf
    return picks


def mmr(row: Rows, importance: np.ndarray, k: int, rule: MMR) -> np.ndarray:
    """Importance against the largest similarity to a pick."""
    relevance, share, picks = np.float32(rule.lam) * importance, np.float32(1 - rule.lam), np.empty(k, np.int64)
    picks[0] = importance.argmax()
    most = row(picks[0]).copy()
    for t in range(1, k):
        relevance[picks[t - 1]] = -np.inf
        picks[t] = (relevance - share * most).argmax()
        np.maximum(most, row(picks[t]), out=most)
    return picks


def max_min(row: Rows, importance: np.ndarray, k: int, rule: MaxMin) -> np.ndarray:
    """Farthest point sampling; without a start, all rows are asked for their nearest token."""
    picks, n = np.empty(k, np.int64), len(importance)
    picks[0] = _most_distant(row, n) if rule.start is None else rule.start
    distance = 1 - row(picks[0])
    for t in range(1, k):
        distance[picks[t - 1]] = -np.inf
        picks[t] = distance.argmax()
        np.minimum(distance, 1 - row(picks[t]), out=distance)
    return picks


def _most_distant(row: Rows, n: int) -> int:
    nearest = np.empty(n, np.float32)
    for i in range(n):
        c = row(i).copy()
        c[i] = -np.inf
        nearest[i] = c.max()
    return int(nearest.argmin())


def hard_suppress(row: Rows, importance: np.ndarray, k: int, rule: HardSuppress) -> np.ndarray:
    """By importance, past what is like a pick; then the rest."""
    picks, closed = [], np.zeros(len(importance), bool)
    order = np.argsort(-importance, kind="stable")
    for i in order:
        if len(picks) == k:
            break
        if not closed[i]:
            picks.append(i)
            closed |= row(i) > rule.threshold
    return np.concatenate([picks, _rest(np.array(picks), importance)])[:k]


def _rest(picks: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Those that are left, by importance."""
    order = np.argsort(-importance, kind="stable")
    return order[~np.isin(order, picks)]


def dpp(row: Rows, importance: np.ndarray, k: int, rule: DPP) -> np.ndarray:
    """Chen et al. 2018: one more row of the Cholesky factor per pick."""
    left, picks = importance * importance, np.empty(k, np.int64)
    rank_floor = np.float32(rule.eps) * left.max()
    factor = np.empty((k, len(importance)), np.float32)
    for t in range(k):
        i = picks[t] = left.argmax()
        if left[i] <= rank_floor:  # the picks span all others, which follow by importance
            picks[t:] = _rest(picks[:t], importance)[: k - t]
            break
        gram = importance[i] * importance * row(i)
        factor[t] = (gram - factor[:t, i] @ factor[:t]) / np.sqrt(left[i])
        left = left - factor[t] * factor[t]
        left[picks[: t + 1]] = -np.inf
    return picks


def coverage(row: Rows, importance: np.ndarray, k: int, rule: Coverage) -> np.ndarray:
    """Lazy greedy: gains only fall, so one that is out of date bounds itself."""
    saliency, cover = importance**rule.alpha, np.zeros(len(importance), np.float32)
    combine = np.add if rule.combine == "add" else np.multiply
    heap = [(-combine(np.maximum(row(j), 0).sum(), saliency[j]), j, 0) for j in range(len(importance))]
    heapq.heapify(heap)
    picks: list[int] = []
    while len(picks) < k:
        _, j, summed_at = heap[0]
        if summed_at == len(picks):
            heapq.heappop(heap)
            picks.append(j)
            np.maximum(cover, row(j), out=cover)
        else:
            gain = np.maximum(row(j) - cover, 0).sum()
            heapq.heapreplace(heap, (-combine(gain, saliency[j]), j, len(picks)))
    return np.array(picks)


LOOPS: dict[type[Rule], Callable[..., np.ndarray]] = {
    IDSelection: id_selection,
    MMR: mmr,
    MaxMin: max_min,
    HardSuppress: hard_suppress,
    DPP: dpp,
    Coverage: coverage,
}


def ways(rule: Rule) -> dict[str, Callable[[np.ndarray], Rows]]:
    """How NumPy may come by the similarities; only the Gram where every row is asked for."""
    every_row = isinstance(rule, Coverage) or (isinstance(rule, MaxMin) and rule.start is None)
    return {"NumPy, Gram": by_gram} if every_row else {"NumPy, rows": by_row, "NumPy, Gram": by_gram}


def select(
    similarities: Callable[[np.ndarray], Rows], x: np.ndarray, importance: np.ndarray, k: int, rule: Rule
) -> np.ndarray:
    """Picks of one sample, features (N, D) and importance (N,)."""
    return LOOPS[type(rule)](similarities(x), importance, k, rule)


def selectors(rule: Rule) -> dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]]:
    """By name: (features, importance, k) -> picks."""
    return {
        name: functools.partial(lambda how, x, importance, k: select(how, x, importance, k, rule), how)
        for name, how in ways(rule).items()
    }

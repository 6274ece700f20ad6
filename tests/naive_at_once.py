"""`Elimination` and `DART` once more, one sample at a time, by lists over NumPy float64 numbers and no shared code.

As literal as `naive.py` is for the greedy rules: the steps of docs/rules.md, one after the other.
"""

from __future__ import annotations

import math

import numpy as np
from naive import _cosine

from idsel_kernels import DART, Elimination


def naive_at_once(
    features: np.ndarray, k: int, rule: Elimination | DART, importance: np.ndarray, mask: np.ndarray | None = None
) -> tuple[list[int], list[float]]:
    """k picks and their scores, padded with -1 and -inf."""
    x, a, n = features.astype(np.float64), importance.astype(np.float64), len(features)
    exists = [mask is None or bool(mask[j]) for j in range(n)]
    good = [exists[j] and bool(np.isfinite(x[j]).all()) and not math.isnan(a[j]) and a[j] > -math.inf for j in range(n)]
    c = {(i, j): _cosine(x[i], x[j], i == j) for i in range(n) for j in range(n) if good[i] and good[j]}
    if isinstance(rule, Elimination):
        tokens = n
        picks = _eliminated(rule, c, a, [j for j in range(n) if good[j]], k)
        scores = [a[j] for j in picks]
    else:
        tokens = n - rule.text_pivots
        texts = [j for j in range(tokens, n) if good[j]]
        picks, scores = _pivoted(rule, c, a, [j for j in range(tokens) if good[j]], texts, k)
    rest = [j for j in range(tokens) if exists[j] and not good[j]]
    picks, scores = (picks + rest)[:k], (scores + [-math.inf] * len(rest))[:k]
    return picks + [-1] * (k - len(picks)), scores + [-math.inf] * (k - len(scores))


def _eliminated(
    rule: Elimination, c: dict[tuple[int, int], float], a: np.ndarray, tokens: list[int], k: int
) -> list[int]:
    keep = min(k, len(tokens))
    if rule.order == "score":
        important = math.floor(keep * rule.important)
    else:
        important = round(keep * rule.important)
        important = min(important, keep - 1) if keep > 1 else min(important, 1)
    by_importance = sorted(tokens, key=lambda j: -a[j])
    left = by_importance[important:]
    if rule.order == "position":
        left.sort()
    while len(left) > keep - important and keep > important:
        even, odd = left[0::2], left[1::2]
        most = len(even) if rule.order == "score" else len(left) // 2
        drop = min(8, len(left) - (keep - important), most)
        nearest = {i: max(c[i, j] for j in odd) for i in even}
        even = sorted(even, key=lambda i: -nearest[i])[drop:]
        left = even + odd if rule.order == "score" else sorted(even + odd)
    return by_importance[:important] + left[: keep - important]


def _pivoted(
    rule: DART, c: dict[tuple[int, int], float], a: np.ndarray, tokens: list[int], texts: list[int], k: int
) -> tuple[list[int], list[float]]:
    keep = min(k, len(tokens))
    own = sorted(tokens, key=lambda j: -a[j])[: min(rule.pivots, keep)]
    pivots = own + sorted(texts, key=lambda j: -a[j])
    picks, scores = list(own), [float(a[j]) for j in own]
    free = [j for j in tokens if j not in own]
    for pivot in pivots:
        share = math.ceil((keep - len(own)) / len(pivots))
        taken = sorted(free, key=lambda j: c[pivot, j])[: min(share, keep - len(picks))]
        picks += taken
        scores += [0.0 - c[pivot, j] for j in taken]
        free = [j for j in free if j not in taken]
    rest = sorted(free, key=lambda j: -a[j])[: keep - len(picks)]
    return picks + rest, scores + [-math.inf] * len(rest)

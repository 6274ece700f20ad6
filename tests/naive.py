"""The rules once more, one sample at a time, with Python loops over NumPy float64 scalars and no shared code.

Slow and literal: a second opinion on the reference engine, which shares its structure with nothing here.
"""

from __future__ import annotations

import math

import numpy as np

from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MatrixCoverage, MaxMin, Rule, TopK


def naive_select(
    features: np.ndarray, k: int, rule: Rule, importance: np.ndarray | None = None, mask: np.ndarray | None = None
) -> tuple[list[int], list[float]]:
    n = len(features)
    importance = np.ones(n) if importance is None else importance.astype(np.float64)
    x = features.astype(np.float64)
    exists = [mask is None or bool(mask[j]) for j in range(n)]
    good = [
        exists[j] and bool(np.isfinite(x[j]).all()) and not math.isnan(importance[j]) and importance[j] > -math.inf
        for j in range(n)
    ]
    tokens = [j for j in range(n) if good[j]]
    c = {(i, j): _cosine(x[i], x[j], i == j) for i in tokens for j in tokens}
    picks: list[int] = []
    scores: list[float] = []
    while len(picks) < k and len(picks) < len(tokens):
        left = [j for j in tokens if j not in picks]
        priority = _priorities(rule, c, x, importance, tokens, picks, scores)
        best = max(left, key=lambda j: (priority[j], -j))
        if priority[best] == -math.inf:
            picks += sorted(left, key=lambda j: (-importance[j], j))
            scores += [-math.inf] * len(left)
        else:
            picks.append(best)
            scores.append(priority[best])
    rest = [j for j in range(n) if exists[j] and not good[j]]
    picks, scores = (picks + rest)[:k], (scores + [-math.inf] * len(rest))[:k]
    return picks + [-1] * (k - len(picks)), scores + [-math.inf] * (k - len(scores))


def _cosine(a: np.ndarray, b: np.ndarray, same: bool) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norm == 0:
        return 0.0
    return 1.0 if same else min(1.0, max(-1.0, float(a @ b) / norm))


def _priorities(
    rule: Rule,
    c: dict[tuple[int, int], float],
    x: np.ndarray,
    importance: np.ndarray,
    tokens: list[int],
    picks: list[int],
    scores: list[float],
) -> dict[int, float]:
    """All priorities afresh from the whole history: nothing is carried from step to step."""
    if isinstance(rule, TopK):
        return {j: importance[j] for j in tokens}
    if isinstance(rule, IDSelection):
        s = {j: float(importance[j]) for j in tokens}
        for i, p in zip(picks, scores, strict=True):
            for j in tokens:
                s[j] -= math.exp(-rule.gamma * max(0.0, 1 - c[i, j]) ** 2) * p
                s[j] = s[j] if rule.floor is None else max(rule.floor, s[j])
        limit = rule.floor if rule.ties == "importance" else -math.inf
        return {j: s[j] if s[j] > limit else -math.inf for j in tokens}
    if isinstance(rule, MMR):
        seen = picks[: len(picks) // rule.parallel_k * rule.parallel_k]
        if not seen:
            return {j: importance[j] for j in tokens}
        return {j: rule.lam * importance[j] - (1 - rule.lam) * max(c[i, j] for i in seen) for j in tokens}
    if isinstance(rule, MaxMin):
        weight = {j: max(0.0, importance[j]) if rule.weighted else 1.0 for j in tokens}
        if picks:
            return {j: weight[j] * min(1 - c[i, j] for i in picks) for j in tokens}
        if rule.start is None:
            nearest = {j: min((1 - c[i, j] for i in tokens if i != j), default=math.inf) for j in tokens}
            return {j: weight[j] * nearest[j] if weight[j] else 0.0 for j in tokens}
        first = rule.start if rule.start in tokens else tokens[0]
        return {j: math.inf if j == first else -math.inf for j in tokens}
    if isinstance(rule, HardSuppress):
        return {
            j: -math.inf if any(_suppresses(rule, c, i, j) for i in picks) else float(importance[j]) for j in tokens
        }
    if isinstance(rule, DPP):
        return _schur_complements(rule, c, importance, tokens, picks)
    if isinstance(rule, MatrixCoverage):
        cover = [max([0.0, *(x[i, r] for i in picks)]) for r in range(x.shape[1])]
        return {j: sum(max(0.0, x[j, r] - covered) for r, covered in enumerate(cover)) for j in tokens}
    assert isinstance(rule, Coverage)
    priority = {}
    for j in tokens:
        gain = sum(max(0.0, c[i, j] - max([0.0, *(c[i, p] for p in picks)])) for i in tokens)
        saliency = float(importance[j]) ** rule.alpha
        priority[j] = gain * saliency if rule.combine == "mul" else gain + saliency
    return priority


def _suppresses(rule: HardSuppress, c: dict[tuple[int, int], float], i: int, j: int) -> bool:
    if c[i, j] > rule.threshold:
        return True
    if rule.grid is None:
        return False
    width = rule.grid[1]
    return max(abs(i // width - j // width), abs(i % width - j % width)) <= rule.radius


def _schur_complements(
    rule: DPP, c: dict[tuple[int, int], float], importance: np.ndarray, tokens: list[int], picks: list[int]
) -> dict[int, float]:
    """d_j = L_jj - L_jS L_SS^-1 L_Sj by solving, not by the recurrence."""

    def block(rows: list[int], columns: list[int]) -> np.ndarray:
        values = [[importance[i] * c[i, j] * importance[j] for j in columns] for i in rows]
        return np.array(values).reshape(len(rows), len(columns))

    largest = max((importance[j] ** 2 * c[j, j] for j in tokens), default=0.0)
    spanning = [i for i in picks if importance[i] ** 2 * c[i, i] > 0]
    d = {}
    for j in tokens:
        across = block(spanning, [j])[:, 0] if spanning else np.zeros(0)
        inverse = np.linalg.lstsq(block(spanning, spanning), across, rcond=None)[0] if spanning else across
        value = importance[j] ** 2 * c[j, j] - float(across @ inverse)
        d[j] = value if value > rule.eps * largest else -math.inf
    return d

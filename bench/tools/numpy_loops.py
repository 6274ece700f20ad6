"""NumPy loops of methods whose rules, or parameters of rules, have no benchmark suite, beside ours.

    python -m bench.tools.numpy_loops [--shape 576 1024] [--k 64] [--threads 1]

One sample, float32, on the CPU, all by turns in one process on the same input. The loops work on features that are
normalised beforehand where the official code does so too:

- ID-Selection, TRIO: all similarities by one product, then an update per pick.
- FlashVID: all distances by one product, then a minimum per pick.
- MMTok: of the matrix that `compat.mmtok.matrix` makes with 20 text tokens, all gains afresh for every pick.
- VisPruner: each round multiplies the rows of A and B and sorts.
- DART by pick: each pick gathers the free tokens, takes their cosines to the pivot and its one argmin.
- DART by pivot: as published, each pivot gathers the free tokens once and sorts.
- DART by rows: the rows of all pivots are one product.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch

import idsel_kernels as idsel
from idsel_kernels import DART, Elimination, HardSuppress, IDSelection, MatrixCoverage, MaxMin
from idsel_kernels.compat.mmtok import matrix

from ..harness import Budget, interleave

PER_ROUND = 8
PIVOTS = 4


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_importance(importance: np.ndarray) -> np.ndarray:
    return np.argsort(-importance, kind="stable")


def filled_up(picks: list[int], importance: np.ndarray, k: int) -> np.ndarray:
    """With the most important of the others."""
    if len(picks) == k:
        return np.array(picks)
    order, taken = by_importance(importance), np.zeros(len(importance), dtype=bool)
    taken[picks] = True
    return np.concatenate([picks, order[~taken[order]][: k - len(picks)]])


def lower(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
    """ID-Selection; tokens at the floor follow by importance."""
    unit = unit_rows(x)
    similarities, left, picks = unit @ unit.T, importance.copy(), []
    while len(picks) < k and left.max() > 0:
        picks.append(int(left.argmax()))
        likeness = np.exp(-20 * np.maximum(0, 1 - similarities[picks[-1]]) ** 2)
        left = np.maximum(0, left - likeness * left[picks[-1]])
        left[picks[-1]] = 0
    return filled_up(picks, importance, k)


def suppress(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
    """TRIO; then the others by importance."""
    unit = unit_rows(x)
    similarities, free, picks = unit @ unit.T, np.ones(len(x), dtype=bool), []
    for j in by_importance(importance):
        if free[j]:
            picks.append(j)
            free &= similarities[j] <= 0.8
        if len(picks) == k:
            break
    return filled_up(picks, importance, k)


def weighted_max_min(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
    """FlashVID's ADTS, picked tokens excluded."""
    unit = unit_rows(x)
    distances = (1 - unit @ unit.T) * importance
    nearest = np.partition(distances, 1, axis=0)[1]
    picks: list[int] = []
    while len(picks) < k:
        picks.append(int(nearest.argmax()))
        nearest = distances[picks[-1]] if len(picks) == 1 else np.minimum(nearest, distances[picks[-1]])
        nearest[picks] = -np.inf
    return np.array(picks)


def cover(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
    """MMTok, of features that are the matrix's columns."""
    covered, picks = np.zeros(x.shape[1], np.float32), []
    while len(picks) < k:
        gains = np.maximum(x - covered, 0).sum(1)
        gains[picks] = -np.inf
        picks.append(int(gains.argmax()))
        covered = np.maximum(covered, x[picks[-1]])
    return np.array(picks)


def eliminate(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
    """VisPruner as published, half of the tokens by importance."""
    unit, order = unit_rows(x), by_importance(importance)
    kept, left = order[: k // 2], order[k // 2 :]
    while len(left) > k - len(kept):
        even, odd = left[0::2], left[1::2]
        nearest = (unit[even] @ unit[odd].T).max(1)
        drop = min(PER_ROUND, len(left) - (k - len(kept)))
        left = np.concatenate([even[np.argsort(-nearest, kind="stable")[drop:]], odd])
    return np.concatenate([kept, left])


def dart(x: np.ndarray, importance: np.ndarray, k: int, by_pick: bool) -> np.ndarray:
    """DART with pivots of the image; cosines of the free tokens afresh for every pick, or for every pivot."""
    picks = list(by_importance(importance)[:PIVOTS])
    free = np.delete(np.arange(len(x)), picks)
    share = -(-(k - PIVOTS) // PIVOTS)
    for pivot in picks[:PIVOTS]:
        wanted = min(share, k - len(picks))
        for count in [1] * wanted if by_pick else [wanted]:
            rows = x[free]
            cosines = rows @ x[pivot] / (np.linalg.norm(rows, axis=1) * np.linalg.norm(x[pivot]))
            nearest = [int(cosines.argmin())] if by_pick else np.argsort(cosines, kind="stable")[:count]
            picks += list(free[nearest])
            free = np.delete(free, nearest)
    return np.array(picks)


def dart_by_rows(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
    """DART with the cosines of all pivots as one product."""
    unit, picks = unit_rows(x), list(by_importance(importance)[:PIVOTS])
    cosines, taken = unit[picks] @ unit.T, np.zeros(len(x), dtype=bool)
    taken[picks] = True
    share = -(-(k - PIVOTS) // PIVOTS)
    for row in cosines:
        chosen = np.argsort(np.where(taken, np.inf, row), kind="stable")[: min(share, k - len(picks))]
        picks += list(chosen)
        taken[chosen] = True
    return np.array(picks)


Selector = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
LOOPS: dict[str, tuple[idsel.Rule, dict[str, Selector]]] = {
    'IDSelection(ties="importance")': (IDSelection(ties="importance"), {"NumPy": lower}),
    "HardSuppress": (HardSuppress(), {"NumPy": suppress}),
    "MaxMin(weighted=True)": (MaxMin(weighted=True), {"NumPy": weighted_max_min}),
    "MatrixCoverage": (MatrixCoverage(), {"NumPy": cover}),
    "Elimination": (Elimination(), {"NumPy": eliminate}),
    "DART": (
        DART(PIVOTS),
        {
            "NumPy by pick": lambda x, importance, k: dart(x, importance, k, by_pick=True),
            "NumPy by pivot": lambda x, importance, k: dart(x, importance, k, by_pick=False),
            "NumPy by rows": dart_by_rows,
        },
    ),
}


def compare(
    name: str,
    rule: idsel.Rule,
    loops: dict[str, Selector],
    features: torch.Tensor,
    importance: torch.Tensor,
    options: argparse.Namespace,
) -> None:
    """Prints medians, how many times as long each loop takes, and how many picks it shares with ours."""
    x, weight, k = features[0].numpy(), importance[0].numpy(), options.k
    picks = set(idsel.select(features, k, rule, importance).indices[0].tolist())
    calls: dict[str, list[Callable[[], object]]] = {"ours": [lambda: idsel.select(features, k, rule, importance)]}
    for loop, select in loops.items():
        calls[loop] = [lambda select=select: select(x, weight, k)]  # type: ignore[misc]
    found = interleave(calls, torch.device("cpu"), Budget(repeats=30, seconds=options.seconds))
    print(f"{name}, {tuple(options.shape)}, k={k}, {options.threads} thread(s)")
    for call, timing in found.items():
        alike = len(picks & set(loops[call](x, weight, k).tolist())) if call in loops else len(picks)
        ratio = timing.median_us / found["ours"].median_us
        print(f"  {call:16} {timing.median_us:9.1f} us  {ratio:6.2f} x  {alike} picks alike")


def main(arguments: list[str] | None = None) -> int:
    """Compares each rule with its loops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, default=(576, 1024), metavar=("N", "D"))
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of torch; NumPy has those of OMP_NUM_THREADS")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    case = idsel.inputs.clustered(1, *options.shape)
    text = torch.randn(1, 20, options.shape[1], generator=torch.Generator().manual_seed(0))
    columns = matrix(case.features, text).mT.contiguous()
    for name, (rule, loops) in LOOPS.items():
        compare(name, rule, loops, columns if name == "MatrixCoverage" else case.features, case.importance, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

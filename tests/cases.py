"""The shared grid: every rule with the parameters that matter, and inputs that hurt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MatrixCoverage, MaxMin, Rule, TopK
from idsel_kernels.testing import Case, clustered, near_duplicates, ragged

RULE_CASES: dict[str, Rule] = {
    "idselection": IDSelection(),
    "idselection-gamma5": IDSelection(gamma=5.0),
    "idselection-nofloor": IDSelection(floor=None),
    "idselection-floor": IDSelection(floor=0.2),
    "idselection-ties": IDSelection(ties="importance"),
    "mmr": MMR(),
    "mmr-lam0": MMR(lam=0.0),
    "mmr-lam1": MMR(lam=1.0),
    "mmr-parallel3": MMR(parallel_k=3),
    "maxmin": MaxMin(),
    "maxmin-start0": MaxMin(start=0),
    "maxmin-weighted": MaxMin(weighted=True),
    "maxmin-weighted-start0": MaxMin(start=0, weighted=True),
    "hardsuppress": HardSuppress(),
    "hardsuppress-0.3": HardSuppress(threshold=0.3),
    "dpp": DPP(),
    "coverage": Coverage(),
    "coverage-add": Coverage(alpha=0.7, combine="add"),
    "topk": TopK(),
    "matrixcoverage": MatrixCoverage(),
}

# Rules whose priorities are sums and products of exact numbers on `testing.exact` input: no exp, division or root.
EXACT_RULES = (
    "mmr", "mmr-lam0", "mmr-lam1", "mmr-parallel3", "maxmin", "maxmin-start0", "maxmin-weighted",
    "maxmin-weighted-start0", "hardsuppress", "hardsuppress-0.3", "coverage", "topk",
    "matrixcoverage",
)  # fmt: skip
# (B, N, D) of `testing.exact`: one block of tokens, one more token than a block, several; D of one number, of several
# blocks.
EXACT_CASES = {
    "exact-B2-N33-D16": (2, 33, 16),
    "exact-B3-N17-D4": (3, 17, 4),
    "exact-N20-D1024": (1, 20, 1024),
    "exact-N65-D256": (1, 65, 256),
    "exact-N70-D1": (1, 70, 1),
    "exact-N130-D64": (1, 130, 64),
    "exact-B2-N100-D256": (2, 100, 256),
}

# Where a backend takes long (`Backend.takes`): parameters of branches that other rules go through with all inputs, and
# the inputs that they keep.
SAME_BRANCH = (
    "idselection-gamma5", "idselection-nofloor", "idselection-floor", "mmr-lam0", "mmr-lam1", "mmr-parallel3",
    "maxmin-start0", "maxmin-weighted-start0", "hardsuppress-0.3", "coverage-add",
)  # fmt: skip
FEW_INPUTS = (
    "N33-k33", "fp16", "uniform", "ties", "duplicates", "k-per-sample", "unusable", "ragged",
    "exact-B2-N33-D16", "exact-B3-N17-D4", "exact-N70-D1",
)  # fmt: skip
# As many picks as show what an input is for; the interpreter takes fewer of all others.
TELLING_PICKS = {
    "N33-k33": 33, "unusable": 30, "infinite-importance": 12, "golden": 32, **dict.fromkeys(EXACT_CASES, 16),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Arguments of one `select` call."""

    tensors: dict[str, torch.Tensor]
    k: int | list[int]

    def inputs(self) -> dict[str, Any]:
        return dict(self.tensors)


def _call(case: Case, k: int | list[int], **more: torch.Tensor) -> Call:
    return Call({**case.inputs(), **more}, k)


def _strided() -> Case:
    """Features and importance whose elements are far apart in memory along every axis."""
    features, importance, _ = clustered(2, 46, 36, seed=3)
    return Case(features.permute(2, 0, 1).contiguous().permute(1, 2, 0)[:, ::2, 1::2], importance[:, ::2])


def _masked() -> Call:
    case = clustered(3, 40, 16, seed=4)
    mask = torch.rand((3, 40), generator=torch.Generator().manual_seed(5)) < 0.5
    mask[2] = False  # nothing at all to pick
    return _call(case, 25, mask=mask)


def _unusable() -> Call:
    """NaN features, NaN and -inf importance, zero rows."""
    features, importance, _ = clustered(2, 30, 8, seed=6)
    features[0, 3, 2], features[1, 0] = float("nan"), 0.0
    features[1, 7] = 0.0
    importance[0, 5], importance[1, 9] = float("nan"), float("-inf")
    return _call(Case(features, importance), 30)


def _infinite() -> Call:
    features, importance, _ = clustered(2, 30, 8, seed=7)
    importance[0, 4], importance[1, 2], importance[1, 20] = float("inf"), float("inf"), float("inf")
    return _call(Case(features, importance), 12)


INPUT_CASES: dict[str, Call] = {
    "N1-D1": _call(clustered(1, 1, 1), 1),
    "N2-D1-k2": _call(clustered(1, 2, 1), 2),
    "N7-D3-k9": _call(clustered(2, 7, 3), 9),
    "N33-k33": _call(clustered(1, 33, 8), 33),
    "N65-D127-k13": _call(clustered(2, 65, 127), 13),
    "N257-D40-k40": _call(clustered(1, 257, 40), 40),
    "N576-D64-k64": _call(clustered(1, 576, 64), 64),
    "fp16": _call(clustered(2, 100, 48, dtype=torch.float16), 20),
    "bf16": _call(clustered(2, 100, 48, dtype=torch.bfloat16), 20),
    "uniform": _call(clustered(1, 128, 32, importance="uniform"), 32),
    "flat": _call(clustered(1, 128, 32, importance="flat"), 32),
    "ties": _call(clustered(1, 128, 32, importance="ties"), 32),
    "duplicates": _call(near_duplicates(2, 48, 16), 20),
    "near-duplicates": _call(near_duplicates(1, 48, 16, noise=1e-3), 20),
    "k-per-sample": _call(clustered(3, 20, 8), [0, 5, 20]),
    "strided": _call(_strided(), 9),
    "masked": _masked(),
    "unusable": _unusable(),
    "infinite-importance": _infinite(),
    "ragged": _call(ragged(), 6),
    "ragged-k-per-sample": _call(ragged((5, 40, 3)), [5, 12, 9]),
    "ragged-masked": _call(ragged((9, 30)), 12, mask=torch.arange(39) % 3 != 1),
    "half-importance": _call(Case(clustered(1, 50, 8).features, clustered(1, 50, 8).importance.half()), 10),
    "double-importance": _call(Case(clustered(1, 50, 8).features, clustered(1, 50, 8).importance.double()), 10),
}

"""Every backend picks what the published code picks: FlashVID's ADTS and MMTok; data/selectors/README.md has the
format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends import Backend
from tolerances import GOLDEN_REGRET

import idsel_kernels as idsel
from idsel_kernels.importance import event_relevance

CARRIED = Path(__file__).parent / "data" / "selectors"
INDICES = {name: json.loads((CARRIED / f"{name}.json").read_text()) for name in ("flashvid", "mmtok")}
CASES = [case for index in INDICES.values() for case in index["cases"]]


def _arrays(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(CARRIED / case["file"]) as data:
        return dict(data)


def _call(case: dict[str, Any]) -> tuple[idsel.Rule, dict[str, torch.Tensor]]:
    """The rule and the inputs that stand for the official call."""
    arrays = _arrays(case)
    if case["source"] == "mmtok":
        features, mask = torch.from_numpy(arrays["W"]).mT, torch.ones(case["n"], dtype=torch.bool)
        mask[arrays.get("padding", [])] = False
        return idsel.MatrixCoverage(), {"features": features, "mask": mask}
    features = torch.from_numpy(arrays["features"].astype(np.float32))
    if case["source"] == "flashvid-div":
        return idsel.MaxMin(), {"features": features}
    weight = torch.from_numpy(arrays["importance"])
    if case["params"].get("event_relevance"):
        frames = features.view(-1, *features.shape[-2:])
        weight = weight * event_relevance(frames).view_as(weight)
    return idsel.MaxMin(weighted=True), {"features": features, "importance": weight}


@pytest.mark.parametrize("case", CASES, ids=[f"{case['source']}-{case['id']}" for case in CASES])
def test_same_picks_on_the_clear_prefix_and_small_regret(case: dict[str, Any], backend: Backend) -> None:
    rule, inputs = _call(case)
    k = backend.fewer(case["k"], "golden")
    sel = backend.select(**inputs, k=k, rule=rule)
    theirs = torch.from_numpy(np.atleast_2d(_arrays(case)[f"{case['run']}_order"]))
    for ours, recorded, clear in zip(sel.indices, theirs, np.atleast_1d(case["clear_prefix"]), strict=True):
        telling = min(int(clear), k, recorded.numel())
        assert ours[:telling].tolist() == recorded[:telling].tolist()
        picked = ours[ours >= 0].tolist()
        assert len(set(picked)) == len(picked) == min(k, int(inputs.get("mask", torch.ones(case["n"])).sum()))
    idsel.testing.check_selection(sel, **inputs, rule=rule).assert_ok(GOLDEN_REGRET)


@dataclass(frozen=True)
class Failing:
    """An input on which the published code fails."""

    tokens: int
    k: int
    copies: int = 1
    zero_row: int | None = None
    padding: int = 0
    attention: float | None = None  # of each token; none: a distribution

    def inputs(self) -> dict[str, torch.Tensor]:
        features = idsel.inputs.clustered(1, self.tokens, 16, seed=self.tokens).features[0].abs()
        features = features[torch.arange(self.tokens) // self.copies]
        if self.zero_row is not None:
            features[self.zero_row] = 0.0
        there = torch.arange(self.tokens) < self.tokens - self.padding
        weight = 1 / self.tokens if self.attention is None else self.attention
        return {"features": features, "importance": torch.full((self.tokens,), weight), "mask": there}


FAILING = {
    "N=1": Failing(1, 1),
    "k=8 of N=5": Failing(5, 8),
    "one zero row (token 5), k=8: picks": Failing(64, 8, zero_row=5),
    "8 tokens, each four times, k=16: distinct picks": Failing(32, 16, copies=4),
    "8 tokens, each four times, attention of 20 per token instead of a distribution, k=32: distinct picks": Failing(
        32, 32, copies=4, attention=20.0
    ),
    "10 tokens, 3 of them padding, k=10: picks": Failing(10, 10, padding=3),
    "one zero row, k=8: picks": Failing(64, 8, zero_row=32),
}
MISBEHAVIOUR = [entry for index in INDICES.values() for entry in index["misbehaviour"]]


@pytest.mark.parametrize("entry", MISBEHAVIOUR, ids=[f"{entry['source']}-{entry['input']}" for entry in MISBEHAVIOUR])
def test_tokens_are_distinct_where_the_published_code_fails_or_repeats_some(
    entry: dict[str, str], backend: Backend
) -> None:
    failing = FAILING[entry["input"]]
    inputs = failing.inputs()
    if entry["source"] == "flashvid-adts-v2":
        inputs["importance"] = inputs["importance"] * event_relevance(inputs["features"][None])[0]
    rule = idsel.MatrixCoverage() if entry["source"] == "mmtok" else idsel.MaxMin(weighted="adts" in entry["source"])
    picked = backend.select(**inputs, k=failing.k, rule=rule).indices[0]
    there = picked[picked >= 0].tolist()
    assert len(set(there)) == len(there) == min(failing.k, int(inputs["mask"].sum()))
    assert (picked[len(there) :] == -1).all() and inputs["mask"][there].all()


def test_carried_files_are_unchanged_and_small() -> None:
    files: dict[str, str] = {}
    for index in CARRIED.glob("*.json"):  # also that of test_at_once_golden
        files |= json.loads(index.read_text())["files"]
    assert {path.name for path in CARRIED.glob("*.npz")} == set(files)
    for name, digest in files.items():
        assert hashlib.sha256((CARRIED / name).read_bytes()).hexdigest() == digest, name
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) <= 2_000_000

"""Every backend picks what the published code picks: FlashVID's ADTS and MMTok; data/selectors/README.md has the
format."""

from __future__ import annotations

import hashlib
import json
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


@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (1, 3), (7, 9), (33, 32)])
@pytest.mark.parametrize("rule", [idsel.MaxMin(weighted=True), idsel.MatrixCoverage()], ids=["flashvid", "mmtok"])
def test_tokens_are_distinct_where_the_published_code_fails_or_repeats_some(
    rule: idsel.Rule, tokens: int, k: int, backend: Backend
) -> None:
    """A single token, more picks than tokens, copies, a zero row, attention that is no distribution, padding."""
    features = idsel.inputs.exact(1, tokens, 16, seed=tokens).features[0].abs()[torch.arange(tokens) // 2]
    features[tokens // 2] = 0.0
    mask = torch.arange(tokens) != tokens - 1 if tokens > 1 else torch.ones(1, dtype=torch.bool)
    k = backend.fewer(k)
    picked = backend.select(features, k, rule=rule, importance=torch.full((tokens,), 20.0), mask=mask).indices[0]
    there = picked[picked >= 0].tolist()
    assert len(set(there)) == len(there) == min(k, int(mask.sum())) and (picked[len(there) :] == -1).all()


def test_carried_files_are_unchanged_and_small() -> None:
    files: dict[str, str] = {}
    for index in CARRIED.glob("*.json"):  # also that of test_at_once_golden
        files |= json.loads(index.read_text())["files"]
    assert {path.name for path in CARRIED.glob("*.npz")} == set(files)
    for name, digest in files.items():
        assert hashlib.sha256((CARRIED / name).read_bytes()).hexdigest() == digest, name
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) <= 2_000_000

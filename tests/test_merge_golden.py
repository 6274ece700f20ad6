"""`merge` and `bipartite_pairing` give what the published merging code gives; data/merges/README.md has the format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import idsel_kernels as idsel

CARRIED = Path(__file__).parent / "data" / "merges"
INDEX = json.loads((CARRIED / "index.json").read_text())


@dataclass(frozen=True)
class MergeRun:
    folder: Path
    case: dict[str, Any]

    def given(self, name: str) -> Tensor:
        """An input of the run, float16 upcast: that is what the official code was given."""
        with np.load(self.folder / self.case["file"]) as data:
            return torch.from_numpy(data[name].astype(np.float32))

    def came(self, name: str) -> Tensor:
        """What the official code made of it."""
        with np.load(self.folder / self.case["file"]) as data:
            return torch.from_numpy(data[f"{self.case['run']}_{name}"])

    def assert_output(self, ours: Tensor, theirs: Tensor) -> None:
        """The tolerance under which float32 runs of the official code agree with its formulas in float64."""
        atol = max(5e-6, 1e-5 * self.case.get("output_scale", 0.0))
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0.0, atol=atol)


def picks(indices: Tensor) -> idsel.Selection:
    return idsel.Selection(indices, torch.zeros(indices.shape))


def visionzip_targets(dominant: idsel.Selection, tokens: int, contextual: int) -> Tensor:
    """(B, contextual) positions, evenly spaced among the tokens that are not dominant."""
    rest = (~dominant.keep_mask(tokens)).nonzero()[:, 1].view(len(dominant.indices), -1)
    return rest[:, :: max(1, rest.shape[1] // contextual)][:, :contextual]


def at_positions(positions: Tensor, tokens: int) -> Tensor:
    return torch.zeros(len(positions), tokens, dtype=torch.bool).scatter_(1, positions, True)


def replay_visionzip(run: MergeRun) -> None:
    hidden, keys = (x.view(-1, *x.shape[-2:]) for x in (run.given("features"), run.given("keys")))
    importance = run.given("importance").view(len(hidden), -1)
    dominant, contextual = (run.case["params"][name] for name in ("dominant", "contextual"))
    top = idsel.topk_select(hidden[:, 1:], dominant, importance)
    assert torch.equal(top.indices, run.came("order").view_as(top.indices))
    targets = visionzip_targets(top, importance.shape[1], contextual)
    assert torch.equal(targets, run.came("targets").view_as(targets))
    # Row 0 of the hidden states is CLS, so image tokens come one later.
    kept = torch.cat([torch.zeros(len(hidden), 1, dtype=torch.int64), top.indices.sort().values + 1, targets + 1], 1)
    receivers = at_positions(targets + 1, hidden.shape[1])
    merged = idsel.merge(hidden, picks(kept), keys, "add_mean", receivers=receivers)
    given = run.came("merged").view(len(hidden), -1) + 1
    slots = merged.assignment.gather(1, given) - (1 + dominant)
    assert torch.equal(slots, run.came("assignment").view_as(slots))
    run.assert_output(merged.hidden, run.came("output").view_as(merged.hidden))


def replay_angelslim_visionzip(run: MergeRun) -> None:
    features, logits = run.given("features"), run.given("importance_logits")
    keys = torch.cat([run.given("keys"), logits[:, None]], 1)  # the attention came from one more channel of the keys
    keep = round(len(features) * (1 - run.case["params"]["ratio"]))
    contextual = max(1, round(keep * run.case["params"]["zip_ratio"]))
    top = idsel.topk_select(features, keep - contextual, logits)
    targets = visionzip_targets(top, len(features), contextual)
    assert top.indices[0].sort().values.tolist() == run.came("dominant").sort().values.tolist()
    assert targets[0].tolist() == run.came("targets").tolist()
    kept = torch.cat([top.indices, targets], 1).sort().values
    assert kept[0].tolist() == run.came("order").tolist()
    merged = idsel.merge(features, picks(kept), keys, "mean", receivers=at_positions(targets, len(features))[0])
    owners = targets[0, run.came("assignment")]
    assert kept[0, merged.assignment[0, run.came("merged")]].tolist() == owners.tolist()
    assert merged.sizes[0].tolist() == run.came("row_sizes").tolist()
    # Its result is a matrix that averages when it is applied.
    ones = torch.eye(len(features), dtype=torch.float64)
    ones[owners, run.came("merged")] = 1.0
    rows = ones[kept[0]]
    run.assert_output(merged.hidden[0], rows / (rows.sum(1, keepdim=True) + 1e-8) @ features.double())


def replay_vlmpruner(run: MergeRun) -> None:
    features, order = run.given("features"), run.came("order")
    telling = features.var(0).topk(run.case["params"]["channels"]).indices
    merged = idsel.merge(features, picks(order[None]), features[:, telling], "weighted", beta=0.3)
    discarded = ~picks(order[None]).keep_mask(len(features))[0]
    assert merged.assignment[0, discarded].tolist() == run.came("assignment").tolist()
    assert order.sort().values.tolist() == run.came("kept").tolist()
    run.assert_output(merged.hidden[0, order.argsort()], run.came("output"))


def replay_tome(run: MergeRun) -> None:
    features, values = run.given("features"), run.given("values")
    kept, receivers = idsel.bipartite_pairing(features, **run.case["params"])
    merged = idsel.merge(values, kept, features, "mean", receivers=receivers[0])
    if run.case["params"]["r"] == 0:  # the official code then returns its input, in the order of the positions
        return run.assert_output(merged.hidden[0, kept.indices[0].argsort()], run.came("mean"))
    odd = torch.arange(1, len(features), 2)
    assert kept.indices[0].tolist() == run.came("unmerged").tolist() + odd.tolist()
    assert kept.indices[0, merged.assignment[0, run.came("merged")]].tolist() == run.came("into").tolist()
    assert merged.sizes[0].tolist() == run.came("sizes").tolist()
    return run.assert_output(merged.hidden[0], run.came("output"))


def prumerge(
    x: Tensor, keys: Tensor, attention: Tensor, centres: Tensor, neighbours: int = 32
) -> tuple[Tensor, Tensor]:
    """PruMerge in plain torch: `merge` gives each token to one kept token, here clusters overlap, and are sums."""
    rest = torch.ones(len(x), dtype=torch.bool).index_fill(0, centres, False).nonzero()[:, 0]
    candidates = torch.cat([centres, rest])
    cosines = F.normalize(keys[centres], dim=1) @ F.normalize(keys[candidates], dim=1).T
    clusters = candidates[cosines.fill_diagonal_(-torch.inf).topk(neighbours).indices]
    gathered = x[centres] + torch.einsum("cm,cmd->cd", attention[clusters], x[clusters])
    return torch.cat([gathered, attention[rest][None] @ x[rest]]), clusters


def replay_prumerge(run: MergeRun) -> None:
    features, keys, query, order = run.given("features"), run.given("keys"), run.given("query"), run.came("order")
    attention = (keys @ query / len(query) ** 0.5).softmax(0)[1:]  # CLS takes part, then goes
    by_attention = int(run.case["ratio_used"] * len(features))
    assert idsel.topk_select(features, by_attention, attention).indices[0].tolist() == order[:by_attention].tolist()
    rows, clusters = prumerge(features, keys[1:], attention, order)
    assert clusters.sort().values.tolist() == run.came("clusters").sort().values.tolist()
    run.assert_output(rows, run.came("output"))


REPLAYS: dict[str, Callable[[MergeRun], None]] = {
    "visionzip": replay_visionzip,
    "angelslim-visionzip": replay_angelslim_visionzip,
    "vlmpruner": replay_vlmpruner,
    "tome": replay_tome,
    "prumerge": replay_prumerge,
    "prumerge-plus": replay_prumerge,
}
CLEAR = [MergeRun(CARRIED, case) for case in INDEX["cases"] if case["clear"]]


@pytest.mark.parametrize("run", CLEAR, ids=lambda run: f"{run.case['id']}-{run.case['source']}")
def test_published_code_merged_the_same(run: MergeRun) -> None:
    REPLAYS[run.case["source"]](run)


def literal_round(metric: Tensor, x: Tensor, size: Tensor, r: int, class_token: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One round of ToMe in float64, tokens weighted by their sizes: rows, sizes and which even tokens stay."""
    even, odd = (F.normalize(metric[start::2].double(), dim=1) for start in (0, 1))
    cosines = even @ odd.T
    best, partner = cosines.max(1)
    free = set(range(1 if class_token else 0, len(even)))
    sums, total = (x * size[:, None])[1::2].clone(), size[1::2].clone()
    for _ in range(r):
        drop = max(free, key=lambda i: float(best[i]))
        free.remove(drop)
        sums[partner[drop]] += x[2 * drop] * size[2 * drop]
        total[partner[drop]] += size[2 * drop]
    stay = [0, *sorted(free)] if class_token else sorted(free, key=lambda i: -float(best[i]))
    rows = 2 * torch.tensor(stay)
    return torch.cat([x[rows], sums / total[:, None]]), torch.cat([size[rows], total]), rows


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("name", ["tome-clustered-196x32", "tome-gaussian-65x32"])
def test_tome_repeated_with_sizes_is_the_mean_over_all(name: str, class_token: bool) -> None:
    run = MergeRun(CARRIED, {"file": f"{name}.npz"})
    metric, x = run.given("features"), run.given("values")
    exact, exact_sizes, sizes = x.double(), torch.ones(len(x), dtype=torch.float64), None
    for r in (24, 16):
        kept, receivers = idsel.bipartite_pairing(metric, r, class_token)
        merged = idsel.merge(x, kept, metric, "mean", receivers=receivers[0], sizes=sizes)
        exact, exact_sizes, stay = literal_round(metric, exact, exact_sizes, r, class_token)
        assert kept.indices[0].tolist() == stay.tolist() + list(range(1, len(metric), 2))
        assert merged.sizes[0].tolist() == exact_sizes.tolist()
        torch.testing.assert_close(merged.hidden[0].double(), exact, rtol=0.0, atol=5e-6)
        x, sizes = merged.hidden[0], merged.sizes[0]
        metric = kept.gather(metric[None])[0]  # keys that do not depend on rounding, as a layer's keys would
    assert exact_sizes.max() > 2 and exact_sizes.sum() == len(run.given("values"))


def test_carried_files_are_unchanged_and_small() -> None:
    for name, digest in INDEX["files"].items():
        assert hashlib.sha256((CARRIED / name).read_bytes()).hexdigest() == digest, name
    assert {path.name for path in CARRIED.glob("*.npz")} == set(INDEX["files"])
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) <= 900_000


def test_every_source_and_every_recorded_run_is_replayed() -> None:
    assert {run.case["source"] for run in CLEAR} == set(REPLAYS) == set(INDEX["sources"])
    indexed = {(case["file"], case["run"]) for case in INDEX["cases"]}
    for name in INDEX["files"]:
        with np.load(CARRIED / name) as data:
            recorded = {(name, array[:3]) for array in data.files if array[0] == "r" and array[1:3].isdigit()}
        assert recorded == {pair for pair in indexed if pair[0] == name}
    assert len(CLEAR) >= len(INDEX["cases"]) - 1, "few runs are near a tie"

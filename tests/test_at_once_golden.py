"""`Elimination` and `DART` pick what the published code picks; data/selectors/README.md describes the format."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import idsel_kernels as idsel
from idsel_kernels import DART, Elimination

CARRIED = Path(__file__).parent / "data" / "selectors"
INDEX = json.loads((CARRIED / "index.json").read_text())
# How far float32 may be off in a comparison of two similarities.
REGRET = 1e-6


@dataclass(frozen=True)
class Run:
    """One sample of a recorded run."""

    folder: Path
    case: dict[str, Any]
    sample: int | None = None

    def given(self, name: str) -> Tensor:
        """An input of the run, float16 upcast: that is what the official code was given."""
        return torch.from_numpy(self._array(name).astype(np.float32))

    def came(self, name: str) -> Tensor:
        """What the official code made of it."""
        return torch.from_numpy(self._array(f"{self.case['run']}_{name}").astype(np.int64))

    def of_case(self, name: str) -> Any:
        """An entry of the index."""
        entry = self.case[name]
        return entry[self.sample] if isinstance(entry, list) and self.sample is not None else entry

    def _array(self, name: str) -> np.ndarray:
        with np.load(self.folder / self.case["file"]) as data:
            return np.asarray(data[name] if self.sample is None else data[name][self.sample])

    @property
    def name(self) -> str:
        sample = "" if self.sample is None else f"-sample{self.sample}"
        return f"{self.case['id']}-{self.case['source']}{sample}"

    @property
    def k(self) -> int:
        return int(self.case["k"])

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.case["params"])


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """In float64."""
    return torch.nn.functional.normalize(rows.double(), dim=-1) @ torch.nn.functional.normalize(columns.double()).T


def after_a_round(features: Tensor, listed: Tensor, drop: int, order: Any) -> Tensor:
    """What our rule leaves of a list (n,) of tokens after one round: nothing is important, so the list is all."""
    falling = -torch.arange(len(listed), dtype=torch.float32)
    sel = idsel.select(features[listed], len(listed) - drop, Elimination(0.0, order), falling)
    return listed[sel.indices[0]]


# --- Elimination ------------------------------------------------------------------------------------------------------


def replay_vispruner(run: Run) -> None:
    sel = idsel.eliminate_select(
        run.given("features"), run.k, run.given("importance"), important=run.params["important_ratio"]
    )
    if run.of_case("clear_prefix") == run.of_case("rounds") and "note" not in run.case:
        assert sel.indices[0].tolist() == run.came("order").tolist()
    follow_vispruner(run)


def follow_vispruner(run: Run) -> None:
    """Round by round along the official decisions, ours for the same list beside each."""
    features, sorts = run.given("features"), run.came("sorts")
    important = int(run.k * run.params["important_ratio"])
    listed, begin = run.came("attention_order")[important:], 0
    assert (run.given("importance")[run.came("attention_order")].diff() <= 0).all()
    for turn in range(run.of_case("rounds")):
        drop = min(8, len(listed) - (run.k - important))
        even, odd = listed[0::2], listed[1::2]
        theirs = even[sorts[begin : begin + len(even)]]
        ours = after_a_round(features, listed, drop, "score")
        if turn < run.of_case("clear_prefix"):
            assert ours.tolist() == [*theirs[drop:].tolist(), *odd.tolist()], f"round {turn}"
        else:
            assert_a_good_round(features, even, odd, ours, drop)
        listed, begin = torch.cat([theirs[drop:], odd]), begin + len(even)
    assert run.came("order")[important:].tolist() == listed[: run.k - important].tolist()


def assert_a_good_round(features: Tensor, even: Tensor, odd: Tensor, ours: Tensor, drop: int) -> None:
    """Similarities fall along our order, those dropped first, but for rounding."""
    score = dict(zip(even.tolist(), cosines(features[even], features[odd]).amax(1).tolist(), strict=True))
    kept = ours[: len(even) - drop].tolist()
    assert ours[len(kept) :].tolist() == odd.tolist()
    falling = [min(score[i] for i in score.keys() - set(kept)), *(score[i] for i in kept)]
    assert all(a >= b - REGRET for a, b in itertools.pairwise(falling))


def replay_angelslim_vispruner(run: Run) -> None:
    features, importance = run.given("features"), run.given("importance")
    rule = Elimination(run.params["important_ratio_of_kept"], "position")
    sel = idsel.select(features, run.k, rule, importance)
    if run.case["clear"]:
        important = run.came("important").tolist()
        assert sel.indices[0, : len(important)].tolist() == important
        assert sel.indices[0].sort().values.tolist() == run.came("order").tolist()
    follow_angelslim_vispruner(run)


def follow_angelslim_vispruner(run: Run) -> None:
    """Round by round along the official decisions, ours for the same list beside each."""
    features, removed, begin = run.given("features"), run.came("removed"), 0
    gone = set(run.came("important").tolist())
    for turn, drop in enumerate(run.came("round_sizes").tolist()):
        listed = torch.tensor([j for j in range(len(features)) if j not in gone])
        theirs = removed[begin : begin + drop].tolist()
        left = set(after_a_round(features, listed, drop, "position").tolist())
        ours = [j for j in listed.tolist() if j not in left]
        if turn < run.of_case("clear_prefix"):
            assert set(ours) == set(theirs), f"round {turn}"
        odd = features[listed[1::2]]
        assert_as_good(cosines(features[ours], odd).amax(1), cosines(features[theirs], odd).amax(1))
        gone, begin = gone | set(theirs), begin + drop
    assert begin == len(removed)


def assert_as_good(ours: Tensor, theirs: Tensor) -> None:
    """The same similarities in whatever order, but for rounding."""
    torch.testing.assert_close(ours.sort().values, theirs.sort().values, rtol=0.0, atol=REGRET)


# --- DART -------------------------------------------------------------------------------------------------------------


def replay_dart(run: Run) -> None:
    """The official code walks its pivots in the order of a Python set, so they are all given as rows, in that order."""
    features, image = run.given("features"), run.came("image_pivots")
    importance, count = run.given("importance"), len(image)
    if "note" not in run.case:
        top = idsel.select(features, count, idsel.TopK(), importance)
        assert top.indices[0].tolist() == run.came("order")[:count].tolist()
    rows = torch.stack([features[j] if j >= 0 else run.given("text_after")[-1 - j] for j in run.came("pivots")])
    sel = pick_for_pivots(features, image, rows, run.k - count)
    theirs, per_pivot = run.came("order")[count:], run.params["per_pivot"]
    assert run.k == count + per_pivot * len(rows) == len({*sel.indices[0].tolist(), *image.tolist()})
    assert_same_for_clear_pivots(run, sel.indices[0].split(max(per_pivot, 1)), theirs.split(max(per_pivot, 1)))
    follow_dart(features, image, rows, theirs.split(max(per_pivot, 1)))


def replay_angelslim_dart(run: Run) -> None:
    features, importance = run.given("features"), run.given("importance")
    text, norms = (torch.cat([run.given(f"{name}_{where}") for where in ("before", "after")])
                   for name in ("text", "importance"))  # fmt: skip
    pivots, text_pivots = run.params["pivot_image_token"], run.params["pivot_text_token"]
    sel = idsel.dart_select(
        features, run.k, importance, pivots=pivots, text=text, text_importance=norms, text_pivots=text_pivots
    )
    image, order = run.came("image_pivots"), run.came("order")
    assert len(set(sel.indices[0].tolist())) == run.k and len(image) == min(pivots, run.k)
    if "note" not in run.case:
        assert sel.indices[0, : len(image)].tolist() == order[: len(image)].tolist() == image.tolist()
    share = max(1, -(-(run.k - len(image)) // (len(image) + text_pivots)))
    theirs = order[len(image) :].split(share)
    assert_same_for_clear_pivots(run, sel.indices[0, len(image) :].split(share), theirs)
    texts = run.came("text_pivots")
    if "note" not in run.case:
        assert texts.tolist() == norms.sort(descending=True, stable=True).indices[:text_pivots].tolist()
    follow_dart(features, image, torch.cat([features[order[: len(image)]], text[texts]]), theirs)


def assert_same_for_clear_pivots(run: Run, ours: Any, theirs: Any) -> None:
    """Inside the tokens of one pivot their order does not matter."""
    if run.case["clear"]:
        assert set(torch.cat(ours).tolist()) == set(torch.cat(theirs).tolist())
    if "note" not in run.case:
        for mine, official in list(zip(ours, theirs, strict=True))[: run.case["clear_pivots"]]:
            assert set(mine.tolist()) == set(official.tolist())


def pick_for_pivots(features: Tensor, taken: Tensor, rows: Tensor, k: int) -> idsel.Selection:
    """k picks for pivots that are no tokens, in the order of `rows`, among the tokens that are not taken."""
    turns = torch.arange(len(rows), 0, -1, dtype=torch.float32)
    mask = torch.ones(len(features) + len(rows), dtype=torch.bool).index_fill(0, taken, False)
    importance = torch.cat([torch.zeros(len(features)), turns])
    return idsel.select(torch.cat([features, rows]), k, DART(0, len(rows)), importance, mask=mask)


def follow_dart(features: Tensor, taken: Tensor, rows: Tensor, theirs: Any) -> None:
    """Pivot by pivot along the official picks, ours among the same free tokens beside each."""
    for row, official in zip(rows, theirs, strict=False):
        if len(official):
            ours = pick_for_pivots(features, taken, row[None], len(official)).indices[0]
            similarity = cosines(row[None], features)[0]
            assert_as_good(similarity[ours], similarity[official])
        taken = torch.cat([taken, official])


REPLAYS: dict[str, Callable[[Run], None]] = {
    "vispruner": replay_vispruner,
    "angelslim-vispruner": replay_angelslim_vispruner,
    "dart": replay_dart,
    "dart-qwen2vl": replay_dart,
    "angelslim-dart": replay_angelslim_dart,
}
RUNS = [
    Run(CARRIED, case, sample)
    for case in INDEX["cases"]
    for sample in (range(case["batch"]) if case["batch"] else [None])
]


@pytest.mark.parametrize("engine", [name for name in ("torch", "cpu") if name in idsel.available_backends()])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_code_picked_the_same(run: Run, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDSEL_BACKEND", engine)
    REPLAYS[run.case["source"]](run)


# --- Inputs on which the published code fails -------------------------------------------------------------------------


def eliminated(tokens: str, k: str, dtype: str = "float32") -> None:
    """k tokens, whatever the parities of what is left, with a row of zeros."""
    case = idsel.inputs.clustered(1, int(tokens), 16, seed=int(tokens))
    case.features[0, int(tokens) // 2] = 0.0
    features = case.features.to(getattr(torch, dtype))
    for order in ("score", "position"):
        assert_distinct(idsel.eliminate_select(features, int(k), case.importance, order=order), int(k))


def half_precision(dtype: str, tokens: str, k: str) -> None:
    eliminated(tokens, k, dtype)


def of_equal_importance(first: str, second: str) -> None:
    for count in (int(first), int(second)):
        sel = idsel.eliminate_select(torch.eye(count), count, torch.ones(count), important=1.0)
        assert sel.indices[0].tolist() == list(range(count))


def a_small_share(dropped: str, tokens: str) -> None:
    eliminated(tokens, str(math.ceil(int(tokens) * (1 - float(dropped)))))


def few_tokens(tokens: str, k: str, pivots: str, text_pivots: str) -> None:
    dart(int(tokens), int(k), int(pivots), texts=int(text_pivots))


def few_texts(texts: str, text_pivots: str) -> None:
    dart(64, 32, 4, int(texts), int(text_pivots))


def exactly_k(k: str, pivots: str, text_pivots: str) -> None:
    dart(64, int(k), int(pivots), texts=int(text_pivots))


def none_at_all(ratio: str) -> None:
    dart(64, round(64 * (1 - int(ratio))), 4, texts=4)


def dart(tokens: int, k: int, pivots: int, texts: int, text_pivots: int = 4) -> None:
    case, text = idsel.inputs.clustered(1, tokens, 16), idsel.inputs.clustered(1, texts, 16, seed=1)
    sel = idsel.dart_select(
        case.features, k, case.importance, pivots=pivots, text=text.features, text_importance=text.importance,
        text_pivots=text_pivots,
    )  # fmt: skip
    assert_distinct(sel, min(k, tokens))


def assert_distinct(sel: idsel.Selection, k: int) -> None:
    picked = sel.indices[0, :k].tolist()
    assert len(set(picked)) == len(picked) == k and min(picked, default=0) >= 0 and (sel.indices[0, k:] == -1).all()


FAILURES: dict[str, Callable[..., None]] = {
    r"N=(\d+), visual_token_num=(\d+)": eliminated,
    r"the same input in (b?float16), N=(\d+), visual_token_num=(\d+)": half_precision,
    r"argsort\(descending=True\) of equal values.* (\d+) equal values.* (\d+) equal values": of_equal_importance,
    r"ratio=(\.\d+) of N=(\d+)": a_small_share,
    r"N=(\d+), max_num_trunction=(\d+), (\d)\+(\d) pivots": few_tokens,
    r"(\d+) text tokens after the image, pivot_text_token=(\d+)": few_texts,
    r"max_num_trunction=(\d+), (\d)\+(\d) pivots": exactly_k,
    r"ratio=(\d): image tokens kept": none_at_all,
}


@pytest.mark.parametrize("engine", [name for name in ("torch", "cpu") if name in idsel.available_backends()])
@pytest.mark.parametrize("entry", INDEX["misbehaviour"], ids=lambda entry: f"{entry['source']}-{entry['input']}")
def test_k_distinct_tokens_come_where_the_official_code_fails(
    entry: dict[str, str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDSEL_BACKEND", engine)
    text = f"{entry['input']}: {entry['outcome']}".removeprefix("one zero row, ")
    ((check, found),) = [
        (check, found) for pattern, check in FAILURES.items() if (found := re.match(pattern, text)) is not None
    ]
    check(*found.groups())


def test_every_source_and_every_recorded_run_is_replayed() -> None:
    assert {run.case["source"] for run in RUNS} == set(REPLAYS) == set(INDEX["sources"])
    indexed = {(case["file"], case["run"]) for case in INDEX["cases"]}
    for name in INDEX["files"]:
        with np.load(CARRIED / name) as data:
            recorded = {(name, array[:3]) for array in data.files if array[0] == "r" and array[1:3].isdigit()}
        assert recorded == {pair for pair in indexed if pair[0] == name}
    assert sum(case["clear"] for case in INDEX["cases"]) >= 0.7 * len(INDEX["cases"]), "few runs are near a tie"

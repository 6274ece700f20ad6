"""What only the emulator (tests/emulator) shows of the CUDA engine: any order of blocks, clusters, mutations.

Every test that takes a backend runs on it too, as `cuda-emulated`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import emulated
import pytest
import torch
from backends import EMULATED, registered, same, set_gram_budget
from cases import EXACT_RULES, INPUT_CASES, RULE_CASES, SAME_BRANCH, Call
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels import checks
from idsel_kernels.rules import State
from idsel_kernels.testing import Case, check_selection, clustered, exact, ragged

ROOT = Path(__file__).parents[1]
pytestmark = list(EMULATED.marks)


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[emulated.EmulatedEngine]:
    with registered(emulated.engine()):
        yield emulated.engine()


def _runs(call: Call, rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch) -> list[idsel.Selection]:
    """In clusters of CTAs and by single ones, one at a time or several, in several orders."""
    found = []
    for multiprocessors, blocks, seed in ((1000, 1, 0), (1000, 3, 1), (1, 1, 0), (1, 3, 2)):
        monkeypatch.setenv("IDSEL_EMULATOR_MULTIPROCESSORS", str(multiprocessors))
        found.append(_select(call, rule, monkeypatch, blocks, seed))
    monkeypatch.delenv("IDSEL_EMULATOR_MULTIPROCESSORS")
    return found


@pytest.mark.parametrize("rule", RULE_CASES)
def test_clusters_order_and_batch_change_no_bit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(3, 70, 600, dtype=torch.bfloat16)  # D has two groups
    alone = Call({name: tensor[1:2] for name, tensor in case.inputs().items()}, 20)
    together = {name: tensor.flatten(0, 1) for name, tensor in case.inputs().items()}
    together["cu_seqlens"] = torch.tensor([0, 70, 140, 210], dtype=torch.int32)
    runs = _runs(Call(case.inputs(), 20), RULE_CASES[rule], monkeypatch)
    runs.append(_select(Call(together, 20), RULE_CASES[rule], monkeypatch, 3, 3))
    assert all(same(runs[0], other) for other in runs[1:])
    for sel in _runs(alone, RULE_CASES[rule], monkeypatch):
        assert torch.equal(runs[0].indices[1:2], sel.indices) and torch.equal(runs[0].scores[1:2], sel.scores)


@pytest.mark.parametrize("tokens", [256, 257, 1025, 3073])  # a thread has 1, 4 or 12; or all are in the workspace
@pytest.mark.parametrize("rule", [idsel.MMR(), idsel.TopK()], ids=lambda rule: type(rule).__name__)
def test_tokens_of_a_thread(rule: idsel.Rule, tokens: int) -> None:
    case = clustered(1, tokens, 2)
    sel = idsel.select(**case.inputs(), k=5, rule=rule, backend=emulated.NAME)
    check_selection(sel, **case.inputs(), rule=rule, k=5).assert_ok(REGRET)
    by_index = idsel.select(**case.inputs(), k=5, rule=rule, sort=True, backend=emulated.NAME)
    assert torch.equal(by_index.indices, sel.indices.sort().values)


@pytest.mark.parametrize("tokens", [576, 3080])
def test_coverage_reads_few_similarities(
    tokens: int, engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows of tokens whose gain could win are read, and the picks are those of summing all."""
    case = clustered(1, tokens, 16 if tokens < 1000 else 2)
    k = 64 if tokens < 1000 else 4
    read = torch.zeros(1, dtype=torch.int64)
    monkeypatch.setattr(engine, "similarities_read", read)
    sel = _whole(Call(case.inputs(), k), idsel.Coverage(), monkeypatch)
    check_selection(sel, **case.inputs(), rule=idsel.Coverage(), k=k).assert_ok(REGRET)
    assert 0 < int(read) <= (0.1 if k == 64 else 0.5) * k * tokens**2


# --- Several CTAs for a sample ---------------------------------------------------------------------------------------

NEEDS_SIMILARITIES = [name for name, rule in RULE_CASES.items() if rule.needs_similarities]
WHOLE = 1 << 33  # bytes for similarities: the whole Gram


class Run(NamedTuple):
    """How the CTAs of a group come: their most, the seed of their order, one that begins when all others wait for it,
    and what the device says too much of.
    """

    multiprocessors: int = 6
    seed: int = 0
    late: int | None = None
    room: int | None = None


RUNS = (Run(1), Run(5, 1, late=0), Run(13, 2), Run(6, room=3))


def _select(
    call: Call, rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch, blocks: int = 3, seed: int = 0, **more: bool
) -> idsel.Selection:
    monkeypatch.setenv("IDSEL_EMULATOR_BLOCKS", str(blocks))
    monkeypatch.setenv("IDSEL_EMULATOR_SEED", str(seed))
    return idsel.select(**call.inputs(), k=call.k, rule=rule, backend=emulated.NAME, **more)


def _whole(call: Call, rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch) -> idsel.Selection:
    set_gram_budget(monkeypatch, emulated.NAME, WHOLE)
    return _select(call, rule, monkeypatch)


def _on_panels(
    call: Call, rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch, run: Run, budget: int = 1, **more: bool
) -> idsel.Selection:
    with monkeypatch.context() as patch:
        for name in ("multiprocessors", "late", "room"):
            if (value := getattr(run, name)) is not None:
                patch.setenv(f"IDSEL_EMULATOR_{name.upper()}", str(value))
        set_gram_budget(patch, emulated.NAME, budget)
        return _select(call, rule, patch, seed=run.seed, **more)


def _hurting(dtype: torch.dtype = torch.float32) -> Call:
    """Masked and unusable tokens, zero rows, odd sizes, strides."""
    features, importance, _ = clustered(2, 139, 46, seed=8, dtype=dtype)
    features, importance = features[..., 1::2], importance.clone()
    features[0, 3, 2], features[1, 100] = float("nan"), 0.0
    importance[0, 130], importance[1, 9], importance[1, 70] = float("nan"), float("-inf"), float("inf")
    mask = torch.rand((2, 139), generator=torch.Generator().manual_seed(9)) < 0.8
    return Call({"features": features, "importance": importance, "mask": mask}, [139, 70])


def _negative() -> Call:
    """Half of the importance is below zero: picks then raise priorities, and less gain is worth more."""
    features, importance, _ = clustered(1, 200, 24, seed=3)
    return Call({"features": features, "importance": importance - importance.median()}, 120)


PANEL_CASES = {name: INPUT_CASES[name] for name in ("N65-D127-k13", "N257-D40-k40", "fp16", "ties")} | {
    "split": Call(clustered(2, 70, 600, dtype=torch.bfloat16).inputs(), 20),
    "hurting": _hurting(),
    "hurting-bf16": _hurting(torch.bfloat16),
    "negative": _negative(),
    "ragged": Call(ragged((70, 0, 5, 130)).inputs(), [30, 3, 5, 20]),
}


# With clusters, what does not take part, picks that raise priorities, and samples of which few go on panels.
GIVEN_CASES = ("split", "hurting", "negative", "ragged")

# Parameters whose branch other rules go through with all inputs; not those with a first pick of their own.
PARAMETERS_ONLY = set(SAME_BRANCH) - {"mmr-parallel3", "maxmin-start0"}
PANEL_GRID = [
    (rule, case)
    for rule in NEEDS_SIMILARITIES
    for case in PANEL_CASES
    if rule not in PARAMETERS_ONLY or case in ("ties", "hurting", "negative")
]


@pytest.mark.parametrize(("rule", "case"), PANEL_GRID)
def test_panels_give_the_bits_of_the_whole_gram(rule: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = PANEL_CASES[case]
    whole = _whole(call, RULE_CASES[rule], monkeypatch)
    check_selection(whole, **call.inputs(), rule=RULE_CASES[rule], k=call.k).assert_ok(REGRET)
    # Of the ragged batch, the sample of 70 tokens has room for its Gram now and then.
    for run, row in zip(RUNS, (1, 100, 1, 100), strict=True):
        assert same(whole, _on_panels(call, RULE_CASES[rule], monkeypatch, run, 4 * row * 205)), run


def _begun(call: Call, given: torch.Tensor) -> Call:
    return Call({**call.tensors, "given": given}, call.k)


def _any_tokens(call: Call) -> torch.Tensor:
    """(B, 150) that fill several panels: some twice or masked, and -1 in between."""
    offsets, features = call.tensors.get("cu_seqlens"), call.tensors["features"]
    lengths = [features.shape[1]] * features.shape[0] if offsets is None else offsets.diff().tolist()
    generator = torch.Generator().manual_seed(4)
    return torch.stack([torch.randint(-1, n, (150,), generator=generator) for n in lengths])


@pytest.mark.parametrize(("rule", "case"), [pair for pair in PANEL_GRID if pair[1] in GIVEN_CASES])
def test_panels_of_given_tokens(
    rule: str, case: str, engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits of the whole Gram, which begins with them too; given its own first picks a selection is the same."""
    call = PANEL_CASES[case]
    monkeypatch.setattr(checks, "check_values", lambda *_, **__: None)  # nobody reads them on a GPU
    plain = _whole(call, RULE_CASES[rule], monkeypatch)
    calls = [_begun(call, plain.indices[:, :count]) for count in (1, 66)] + [_begun(call, _any_tokens(call))]
    for begun, expected in zip(calls, (plain, plain, None), strict=True):
        whole = _whole(begun, RULE_CASES[rule], monkeypatch)
        assert expected is None or same(whole, expected)
        # Whether what is left of a token beyond D others is a priority of DPP is for rounding to say.
        if expected is not None or rule != "dpp" or case in ("split", "ragged"):
            check_selection(whole, **begun.inputs(), rule=RULE_CASES[rule], k=call.k).assert_ok(REGRET)
        for run, row in zip(RUNS[1:], (100, 1, 100), strict=True):
            assert same(whole, _on_panels(begun, RULE_CASES[rule], monkeypatch, run, 4 * row * 205)), run


@pytest.mark.parametrize("tokens", [600, 3000])
@pytest.mark.parametrize("rule", [name for name in NEEDS_SIMILARITIES if name not in SAME_BRANCH] + ["mmr-parallel3"])
def test_many_tokens(rule: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens of a CTA than it has threads, and than fit shared memory."""
    call = Call(clustered(1, tokens, 2 if tokens > 1000 else 16).inputs(), 12 if tokens > 1000 else 40)
    whole = _whole(call, RULE_CASES[rule], monkeypatch)
    for run in (Run(2, late=1), Run(6, 1, room=1)):
        assert same(whole, _on_panels(call, RULE_CASES[rule], monkeypatch, run)), run


@pytest.mark.parametrize("rule", [idsel.IDSelection(), idsel.MaxMin(start=0)], ids=str)
def test_a_group_as_large_as_on_a_gpu(rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """67 CTAs, each of which offers two tokens."""
    call = Call(clustered(1, 4200, 1).inputs(), 8)
    assert same(_whole(call, rule, monkeypatch), _on_panels(call, rule, monkeypatch, Run(132)))


@pytest.mark.parametrize("rule", [name for name in NEEDS_SIMILARITIES if name not in SAME_BRANCH])
def test_sorted_on_panels(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = _hurting()
    by_step = _on_panels(call, RULE_CASES[rule], monkeypatch, Run(5))
    by_index = _on_panels(call, RULE_CASES[rule], monkeypatch, Run(5, 1), sort=True)
    for b, count in enumerate((139, 70)):
        picks = int((by_step.indices[b, :count] >= 0).sum())
        order = by_step.indices[b, :picks].argsort()
        assert torch.equal(by_index.indices[b, :picks], by_step.indices[b, :picks][order])
        assert torch.equal(by_index.scores[b, :picks], by_step.scores[b, :picks][order])


@pytest.mark.parametrize("rule", [idsel.DPP(), idsel.Coverage()], ids=lambda rule: type(rule).__name__)
def test_more_samples_than_groups(rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group then works on several samples in turn; a sample alone has several CTAs."""
    case = clustered(11, 66, 4)
    batch = _on_panels(Call(case.inputs(), 6), rule, monkeypatch, Run(4))
    for b in (0, 10):
        alone = Call({name: tensor[b : b + 1] for name, tensor in case.inputs().items()}, 6)
        sel = _on_panels(alone, rule, monkeypatch, Run(4, 1))
        assert torch.equal(batch.indices[b : b + 1], sel.indices) and torch.equal(batch.scores[b : b + 1], sel.scores)


def test_a_panel_is_kept_while_picks_come_from_it(
    engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more rounds than panels, and fewer of either than picks."""
    case = clustered(1, 576, 16, importance="uniform")
    made = torch.zeros(1, 2, dtype=torch.int64)
    monkeypatch.setattr(engine, "panels_made", made)
    _on_panels(Call(case.inputs(), 64), idsel.IDSelection(), monkeypatch, Run())
    rounds, panels = made[0].tolist()
    assert 1 <= panels < rounds < 32


def test_a_pick_that_changes_nothing_needs_no_panel(
    engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last pick needs no row, and one that changes nothing does not either."""
    case = clustered(1, 100, 8)
    made = torch.zeros(1, 2, dtype=torch.int64)
    monkeypatch.setattr(engine, "panels_made", made)
    _on_panels(Call(case.inputs(), 1), idsel.IDSelection(), monkeypatch, Run())
    assert made[0].tolist() == [1, 0]
    made.zero_()
    nothing = {**case.inputs(), "importance": torch.zeros(1, 100)}
    sel = _on_panels(Call(nothing, 70), idsel.IDSelection(), monkeypatch, Run())
    assert sel.indices[0].tolist() == list(range(70)) and made[0, 1] == 1


def test_blocks_that_wait_for_one_that_cannot_start_end_the_launch(tmp_path: Path) -> None:
    """What the emulator reports where blocks under way wait for another: the tests above would show it."""
    source = tmp_path / "waits.cpp"
    source.write_text("""
#include <cstdio>
#include "emulator.h"
int main() {
    bool here[2] = {};
    const char* failure = idsel::emulator::launch([&here] {
        here[idsel::emulator::block()] = true;
        while (!here[0] || !here[1]) idsel::emulator::rest();
    }, 2, 32, 0);
    std::puts(failure == nullptr ? "ended" : failure);
}
""")
    folder = ROOT / "tests" / "emulator"
    command = ["c++", "-std=c++17", f"-I{folder}", str(source), *map(str, sorted(folder.glob("[ef]*.cpp")))]
    emulated.run(*command, "-o", str(tmp_path / "waits"))
    for blocks, words in ((2, "ended"), (1, "every block under way waits for other blocks")):
        environment = {**os.environ, "IDSEL_EMULATOR_BLOCKS": str(blocks)}
        done = subprocess.run([tmp_path / "waits"], capture_output=True, text=True, check=True, env=environment)
        assert words in done.stdout


def test_more_samples_than_one_launch_takes() -> None:
    case = clustered(300, 3, 4)
    counts = [b % 4 for b in range(300)]
    sel = idsel.select(**case.inputs(), k=counts, rule=idsel.MMR(), backend=emulated.NAME)
    check_selection(sel, **case.inputs(), rule=idsel.MMR(), k=counts).assert_ok(REGRET)


@pytest.mark.parametrize("budget", [0, 1])
@pytest.mark.parametrize("rule", [idsel.Coverage(), idsel.MaxMin(), idsel.DPP()], ids=lambda rule: type(rule).__name__)
def test_offsets_that_nobody_checked_stay_inside_the_tensors(
    rule: idsel.Rule, budget: int, engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = clustered(1, 200, 4).features[0]
    set_gram_budget(monkeypatch, emulated.NAME, budget)
    for offsets in ([0, 999, 200], [100, 40, 200], [-7, 80, 200], [0, 150, 20, 200]):
        inputs = idsel.problem.Inputs(features, None, None, torch.tensor(offsets, dtype=torch.int32))
        problem = idsel.problem.Problem.of(inputs, rule, [3], False)
        indices, _ = engine.launcher(problem, inputs)(*inputs)
        assert (indices < 200).all()


def _explained(tokens: int, k: int, rule: idsel.Rule, **more: torch.Tensor) -> idsel.Explanation:
    features = torch.zeros(tokens, 1, dtype=torch.bfloat16)
    if not more:
        features = features[None]
    return idsel.explain(
        features, k, rule=rule, importance=torch.ones(features.shape[:-1]), backend=emulated.NAME, **more
    )


def test_explain_tells_the_plan() -> None:
    assert "one launch: norms, then one CTA per sample picks" in _explained(17_000, 2, idsel.TopK()).algorithm
    assert "one launch: the Gram by tensor cores" in _explained(64, 2, idsel.MMR()).algorithm
    assert "one CTA per sample reads one row of it per pick" in _explained(64, 2, idsel.MMR()).algorithm
    assert "reads rows of it, those whose gain could win, per pick" in _explained(300, 2, idsel.Coverage()).algorithm
    panels = _explained(17_000, 130, idsel.MMR()).algorithm
    assert "panels of 64 rows of the Gram by tensor cores and a group of CTAs per sample" in panels
    flops = "0.00656 GFLOP to 0.282 GFLOP"
    assert f"(3 to 129, {flops}; fewer where picks change nothing); 4.7 MiB of workspace" in panels
    assert "(as many as the gains call for); 5.0 MiB" in _explained(17_000, 130, idsel.Coverage()).algorithm
    offsets = torch.tensor([0, 17_000], dtype=torch.int32)
    ragged = _explained(17_000, 130, idsel.MMR(), cu_seqlens=offsets).algorithm
    assert "2 launches" in ragged and "of the samples that are too long for a whole one" in ragged


@pytest.mark.parametrize(
    ("batch", "tokens", "k", "rule", "algorithm"),
    [
        (1, 64, 64, idsel.IDSelection(), "gram"),  # no more tokens than a panel has rows
        (1, 2048, 16, idsel.IDSelection(), "gram"),
        (1, 2049, 16, idsel.IDSelection(), "panels"),
        (16, 1024, 16, idsel.IDSelection(), "gram"),
        (16, 1025, 16, idsel.IDSelection(), "panels"),  # the batch fills a GPU
        (1, 2880, 180, idsel.DPP(), "panels"),
        (1, 2880, 181, idsel.DPP(), "gram"),  # many picks call for many panels
        (1, 3072, 16, idsel.MaxMin(start=0), "panels"),
        (1, 3072, 16, idsel.MaxMin(), "gram"),  # all pairs are multiplied anyway
        (1, 3072, 16, idsel.Coverage(), "gram"),
        (1, 3073, 3073, idsel.MaxMin(), "panels"),  # tokens would leave registers
        (1, 16384, 16, idsel.Coverage(), "gram"),  # after the first pick all gains are summed again
        (1, 16385, 16, idsel.Coverage(), "panels"),  # more than 1 GiB
        (1, 1_000_000, 64, idsel.IDSelection(), "panels"),
        (1, 1_000_000, 64, idsel.TopK(), "norms"),
    ],
)
def test_the_planner_chooses_between_the_gram_and_panels(
    batch: int, tokens: int, k: int, rule: idsel.Rule, algorithm: str, engine: emulated.EmulatedEngine
) -> None:
    features = torch.empty(1, 1, 1, dtype=torch.bfloat16).expand(batch, tokens, 1)
    problem = idsel.problem.Problem.of(idsel.problem.Inputs(features, None, None, None), rule, [k], False)
    plan = engine._plan(problem, 0)
    assert isinstance(plan, dict) and plan["algorithm"] == algorithm
    # A budget forces either.
    if algorithm != "norms" and tokens < 4000:
        forced = [engine._plan(problem, budget) for budget in (1, WHOLE)]
        assert [isinstance(plan, dict) and plan["algorithm"] for plan in forced] == [
            "panels" if tokens > 64 else "gram",
            "gram",
        ]


def test_short_samples_of_a_ragged_batch_keep_their_gram(
    engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ragged((3100, 40), 1)
    made = torch.zeros(2, 2, dtype=torch.int64)
    monkeypatch.setattr(engine, "panels_made", made)
    for budget, rounds in ((0, [True, False]), (4 * 100 * 3140, [True, False]), (WHOLE, [False, False])):
        made.zero_()
        _on_panels(Call(case.inputs(), 2), idsel.HardSuppress(), monkeypatch, Run(1), budget)
        assert (made[:, 0] > 0).tolist() == rounds


@pytest.mark.parametrize(
    "rule", [idsel.IDSelection(), idsel.MMR(), idsel.MaxMin(), idsel.Coverage(), idsel.DPP()], ids=str
)
def test_panels_take_little_memory(rule: idsel.Rule, engine: emulated.EmulatedEngine) -> None:
    """At most a twentieth of the Gram's numbers; a million tokens in a few hundred megabytes. DPP has k N more."""
    for tokens, k, most in ((16384, 1638, 16384**2 * 4 // 20), (1_000_000, 64, 400_000_000)):
        most += k * tokens * 4 if isinstance(rule, idsel.DPP) else 0
        features = torch.empty(1, 1, 1, dtype=torch.bfloat16).expand(1, tokens, 1)
        problem = idsel.problem.Problem.of(idsel.problem.Inputs(features, None, None, None), rule, [k], False)
        # Coverage keeps a Gram of up to 1 GiB unless it is told not to.
        plan = engine._plan(problem, 1 if isinstance(rule, idsel.Coverage) else 0)
        assert isinstance(plan, dict) and plan["algorithm"] == "panels" and plan["workspace_bytes"] <= most


def test_an_installed_package_does_not_know_the_emulator() -> None:
    assert emulated.NAME not in (ROOT / "idsel_kernels" / "dispatch.py").read_text()


# --- Similarities in place of features --------------------------------------------------------------------------------

TAKES_SIMILARITIES = [*NEEDS_SIMILARITIES, "topk"]
# No D: the tiles of a Gram alone. From 225 tokens on a cluster shares a tile.
SIMILARITY_SHAPES = {"N1": (2, 1, 4), "N33": (3, 33, 16), "N70": (1, 70, 1), "N300": (2, 300, 64)}


def _exact_similarities(case: Case) -> torch.Tensor:
    """(B, N, N) of `exact`, without rounding."""
    return case.features @ case.features.mT / case.features.shape[-1]


def _similarities(call: Call, similarity: torch.Tensor) -> Call:
    tensors = {name: tensor for name, tensor in call.tensors.items() if name != "features"}
    return Call({**tensors, "similarity": similarity}, call.k)


def _hurting_similarities() -> Call:
    """Not symmetric, of no features; unusable tokens, some without a direction, values out of range, odd strides."""
    generator = torch.Generator().manual_seed(2)
    similarity = torch.randint(-18, 19, (2, 139, 150), generator=generator)[..., 5:144] / 16
    similarity.diagonal(dim1=1, dim2=2).copy_(torch.rand(2, 139, generator=generator) + 0.1)
    for b, j, value in ((0, 3, float("nan")), (0, 70, float("inf")), (1, 0, 0.0), (1, 100, -1.0)):
        similarity[b, j, j] = value
    similarity[0, 60, 80], similarity[1, 120, 7], similarity[1, 7, 120] = float("nan"), float("inf"), float("-inf")
    importance = torch.randint(0, 33, (2, 139), generator=generator) / 32
    importance[0, 9] = float("nan")
    mask = torch.rand((2, 139), generator=generator) < 0.8
    return Call({"similarity": similarity, "importance": importance, "mask": mask}, [139, 70])


@pytest.mark.parametrize("shape", SIMILARITY_SHAPES)
@pytest.mark.parametrize("rule", TAKES_SIMILARITIES)
def test_similarities_give_the_bits_of_features(rule: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In clusters or not, by the whole Gram or on panels; all picks or a few."""
    case = exact(*SIMILARITY_SHAPES[shape])
    tokens = case.features.shape[1]
    if shape == "N33":  # of other tokens, it has no direction and is not finite
        case.features[0, 7], case.features[1, 9, 0] = 0.0, float("nan")
    similarity = _exact_similarities(case)
    for k in (tokens, max(1, tokens // 9)):
        call = Call(case.inputs(), k)
        given = _similarities(call, similarity)
        expected = _whole(call, RULE_CASES[rule], monkeypatch)
        assert all(same(expected, found) for found in _runs(given, RULE_CASES[rule], monkeypatch))
        for run in RUNS[1:]:
            assert same(expected, _on_panels(given, RULE_CASES[rule], monkeypatch, run)), run


@pytest.mark.parametrize("rule", TAKES_SIMILARITIES)
def test_similarities_that_hurt(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values mean what they mean to the torch engine; rows count on panels too, and given tokens are taken."""
    call = _hurting_similarities()
    if RULE_CASES[rule].state is State.COVERAGE or rule in ("maxmin", "maxmin-weighted"):
        # First priorities are of rows or of columns.
        similarity = call.tensors["similarity"]
        call.tensors["similarity"] = torch.where(torch.ones(139, 139).triu() > 0, similarity, similarity.mT)
    for begun in (call, _begun(call, torch.tensor([[5, -1, 138, 3], [100, 5, 0, 0]]))):
        monkeypatch.setattr(checks, "check_values", lambda *_, **__: None)  # nobody reads them on a GPU
        whole = _whole(begun, RULE_CASES[rule], monkeypatch)
        for run in RUNS:
            assert same(whole, _on_panels(begun, RULE_CASES[rule], monkeypatch, run)), run
        if rule in EXACT_RULES:
            expected = idsel.select(**begun.inputs(), k=call.k, rule=RULE_CASES[rule], backend="torch")
            assert torch.equal(whole.indices, expected.indices)
            assert torch.equal(whole.scores, expected.scores)


@pytest.mark.parametrize("budget", [WHOLE, 1])
def test_similarities_lie_anywhere(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = _exact_similarities(exact(2, 70, 16))
    importance = clustered(2, 70, 4).importance
    wide = torch.full((2, 75, 153), float("nan"))
    interleaved = torch.full((70, 2, 70), float("nan")).transpose(0, 1)
    views = [wide[:, 1:71, 3:73], interleaved, wide.clone()[:, 5:, 4:144:2]]
    for view in views:
        view.copy_(similarity)
    views += [similarity.mT, similarity[:1].expand(2, 70, 70)]
    for rule in (idsel.MMR(), idsel.Coverage()):
        set_gram_budget(monkeypatch, emulated.NAME, budget)
        for view in views:
            matrix = view.clone(memory_format=torch.contiguous_format)
            packed = Call({"similarity": matrix, "importance": importance}, 20)
            assert same(_select(packed, rule, monkeypatch), _select(_similarities(packed, view), rule, monkeypatch))


def test_similarities_are_explained_and_checked() -> None:
    def explained(tokens: int, rule: idsel.Rule) -> idsel.Explanation:
        matrix, importance = torch.zeros(1, 1, 1).expand(1, tokens, tokens), torch.ones(1, tokens)
        return idsel.explain(None, 2, rule, importance, similarity=matrix, backend=emulated.NAME)

    assert "one launch: the Gram from the similarities given, then one CTA" in explained(64, idsel.MMR()).algorithm
    on_panels = explained(17_000, idsel.MMR()).algorithm
    assert "panels of 64 rows of the Gram from the similarities given and a group of CTAs" in on_panels
    assert "(1 to 1; fewer where picks change nothing)" in on_panels
    diagonal = explained(17_000, idsel.TopK()).algorithm
    assert diagonal == "one launch: the diagonal of the similarities given, then one CTA per sample picks"
    with pytest.raises(ValueError, match=r"^similarity must be a dense batch"):
        offsets = torch.tensor([0, 4])
        idsel.select(None, 2, idsel.MaxMin(), similarity=torch.eye(4), cu_seqlens=offsets, backend=emulated.NAME)
    none = idsel.select(None, 2, idsel.MaxMin(), similarity=torch.ones(2, 0, 0), backend=emulated.NAME)
    assert none.indices.tolist() == [[-1, -1]] * 2


# --- Builds of their own ----------------------------------------------------------------------------------------------


# What is changed, and into what, in which file: each is a mistake that only executing the code can show.
_KEYS = "= ranked(key, index);"
_ENDED = "    arch::cta_sync();\n    return"
MUTATIONS = {
    "a removed barrier": ("cta_reduce.cuh", {f"{_KEYS}\n    arch::cta_sync();": _KEYS}),
    "a barrier for some threads only": (
        "arrival.cuh",
        {_ENDED: f"    if (arch::thread() != 7) {_ENDED.lstrip()}"},
    ),
    "a wrong arrival count": ("arrival.cuh", {"expected - 1": "expected - 2"}),
    "a group that does not wait": ("cta_group.cuh", {"- buffers_->arrived) < 0": "- buffers_->arrived) < -1"}),
    "a barrier that waits for one too many": (
        "cta_group.cuh",
        {"uint32_t>(buffers_->ctas);": "uint32_t>(buffers_->ctas) + 1;"},
    ),
    "a bound without what is not offered": ("panel.cuh", {"if (is_bound && rank > bound_) bound_ = rank;": ""}),
    "a panel that loses a tie": (
        "panel_loop.cuh",
        {"top.rank < context.now": "top.rank + (1ull << 32) <= context.now"},
    ),
    "a pick that is not absorbed": ("panel_loop.cuh", {"if (step < context.pick.wanted && rule": "if (at < 3 && rule"}),
    "a first pick that raises others unseen": ("row_state.cuh", {"(rises && first": "(rises && score > 9 && first"}),
    "tied tokens out of order": ("panel_loop.cuh", {"int32_t at = lower + up_to": "int32_t at = up_to"}),
    "overlaps from the panel on alone": ("panel_loop.cuh", {"arch::ld_global_cg(state.overlaps + at)": "0.0f"}),
    "a stale gain accepted on panels": ("coverage_panels.cuh", {"if (!context_.panel->fresh[slot])": "if (best == 0)"}),
    "a dropped tie-break": (
        "order_key.cuh",
        {
            "| ~static_cast<uint32_t>(index)": "| static_cast<uint32_t>(index)",
            "static_cast<int>(~static_cast<uint32_t>(ranked))": "static_cast<int>(static_cast<uint32_t>(ranked))",
        },
    ),
    "a lost tie": ("cta_reduce.cuh", {"& lower_lanes;": "& ~lower_lanes & ~(lower_lanes + 1);"}),
    "wrong parts of D in a cluster": (
        "gram_tile.cuh",
        {"int group = cluster.shares ? cluster.rank() : 0;": "int group = 0;"},
    ),
    "a cluster that does not wait": (
        "gram_tile.cuh",
        {"arch::cluster_arrive();\n        arch::cluster_wait();": "arch::cluster_arrive();"},
    ),
    "a hot loop that ignores the cold tier": (
        "pick_loop.cuh",
        {"if (!rule.has_priority(key_of(best))) return false;": ""},
    ),
    "a given token that is not taken": ("pick_loop.cuh", {"tokens.take(token);": ""}),
    "a given token at its old gain": ("coverage_state.cuh", {"if (arch::vote_ballot(stale) == 0) return;": "return;"}),
    "a token given twice on panels": ("panel.cuh", {"takes_part && next.tokens[before] != token;": "takes_part;"}),
    "similarities from one side of the diagonal": (
        "gram_epilogue.cuh",
        {"TileIndex{tile.column, tile.row}": "TileIndex{tile.row, tile.column}"},
    ),
    "a stale Coverage gain accepted": ("coverage_state.cuh", {"(is_fresh ? kFresh : 0u)": "kFresh"}),
}


def _run_native(sources: Path, build: Path, *words: str, optimise: str) -> subprocess.CompletedProcess[str]:
    """The native test program of the device code in `sources`, built in `build` and run."""
    options = [f"-DIDSEL_EMULATOR_SOURCES={sources}", "-DIDSEL_EMULATOR=ON", "-DIDSEL_EMULATOR_UNITY=ON"]
    emulated.run(
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_CXX_FLAGS_RELEASE={optimise}", *options
    )
    emulated.run("cmake", "--build", str(build), "--target", "test_emulated")
    program = build / "tests" / "emulator" / "test_emulated"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


def test_native_program_passes(tmp_path: Path) -> None:
    done = _run_native(ROOT / "csrc", tmp_path / "build", optimise="-O1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_caught(mutation: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutations"
    sources = folder / "csrc"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / "csrc" / "cuda", sources / "cuda")
    name, changes = MUTATIONS[mutation]
    text = (sources / "cuda" / name).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{name} has changed: {old!r}"
        text = text.replace(old, new)
    (sources / "cuda" / name).write_text(text)
    about_panels = "panel" in name or name == "cta_group.cuh" or "rises" in "".join(changes)
    # One build folder for all mutations: only the device code is built again. Most of them fail soon after.
    done = _run_native(sources, folder / "build", "panels" if about_panels else "gram", optimise="-O0")
    assert done.returncode == 1, f"{mutation} went unnoticed"
    assert "test_emulated.cpp" in done.stderr or "calls.h" in done.stderr

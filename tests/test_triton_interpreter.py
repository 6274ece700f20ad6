"""The Triton kernel on the CPU, under Triton's interpreter: every rule against the float64 replay.

Triton decides when it is imported whether to interpret, so these tests run in a pytest of their own, which
`tests/test_triton_engine.py` starts; called directly with TRITON_INTERPRET=1 they run in place.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import EXACT_RULES, INPUT_CASES, RULE_CASES, Call
from golden import GoldenRun, assert_agrees
from tolerances import GOLDEN_REGRET, REGRET

import idsel_kernels as idsel
from idsel_kernels.engines import triton as engine
from idsel_kernels.testing import check_selection, clustered, exact, ragged

pytest.importorskip("triton", reason="triton is not installed (pip install 'idsel_kernels[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a pytest of its own with TRITON_INTERPRET=1", allow_module_level=True)

from triton_interpreter import program_order, speed_up

from idsel_kernels.triton_impl import config, launch

# Coverage reads N x N numbers per pick, each block of them some forty NumPy calls here; fewer picks are as telling.
MOST_PICKS = 6
LARGE = ("N257-D40-k40", "N576-D64-k64")
# Parameters of branches that other rules go through with all inputs.
SAME_BRANCH = (
    "idselection-gamma5", "idselection-nofloor", "idselection-floor", "mmr-lam0", "mmr-lam1", "mmr-parallel3",
    "maxmin-start0", "hardsuppress-0.3", "coverage-add",
)  # fmt: skip
ALL_RULES = pytest.mark.parametrize("rule", [rule for rule in RULE_CASES if rule not in SAME_BRANCH])
FEW_INPUTS = ("N33-k33", "fp16", "uniform", "ties", "duplicates", "k-per-sample", "unusable", "ragged")

speed_up()


@contextmanager
def _sizes(monkeypatch: pytest.MonkeyPatch, change: Callable[[config.Config], config.Config]) -> Iterator[None]:
    """Launches with other tiles and blocks than the table has."""
    choose = config.choose
    monkeypatch.setattr(config, "choose", lambda *args, **kwargs: change(choose(*args, **kwargs)))
    launch.make_plan.cache_clear()
    yield
    launch.make_plan.cache_clear()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 16 and streamed blocks of 32, so that small inputs have many of them."""

    def smaller(sizes: config.Config) -> config.Config:
        return sizes._replace(tile=config.Tile(16, 16, 1), block_n=sizes.block_n if sizes.resident else 32)

    with _sizes(monkeypatch, smaller):
        yield


@pytest.fixture
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles and Coverage's blocks of 256: each is some forty NumPy calls here, however large it is."""
    monkeypatch.setattr(config, "COVER_BLOCK", (256, 256))
    with _sizes(monkeypatch, lambda sizes: sizes._replace(tile=config.Tile(256, 64, 1))):
        yield


@pytest.fixture
def panels(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget so small that no Gram of more than 16 tokens is kept."""
    monkeypatch.setattr(engine, "GRAM_BUDGET_BYTES", 16 * 16 * 4)


def _fewer(rule: str, case: str, call: Call) -> int | list[int]:
    """The picks to compare, fewer where the interpreter takes long."""
    if isinstance(call.k, list):
        return [min(k, 2 * MOST_PICKS) for k in call.k]
    if case in ("unusable", "N33-k33", "infinite-importance"):  # which show at the end
        return call.k
    return min(call.k, 2 if rule.startswith("coverage") and case in LARGE else MOST_PICKS)


@pytest.mark.parametrize(
    ("rule", "case"),
    [(rule, case) for rule in RULE_CASES for case in (FEW_INPUTS if rule in SAME_BRANCH else INPUT_CASES)],
)
def test_selects_what_the_rule_says(rule: str, case: str) -> None:
    call = INPUT_CASES[case]
    k = _fewer(rule, case, call)
    sel = idsel.select(**call.inputs(), k=k, rule=RULE_CASES[rule], backend="triton")
    check_selection(sel, **call.inputs(), rule=RULE_CASES[rule], k=k).assert_ok(REGRET)


def test_golden_runs(golden_run: GoldenRun, large_blocks: None) -> None:
    sel = idsel.select(**golden_run.inputs(), k=golden_run.k, rule=golden_run.rule, backend="triton")
    assert_agrees(golden_run, sel, GOLDEN_REGRET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 33, 16), (1, 66, 16), (1, 17, 1)], ids=str)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_exact_input_gives_the_same_bits(rule: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, tokens, dim = shape
    k = min(tokens, MOST_PICKS) if rule == "coverage" else min(tokens, 16)
    case = exact(batch, tokens, dim, seed=tokens, dtype=dtype)
    expected = idsel.testing.oracle(**case.inputs(), k=k, rule=RULE_CASES[rule])
    sel = idsel.select(**case.inputs(), k=k, rule=RULE_CASES[rule], backend="triton")
    assert torch.equal(sel.indices, expected.indices)
    assert torch.equal(sel.scores, expected.scores.float())


# --- Several programs per sample, in any order ------------------------------------------------------------------------


def _orders(programs: int) -> dict[str, list[int]]:
    shuffled = torch.randperm(programs, generator=torch.Generator().manual_seed(3)).tolist()
    forward = list(range(programs))
    return {"reversed": forward[::-1], "shuffled": shuffled}


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@ALL_RULES
def test_the_order_of_programs_changes_no_bit(rule: str, order: str, small_blocks: None) -> None:
    case = clustered(2, 50, 20, seed=1)
    expected = idsel.select(**case.inputs(), k=4, rule=RULE_CASES[rule], backend="triton")
    with program_order(lambda programs: _orders(programs)[order]) as ran:
        sel = idsel.select(**case.inputs(), k=4, rule=RULE_CASES[rule], backend="triton")
    programs = 4 if rule == "topk" else 10  # per sample: tile rows, or tiles of the upper triangle
    assert sorted(ran) == list(range(2 * programs)) and ran != sorted(ran)
    assert torch.equal(sel.indices, expected.indices) and torch.equal(sel.scores, expected.scores)
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)


@ALL_RULES
def test_fewer_programs_than_tiles_change_no_bit(
    rule: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = clustered(2, 50, 20, seed=2)
    expected = idsel.select(**case.inputs(), k=8, rule=RULE_CASES[rule], backend="triton")
    monkeypatch.setattr(launch, "_MOST_PROGRAMS", 3)
    launch.make_plan.cache_clear()
    sel = idsel.select(**case.inputs(), k=8, rule=RULE_CASES[rule], backend="triton")
    assert torch.equal(sel.indices, expected.indices) and torch.equal(sel.scores, expected.scores)


def test_counters_are_zero_after_every_launch() -> None:
    case = clustered(3, 100, 8)
    for _ in range(3):
        idsel.select(**case.inputs(), k=4, backend="triton")
    counters = engine.ENGINE._counters
    assert counters and not any(bool(values.any()) for values in counters.values())


# --- Where the Gram does not fit --------------------------------------------------------------------------------------

ROW_RULES = tuple(name for name in RULE_CASES if not name.startswith("coverage") and name not in SAME_BRANCH)


@pytest.mark.parametrize("rule", ROW_RULES)
def test_panels_pick_what_the_gram_does(rule: str, panels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(2, 40, 20, seed=5)
    sel = idsel.select(**case.inputs(), k=12, rule=RULE_CASES[rule], backend="triton")
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)
    monkeypatch.setattr(engine, "GRAM_BUDGET_BYTES", 2**30)
    with_gram = idsel.select(**case.inputs(), k=12, rule=RULE_CASES[rule], backend="triton")
    assert torch.equal(sel.indices, with_gram.indices)


@pytest.mark.parametrize("rule", ["mmr", "mmr-parallel3", "maxmin", "hardsuppress-0.3", "topk"])
def test_panels_of_exact_input_give_the_same_bits(rule: str, panels: None) -> None:
    case = exact(1, 40, 16, seed=1)
    expected = idsel.testing.oracle(**case.inputs(), k=25, rule=RULE_CASES[rule])
    sel = idsel.select(**case.inputs(), k=25, rule=RULE_CASES[rule], backend="triton")
    assert torch.equal(sel.indices, expected.indices)
    assert torch.equal(sel.scores, expected.scores.float())


@pytest.mark.parametrize("rule", ROW_RULES)
def test_a_ragged_batch_mixes_whole_grams_and_panels(rule: str, panels: None) -> None:
    case = ragged((5, 33, 0, 16, 17), 12, seed=4)
    sel = idsel.select(**case.inputs(), k=7, rule=RULE_CASES[rule], backend="triton")
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)


@pytest.mark.parametrize("rule", ["mmr", "dpp", "maxmin", "coverage"])
def test_a_batch_beyond_the_budget_takes_several_launches(
    rule: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = clustered(5, 30, 12, seed=6)
    together = idsel.select(**case.inputs(), k=6, rule=RULE_CASES[rule], backend="triton")
    monkeypatch.setattr(engine, "GRAM_BUDGET_BYTES", 2 * 4 * 30 * 60)
    launched = []
    first_samples = launch.Plan.first_samples
    monkeypatch.setattr(launch.Plan, "first_samples", lambda plan: launched.extend(p := list(first_samples(plan))) or p)
    apart = idsel.select(**case.inputs(), k=6, rule=RULE_CASES[rule], backend="triton")
    assert len(launched) > 1 and sum(samples for _, samples in launched) == 5
    assert torch.equal(apart.indices, together.indices) and torch.equal(apart.scores, together.scores)


@pytest.mark.parametrize("rule", ["idselection", "mmr", "maxmin-start0", "dpp", "coverage", "topk"])
def test_streamed_blocks_give_the_bits_of_registers(
    rule: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = clustered(1, 70, 16, seed=7)
    resident = idsel.select(**case.inputs(), k=10, rule=RULE_CASES[rule], sort=True, backend="triton")
    monkeypatch.setattr(config, "LARGEST_RESIDENT", 8)
    launch.make_plan.cache_clear()
    streamed = idsel.select(**case.inputs(), k=10, rule=RULE_CASES[rule], sort=True, backend="triton")
    assert torch.equal(streamed.indices, resident.indices) and torch.equal(streamed.scores, resident.scores)


# --- The rest of the API ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 9, 39])
def test_maxmin_starts_where_told(start: int) -> None:
    case = clustered(1, 40, 8)
    rule = idsel.MaxMin(start=start)
    sel = idsel.select(case.features, 10, rule, backend="triton")
    expected = idsel.testing.oracle(case.features, 10, rule)
    assert sel.indices[0, 0] == start and sel.scores[0, 0] == torch.inf
    check_selection(sel, case.features, rule).assert_ok(REGRET)
    assert torch.equal(sel.indices, expected.indices)


@pytest.mark.parametrize("radius", [0, 1, 3, 10**9])
def test_hard_suppress_on_a_grid(radius: int) -> None:
    case = clustered(2, 48, 16, seed=8)
    rule = idsel.HardSuppress(threshold=0.9, grid=(6, 8), radius=radius)
    sel = idsel.select(**case.inputs(), k=48, rule=rule, backend="triton")
    check_selection(sel, **case.inputs(), rule=rule).assert_ok(REGRET)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0, 300.0])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_coverage_exponents(alpha: float, combine: str) -> None:
    features, importance, _ = clustered(1, 30, 8, seed=9)
    importance[0, 3], importance[0, 4] = 0.0, 1e-30
    rule = idsel.Coverage(alpha=alpha, combine=combine)
    sel = idsel.select(features, 8, rule, importance, backend="triton")
    check_selection(sel, features, rule, importance).assert_ok(REGRET)


def test_coverage_of_negative_importance_follows_the_reference() -> None:
    features, importance, _ = clustered(1, 20, 8, seed=10)
    importance[0, ::3] *= -1
    for alpha in (0.5, 1.0, 2.0, 3.0):
        rule = idsel.Coverage(alpha=alpha)
        sel = idsel.select(features, 20, rule, importance, backend="triton")
        assert torch.equal(sel.indices, idsel.testing.oracle(features, 20, rule, importance).indices)


@ALL_RULES
def test_unusable_tokens_come_last_in_index_order(rule: str) -> None:
    features, importance, _ = clustered(1, 12, 8, seed=3)
    importance[0, 2], importance[0, 9] = float("nan"), float("-inf")
    features[0, 4, 1], features[0, 6, 0] = float("nan"), float("inf")
    sel = idsel.select(features, 12, RULE_CASES[rule], importance, backend="triton")
    assert sel.indices[0, 8:].tolist() == [2, 4, 6, 9]
    assert sel.scores[0, 8:].isneginf().all()


@ALL_RULES
def test_ties_go_to_the_lowest_index(rule: str) -> None:
    sel = idsel.select(torch.ones(1, 20, 16), 20, RULE_CASES[rule], torch.ones(1, 20), backend="triton")
    assert sel.indices[0].tolist() == list(range(20))
    sel = idsel.select(torch.zeros(1, 20, 4), 20, RULE_CASES[rule], torch.ones(1, 20), backend="triton")
    assert sel.indices[0].tolist() == list(range(20))


@ALL_RULES
def test_sorted_picks_keep_their_scores(rule: str) -> None:
    case = clustered(2, 30, 8)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 5:] = False
    arguments = dict(**case.inputs(), k=[9, 7], rule=RULE_CASES[rule], mask=mask, backend="triton")
    picked, ordered = idsel.select(**arguments), idsel.select(**arguments, sort=True)
    for b in range(2):
        pairs = list(zip(picked.indices[b].tolist(), picked.scores[b].tolist(), strict=True))
        expected = sorted(pair for pair in pairs if pair[0] >= 0) + [pair for pair in pairs if pair[0] < 0]
        assert list(zip(ordered.indices[b].tolist(), ordered.scores[b].tolist(), strict=True)) == expected


@ALL_RULES
def test_ragged_samples_have_the_bits_they_have_alone(rule: str) -> None:
    lengths, counts = (12, 0, 70, 1), [5, 3, 8, 2]
    case = ragged(lengths, 8, seed=2)
    together = idsel.select(**case.inputs(), k=counts, rule=RULE_CASES[rule], backend="triton")
    for b, (begin, end) in enumerate(itertools.pairwise(case.cu_seqlens.tolist())):
        if begin < end:
            part, importance = case.features[begin:end], case.importance[begin:end]
            alone = idsel.select(part, counts[b], RULE_CASES[rule], importance, backend="triton")
            assert torch.equal(together.indices[b, : counts[b]], alone.indices[0])
            assert torch.equal(together.scores[b, : counts[b]], alone.scores[0])
        assert (together.indices[b, min(counts[b], end - begin) :] == -1).all()


@ALL_RULES
def test_another_run_and_batch_mates_change_no_bit(rule: str) -> None:
    case = clustered(3, 40, 12, seed=11)
    together = idsel.select(**case.inputs(), k=5, rule=RULE_CASES[rule], backend="triton")
    again = idsel.select(**case.inputs(), k=5, rule=RULE_CASES[rule], backend="triton")
    assert torch.equal(again.indices, together.indices) and torch.equal(again.scores, together.scores)
    alone = idsel.select(case.features[1], 5, RULE_CASES[rule], case.importance[1], backend="triton")
    assert torch.equal(together.scores[1], alone.scores[0])


def test_empty_inputs_and_large_k() -> None:
    for shape in ((0, 5, 4), (2, 0, 4)):
        sel = idsel.select(torch.zeros(shape), 3, idsel.MMR(), torch.zeros(shape[:2]), backend="triton")
        assert sel.indices.shape == (shape[0], 3) and (sel.indices == -1).all() and sel.scores.isneginf().all()
    assert idsel.select(torch.eye(3), 0, idsel.MaxMin(), backend="triton").indices.shape == (1, 0)
    case = clustered(1, 10, 4)
    sel = idsel.select(**case.inputs(), k=10_000, rule=idsel.DPP(), backend="triton")
    assert (sel.indices[0, 10:] == -1).all() and sorted(sel.indices[0, :10].tolist()) == list(range(10))


def test_the_operator_reaches_the_engine() -> None:
    case = clustered(1, 20, 8)
    rule_id, params = idsel.MMR().encode()
    routed = torch.ops.idsel.select(case.features, [5], rule_id, params, case.importance, backend="triton")
    direct = idsel.select(**case.inputs(), k=5, rule=idsel.MMR(), backend="triton")
    assert torch.equal(routed[0], direct.indices)


def test_the_interpreter_runs_only_when_asked_for_by_name() -> None:
    case = clustered(1, 20, 8)
    automatic = idsel.explain(**case.inputs(), k=5)
    assert automatic.backend in ("cpu", "torch")
    assert automatic.reasons["triton"] == ("TRITON_INTERPRET=1 is for tests: it runs only when asked for by name",)
    named = idsel.explain(**case.inputs(), k=5, backend="triton")
    assert (named.backend, named.reasons["triton"]) == ("triton", ())
    assert named.algorithm.startswith("one launch")
    assert "triton" in idsel.available_backends()

"""What only Triton's interpreter shows of the Triton kernel on the CPU: any order of programs, small blocks, panels.

Every test that takes a backend runs in it too, as `triton-interpreted`. Triton decides when it is imported whether to
interpret, so both need a pytest started with TRITON_INTERPRET=1: `make kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from backends import INTERPRETED, IS_INTERPRETED, same, set_gram_budget
from cases import EXACT_RULES, RULE_CASES, SAME_BRANCH
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels.engines import triton as engine
from idsel_kernels.problem import Inputs, Problem
from idsel_kernels.testing import Case, check_selection, clustered, exact, ragged

if IS_INTERPRETED:
    from triton_interpreter import forget_plans, program_order, speed_up

    from idsel_kernels.triton_impl import config, launch

    speed_up()

pytestmark = list(INTERPRETED.marks)
ALL_RULES = pytest.mark.parametrize("rule", [rule for rule in RULE_CASES if rule not in SAME_BRANCH])


@contextmanager
def _sizes(monkeypatch: pytest.MonkeyPatch, change: Callable[[config.Config], config.Config]) -> Iterator[None]:
    """Launches with other tiles and blocks than the table has."""
    choose = config.choose
    monkeypatch.setattr(config, "choose", lambda *args, **kwargs: change(choose(*args, **kwargs)))
    forget_plans()
    yield
    forget_plans()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 16 and streamed blocks of 32, so that small inputs have many of them."""

    def smaller(sizes: config.Config) -> config.Config:
        return sizes._replace(tile=config.Tile(16, 16, 1), block_n=sizes.block_n if sizes.resident else 32)

    with _sizes(monkeypatch, smaller):
        yield


@pytest.fixture
def panels(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget so small that no Gram of more than 16 tokens is kept."""
    set_gram_budget(monkeypatch, "triton", 16 * 16 * 4)


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
    programs = 10 if RULE_CASES[rule].needs_similarities else 4  # per sample: tiles of the upper triangle, or tile rows
    assert sorted(ran) == list(range(2 * programs)) and ran != sorted(ran)
    assert same(sel, expected)
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)


@ALL_RULES
def test_fewer_programs_than_tiles_change_no_bit(
    rule: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = clustered(2, 50, 20, seed=2)
    expected = idsel.select(**case.inputs(), k=8, rule=RULE_CASES[rule], backend="triton")
    monkeypatch.setattr(launch, "_MOST_PROGRAMS", 3)
    forget_plans()
    sel = idsel.select(**case.inputs(), k=8, rule=RULE_CASES[rule], backend="triton")
    assert same(sel, expected)


def test_counters_are_zero_after_every_launch() -> None:
    case = clustered(3, 100, 8)
    for _ in range(3):
        idsel.select(**case.inputs(), k=4, backend="triton")
    counters = engine.ENGINE._counters.by_stream
    assert counters and not any(bool(values.any()) for values in counters.values())


# --- Where the Gram does not fit --------------------------------------------------------------------------------------

ROW_RULES = tuple(name for name in RULE_CASES if not name.startswith("coverage") and name not in SAME_BRANCH)


@pytest.mark.every_triton
@pytest.mark.parametrize("rule", ROW_RULES)
def test_panels_pick_what_the_gram_does(rule: str, panels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(2, 40, 20, seed=5)
    sel = idsel.select(**case.inputs(), k=12, rule=RULE_CASES[rule], backend="triton")
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)
    set_gram_budget(monkeypatch, "triton", 2**30)
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
    set_gram_budget(monkeypatch, "triton", 2 * 4 * 30 * 60)
    launched = []
    first_samples = launch.Plan.first_samples
    monkeypatch.setattr(launch.Plan, "first_samples", lambda plan: launched.extend(p := list(first_samples(plan))) or p)
    apart = idsel.select(**case.inputs(), k=6, rule=RULE_CASES[rule], backend="triton")
    assert len(launched) > 1 and sum(samples for _, samples in launched) == 5
    assert same(apart, together)


@pytest.mark.parametrize("rule", ["idselection", "mmr", "maxmin-start0", "dpp", "coverage", "topk"])
def test_streamed_blocks_give_the_bits_of_registers(
    rule: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = clustered(1, 70, 16, seed=7)
    resident = idsel.select(**case.inputs(), k=10, rule=RULE_CASES[rule], sort=True, backend="triton")
    monkeypatch.setattr(config, "LARGEST_RESIDENT", 8)
    forget_plans()
    streamed = idsel.select(**case.inputs(), k=10, rule=RULE_CASES[rule], sort=True, backend="triton")
    assert same(streamed, resident)


# --- Tokens to begin with ---------------------------------------------------------------------------------------------


def _any_tokens(tokens: int, count: int) -> torch.Tensor:
    """(2, count): different ones of each sample, one of them twice, and places without one."""
    generator = torch.Generator().manual_seed(count)
    given = torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(2)])
    given[:, 2], given[1, 4] = given[:, 0], -1
    return given


@pytest.fixture
def unread_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `given` lies on a GPU: nobody on the host has looked whether a token is there, and there once."""
    monkeypatch.setattr("idsel_kernels.checks.check_values", lambda *args, **kwargs: None)


@pytest.mark.parametrize("rule", EXACT_RULES)
def test_given_tokens_of_exact_input_are_followed_by_the_picks_of_the_formulas(rule: str, unread_values: None) -> None:
    case, given = exact(2, 33, 16, seed=3), _any_tokens(33, 9)
    given[0, 6], given[1, 7] = 33, 2**40
    listed = [[t for t in dict.fromkeys(row.tolist()) if 0 <= t < 33] for row in given]
    expected_given = torch.tensor([row + [-1] * (9 - len(row)) for row in listed])
    for k in (4, 20):
        sel = idsel.select(**case.inputs(), k=k, rule=RULE_CASES[rule], given=given, backend="triton")
        expected = idsel.testing.oracle(**case.inputs(), k=k, rule=RULE_CASES[rule], given=expected_given)
        assert torch.equal(sel.indices, expected.indices)
        assert torch.equal(sel.scores, expected.scores.float())


@pytest.mark.every_triton
@pytest.mark.parametrize("rule", ROW_RULES)
def test_panels_begin_with_given_tokens(
    rule: str, panels: None, unread_values: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a panel has rows, whatever their priorities; the next panel again has those that rank highest."""
    # Fewer dimensions than picks would leave DPP with rounding errors to choose from.
    case, given = clustered(2, 40, 40, seed=5), _any_tokens(40, 20)
    call = dict(**case.inputs(), k=26, rule=RULE_CASES[rule], given=given, backend="triton")
    sel = idsel.select(**call)
    set_gram_budget(monkeypatch, "triton", 2**30)
    assert torch.equal(sel.indices, idsel.select(**call).indices)
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule], given=given).assert_ok(REGRET)


@pytest.mark.parametrize("rule", ROW_RULES)
def test_a_ragged_batch_begins_with_given_tokens_on_panels_too(rule: str, panels: None, unread_values: None) -> None:
    case = ragged((5, 33, 0, 16, 17), 12, seed=4)
    given = torch.tensor([[4, 7, 1], [-1, 32, 20], [0, 0, 0], [3, 3, 15], [17, 2, 16]])
    sel = idsel.select(**case.inputs(), k=7, rule=RULE_CASES[rule], given=given, backend="triton")
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule], given=given).assert_ok(REGRET)


@pytest.mark.parametrize(
    "rule", ["idselection-ties", "mmr", "maxmin-start0", "hardsuppress", "dpp", "coverage", "topk"]
)
def test_streamed_blocks_begin_with_given_tokens_with_the_bits_of_registers(
    rule: str, small_blocks: None, unread_values: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, given = clustered(2, 70, 16, seed=7), _any_tokens(70, 8)
    call = dict(**case.inputs(), k=14, rule=RULE_CASES[rule], given=given, backend="triton")
    resident = idsel.select(**call)
    monkeypatch.setattr(config, "LARGEST_RESIDENT", 8)
    forget_plans()
    assert same(idsel.select(**call), resident)
    assert same(idsel.select(**call, sort=True), _in_order(resident))


def _in_order(sel: idsel.Selection) -> idsel.Selection:
    indices, order = sel.indices.sort(1)
    return idsel.Selection(indices, sel.scores.gather(1, order))


def test_each_launch_of_a_batch_begins_with_its_own_tokens(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(5, 30, 12, seed=6)
    given = torch.arange(15).view(5, 3)
    call = dict(**case.inputs(), k=6, rule=idsel.MMR(), given=given, backend="triton")
    together = idsel.select(**call)
    set_gram_budget(monkeypatch, "triton", 2 * 4 * 30 * 60)
    assert same(idsel.select(**call), together)
    assert torch.equal(together.indices[:, :3], given)


def test_how_many_are_given_compiles_nothing_anew() -> None:
    """The kernel knows whether there are any."""
    case = clustered(1, 20, 8)

    def constexprs(count: int) -> dict[str, object]:
        problem = Problem.of(Inputs(*case, given=torch.zeros((1, count), dtype=torch.int32)), idsel.MMR(), [5], False)
        return launch.make_plan(problem, 90, 2**30).constexprs

    assert constexprs(1) == constexprs(7)
    assert constexprs(0) == {**constexprs(1), "HAS_GIVEN": False}


# --- Similarities in place of features --------------------------------------------------------------------------------

COMPARING = pytest.mark.parametrize(
    "rule", [rule for rule in RULE_CASES if rule not in SAME_BRANCH and rule != "matrixcoverage"]
)
NAN, INF = float("nan"), float("inf")


def _cosines(case: Case) -> torch.Tensor:
    """(B, N, N) of `exact`, rounded nowhere."""
    return case.features @ case.features.mT / case.features.shape[-1]


def _symmetric(batch: int, tokens: int) -> torch.Tensor:
    """(B, N, N) cosines of `clustered`, the same bits on both sides of a diagonal that is not quite 1."""
    unit = torch.nn.functional.normalize(clustered(batch, tokens, 24).features, dim=-1)
    similarity = unit @ unit.mT
    return torch.maximum(similarity, similarity.mT)


def _pick(case: Case, k: int, rule: str, similarity: torch.Tensor, **more: Any) -> idsel.Selection:
    options = {"backend": "triton", **more}
    return idsel.select(None, k, RULE_CASES[rule], case.importance, similarity=similarity, **options)


@pytest.mark.every_triton
@pytest.mark.parametrize("masked", [False, True])
@COMPARING
def test_similarities_pick_with_the_bits_of_their_features(rule: str, masked: bool, small_blocks: None) -> None:
    case = exact(2, 33, 16, seed=5)
    mask = torch.arange(66).view(2, 33) % 4 != 1 if masked else None
    for k in (1, 12, 33):
        sel = _pick(case, k, rule, _cosines(case), mask=mask)
        call = dict(**case.inputs(), k=k, rule=RULE_CASES[rule], mask=mask)
        assert same(sel, idsel.select(**call, backend="triton"))
        if rule in EXACT_RULES:
            expected = idsel.testing.oracle(**call)
            assert torch.equal(sel.indices, expected.indices)
            assert torch.equal(sel.scores, expected.scores.float())


@COMPARING
def test_similarities_have_the_bits_of_the_reference_wherever_they_lie(rule: str, small_blocks: None) -> None:
    case, similarity = clustered(2, 45, 24), _symmetric(2, 45)
    expected = _pick(case, 12, rule, similarity)
    assert torch.equal(expected.indices, _pick(case, 12, rule, similarity, backend="torch").indices)
    wide = torch.full((2, 50, 100), NAN)
    inside, apart = wide.clone()[:, 2:47, 3:48], wide[:, 1:46, 4:94:2]
    between = torch.full((45, 2, 45), NAN).transpose(0, 1)
    for view in (inside, apart, between):
        view.copy_(similarity)
    batch_last = similarity.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for matrix in (similarity.mT, inside, inside.mT, apart, between, batch_last):
        assert same(_pick(case, 12, rule, matrix), expected)
    shared = _pick(case, 12, rule, similarity[1:].expand(2, -1, -1))
    assert same(shared, _pick(case, 12, rule, similarity[1:].repeat(2, 1, 1)))
    alone = idsel.select(None, 12, RULE_CASES[rule], case.importance[1], similarity=similarity[1], backend="triton")
    assert same(alone, idsel.Selection(expected.indices[1:], expected.scores[1:]))


def test_a_row_of_similarities_is_that_of_the_pick(small_blocks: None) -> None:
    similarity = torch.eye(3)
    similarity[0, 1] = 1.0
    scores = torch.tensor([3.0, 2.0, 1.0])
    for matrix, expected in ((similarity, [0, 2, 1]), (similarity.mT, [0, 1, 2])):
        sel = idsel.select(None, 3, idsel.HardSuppress(), scores, similarity=matrix, backend="triton")
        assert sel.indices.tolist() == [expected]
    # In tiles off the diagonal too. What every token covers: all of them, its own tile but for itself, or itself.
    covers = torch.eye(33)
    covers[20], covers[1, :16] = 1.0, 1.0
    sel = idsel.select(None, 3, idsel.Coverage(), torch.ones(33), similarity=covers, backend="triton")
    assert sel.indices.tolist() == [[20, 0, 1]]
    assert sel.scores.tolist() == [[33.0, 0.0, 0.0]]


@pytest.mark.every_triton
@COMPARING
def test_the_diagonal_of_similarities_says_what_a_token_is(rule: str, small_blocks: None) -> None:
    case = exact(2, 40, 16, seed=6)
    case.features[:, 5] = case.features[0, 37] = case.features[1, 9] = 0
    similarity = _cosines(case)
    for b, token, value in ((0, 37, -1.0), (1, 9, -0.0)):  # what they have with others is 0, whatever is there
        similarity[b, token], similarity[b, :, token] = INF, NAN
        similarity[b, token, token] = value
    for b, token, value in ((0, 3, NAN), (0, 18, INF), (1, 4, -INF), (1, 0, NAN)):
        case.features[b, token, 0] = NAN
        similarity[b, token], similarity[b, :, token] = NAN, INF
        similarity[b, token, token] = value
    for k in (10, 40):
        expected = idsel.select(**case.inputs(), k=k, rule=RULE_CASES[rule], backend="triton")
        assert same(_pick(case, k, rule, similarity), expected)


@pytest.mark.every_triton
@COMPARING
def test_similarities_are_clamped_and_a_token_is_like_itself(rule: str, small_blocks: None) -> None:
    case = exact(2, 40, 4, seed=7)  # many cosines of 1 and of -1
    similarity = _cosines(case)
    stretched = torch.where(similarity.abs() == 1, similarity * 1.5, similarity)
    stretched[0][similarity[0] == -1], stretched[1][similarity[1] == -1] = NAN, -INF
    stretched.diagonal(dim1=1, dim2=2).copy_(torch.linspace(0.01, 3.0, 80).view(2, 40))
    before = stretched.clone()
    assert same(_pick(case, 12, rule, stretched), _pick(case, 12, rule, similarity))
    assert torch.equal(stretched.nan_to_num(7.0), before.nan_to_num(7.0)), "the caller's matrix is read only"


@pytest.mark.parametrize("rule", [rule for rule in EXACT_RULES if rule != "matrixcoverage"])
def test_given_tokens_are_followed_by_picks_from_similarities(
    rule: str, small_blocks: None, unread_values: None
) -> None:
    case, given = exact(2, 33, 16, seed=3), _any_tokens(33, 9)
    sel = _pick(case, 20, rule, _cosines(case), given=given)
    assert same(sel, idsel.select(**case.inputs(), k=20, rule=RULE_CASES[rule], given=given, backend="triton"))


@COMPARING
def test_one_similarity_and_none(rule: str) -> None:
    scores = torch.ones(1, 1)
    expected = idsel.select(torch.ones(1, 1, 4), 2, RULE_CASES[rule], scores, backend="triton")
    assert expected.indices.tolist() == [[0, -1]]
    for own in (0.5, 1.0):
        assert same(_pick(Case(scores, scores), 2, rule, torch.full((1, 1, 1), own)), expected)
    empty = torch.ones(2, 0)
    assert _pick(Case(empty, empty), 2, rule, torch.ones(2, 0, 0)).indices.tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@COMPARING
def test_the_order_of_programs_that_read_similarities_changes_no_bit(
    rule: str, order: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, similarity = clustered(2, 50, 24), _symmetric(2, 50)
    expected = _pick(case, 4, rule, similarity)
    with program_order(lambda programs: _orders(programs)[order]) as ran:
        assert same(_pick(case, 4, rule, similarity), expected)
    programs = 16 if rule.startswith(("coverage", "maxmin")) and "start" not in rule else 4  # tiles, or tile rows
    assert sorted(ran) == list(range(2 * programs))
    monkeypatch.setattr(launch, "_MOST_PROGRAMS", 3)
    forget_plans()
    assert same(_pick(case, 4, rule, similarity), expected)


@pytest.mark.every_triton
@COMPARING
def test_no_budget_and_no_block_changes_picks_from_similarities(
    rule: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in memory already, so nobody needs panels of them, and Coverage is not refused."""
    case, similarity = clustered(2, 70, 24), _symmetric(2, 70)
    counts = torch.tensor([9, 4])
    options = {"k_max": 9, "sort": True}
    expected = _pick(case, counts, rule, similarity, **options)
    set_gram_budget(monkeypatch, "triton", 16 * 16 * 4)
    monkeypatch.setattr(config, "LARGEST_RESIDENT", 8)
    forget_plans()
    assert same(_pick(case, counts, rule, similarity, **options), expected)


def test_similarities_take_no_gram_in_the_workspace() -> None:
    inputs = Inputs(torch.empty(3, 4096, 4096, device="meta"))
    plan = launch.make_plan(Problem.of(inputs, idsel.MMR(), [64], False, similarity=True), 90, 2**24)
    assert (plan.workspace, plan.samples, plan.programs) == (3 * 7 * 4096, 3, 64)
    call = idsel.explain(None, 5, idsel.MMR(), torch.ones(4), similarity=torch.eye(4), backend="triton")
    assert call.algorithm == "one launch: similarities read where they lie, in 5 greedy steps"


# --- Who is chosen ----------------------------------------------------------------------------------------------------


def test_the_interpreter_runs_only_when_asked_for_by_name() -> None:
    case = clustered(1, 20, 8)
    automatic = idsel.explain(**case.inputs(), k=5)
    assert automatic.backend in ("cpu", "torch")
    assert automatic.reasons["triton"] == ("TRITON_INTERPRET=1 is for tests: it runs only when asked for by name",)
    named = idsel.explain(**case.inputs(), k=5, backend="triton")
    assert (named.backend, named.reasons["triton"]) == ("triton", ())
    assert named.algorithm.startswith("one launch")
    assert "triton" in idsel.available_backends()


def test_coverage_of_negative_importance_follows_the_reference() -> None:
    """Priorities of negative saliency rise as gains fall, so an old one is no bound."""
    features, _, _ = exact(2, 20, 16, seed=10)
    importance = torch.tensor([1.0, -2.0, 0.5, 4.0, -0.25]).repeat(4)[torch.arange(20) * 7 % 20].expand(2, 20)
    for alpha in (1.0, 2.0, 3.0):
        rule = idsel.Coverage(alpha=alpha)
        sel = idsel.select(features, 20, rule, importance, backend="triton")
        expected = idsel.testing.oracle(features, 20, rule, importance)
        assert torch.equal(sel.indices, expected.indices)
        assert torch.equal(sel.scores, expected.scores.float())
    features, importance, _ = clustered(1, 20, 8, seed=10)
    importance[0, ::3] *= -1
    for alpha in (0.5, 1.0, 2.0, 3.0):
        rule = idsel.Coverage(alpha=alpha)
        sel = idsel.select(features, 20, rule, importance, backend="triton")
        check_selection(sel, features, rule=rule, importance=importance).assert_ok(REGRET)


# --- D in parts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one k-tile, so that D = 40 has two, the second of them half empty."""
    monkeypatch.setattr(config, "_PART", 16)
    monkeypatch.setattr(config, "FEW_TILES", 20)  # those of two samples of 50 tokens
    forget_plans()


@pytest.mark.every_triton
@ALL_RULES
def test_programs_that_share_a_tile_give_the_bits_of_one(rule: str, parts: None) -> None:
    case = clustered(3, 50, 40, seed=8)
    alone = {name: value[:2] for name, value in case.inputs().items()}
    ran: list[list[int]] = []
    for order in ("reversed", "shuffled"):
        with program_order(lambda programs, order=order: _orders(programs)[order]) as programs:
            shared = idsel.select(**alone, k=8, rule=RULE_CASES[rule], backend="triton")
        ran.append(sorted(programs))
        check_selection(shared, **alone, rule=RULE_CASES[rule]).assert_ok(REGRET)
    with program_order(lambda programs: list(range(programs))) as programs:
        together = idsel.select(**case.inputs(), k=8, rule=RULE_CASES[rule], backend="triton")
    all_pairs = RULE_CASES[rule].needs_similarities
    tiles = 10 if all_pairs else 4
    assert ran == [list(range(2 * tiles * 2))] * 2
    # Three samples have more tiles, so one program has all of a tile; but for a rule that needs few.
    assert len(programs) == 3 * tiles * (1 if all_pairs else 2)
    assert same(shared, idsel.Selection(together.indices[:2], together.scores[:2]))
    counters = engine.ENGINE._counters.by_stream
    assert not any(bool(values.any()) for values in counters.values())


@pytest.mark.parametrize("rule", ["idselection", "maxmin", "dpp", "coverage"])
def test_a_sample_of_a_ragged_batch_has_the_bits_it_has_alone(
    rule: str, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "FEW_TILES", 6)  # of 16 tokens: up to 48
    forget_plans()
    case = ragged((5, 33, 0, 60), 40, seed=4)
    sel = idsel.select(**case.inputs(), k=7, rule=RULE_CASES[rule], backend="triton")
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)
    for sample, (begin, end) in enumerate(((0, 5), (5, 38), (38, 38), (38, 98))):
        if begin < end:
            alone = idsel.select(
                case.features[begin:end], 7, RULE_CASES[rule], case.importance[begin:end], backend="triton"
            )
            assert torch.equal(sel.indices[sample], alone.indices[0])
            assert torch.equal(sel.scores[sample], alone.scores[0])


# --- What has no priority ---------------------------------------------------------------------------------------------


@pytest.mark.every_triton
@pytest.mark.parametrize("importance", ["flat", "ties", "uniform"])
def test_many_picks_by_importance_alone(importance: str) -> None:
    """More tokens than a block of the select has, and values that many of them share."""
    case = clustered(1, 1300, 4, importance=importance)
    case.importance[0, 7::50], case.importance[0, 9::50] = float("nan"), float("-inf")
    for k in (1, 700, 1300):
        sel = idsel.select(**case.inputs(), k=k, rule=idsel.TopK(), backend="triton")
        expected = idsel.select(**case.inputs(), k=k, rule=idsel.TopK(), backend="torch")
        assert same(sel, expected)


def test_what_is_suppressed_follows_by_importance_and_keeps_its_order() -> None:
    case = clustered(2, 90, 8, seed=3)
    rule = idsel.HardSuppress(threshold=-0.9)  # hardly more than one pick has a priority
    sel = idsel.select(**case.inputs(), k=90, rule=rule, backend="triton")
    assert same(sel, idsel.select(**case.inputs(), k=90, rule=rule, backend="torch"))
    assert (sel.scores == -torch.inf).sum() > 150

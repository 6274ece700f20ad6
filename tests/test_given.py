"""Tokens that a selection begins with: `given`, in every form and for every rule, on the engines that take it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import for_shared_tests
from cases import RULE_CASES
from no_sync import nothing_read

import idsel_kernels as idsel
from idsel_kernels import DART, DPP, MMR, Elimination, HardSuppress, IDSelection, MaxMin, Rule
from idsel_kernels.engines.reference import Batch, first_picks
from idsel_kernels.problem import Inputs
from idsel_kernels.testing import Case, check_selection, clustered, ragged

INF = float("inf")
# Those that take tensors on the CPU, device code among them.
ENGINES = [backend for backend in for_shared_tests(None) if backend.device.type == "cpu"]
EACH_ENGINE = pytest.mark.parametrize(
    "engine", [pytest.param(backend, id=backend.id, marks=backend.marks) for backend in ENGINES], indirect=True
)
EACH_RULE = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """What `select` knows each engine by."""
    with request.param.running(request):
        yield request.param.name


def pick(case: Case, k: Any, rule: Rule, engine: str, **more: Any) -> idsel.Selection:
    return idsel.select(**case.inputs(), k=k, rule=rule, backend=engine, **more)


def assert_same(a: idsel.Selection, b: idsel.Selection) -> None:
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.scores, b.scores)


def some_tokens(case: Case, count: int, seed: int = 0) -> torch.Tensor:
    """(B, count), different ones of each sample."""
    generator = torch.Generator().manual_seed(seed)
    shape = case.importance.shape
    return torch.stack([torch.randperm(shape[1], generator=generator)[:count] for _ in range(shape[0])])


# --- What follows is what would have followed -------------------------------------------------------------------------


@EACH_ENGINE
@EACH_RULE
@pytest.mark.parametrize("tokens", [40, 300])
def test_given_its_own_first_picks_a_selection_is_the_same(rule: Rule, engine: str, tokens: int) -> None:
    if engine == "triton" and tokens > 100:
        pytest.skip("takes minutes in the interpreter, whose streamed blocks have tests of their own")
    case, k = clustered(2, tokens, 24, seed=tokens), tokens // 2
    plain = pick(case, k, rule, engine)
    for count in (0, 1, 2, 7, k, tokens):
        if count <= k:
            assert_same(pick(case, k, rule, engine, given=plain.indices[:, :count]), plain)
    whole = pick(case, tokens, rule, engine)
    assert_same(pick(case, 9, rule, engine, given=whole.indices), pick(case, 9, rule, engine))


@EACH_ENGINE
@EACH_RULE
def test_a_ragged_batch_begins_with_them_too(rule: Rule, engine: str) -> None:
    case = ragged((50, 1, 0, 33, 120), 24)
    k = [20, 1, 0, 33, 60]
    plain = pick(case, k, rule, engine)
    assert_same(pick(case, k, rule, engine, given=plain.indices[:, :5]), plain)
    own = torch.tensor([[3, 9, -1], [-1, 0, -1], [-1, -1, -1], [32, 0, 5], [-1, -1, 119]])
    together = pick(case, k, rule, engine, given=own)
    check_selection(together, **case.inputs(), rule=rule, k=k, given=own).assert_ok()
    offsets = case.inputs()["cu_seqlens"].tolist()
    for b, (begin, end) in enumerate(itertools.pairwise(offsets)):
        alone = idsel.select(
            case.features[begin:end], k[b], rule, case.importance[begin:end], given=own[b], backend=engine
        )
        assert torch.equal(together.indices[b, : k[b]], alone.indices[0])
        assert torch.equal(together.scores[b, : k[b]], alone.scores[0])


@EACH_ENGINE
@EACH_RULE
def test_picks_after_any_tokens_are_those_of_the_formulas(rule: Rule, engine: str) -> None:
    rounds = list(enumerate((3, 20, 20, 60)))
    # Device code on a CPU takes seconds each.
    for seed, k in rounds if engine in ("torch", "cpu") else rounds[1:2]:
        # Fewer dimensions than picks would leave DPP with rounding errors to choose from.
        case = clustered(2, 60, 64, seed=seed, importance="flat" if seed % 2 else "skewed")
        if seed == 2:
            case = Case(case.features, -case.importance)
        given = some_tokens(case, 1 + 3 * (seed % 3), seed)
        sel = pick(case, k, rule, engine, given=given)
        assert torch.equal(sel.indices[:, : given.shape[1]], given[:, :k])
        check_selection(sel, **case.inputs(), rule=rule, given=given).assert_ok()


@EACH_ENGINE
@EACH_RULE
def test_tokens_that_do_not_take_part_are_passed_over(rule: Rule, engine: str) -> None:
    case = clustered(1, 30, 16)
    case.features[0, 4, 0] = float("nan")
    case.features[0, 6] = 0.0
    case.importance[0, 5] = float("nan")
    mask = torch.arange(30)[None] != 8
    given = torch.tensor([[4, 5, 12, -1, 6, 20]])
    sel = pick(case, 29, rule, engine, given=given, mask=mask)
    assert sel.indices[0, :3].tolist() == [12, 6, 20]
    check_selection(sel, **case.inputs(), rule=rule, mask=mask, given=given).assert_ok()


@EACH_ENGINE
def test_the_mask_form_is_the_indices_in_order(engine: str) -> None:
    dense, mask = clustered(3, 40, 16), torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    rows = [row.nonzero()[:, 0] for row in mask]
    listed = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    for k in (2, 15, 40):
        assert_same(pick(dense, k, MMR(), engine, given=mask), pick(dense, k, MMR(), engine, given=listed))
    there = mask.roll(1, 1) | ~mask
    kept = pick(dense, 15, MMR(), engine, given=mask, mask=there)
    listed = torch.where((listed >= 0) & there.gather(1, listed.clamp(min=0)), listed, -1)
    assert_same(kept, pick(dense, 15, MMR(), engine, given=listed, mask=there))
    case = ragged((7, 0, 30, 3), 16)
    chosen = torch.arange(40) % 3 == 1
    own = torch.tensor([[1, 4, *[-1] * 8], [-1] * 10, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27], [0, *[-1] * 9]])
    assert_same(pick(case, 6, MMR(), engine, given=chosen), pick(case, 6, MMR(), engine, given=own))
    single = idsel.select(dense.features[1], 9, MMR(), dense.importance[1], given=mask[1], backend=engine)
    assert torch.equal(single.indices, pick(dense, 9, MMR(), engine, given=mask).indices[1:2])


@EACH_ENGINE
def test_a_suppressed_token_that_is_given_still_suppresses(engine: str) -> None:
    features = torch.tensor([[1.0, 0.0], [0.95, 0.3], [0.75, 0.66], [0.0, 1.0]])
    sel = idsel.select(
        features, 3, HardSuppress(threshold=0.9), torch.tensor([4.0, 3.0, 2.0, 1.0]), given=torch.tensor([0, 1]),
        backend=engine,
    )  # fmt: skip
    assert sel.indices.tolist() == [[0, 1, 3]]  # 2 is like 1, and 1 like 0
    assert sel.scores.tolist() == [[4.0, -INF, 1.0]]


@EACH_ENGINE
def test_a_token_without_a_priority_takes_none_off_others(engine: str) -> None:
    case = clustered(1, 40, 16)
    spanned = torch.cat([case.features[:, :1]] * 2 + [case.features[:, 2:]], 1)
    sel = idsel.select(spanned, 12, DPP(), case.importance, given=torch.tensor([[0, 1]]), backend=engine)
    without = idsel.select(spanned, 11, DPP(), case.importance, given=torch.tensor([[0]]), backend=engine)
    assert sel.scores[0, 1] == -INF
    assert sel.indices[0, 2:].tolist() == without.indices[0, 1:].tolist()
    torch.testing.assert_close(sel.scores[0, 2:], without.scores[0, 1:])
    floor = IDSelection(floor=0.5, ties="importance")
    low = case.importance.argmin(1, keepdim=True)
    sel = pick(case, 12, floor, engine, given=low)
    assert sel.scores[0, 0] == -INF
    assert sel.indices[0, 1:].tolist() == pick(case, 11, floor, engine).indices[0].tolist()


@EACH_ENGINE
def test_maxmin_begins_with_them_and_not_with_its_start(engine: str) -> None:
    case = clustered(1, 50, 16)
    given = torch.tensor([[7, 31]])
    for weighted in (False, True):
        one, other = (pick(case, 20, MaxMin(start, weighted), engine, given=given) for start in (None, 3))
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.scores[:, 1:], other.scores[:, 1:])


@EACH_ENGINE
def test_all_tokens_rank_alike_where_the_start_is_masked(engine: str) -> None:
    case, mask = clustered(1, 50, 16), torch.arange(50)[None] != 3
    for masked, score in ((None, -INF), (mask, INF)):
        sel = pick(case, 20, MaxMin(start=3), engine, given=torch.tensor([[7, 31]]), mask=masked)
        assert sel.scores[0, 0] == score
        check_selection(sel, **case.inputs(), rule=MaxMin(start=3), mask=masked, given=sel.indices[:, :2]).assert_ok()


# --- Counts, order, plans, tracing ------------------------------------------------------------------------------------


@EACH_ENGINE
def test_k_counts_them(engine: str) -> None:
    case, given = clustered(2, 40, 16), torch.tensor([[5, 6, 7], [1, 2, 3]])
    assert pick(case, 2, MMR(), engine, given=given).indices.tolist() == [[5, 6], [1, 2]]
    counts = pick(case, torch.tensor([1, 5]), MMR(), engine, given=given, k_max=5)
    assert counts.indices[0].tolist() == [5, -1, -1, -1, -1]
    assert counts.indices[1, :3].tolist() == [1, 2, 3]
    in_order = pick(case, 10, MMR(), engine, given=given, sort=True)
    assert torch.equal(in_order.indices, pick(case, 10, MMR(), engine, given=given).indices.sort(1).values)


@EACH_ENGINE
def test_strides_and_integer_types_are_free(engine: str) -> None:
    case, given = clustered(2, 40, 16), torch.tensor([[5, 6, 7], [1, 2, 3]])
    expected = pick(case, 10, MMR(), engine, given=given)
    for other in (given.int(), given.T.contiguous().T, given.int().repeat_interleave(2, 1)[:, ::2]):
        for _ in range(2):
            assert_same(pick(case, 10, MMR(), engine, given=other), expected)
    assert_same(
        pick(case, 10, MMR(), engine, given=given.flip(1)), pick(case, 10, MMR(), engine, given=given[:, [2, 1, 0]])
    )


@EACH_ENGINE
def test_a_tensor_whose_memory_is_not_its_values_is_taken_for_its_values(engine: str) -> None:
    case, given = clustered(2, 40, 16), torch.tensor([[5, 6, 7], [1, 2, 3]])
    expected = pick(case, 10, MMR(), engine, given=given)
    for integers in (given, given.int()):
        assert_same(pick(case, 10, MMR(), engine, given=torch._neg_view(-integers)), expected)
        zeros = torch._efficientzerotensor((2, 1), dtype=integers.dtype)
        assert_same(
            pick(case, 10, MMR(), engine, given=zeros), pick(case, 10, MMR(), engine, given=integers[:, :1] * 0)
        )
    mask = torch._efficientzerotensor((2, 40), dtype=torch.bool)
    assert_same(pick(case, 10, MMR(), engine, given=mask), pick(case, 10, MMR(), engine))


@EACH_ENGINE
def test_plan_prune_and_the_operator_take_them(engine: str) -> None:
    case, given = clustered(2, 40, 16), torch.tensor([[5, 6, 7], [1, 2, 3]])
    expected = pick(case, 10, MMR(), engine, given=given)
    plan = idsel.plan(*case[:1], 10, MMR(), case.importance, given=given, backend=engine)
    assert_same(plan.run(*case[:2], given=given), expected)
    other = plan.run(*case[:2], given=given.flip(1))
    assert_same(other, pick(case, 10, MMR(), engine, given=given.flip(1)))
    with pytest.raises(ValueError, match=r"given must be \(2, 3\) torch.int64 on cpu, as planned, got None"):
        plan.run(*case[:2])
    with pytest.raises(TypeError, match=r"given must be torch\.int32 or torch\.int64 in a plan, got torch\.bool"):
        idsel.plan(*case[:1], 10, MMR(), case.importance, given=case.importance > 0, backend=engine)
    pruned = idsel.prune(case.features, 10, MMR(), case.importance, given=given, backend=engine, order="pick")
    assert torch.equal(pruned.indices, expected.indices)
    rule_id, params = MMR().encode()
    options = {"importance": case.importance, "given": given, "backend": engine}
    assert torch.equal(torch.ops.idsel.select(case.features, [10], rule_id, params, **options)[0], expected.indices)
    mask = torch.zeros(2, 40, dtype=torch.bool).scatter_(1, given, True)
    options["given"] = mask
    assert torch.equal(torch.ops.idsel.select(case.features, [10], rule_id, params, **options)[0], expected.indices)
    assert idsel.explain(*case[:1], 10, MMR(), case.importance, given=given, backend=engine).backend == engine


def test_compiled_programs_take_both_forms() -> None:
    case, given = clustered(2, 40, 16), torch.tensor([[5, 6, 7], [1, 2, 3]])

    def both(features: torch.Tensor, given: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        listed = idsel.mmr_select(features, 9, case.importance, given=given).indices
        return listed, idsel.mmr_select(features, 9, case.importance, given=mask).indices

    mask = torch.zeros(2, 40, dtype=torch.bool).scatter_(1, given, True)
    compiled = torch.compile(both, fullgraph=True, backend="eager")(case.features, given, mask)
    assert all(map(torch.equal, compiled, both(case.features, given, mask)))
    assert torch.equal(*compiled)


def test_nothing_is_read_from_the_device() -> None:
    case, given = clustered(2, 40, 8), torch.tensor([[5, 6, 5, 99], [-1, 2, 3, 2]])
    batch = Batch(Inputs(*case), torch.float32, False)
    expected = [[5, 6, -1, -1], [2, 3, -1, -1]]
    assert first_picks(batch, given, 10).tolist() == expected
    with nothing_read():
        found = first_picks(batch, given, 10)
    assert found.tolist() == expected


# --- What is refused --------------------------------------------------------------------------------------------------


def refused(**changes: Any) -> dict[str, Any]:
    case = clustered(2, 9, 4)
    return {**case.inputs(), "k": 3, "rule": MMR(), "given": torch.tensor([[0], [1]]), **changes}


BAD_CALLS = {
    "list": (refused(given=[[0], [1]]), TypeError, "given must be a torch.Tensor, got list"),
    "floats": (
        refused(given=torch.rand(2, 1)), TypeError,
        "given must be torch.int32 or torch.int64, or a mask in torch.bool, got torch.float32",
    ),
    "batch": (
        refused(given=torch.zeros(3, 1).long()), ValueError,
        "given must be (B, M) with B = 2, or a mask in torch.bool, got shape (3, 1)",
    ),
    "axes": (
        refused(given=torch.zeros(2).long()), ValueError,
        "given must be (B, M) with B = 2, or a mask in torch.bool, got shape (2,)",
    ),
    "mask": (
        refused(given=torch.ones(2, 8).bool()), ValueError,
        "given must be (B, N) = (2, 9) to match features, got (2, 8)",
    ),
    "beyond": (refused(given=torch.tensor([[0], [9]])), ValueError, "given[1] must be < N = 9, got 9"),
    "twice": (
        refused(given=torch.tensor([[0, 1], [3, 3]])), ValueError, "given[1] must name a token once, got 3 twice",
    ),
    "masked": (
        refused(mask=torch.arange(18).view(2, 9) != 10), ValueError, "given[1] must not be masked, got 1, which is",
    ),
    "eliminated": (
        refused(rule=Elimination()), ValueError,
        "given goes with rules that pick one by one, got it with Elimination",
    ),
    "dart": (refused(rule=DART()), ValueError, "given goes with rules that pick one by one, got it with DART"),
}  # fmt: skip


@EACH_ENGINE
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name: str, engine: str) -> None:
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind) as caught:
        idsel.select(**call, backend=engine)
    assert str(caught.value) == message


def test_a_wrong_first_pick_is_a_defect() -> None:
    case, given = clustered(1, 30, 16), torch.tensor([[4, 9]])
    report = check_selection(pick(case, 9, MMR(), "torch"), **case.inputs(), rule=MMR(), given=given)
    assert report.defects[0].startswith("sample 0: the first picks must be those given, [4, 9], got [")
    sel = pick(case, 9, MMR(), "torch", given=given)
    with pytest.raises(AssertionError, match="regret"):
        check_selection(sel, **case.inputs(), rule=MMR()).assert_ok()
    worse = sel.indices.clone()
    worse[0, 5] = next(j for j in range(30) if j not in sel.indices[0].tolist())
    with pytest.raises(AssertionError):
        changed = idsel.Selection(worse, sel.scores)
        check_selection(changed, **case.inputs(), rule=MMR(), given=given).assert_ok()

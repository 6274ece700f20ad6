"""Similarities in place of features: `similarity`, for every rule that compares tokens, on the engines that take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import for_shared_tests
from cases import RULE_CASES
from no_sync import nothing_read, to_meta

import idsel_kernels as idsel
from idsel_kernels import (
    DART,
    DPP,
    MMR,
    Coverage,
    Elimination,
    HardSuppress,
    IDSelection,
    MatrixCoverage,
    MaxMin,
    Rule,
)
from idsel_kernels.engines import cpu
from idsel_kernels.engines.reference import Batch
from idsel_kernels.problem import Inputs
from idsel_kernels.testing import Case, assert_parity, check_selection, clustered, exact, oracle

INF, NAN = float("inf"), float("nan")
# Device code takes similarities in test_emulator.py, test_triton_interpreter.py and test_gpu.py.
ENGINES = [backend for backend in for_shared_tests(None) if backend.id in ("torch", "cpu")]
EACH_ENGINE = pytest.mark.parametrize(
    "engine", [pytest.param(backend, id=backend.id, marks=backend.marks) for backend in ENGINES], indirect=True
)
GREEDY_CASES = {name: rule for name, rule in RULE_CASES.items() if not isinstance(rule, MatrixCoverage)}
AT_ONCE_CASES: dict[str, Rule] = {
    "elimination": Elimination(),
    "elimination-position": Elimination(order="position"),
    "dart": DART(),
    "dart-text": DART(2, text_pivots=3),
}
CASES = {**GREEDY_CASES, **AT_ONCE_CASES}
EACH_RULE = pytest.mark.parametrize("rule", CASES.values(), ids=CASES)
EACH_GREEDY_RULE = pytest.mark.parametrize("rule", GREEDY_CASES.values(), ids=GREEDY_CASES)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """What `select` knows each engine by."""
    with request.param.running(request):
        yield request.param.name


def gram(features: torch.Tensor) -> torch.Tensor:
    """(B, N, N) cosines in float32, those of a token with itself as rounding leaves them."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return (unit @ unit.mT).float()


def exact_gram(case: Case) -> torch.Tensor:
    """Of `exact`: rounded nowhere."""
    return case.features @ case.features.mT / case.features.shape[-1]


def pick(case: Case, k: Any, rule: Rule, engine: str, similarity: torch.Tensor, **more: Any) -> idsel.Selection:
    return idsel.select(None, k, rule, case.importance, similarity=similarity, backend=engine, **more)


def assert_same(a: idsel.Selection, b: idsel.Selection) -> None:
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.scores, b.scores)


# --- The picks are those of features with these similarities ----------------------------------------------------------


@EACH_ENGINE
@EACH_RULE
@pytest.mark.parametrize("shape", [(2, 33, 16), (3, 17, 4), (1, 70, 1), (2, 300, 64)], ids=str)
def test_the_gram_of_features_picks_what_they_pick(rule: Rule, engine: str, shape: tuple[int, int, int]) -> None:
    case = exact(*shape)
    similarity, tokens = exact_gram(case), shape[1]
    for k in (1, 2, tokens // 3, tokens - 1, tokens):
        assert_same(
            pick(case, k, rule, engine, similarity),
            idsel.select(case.features, k, rule, case.importance, backend=engine),
        )


@EACH_ENGINE
@EACH_GREEDY_RULE
@pytest.mark.parametrize("tokens", [1, 2, 60, 301])
def test_picks_are_those_of_the_formulas(rule: Rule, engine: str, tokens: int) -> None:
    for seed, k in enumerate((1, tokens // 2, tokens, tokens + 3)):
        case = clustered(2, tokens, 64, seed=seed, importance="ties" if seed % 2 else "skewed")
        if seed == 2:
            case = Case(case.features, -case.importance)
        similarity = gram(case.features)
        sel = pick(case, k, rule, engine, similarity)
        check_selection(sel, None, rule, case.importance, similarity=similarity).assert_ok()


@EACH_ENGINE
@pytest.mark.parametrize("rule", AT_ONCE_CASES.values(), ids=AT_ONCE_CASES)
def test_rules_that_decide_at_once_look_up_the_same(rule: Rule, engine: str) -> None:
    for seed in range(4):
        case = clustered(2, 90, 64, seed=seed)
        similarity = gram(case.features)
        for k in (1, 30, 89):
            expected = oracle(None, k, rule, case.importance, similarity=similarity, dtype=torch.float32)
            assert torch.equal(pick(case, k, rule, engine, similarity).indices, expected.indices)


@EACH_ENGINE
@EACH_GREEDY_RULE
def test_similarities_need_be_of_no_features(rule: Rule, engine: str) -> None:
    # Not positive semidefinite: for DPP then too, what is left of a token stays what the formulas say.
    generator = torch.Generator().manual_seed(0)
    half = torch.rand(2, 50, 50, generator=generator) * 1.2 - 0.6
    similarity = (half + half.mT) / 2
    similarity.diagonal(dim1=1, dim2=2).fill_(1)
    case = clustered(2, 50, 8, importance="uniform")
    k = 4 if isinstance(rule, DPP) else 20
    sel = pick(case, k, rule, engine, similarity)
    check_selection(sel, None, rule, case.importance, similarity=similarity).assert_ok()


@EACH_ENGINE
def test_a_sample_does_not_depend_on_its_batch_mates(engine: str) -> None:
    case = clustered(4, 50, 24)
    similarity = gram(case.features)
    for rule in CASES.values():
        together = pick(case, 20, rule, engine, similarity)
        for b in range(4):
            alone = idsel.select(None, 20, rule, case.importance[b], similarity=similarity[b], backend=engine)
            assert torch.equal(together.indices[b], alone.indices[0])
            assert torch.equal(together.scores[b], alone.scores[0])


# --- What a value means -----------------------------------------------------------------------------------------------


@EACH_ENGINE
@EACH_RULE
def test_values_are_clamped_and_the_diagonal_counts_as_1(rule: Rule, engine: str) -> None:
    case = exact(2, 64, 4)  # many cosines of 1 and of -1
    similarity = exact_gram(case)
    stretched = torch.where(similarity.abs() == 1, similarity * 1.25, similarity)
    stretched[0, 0, 1:][similarity[0, 0, 1:] == -1] = NAN
    stretched[0, 1:, 0][similarity[0, 1:, 0] == -1] = NAN
    stretched[1][similarity[1] == -1] = -INF
    stretched.diagonal(dim1=1, dim2=2).copy_(torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) * 2 + 0.1)
    assert bool(stretched.isnan().any())
    for k in (3, 30, 64):
        assert_same(pick(case, k, rule, engine, stretched), pick(case, k, rule, engine, similarity))


@EACH_ENGINE
@EACH_RULE
def test_the_diagonal_says_what_a_token_is(rule: Rule, engine: str) -> None:
    case = exact(2, 40, 16)
    case.features[:, 5] = 0
    case.features[0, 7] = case.features[1, 9] = 0
    similarity = exact_gram(case)
    similarity[0, 7, 7], similarity[1, 9, 9] = -1.0, -0.0
    unusable = similarity.clone()
    for b, j, value in ((0, 3, NAN), (0, 8, INF), (1, 4, -INF), (1, 0, NAN)):
        case.features[b, j, 0] = NAN
        unusable[b, j, j] = value
    for k in (1, 10, 37, 40):
        expected = idsel.select(case.features, k, rule, case.importance, backend=engine)
        assert_same(pick(case, k, rule, engine, unusable), expected)
        # What an unusable token has with others counts for nothing.
        unusable[0, 3, :3], unusable[0, :3, 3], unusable[1, 0, 1:], unusable[1, 1:, 0] = NAN, INF, NAN, NAN
        assert_same(pick(case, k, rule, engine, unusable), expected)


@EACH_ENGINE
@EACH_RULE
def test_masked_tokens_may_hold_anything(rule: Rule, engine: str) -> None:
    case = exact(2, 40, 16)
    similarity = exact_gram(case)
    mask = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[0, 2], mask[:, -3:] = False, True
    for k in (5, 40):
        expected = idsel.select(case.features, k, rule, case.importance, mask=mask, backend=engine)
        spoilt = similarity.masked_fill(~mask[:, None] | ~mask[:, :, None], NAN)
        sel = pick(case, k, rule, engine, spoilt, mask=mask, validate=not isinstance(rule, MaxMin))
        assert_same(sel, expected)


@EACH_ENGINE
def test_a_row_is_read_of_each_pick(engine: str) -> None:
    similarity = torch.eye(3)
    similarity[0, 1] = 1.0  # 1 is like 0 in the row of 0
    scores = torch.tensor([3.0, 2.0, 1.0])
    for matrix, expected in ((similarity, [0, 2, 1]), (similarity.mT, [0, 1, 2])):
        sel = idsel.select(None, 3, HardSuppress(), scores, similarity=matrix, backend=engine)
        assert sel.indices.tolist() == [expected]


@EACH_ENGINE
@pytest.mark.parametrize("name", ["idselection", "mmr", "hardsuppress-0.3", "dpp", "maxmin-start0"])
def test_of_two_that_differ_the_one_in_the_row_of_the_pick_counts(name: str, engine: str) -> None:
    rule, case = CASES[name], clustered(2, 60, 8, importance="uniform")
    similarity = torch.rand(2, 60, 60, generator=torch.Generator().manual_seed(0)) * 0.8 - 0.2
    similarity.diagonal(dim1=1, dim2=2).fill_(1)
    k = 4 if isinstance(rule, DPP) else 30
    for matrix in (similarity, similarity.mT):
        sel = pick(case, k, rule, engine, matrix)
        check_selection(sel, None, rule, case.importance, similarity=matrix).assert_ok()


@EACH_ENGINE
def test_one_token_and_none(engine: str) -> None:
    for name, rule in CASES.items():
        if name == "dart-text":
            continue
        one = idsel.select(None, 2, rule, torch.ones(1), similarity=torch.tensor([[0.5]]), backend=engine)
        assert one.indices.tolist() == [[0, -1]]
        same = idsel.select(torch.ones(1, 4), 2, rule, torch.ones(1), backend=engine)
        assert torch.equal(one.scores, same.scores)
        none = idsel.select(None, 2, rule, torch.ones(2, 0), similarity=torch.ones(2, 0, 0), backend=engine)
        assert none.indices.tolist() == [[-1, -1]] * 2
    empty = idsel.select(None, 2, MMR(), torch.ones(0, 4), similarity=torch.ones(0, 4, 4), backend=engine)
    assert empty.indices.shape == (0, 2)


# --- How it lies ------------------------------------------------------------------------------------------------------


def layouts(similarity: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values (B, N, N), which are symmetric, with other strides."""
    batch, tokens, _ = similarity.shape
    wide = torch.full((batch, tokens + 3, 2 * tokens + 5), NAN)
    inside = wide[:, 2 : tokens + 2, 3 : tokens + 3]
    apart = wide.clone()[:, 1 : tokens + 1, 4 : 4 + 2 * tokens : 2]
    interleaved = torch.full((tokens, batch, tokens), NAN).transpose(0, 1)
    for view in (inside, apart, interleaved):
        view.copy_(similarity)
    return {
        "transposed": similarity.mT,
        "inside": inside,
        "inside-transposed": inside.mT,
        "apart": apart,
        "interleaved": interleaved,
        "batch-last": similarity.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "negated": torch._neg_view(-similarity),
    }


@EACH_ENGINE
@EACH_RULE
def test_strides_are_free(rule: Rule, engine: str) -> None:
    case = clustered(3, 45, 24)
    similarity = gram(case.features)
    assert torch.equal(similarity, similarity.mT)
    expected = pick(case, 20, rule, engine, similarity)
    for name, matrix in layouts(similarity).items():
        for _ in range(2):
            sel = pick(case, 20, rule, engine, matrix)
            assert torch.equal(sel.indices, expected.indices), name
            assert torch.equal(sel.scores, expected.scores), name
    shared = pick(case, 20, rule, engine, similarity[:1].expand(3, -1, -1))
    assert_same(shared, pick(case, 20, rule, engine, similarity[:1].repeat(3, 1, 1)))


@EACH_ENGINE
def test_the_matrix_is_not_written_to(engine: str) -> None:
    case = clustered(2, 45, 24)
    similarity = gram(case.features) * 1.5
    before = similarity.clone()
    for rule in CASES.values():
        pick(case, 20, rule, engine, similarity.requires_grad_())
        assert torch.equal(similarity.detach(), before)


def test_the_cpu_engine_computes_none() -> None:
    case = clustered(2, 300, 64)
    similarity = gram(case.features)
    for name, rule in CASES.items():
        with cpu.record_stats() as calls:
            pick(case, 100, rule, "cpu", similarity)
        assert [(s.similarities, s.norms) for s in calls[0]] == [(0, 0)] * 2, name


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing_on_the_cpu(threads: int) -> None:
    case = clustered(1, 700, 32)
    similarity = gram(case.features)
    before = torch.get_num_threads()
    for rule in CASES.values():
        expected = pick(case, 300, rule, "cpu", similarity)
        torch.set_num_threads(threads)
        try:
            assert_same(pick(case, 300, rule, "cpu", similarity), expected)
        finally:
            torch.set_num_threads(before)


# --- With other arguments ---------------------------------------------------------------------------------------------


@EACH_ENGINE
@EACH_GREEDY_RULE
def test_given_tokens_come_first(rule: Rule, engine: str) -> None:
    case = clustered(2, 60, 64)
    similarity = gram(case.features)
    given = torch.tensor([[5, 59, -1], [0, 17, 3]])
    sel = pick(case, 20, rule, engine, similarity, given=given)
    assert sel.indices[0, :2].tolist() == [5, 59]
    check_selection(sel, None, rule, case.importance, given=given, similarity=similarity).assert_ok()
    plain = pick(case, 20, rule, engine, similarity)
    assert_same(pick(case, 20, rule, engine, similarity, given=plain.indices[:, :4]), plain)


@EACH_ENGINE
def test_counts_order_and_grids(engine: str) -> None:
    case = clustered(3, 42, 16)
    similarity = gram(case.features)
    plain = pick(case, 12, MMR(), engine, similarity)
    several = pick(case, [3, 12, 0], MMR(), engine, similarity)
    on_device = pick(case, torch.tensor([3, 12, 0]), MMR(), engine, similarity, k_max=12)
    for sel in (several, on_device):
        assert torch.equal(sel.indices[1], plain.indices[1])
        assert torch.equal(sel.indices[0, :3], plain.indices[0, :3])
        assert sel.counts.tolist() == [3, 12, 0]
    ordered = pick(case, 12, MMR(), engine, similarity, sort=True)
    assert torch.equal(ordered.indices, plain.indices.sort(1).values)
    assert pick(case, None, MMR(), engine, similarity, keep_ratio=0.5).indices.shape == (3, 21)
    grids = torch.tensor([[6, 7], [7, 6], [1, 42]])
    rule = HardSuppress(threshold=0.9, radius=1)
    sel = pick(case, 12, rule, engine, similarity, grids=grids)
    check_selection(sel, None, rule, case.importance, grids=grids, similarity=similarity).assert_ok()


@EACH_ENGINE
def test_shorthands_take_it(engine: str) -> None:
    case = clustered(2, 40, 16)
    matrix, scores = gram(case.features), case.importance
    more: dict[str, Any] = {"similarity": matrix, "backend": engine}
    pairs = [
        (idsel.id_select(None, 9, scores, **more), IDSelection()),
        (idsel.mmr_select(None, 9, scores, **more), MMR()),
        (idsel.maxmin_select(None, 9, **more), MaxMin()),
        (idsel.nms_select(None, 9, scores, **more), HardSuppress()),
        (idsel.dpp_select(None, 9, scores, **more), DPP()),
        (idsel.coverage_select(None, 9, scores, **more), Coverage()),
        (idsel.topk_select(None, 9, scores, **more), idsel.TopK()),
        (idsel.eliminate_select(None, 9, scores, **more), Elimination()),
        (idsel.dart_select(None, 9, scores, **more), DART()),
    ]
    for sel, rule in pairs:
        assert_same(sel, pick(case, 9, rule, engine, matrix))
    assert_same(idsel.select(k=9, rule="mmr", importance=scores, **more), pick(case, 9, MMR(), engine, matrix))


@EACH_ENGINE
def test_a_call_with_features_of_the_same_shape_is_another_call(engine: str) -> None:
    case = clustered(2, 24, 24)
    for _ in range(2):
        assert_same(
            pick(case, 9, MMR(), engine, case.features),
            pick(case, 9, MMR(), engine, case.features.clone()),
        )
        of_features = idsel.select(case.features, 9, MMR(), case.importance, backend=engine)
        assert not torch.equal(of_features.indices, pick(case, 9, MMR(), engine, case.features).indices)


@EACH_ENGINE
def test_plan_explain_prune_and_the_operator_take_it(engine: str) -> None:
    case = clustered(2, 40, 16)
    matrix, scores = gram(case.features), case.importance
    expected = pick(case, 10, MMR(), engine, matrix)
    more: dict[str, Any] = {"similarity": matrix, "backend": engine}
    plan = idsel.plan(None, 10, MMR(), scores, **more)
    assert_same(plan.run(None, scores, similarity=matrix), expected)
    assert_same(plan.run(importance=scores, similarity=layouts(matrix)["apart"]), expected)
    other = gram(clustered(2, 40, 16, seed=5).features)
    assert_same(plan.run(importance=scores, similarity=other), pick(case, 10, MMR(), engine, other))
    explained = idsel.explain(None, 10, MMR(), scores, **more)
    assert explained.backend == engine
    assert explained.problem.similarity
    rule_id, params = MMR().encode()
    options = {"importance": scores, "backend": engine, "similarity": True}
    assert torch.equal(torch.ops.idsel.select(matrix, [10], rule_id, params, **options)[0], expected.indices)
    hidden = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    pruned = idsel.prune(hidden, 10, MMR(), scores, order="pick", **more)
    assert torch.equal(pruned.indices, expected.indices)
    assert torch.equal(pruned.hidden, expected.gather(hidden))
    merged = idsel.prune(hidden, 10, MMR(), scores, order="pick", merge="mean", **more)
    assert torch.equal(merged.hidden, idsel.merge(hidden, expected, hidden, "mean").hidden)
    protect = torch.zeros(2, 40, dtype=torch.bool)
    protect[:, 7] = True
    kept = idsel.prune(hidden, 10, MMR(), scores, order="pick", protect=protect, **more)
    rest = pick(case, 9, MMR(), engine, matrix, mask=~protect)
    assert torch.equal(kept.indices[:, 1:], rest.indices)


@EACH_ENGINE
def test_compiled_programs_take_it(engine: str) -> None:
    torch._dynamo.reset()  # else the limit of compilations counts those for other engines, too
    case = clustered(2, 40, 16)
    matrix = gram(case.features)

    def picks(similarity: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(idsel.select(None, 9, MMR(), importance, similarity=similarity, backend=engine))

    compiled = torch.compile(picks, fullgraph=True, backend="aot_eager")
    for similarity in (matrix, matrix.mT, matrix[:1].expand(2, -1, -1)):
        assert all(map(torch.equal, compiled(similarity, case.importance), picks(similarity, case.importance)))

    def of_one(similarity: torch.Tensor) -> torch.Tensor:
        return idsel.maxmin_select(None, 3, similarity=similarity, backend=engine).indices

    dynamic = torch.compile(of_one, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (5, 9, 30):
        assert torch.equal(dynamic(matrix[0, :tokens, :tokens]), of_one(matrix[0, :tokens, :tokens]))


def test_the_operator_passes_its_checks() -> None:
    case = clustered(2, 12, 4)
    rule_id, params = MMR().encode()
    args = (gram(case.features), [5], rule_id, params)
    torch.library.opcheck(
        torch.ops.idsel.select.default, args, {"importance": case.importance, "backend": "torch", "similarity": True}
    )


def test_nothing_is_read_from_the_device() -> None:
    case = clustered(2, 40, 8)
    inputs = Inputs(to_meta(gram(case.features)), to_meta(case.importance))
    with nothing_read():
        batch = Batch(inputs, torch.float32, True, True)
    assert batch.gram is not None
    assert batch.gram.shape == (2, 40, 40)


# --- The checker ------------------------------------------------------------------------------------------------------


def test_the_checker_compares_with_what_was_given() -> None:
    case, other = clustered(1, 30, 16), clustered(1, 30, 16, seed=3)
    matrix = gram(case.features)
    sel = pick(case, 9, MMR(), "torch", matrix)
    check_selection(sel, None, MMR(), case.importance, similarity=matrix).assert_ok()
    with pytest.raises(AssertionError, match="regret"):
        check_selection(sel, None, MMR(), case.importance, similarity=gram(other.features)).assert_ok()
    exact_case = exact(1, 30, 16)
    reports = assert_parity(
        *("torch", "cpu", None, 9, MMR(), exact_case.importance), similarity=exact_gram(exact_case), exact=True
    )
    assert [report.worst_regret for report in reports] == [0.0, 0.0]
    with pytest.raises(TypeError, match="either features or similarity must be given, got neither"):
        check_selection(sel, None, MMR(), case.importance)


# --- What is refused --------------------------------------------------------------------------------------------------


def refused(**changes: Any) -> dict[str, Any]:
    return {
        "similarity": torch.eye(4).expand(2, 4, 4),
        "importance": torch.ones(2, 4),
        "k": 2,
        "rule": MMR(),
        **changes,
    }


BAD_CALLS = {
    "both": (refused(features=torch.eye(4)), TypeError, "either features or similarity must be given, got both"),
    "neither": (refused(similarity=None), TypeError, "either features or similarity must be given, got neither"),
    "list": (refused(similarity=[[1.0]]), TypeError, "similarity must be a torch.Tensor, got list"),
    "float64": (
        refused(similarity=torch.eye(4).double()), TypeError,
        "similarity must be torch.float32, got torch.float64; pass .float()",
    ),
    "half": (
        refused(similarity=torch.eye(4).half()), TypeError,
        "similarity must be torch.float32, got torch.float16; pass .float()",
    ),
    "axes": (
        refused(similarity=torch.ones(4)), ValueError, "similarity must be (B, N, N) or (N, N), got shape (4,)",
    ),
    "square": (
        refused(similarity=torch.ones(2, 4, 5)), ValueError,
        "similarity must be (B, N, N) or (N, N), got shape (2, 4, 5)",
    ),
    "square-of-one": (
        refused(similarity=torch.ones(4, 5)), ValueError, "similarity must be (B, N, N) or (N, N), got shape (4, 5)",
    ),
    "importance": (
        refused(importance=torch.ones(2, 5)), ValueError,
        "importance must be (B, N) = (2, 4) to match similarity, got (2, 5)",
    ),
    "mask": (
        refused(mask=torch.ones(2, 3, dtype=torch.bool)), ValueError,
        "mask must be (B, N) = (2, 4) to match similarity, got (2, 3)",
    ),
    "ragged": (
        refused(cu_seqlens=torch.tensor([0, 4])), ValueError,
        "similarity must be a dense batch, (B, N, N), got it with cu_seqlens; pad the matrices and pass mask=",
    ),
    "matrix": (
        refused(rule=MatrixCoverage()), ValueError,
        "similarity goes with rules that compare tokens, got it with MatrixCoverage, which has matrix=",
    ),
    "start": (refused(rule=MaxMin(start=4)), ValueError, "MaxMin: start must be < N = 4, got 4"),
}  # fmt: skip


@EACH_ENGINE
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name: str, engine: str) -> None:
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind) as caught:
        idsel.select(**call, backend=engine)
    assert str(caught.value) == message
    if call["similarity"] is not None:
        with pytest.raises(kind) as caught:
            idsel.explain(**call, backend=engine)
        assert str(caught.value) == message


@EACH_ENGINE
def test_validate_names_the_row(engine: str) -> None:
    case = clustered(2, 12, 4)
    for place in ((1, 7, 3), (1, 7, 7)):
        matrix = gram(case.features)
        matrix[place] = NAN
        with pytest.raises(ValueError, match="similarity must be finite, got a NaN or infinity in row 7 of sample 1"):
            pick(case, 5, MMR(), engine, matrix, validate=True)
        pick(case, 5, MMR(), engine, matrix)


def test_plans_say_what_was_planned() -> None:
    case = clustered(2, 12, 4)
    matrix, scores = gram(case.features), case.importance
    plan = idsel.plan(None, 5, MMR(), scores, similarity=matrix, backend="torch")
    with pytest.raises(ValueError, match=r"^features must be None, as planned, got \(2, 12, 4\) torch.float32 on cpu$"):
        plan.run(case.features, scores)
    with pytest.raises(
        ValueError, match=r"^similarity must be \(2, 12, 12\) torch.float32 on cpu, as planned, got None"
    ):
        plan.run(importance=scores)
    with pytest.raises(ValueError, match=r"^similarity must be .* as planned, got \(2, 11, 11\) torch.float32 on cpu$"):
        plan.run(importance=scores, similarity=matrix[:, 1:, 1:])
    plan = idsel.plan(case.features, 5, MMR(), scores, backend="torch")
    with pytest.raises(
        ValueError, match=r"^similarity must be None, as planned, got \(2, 12, 12\) torch.float32 on cpu$"
    ):
        plan.run(case.features, scores, similarity=matrix)
    with pytest.raises(ValueError, match=r"^features must be \(2, 12, 4\) torch.float32 on cpu, as planned, got None$"):
        plan.run(importance=scores)


def test_prune_and_dart_say_what_goes_with_it() -> None:
    case = clustered(2, 12, 4)
    matrix, scores = gram(case.features), case.importance
    with pytest.raises(ValueError, match=r"^similarity must have the tokens of hidden, \(2, 11\), got \(2, 12\)$"):
        idsel.prune(case.features[:, 1:], 5, MMR(), scores[:, 1:], similarity=matrix)
    with pytest.raises(TypeError, match=r"^either features or similarity must be given, got both$"):
        idsel.prune(case.features, 5, MMR(), scores, features=case.features, similarity=matrix)
    with pytest.raises(ValueError, match=r"^text must be None without features; put the text pivots"):
        idsel.dart_select(None, 5, scores, similarity=matrix, text=case.features, text_importance=scores)
    with pytest.raises(ValueError, match=r"^similarity must be \(B, N, N\), got shape \(12, 12\)$"):
        torch.ops.idsel.select(matrix[0], [5], *MMR().encode(), importance=scores[0], similarity=True)

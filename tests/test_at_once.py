"""The rules that decide on all picks at once, against literal code and in every form that a call can have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends import same, set_gram_budget
from naive_at_once import naive_at_once
from no_sync import nothing_read, to_meta

import idsel_kernels as idsel
from idsel_kernels import DART, Elimination, Rule, _native, calls
from idsel_kernels.problem import Inputs
from idsel_kernels.rules import RULES

AT_ONCE: dict[str, Elimination | DART] = {
    "score": Elimination(),
    "score-0": Elimination(important=0.0),
    "score-1": Elimination(important=1.0),
    "score-0.3": Elimination(important=0.3),
    "position": Elimination(order="position"),
    "position-0.8": Elimination(important=0.8, order="position"),
    "position-1": Elimination(important=1.0, order="position"),
    "dart": DART(),
    "dart-1": DART(pivots=1),
    "dart-9": DART(pivots=9),
    "dart-text": DART(text_pivots=4),
    "dart-text-only": DART(pivots=0, text_pivots=3),
}
ALL_RULES = pytest.mark.parametrize("rule", AT_ONCE.values(), ids=AT_ONCE)
INF = float("inf")
ENGINES = [name for name in ("torch", "cpu") if name in idsel.available_backends()]
CPU = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
EACH_ENGINE = pytest.mark.parametrize("engine", ENGINES)


def hard_case(seed: int, text_pivots: int = 0) -> tuple[dict[str, torch.Tensor], int]:
    """Exact similarities of few values, many ties, copies, zero rows, unusable tokens and a mask; and a k."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(max(1, text_pivots), 41))
    case = idsel.inputs.exact(1, tokens, int(rng.choice([4, 16, 64])), seed=seed)
    features, importance = case.features[0], case.importance[0]
    if seed % 2:
        features = features[torch.from_numpy(rng.integers(0, max(1, tokens // 3), tokens))]
    if seed % 3 == 0:
        features[int(rng.integers(tokens))] = 0.0
    if seed % 5 == 0:
        features[int(rng.integers(tokens)), 0] = float(rng.choice([np.nan, np.inf]))
    if seed % 7 == 0:
        importance[int(rng.integers(tokens))] = float(rng.choice([np.nan, -np.inf, -0.0]))
    given = {"features": features, "importance": importance}
    if seed % 4 == 0:
        given["mask"] = torch.from_numpy(rng.random(tokens) < 0.7)
    k = int(rng.choice([0, 1, 2, tokens - 1, tokens, tokens + 3, rng.integers(0, tokens + 1)]))
    return given, k


def literal(given: dict[str, torch.Tensor], k: int, rule: Elimination | DART) -> tuple[list[int], list[float]]:
    return naive_at_once(**{name: tensor.numpy() for name, tensor in given.items()}, k=k, rule=rule)


@pytest.mark.parametrize("name", AT_ONCE)
def test_picks_and_scores_are_those_of_literal_code(name: str) -> None:
    rule = AT_ONCE[name]
    for seed in range(list(AT_ONCE).index(name) % 5, 500, 5):
        given, k = hard_case(seed, rule.text_pivots if isinstance(rule, DART) else 0)
        picks, scores = literal(given, k, rule)
        for engine in ENGINES:
            sel = idsel.select(**given, k=k, rule=rule, backend=engine)
            assert sel.indices[0].tolist() == picks, (engine, seed)
            assert sel.scores[0].tolist() == pytest.approx(scores, abs=0), (engine, seed)


# The cpu engine makes lists of the nearest tokens from 1537 tokens on, and where the Gram exceeds the budget.
BOTH_ORDERS = pytest.mark.parametrize("order", ["score", "position"])


@CPU
@BOTH_ORDERS
def test_rows_give_the_picks_of_literal_code(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Elimination(order=order)
    set_gram_budget(monkeypatch, "cpu", 1)
    for seed in range(250):
        given, k = hard_case(seed)
        picks, scores = literal(given, k, rule)
        sel = idsel.select(**given, k=k, rule=rule, backend="cpu")
        assert sel.indices[0].tolist() == picks, seed
        assert sel.scores[0].tolist() == pytest.approx(scores, abs=0), seed
    calls.forget()


def _many(kind: str) -> dict[str, torch.Tensor]:
    """Tokens for which there are lists, and so many of them take part that alone these have none."""
    n, part = 1600, 1500
    case = idsel.inputs.clustered(1, n, 33, seed=len(kind))
    there = torch.zeros(1, n, dtype=torch.bool)
    there[0, torch.randperm(n, generator=torch.Generator().manual_seed(0))[:part]] = True
    given = {"features": case.features.clone(), "importance": case.importance, "mask": there}
    if kind == "copies":
        given["features"] = given["features"][:, torch.arange(n) // 40]
    if kind == "alternating":
        given["features"] = given["features"][:, torch.arange(n) % 2]
        given["mask"] = torch.arange(n)[None] < part
    if kind == "unusable":
        given["features"][0, ::7] = 0.0
        given["features"][0, 3::50, 1] = float("nan")
    if kind == "similarity":
        c = torch.randn(1, n, n, generator=torch.Generator().manual_seed(1))
        c[0, ::5, ::3], c[0, 1::5, ::3], c[0, 2::5] = float("nan"), -INF, 7.0
        given["similarity"] = c
        del given["features"]
    return given


@CPU
@BOTH_ORDERS
@pytest.mark.parametrize("kind", ["plain", "copies", "alternating", "unusable", "similarity"])
def test_lists_of_the_nearest_tokens_find_what_all_pairs_do(
    kind: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, given = Elimination(order=order), _many(kind)
    there = given["mask"][0].nonzero()[:, 0]
    alone = {name: value[:, there] for name, value in given.items() if name != "mask"}
    if kind == "similarity":
        alone["similarity"] = alone["similarity"][..., there]
    for k in (1, 40, 700, 1499):
        few = idsel.select(**alone, k=k, rule=rule, backend="cpu")
        assert torch.equal(idsel.select(**given, k=k, rule=rule, backend="cpu").indices[0], there[few.indices[0]])
    before, runs = torch.get_num_threads(), []
    try:
        for threads, budget in [(1, 0), (3, 0), (1, 1), (3, 1), (2, 100 * 1600 * 4)]:
            torch.set_num_threads(threads)
            set_gram_budget(monkeypatch, "cpu", budget)
            runs.append(idsel.select(**given, k=100, rule=rule, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    calls.forget()
    assert all(same(runs[0], run) for run in runs)


@ALL_RULES
@pytest.mark.parametrize("tokens", [60, 145])
def test_float64_picks_are_those_of_literal_code_on_many_rounds(rule: Elimination | DART, tokens: int) -> None:
    case = idsel.inputs.clustered(1, tokens, 24, seed=tokens)
    given = {"features": case.features[0], "importance": case.importance[0]}
    for k in (7, 32):
        sel = idsel.testing.oracle(**given, k=k, rule=rule)
        picks, scores = literal(given, k, rule)
        assert sel.indices[0].tolist() == picks
        np.testing.assert_allclose(sel.scores[0].numpy(), scores, rtol=0, atol=1e-12)


@ALL_RULES
@EACH_ENGINE
def test_a_sample_does_not_depend_on_its_batch_mates_nor_on_the_form_of_the_batch(rule: Rule, engine: str) -> None:
    samples = [hard_case(seed) for seed in range(40) if "mask" not in hard_case(seed)[0]]
    samples = [(given, k) for given, k in samples if given["features"].shape[1] == 16]
    assert len(samples) > 5
    lengths = [len(given["features"]) for given, _ in samples]
    joined = {name: torch.cat([given[name] for given, _ in samples]) for name in ("features", "importance")}
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    counts = [k for _, k in samples]
    width = max(counts)
    call: dict[str, Any] = dict(**joined, cu_seqlens=offsets, rule=rule, backend=engine)
    together = idsel.select(**call, k=counts)
    on_device = idsel.select(**call, k=torch.tensor(counts), k_max=width)
    again = idsel.select(**call, k=counts)
    for sel in (on_device, again):
        assert torch.equal(sel.indices, together.indices) and torch.equal(sel.scores, together.scores)
    ascending = idsel.select(**call, k=counts, sort=True)
    for b, (given, k) in enumerate(samples):
        alone = idsel.select(**given, k=k, rule=rule, backend=engine)
        assert torch.equal(together.indices[b, :k], alone.indices[0])
        assert torch.equal(together.scores[b, :k], alone.scores[0])
        assert (together.indices[b, k:] == -1).all() and (together.scores[b, k:] == -INF).all()
        picked = alone.indices[0][alone.indices[0] >= 0]
        assert ascending.indices[b, : len(picked)].tolist() == picked.sort().values.tolist()


@ALL_RULES
@EACH_ENGINE
def test_a_dense_batch_is_its_samples_bit_for_bit(rule: Rule, engine: str) -> None:
    case = idsel.inputs.clustered(5, 130, 40)
    mask = torch.rand((5, 130), generator=torch.Generator().manual_seed(0)) < 0.8
    mask[3, 7:] = False
    counts = [0, 130, 20, 9, 64]
    more: dict[str, Any] = {"rule": rule, "backend": engine}
    together = idsel.select(*case[:1], counts, importance=case.importance, mask=mask, **more)
    on_device = idsel.select(*case[:1], torch.tensor(counts), importance=case.importance, mask=mask, k_max=130, **more)
    assert torch.equal(together.indices, on_device.indices) and torch.equal(together.scores, on_device.scores)
    for b, k in enumerate(counts):
        alone = idsel.select(case.features[b], k, importance=case.importance[b], mask=mask[b], **more)
        assert torch.equal(together.indices[b, :k], alone.indices[0])
        assert torch.equal(together.scores[b, :k], alone.scores[0])


@pytest.mark.parametrize("k", [1, 3, 4, 5, 7, 32, 64])
def test_dart_meets_its_budget(k: int) -> None:
    case = idsel.inputs.clustered(2, 64, 16)
    text, norms = torch.randn(2, 3, 16), torch.rand(2, 3)
    sel = idsel.dart_select(case.features, k, case.importance, text=text, text_importance=norms)
    assert all(len(set(row.tolist())) == k and row.max() < 64 for row in sel.indices)


def test_large_batches_go_in_chunks_with_the_same_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.engines import reference

    case = idsel.inputs.clustered(6, 50, 16)
    whole = idsel.select(*case[:1], 20, Elimination(), case.importance, backend="torch")
    monkeypatch.setattr(reference, "GRAM_BYTES", 2 * 50**2 * 4)
    parts = reference.reference_select(Inputs(*case), Elimination(), [20])
    assert torch.equal(whole.indices, parts[0]) and torch.equal(whole.scores, parts[1])


# --- Where it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Elimination(), DART()], ids=["elimination", "dart"])
def test_engines_run_them_and_a_replay_says_why_not(rule: Rule) -> None:
    case, name = idsel.inputs.clustered(1, 30, 8), type(rule).__name__
    for engine in ENGINES:
        explanation = idsel.explain(*case[:1], 5, rule, case.importance, backend=engine)
        assert explanation.backend == engine and explanation.algorithm
    with pytest.raises(ValueError, match=f"rule must pick one by one to be replayed, got {name}; compare with"):
        idsel.testing.check_selection(idsel.select(*case[:1], 5, rule, case.importance), *case[:1], rule, case[1])


def test_only_these_are_not_greedy() -> None:
    assert {name for name, rule in RULES.items() if not rule.is_greedy} == {"Elimination", "DART"}


@pytest.mark.parametrize("name", ["score", "position", "dart", "dart-text"])
def test_nothing_is_read_from_the_device(name: str) -> None:
    from idsel_kernels.engines import at_once, reference

    rule, case = AT_ONCE[name], idsel.inputs.clustered(2, 40, 8)
    inputs = Inputs(*case, counts=torch.tensor([3, 9]))
    batch = reference.Batch(inputs, torch.float32, rule.needs_nearest)
    batch.first  # noqa: B018  # searched on the CPU, kept for a batch that has no values
    there = {key: [to_meta(t) for t in value] if isinstance(value, list) else to_meta(value)
             for key, value in vars(batch).items()}  # fmt: skip
    vars(batch).update({**there, "lengths": batch.lengths})
    for known in (None, [3, 9]):
        with nothing_read():
            indices, scores = at_once.decide(batch, rule, to_meta(torch.tensor([3, 9])), known, 12)
        assert indices.shape == scores.shape == (2, 12) and indices.is_meta


@ALL_RULES
@pytest.mark.parametrize("kind", ["dense", "ragged", "counts"])
def test_opcheck(rule: Rule, kind: str) -> None:
    case = idsel.inputs.ragged((5, 9), 8) if kind == "ragged" else idsel.inputs.clustered(2, 12, 8)
    more: dict[str, Any] = {"cu_seqlens": case.cu_seqlens} if kind == "ragged" else {}
    if kind == "counts":
        more["counts"] = torch.tensor([1, 4])
    torch.library.opcheck(torch.ops.idsel.select.default, (case.features, [4], *rule.encode(), case.importance), more)


def test_compiled_programs_have_the_same_picks() -> None:
    case, text, norms = idsel.inputs.clustered(2, 40, 16), torch.randn(2, 6, 16), torch.rand(2, 6)

    def both(features: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = idsel.eliminate_select(features, 9, importance).indices
        return kept, idsel.dart_select(features, 9, importance, text=text, text_importance=norms).indices

    compiled = torch.compile(both, fullgraph=True, backend="eager")(*case[:2])
    assert all(map(torch.equal, compiled, both(*case[:2])))


@pytest.mark.parametrize("rule", [Elimination(), DART(text_pivots=2)], ids=["elimination", "dart"])
def test_prune_and_plan_take_them(rule: Rule) -> None:
    case = idsel.inputs.clustered(2, 40, 16)
    expected = idsel.select(*case[:1], 9, rule, case.importance, sort=True)
    pruned = idsel.prune(case.features, 9, rule, case.importance)
    assert torch.equal(pruned.indices, expected.indices)
    assert torch.equal(pruned.hidden, expected.gather(case.features))
    plan = idsel.plan(*case[:1], 9, rule, case.importance, sort=True)
    assert torch.equal(plan.run(*case[:2]).indices, expected.indices)


# --- Text pivots ------------------------------------------------------------------------------------------------------


def test_dart_select_puts_the_best_text_behind_the_tokens() -> None:
    case, text = idsel.inputs.clustered(2, 40, 16), torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    norms = torch.tensor([[0.1, 0.9, float("nan"), 0.5, 0.9, 0.2], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    mask = torch.arange(40).expand(2, 40) % 5 != 0
    best = [[1, 4, 3], [0, 1, 2]]
    rows = torch.stack([x[chosen] for x, chosen in zip(text, best, strict=True)])
    features = torch.cat([case.features, rows], 1)
    importance = torch.cat([case.importance, torch.stack([a[i] for a, i in zip(norms, best, strict=True)])], 1)
    whole = torch.cat([mask, torch.ones(2, 3, dtype=torch.bool)], 1)
    expected = idsel.select(features, 20, DART(2, 3), importance, mask=whole)
    sel = idsel.dart_select(
        case.features, 20, case.importance, pivots=2, text=text, text_importance=norms, text_pivots=3, mask=mask
    )
    assert torch.equal(sel.indices, expected.indices) and torch.equal(sel.scores, expected.scores)
    single = idsel.dart_select(
        case.features[1], 20, case.importance[1], pivots=2, text=text[1], text_importance=norms[1], text_pivots=3,
        mask=mask[1],
    )  # fmt: skip
    assert torch.equal(single.indices[0], expected.indices[1])
    alone = idsel.dart_select(case.features, 20, case.importance)
    assert torch.equal(alone.indices, idsel.select(case.features, 20, DART(), case.importance).indices)


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_share_is_one_of_the_tokens_and_not_of_the_text(ragged: bool, masked: bool) -> None:
    case = idsel.inputs.ragged((13, 23), 8) if ragged else idsel.inputs.clustered(2, 23, 8)
    exists = torch.ones(case.importance.shape, dtype=torch.bool)
    if masked:
        exists[..., :4] = False
    sel = idsel.select(**case.inputs(), rule=DART(4, 3), keep_ratio=0.5, mask=exists if masked else None, k_max=20)
    tokens = [10, 20] if ragged else [20, 20]
    gone = [4 * masked, 0 if ragged else 4 * masked]
    assert sel.counts.tolist() == [round((n - g) / 2) for n, g in zip(tokens, gone, strict=True)]


def bad(**changes: Any) -> dict[str, Any]:
    call = {"features": torch.randn(2, 9, 4), "k": 3, "importance": torch.rand(2, 9)}
    return {**call, "text": torch.randn(2, 5, 4), "text_importance": torch.rand(2, 5), **changes}


BAD_CALLS = {
    "text-alone": (bad(text_importance=None), TypeError, "text and text_importance go together, got text alone"),
    "norms-alone": (bad(text=None), TypeError, "text and text_importance go together, got text_importance alone"),
    "width": (
        bad(text=torch.randn(2, 5, 3)), ValueError,
        "text must be (B, M, D) to match features (2, 9, 4), got (2, 5, 3)",
    ),
    "axes": (
        bad(text=torch.randn(5, 4)), ValueError, "text must be (B, M, D) to match features (2, 9, 4), got (5, 4)",
    ),
    "norms": (
        bad(text_importance=torch.rand(5)), ValueError, "text_importance must be (2, 5) to match text, got (5,)",
    ),
    "integers": (bad(text=torch.ones(2, 5, 4).int()), TypeError, "text must be floating point, got torch.int32"),
    "negative": (bad(text_pivots=-1), ValueError, "DART: text_pivots must be >= 0, got -1"),
    "ragged": (
        bad(cu_seqlens=torch.tensor([0, 9])), ValueError,
        "text must be None with cu_seqlens; put the text pivots of each sample behind its other rows, in features and "
        "importance, and select with rule=DART(pivots, text_pivots)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_text_is_refused(name: str) -> None:
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind) as caught:
        idsel.dart_select(**call)
    assert str(caught.value) == message


def test_samples_shorter_than_their_text_are_refused() -> None:
    dense, ragged = idsel.inputs.clustered(1, 3, 4), idsel.inputs.ragged((5, 3), 4)
    for case in (dense, ragged):
        with pytest.raises(ValueError, match="DART: text_pivots must be <= N = 3, got 4"):
            idsel.select(**case.inputs(), k=2, rule=DART(text_pivots=4))
    # Where nothing reads the offsets, all rows of such a sample are text.
    from idsel_kernels.engines.reference import reference_select

    inputs = Inputs(ragged.features, ragged.importance, cu_seqlens=ragged.cu_seqlens)
    indices, _ = reference_select(inputs, DART(text_pivots=4), [2])
    assert indices.tolist() == [[0, -1], [-1, -1]]

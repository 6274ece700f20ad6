"""The checker must catch wrong selections, or every other test is worth nothing."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import RULE_CASES

import idsel_kernels as idsel
from idsel_kernels import calls
from idsel_kernels.inputs import clustered, exact, near_duplicates, ragged
from idsel_kernels.testing import check_selection

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES.keys())
CASE = clustered(1, 40, 64, seed=5, importance="uniform")


def _swapped(sel: idsel.Selection, position: int, token: int) -> idsel.Selection:
    indices = sel.indices.clone()
    indices[0, position] = token
    return idsel.Selection(indices, sel.scores)


@ALL_RULES
@pytest.mark.parametrize("position", [0, 3])
def test_a_worse_pick_is_caught(rule: idsel.Rule, position: int) -> None:
    sel = idsel.select(**CASE.inputs(), k=6, rule=rule, backend="torch")
    unpicked = [i for i in range(40) if i not in sel.indices[0].tolist()]
    regrets = []
    for token in unpicked:
        wrong = _swapped(sel, position, token)
        report = check_selection(wrong, **CASE.inputs(), rule=rule)
        regrets.append(report.worst_regret)
        with pytest.raises(AssertionError):
            report.assert_ok()
    assert min(regrets) > 0


@ALL_RULES
def test_picks_out_of_order_are_caught(rule: idsel.Rule) -> None:
    sel = idsel.select(**CASE.inputs(), k=6, rule=rule, backend="torch")
    backwards = idsel.Selection(sel.indices.flip(1), sel.scores.flip(1))
    with pytest.raises(AssertionError):
        check_selection(backwards, **CASE.inputs(), rule=rule).assert_ok()


def test_a_wrong_score_is_caught() -> None:
    sel = idsel.select(**CASE.inputs(), k=6)
    scores = sel.scores.clone()
    scores[0, 4] += 1e-3
    report = check_selection(idsel.Selection(sel.indices, scores), **CASE.inputs())
    assert report.worst_regret == 0 and report.score_error[0, 4] == pytest.approx(1e-3, rel=1e-2)
    with pytest.raises(AssertionError, match="score error"):
        report.assert_ok()


@pytest.mark.parametrize(
    ("picks", "defect"),
    [
        ([3, 3, 1, 2], "sample 0: a token is picked twice"),
        ([3, 40, 1, 2], "sample 0: picks must lie in [0, 40) at the first 4 positions, got [40]"),
        ([3, -1, 1, 2], "sample 0: picks must lie in [0, 40) at the first 4 positions, got [-1]"),
        ([0, 1, 2, 3], "sample 0: masked tokens are picked: [0]"),
    ],
)
def test_defects_are_named_and_make_the_regret_infinite(picks: list[int], defect: str) -> None:
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[0, 0] = False
    sel = idsel.Selection(torch.tensor([picks]), torch.zeros(1, 4))
    report = check_selection(sel, **CASE.inputs(), mask=mask)
    assert report.defects == [defect] and report.worst_regret == math.inf
    with pytest.raises(AssertionError, match=r"sample 0"):
        report.assert_ok()


def test_a_large_batch_mate_hides_nothing() -> None:
    features, importance, _ = clustered(2, 40, 64, seed=5, importance="uniform")
    importance[0] *= 1e6
    sel = idsel.select(features, 6, importance=importance)
    check_selection(sel, features, importance=importance).assert_ok()
    indices = sel.indices.clone()
    indices[1] = indices[1].flip(0)
    with pytest.raises(AssertionError):
        check_selection(idsel.Selection(indices, sel.scores), features, importance=importance).assert_ok()


@pytest.mark.parametrize("rule", [idsel.MMR(), idsel.TopK(), idsel.HardSuppress(), idsel.Coverage()], ids=repr)
def test_an_infinite_importance_hides_no_wrong_pick_after_it(rule: idsel.Rule) -> None:
    features, importance, _ = clustered(1, 40, 64, seed=5, importance="uniform")
    importance[0, 7] = math.inf
    sel = idsel.select(features, 6, rule=rule, importance=importance)
    check_selection(sel, features, rule=rule, importance=importance).assert_ok()
    swapped = sel.indices[:, [0, 1, 3, 2, 4, 5]]
    with pytest.raises(AssertionError, match="regret"):
        check_selection(idsel.Selection(swapped, sel.scores), features, rule, importance).assert_ok()


def test_scores_that_are_nan_or_fill_padding_are_caught() -> None:
    case = clustered(2, 5, 8)
    sel = idsel.select(**case.inputs(), k=7)
    scores = sel.scores.clone()
    scores[1, 2] = math.nan
    with pytest.raises(AssertionError, match="score error inf"):
        check_selection(idsel.Selection(sel.indices, scores), **case.inputs()).assert_ok()
    scores = sel.scores.clone()
    scores[0, 5:] = 7.0
    with pytest.raises(AssertionError, match=r"sample 0: scores must be -inf after 5 picks, got \[7.0, 7.0\]"):
        check_selection(idsel.Selection(sel.indices, scores), **case.inputs()).assert_ok()


@pytest.mark.parametrize("seed", range(40))
def test_a_right_selection_on_a_hard_edge_is_accepted(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.linalg.qr(torch.randn(1024, 2, generator=generator)).Q.T
    features, importance = torch.stack([a, 0.8 * a + 0.6 * b, b]), torch.tensor([1.0, 0.9, 0.1])
    sel = idsel.select(features, 3, idsel.HardSuppress(0.8), importance)
    check_selection(sel, features, idsel.HardSuppress(0.8), importance).assert_ok()
    relevance = torch.tensor([1.0, 0.5, 1e-3 * (1 + seed / 100)])
    sel = idsel.select(features, 3, idsel.DPP(), relevance)
    check_selection(sel, features, idsel.DPP(), relevance).assert_ok()


def test_the_checks_hold_under_python_without_asserts() -> None:
    script = (
        "import torch, idsel_kernels as idsel\n"
        "case = idsel.testing.clustered(1, 20, 8)\n"
        "sel = idsel.Selection(torch.zeros((1, 3), dtype=torch.int64), torch.zeros(1, 3))\n"
        "idsel.testing.check_selection(sel, **case.inputs()).assert_ok()\n"
    )
    run = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True)
    assert run.returncode != 0 and "AssertionError: sample 0: a token is picked twice" in run.stderr


def test_the_default_device_does_not_matter() -> None:
    sel = idsel.select(**CASE.inputs(), k=6)
    with torch.device("meta"):
        check_selection(sel, **CASE.inputs()).assert_ok()
        assert torch.equal(clustered(1, 40, 64, seed=5, importance="uniform").features, CASE.features)


def test_a_sorted_selection_is_refused_with_a_hint() -> None:
    sel = idsel.select(**CASE.inputs(), k=6, sort=True)
    with pytest.raises(AssertionError, match="the indices ascend: a selection made with sort=True cannot be replayed"):
        check_selection(sel, **CASE.inputs()).assert_ok()


def test_missing_padding_is_a_defect() -> None:
    case = clustered(1, 3, 4)
    sel = idsel.select(**case.inputs(), k=5)
    check_selection(sel, **case.inputs()).assert_ok()
    filled = idsel.Selection(sel.indices.clamp(min=0), sel.scores)
    assert check_selection(filled, **case.inputs()).defects == [
        "sample 0: padding must be -1 after 3 picks, got [0, 0]"
    ]


def test_picking_a_suppressed_token_too_early_has_infinite_regret() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    importance = torch.tensor([1.0, 0.9, 0.1])
    wrong = idsel.Selection(torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, -math.inf, 0.1]]))
    report = check_selection(wrong, features, idsel.HardSuppress(), importance)
    assert report.regret[0].tolist() == [0.0, math.inf, 0.0]


def test_a_similarity_on_the_threshold_may_fall_either_way_but_one_beside_it_may_not() -> None:
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    importance = torch.tensor([1.0, 0.9, 0.1])
    kept = idsel.Selection(torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.9]]))
    suppressed = idsel.Selection(torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.1]]))
    for sel in (kept, suppressed):
        report = check_selection(sel, features, idsel.HardSuppress(0.8), importance)
        assert report.worst_regret == 0 and report.margin[0, 1] == 0
        report.assert_ok()
    assert check_selection(kept, features, idsel.HardSuppress(0.79), importance).worst_regret == math.inf
    assert check_selection(suppressed, features, idsel.HardSuppress(0.81), importance).worst_regret == pytest.approx(
        0.8
    )


def test_dpp_that_goes_on_past_the_rank_is_caught() -> None:
    case = near_duplicates(1, 12, 4, copies=3)
    sel = idsel.select(**case.inputs(), k=12, rule=idsel.DPP())
    check_selection(sel, **case.inputs(), rule=idsel.DPP()).assert_ok()
    spanned = int(sel.scores.isfinite().sum())
    assert 1 < spanned < 12
    wrong = sel.indices.clone()
    wrong[0, spanned:] = wrong[0, spanned:].flip(0)
    report = check_selection(idsel.Selection(wrong, sel.scores), **case.inputs(), rule=idsel.DPP())
    assert report.worst_regret > 1e-3


def test_report_of_a_good_selection() -> None:
    sel = idsel.select(**CASE.inputs(), k=6)
    report = check_selection(sel, **CASE.inputs())
    assert report.first_difference == [None]
    assert torch.equal(report.oracle_indices, sel.indices)
    assert report.unit[0].tolist() == pytest.approx([float(sel.scores.max())] * 6)
    assert report.clear_prefix() == [6]
    assert report.regret.max() <= 1e-6 and (report.margin > 0).all()


def test_per_sample_counts_and_empty_batches_are_checked() -> None:
    case = ragged((6, 0, 9), 4)
    sel = idsel.select(**case.inputs(), k=[2, 1, 5])
    check_selection(sel, **case.inputs(), k=[2, 1, 5]).assert_ok()
    # Without the counts the padding of the first sample looks like missing picks.
    assert check_selection(sel, **case.inputs()).worst_regret == math.inf
    empty = torch.zeros(0, 4, 3), torch.zeros(0, 4)
    nothing = idsel.select(empty[0], 2, importance=empty[1])
    report = check_selection(nothing, empty[0], importance=empty[1])
    assert report.worst_regret == 0 and report.first_difference == []


def test_sel_of_the_wrong_shape_is_refused() -> None:
    sel = idsel.select(**CASE.inputs(), k=6)
    with pytest.raises(ValueError, match=r"sel must hold \(B, k\) = \(1, 6\) indices and scores, got \(2, 6\)"):
        check_selection(idsel.Selection(sel.indices.repeat(2, 1), sel.scores), **CASE.inputs())


def test_assert_parity_names_the_backend_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.engines import reference

    reports = idsel.testing.assert_parity("torch", "torch", **CASE.inputs(), k=5)
    assert [report.worst_regret < 1e-6 for report in reports] == [True, True]
    right = reference.ENGINE.run

    def worse(*arguments: Any, **out: Any) -> tuple[torch.Tensor, torch.Tensor]:
        indices, scores = right(*arguments, **out)
        return indices.flip(1), scores.flip(1)

    monkeypatch.setattr(reference.ENGINE, "run", worse)
    calls.forget()
    with pytest.raises(AssertionError, match=r"^torch: regret"):
        idsel.testing.assert_parity("torch", "torch", **CASE.inputs(), k=5)


def test_generators_are_seeded_and_as_described() -> None:
    for make in (clustered, near_duplicates, exact, ragged):
        first, again, other = make(seed=1), make(seed=1), make(seed=2)
        assert torch.equal(first.features, again.features) and torch.equal(first.importance, again.importance)
        assert not torch.equal(first.features, other.features)
    for kind in ("skewed", "uniform", "flat", "ties"):
        importance = clustered(2, 200, 4, importance=kind).importance
        assert importance.min() > 0 and importance.max() <= 1
    assert len(clustered(1, 200, 4, importance="ties").importance.unique()) == 4
    features = clustered(1, 576, 64).features[0]
    cosine = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(features).T
    off_diagonal = cosine[~torch.eye(576, dtype=torch.bool)]
    assert off_diagonal.min() < 0 and off_diagonal.max() > 0.95
    with pytest.raises(ValueError, match="importance must be 'skewed', 'uniform', 'flat' or 'ties', got 'loud'"):
        clustered(importance="loud")
    with pytest.raises(ValueError, match="dim must be a power of four, got 8"):
        exact(dim=8)


def test_makers_of_inputs_keep_their_old_names() -> None:
    for name in idsel.inputs.__all__:
        assert getattr(idsel.testing, name) is getattr(idsel.inputs, name)


def test_oracle_refuses_other_precisions_and_gram_choices() -> None:
    with pytest.raises(ValueError, match=r"dtype must be torch\.float64 or torch\.float32, got torch\.float16"):
        idsel.testing.oracle(**CASE.inputs(), k=3, dtype=torch.float16)
    with pytest.raises(ValueError, match="gram must be 'auto', 'full' or 'rows', got 'half'"):
        idsel.testing.oracle(**CASE.inputs(), k=3, gram="half")


def _enormous(tokens: int = 24) -> dict[str, torch.Tensor]:
    features, importance, _ = clustered(1, tokens, 16, seed=8)
    return {"features": features, "importance": torch.where(torch.arange(tokens) % 2 == 0, 1e20, importance)}


@pytest.mark.parametrize("importance", [1e20, 1e25, float("inf")])
def test_small_gains_of_enormously_salient_tokens_are_right(importance: float) -> None:
    """What is left of a gain is rounded as the large ones were."""
    inputs = _enormous()
    inputs["importance"] = torch.where(inputs["importance"] == 1e20, importance, inputs["importance"])
    sel = idsel.select(**inputs, k=24, rule=idsel.Coverage(), backend="torch")
    check_selection(sel, **inputs, rule=idsel.Coverage()).assert_ok()


def test_a_wrong_pick_of_an_enormously_salient_token_is_caught() -> None:
    inputs, rule = _enormous(), idsel.Coverage()
    sel = idsel.select(**inputs, k=6, rule=rule, backend="torch")
    right = sel.indices[0].tolist()
    for position, token in itertools.product(range(3), range(24)):
        if token in right:
            continue
        picks = torch.tensor([[*right[:position], token, *right[position + 1 :]]])
        report = check_selection(idsel.Selection(picks, sel.scores), **inputs, rule=rule)
        with pytest.raises(AssertionError, match=r"regret|score error|differs"):
            report.assert_ok()
        assert report.relative_regret > 1e-5


STEEP = idsel.IDSelection(gamma=1e4, floor=None)


@pytest.mark.parametrize("largest", [1.0, 1e17, 1e30, float("inf")])
def test_steep_weights_and_priorities_that_would_overflow_are_right(largest: float) -> None:
    """Rounding moves a steep weight further; what is taken off a priority again and again leaves it a number."""
    for backend, seed in itertools.product(idsel.available_backends(), range(8)):
        case = clustered(1, 60, 16, seed=seed)
        case.importance[0, ::2] *= largest
        sel = idsel.select(**case.inputs(), k=40, rule=STEEP, backend=backend)
        assert sel.scores.isfinite().all()
        check_selection(sel, **case.inputs(), rule=STEEP).assert_ok()


def test_a_wrong_pick_under_steep_weights_is_caught() -> None:
    case = clustered(1, 60, 16)
    sel = idsel.select(**case.inputs(), k=40, rule=STEEP)
    for place in (1, 10, 25):
        wrong = sel.indices.clone()
        wrong[0, [place, place + 8]] = wrong[0, [place + 8, place]]
        with pytest.raises(AssertionError):
            check_selection(idsel.Selection(wrong, sel.scores), **case.inputs(), rule=STEEP).assert_ok()

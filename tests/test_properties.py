"""What holds for any input, tried on generated ones."""

from __future__ import annotations

import torch
from cases import RULE_CASES
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import idsel_kernels as idsel
from idsel_kernels.testing import Case, check_selection, clustered, near_duplicates

# Beyond this margin, in units of the largest priority, float32 rounding cannot change a pick (tests/tolerances.py).
CLEAR = 1e-4

RULES = st.sampled_from(sorted(RULE_CASES)).map(RULE_CASES.__getitem__)
KINDS = st.sampled_from(["skewed", "uniform", "flat", "ties"])
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def cases(draw: st.DrawFn, batch: int = 1) -> Case:
    tokens, dim = draw(st.integers(1, 40)), draw(st.integers(1, 24))
    seed, importance = draw(st.integers(0, 10_000)), draw(KINDS)
    if draw(st.booleans()):
        return clustered(batch, tokens, dim, seed=seed, importance=importance)
    copies, noise = draw(st.integers(1, 5)), draw(st.sampled_from([0.0, 1e-2]))
    return near_duplicates(batch, tokens, dim, copies=copies, noise=noise, seed=seed, importance=importance)


def _clear_prefix(sel: idsel.Selection, case: Case, rule: idsel.Rule) -> int:
    return check_selection(sel, **case.inputs(), rule=rule).clear_prefix(CLEAR)[0]


@SETTINGS
@given(cases(batch=2), RULES, st.integers(0, 45))
def test_any_selection_is_right(case: Case, rule: idsel.Rule, k: int) -> None:
    check_selection(idsel.select(**case.inputs(), k=k, rule=rule), **case.inputs(), rule=rule).assert_ok()


@SETTINGS
@given(cases(), RULES, st.integers(1, 20), st.integers(0, 10_000))
def test_permuting_tokens_permutes_the_picks(case: Case, rule: idsel.Rule, k: int, seed: int) -> None:
    assume(not (isinstance(rule, idsel.MaxMin) and rule.start is not None))  # start names a position
    order = torch.randperm(case.features.shape[1], generator=torch.Generator().manual_seed(seed))
    sel = idsel.select(**case.inputs(), k=k, rule=rule)
    moved = Case(case.features[:, order], case.importance[:, order])
    permuted = idsel.select(**moved.inputs(), k=k, rule=rule)
    clear = _clear_prefix(sel, case, rule)
    shown = min(clear, len(order))
    assert order[permuted.indices[0, :shown]].tolist() == sel.indices[0, :shown].tolist()


@SETTINGS
@given(cases(), RULES, st.integers(1, 20), st.sampled_from([1e-3, 0.37, 2.0, 1e4]))
def test_scaling_features_changes_nothing(case: Case, rule: idsel.Rule, k: int, factor: float) -> None:
    sel = idsel.select(**case.inputs(), k=k, rule=rule)
    scaled = idsel.select(case.features * factor, k, rule, case.importance)
    clear = _clear_prefix(sel, case, rule)
    assert scaled.indices[0, :clear].tolist() == sel.indices[0, :clear].tolist()
    check_selection(scaled, **case.inputs(), rule=rule).assert_ok()


@SETTINGS
@given(cases(), RULES, st.integers(1, 30), st.data())
def test_fewer_picks_are_a_prefix(case: Case, rule: idsel.Rule, k: int, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(0, k))
    many = idsel.testing.oracle(**case.inputs(), k=k, rule=rule, gram="full")
    few = idsel.testing.oracle(**case.inputs(), k=fewer, rule=rule, gram="full")
    assert torch.equal(many.indices[:, :fewer], few.indices)
    assert torch.equal(many.scores[:, :fewer], few.scores)


@SETTINGS
@given(cases(batch=4), RULES, st.integers(1, 20))
def test_a_sample_does_not_see_its_batch(case: Case, rule: idsel.Rule, k: int) -> None:
    together = idsel.select(**case.inputs(), k=k, rule=rule)
    for b in range(4):
        alone = idsel.select(case.features[b], k, rule, case.importance[b])
        assert torch.equal(together.indices[b], alone.indices[0])
        assert torch.equal(together.scores[b], alone.scores[0])


@SETTINGS
@given(cases(), RULES, st.integers(1, 20), st.integers(0, 10_000))
def test_masking_equals_removal(case: Case, rule: idsel.Rule, k: int, seed: int) -> None:
    assume(not (isinstance(rule, idsel.MaxMin) and rule.start is not None))
    tokens = case.features.shape[1]
    mask = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.6
    masked = idsel.select(**case.inputs(), k=k, rule=rule, mask=mask[None])
    left = mask.nonzero()[:, 0]
    removed = Case(case.features[:, mask], case.importance[:, mask])
    sel = idsel.select(**removed.inputs(), k=k, rule=rule)
    shown = min(_clear_prefix(sel, removed, rule), len(left))
    assert masked.indices[0, :shown].tolist() == left[sel.indices[0, :shown]].tolist()
    assert ((masked.indices == -1) == (sel.indices == -1)).all()
    check_selection(masked, **case.inputs(), rule=rule, mask=mask[None]).assert_ok()


@SETTINGS
@given(cases(), RULES, st.integers(0, 45))
def test_picks_are_distinct_and_exactly_k(case: Case, rule: idsel.Rule, k: int) -> None:
    indices = idsel.select(**case.inputs(), k=k, rule=rule).indices[0].tolist()
    taken = [i for i in indices if i >= 0]
    assert len(taken) == len(set(taken)) == min(k, case.features.shape[1])
    assert len(indices) == k

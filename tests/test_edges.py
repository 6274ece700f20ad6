"""Shapes and values at the edge: empty, single, padded, masked, unusable."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import RULE_CASES
from torch.autograd import forward_ad

import idsel_kernels as idsel
from idsel_kernels.testing import clustered, near_duplicates, ragged

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES.keys())


@ALL_RULES
def test_one_token(rule: idsel.Rule, backend: str) -> None:
    sel = idsel.select(torch.tensor([[3.0, 4.0]]), 1, rule=rule, importance=torch.tensor([0.5]), backend=backend)
    assert sel.indices.tolist() == [[0]]
    # A single unit vector covers itself: MaxMin knows no distance, Coverage adds or multiplies its gain of 1.
    expected = {idsel.MaxMin: math.inf, idsel.DPP: 0.25}.get(type(rule), 0.5)
    if isinstance(rule, idsel.Coverage) and rule.combine == "add":
        expected = 1 + 0.5**rule.alpha
    assert sel.scores.item() == pytest.approx(expected)


@ALL_RULES
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (0, 0, 4)], ids=str)
def test_empty_batches_and_samples(rule: idsel.Rule, shape: tuple[int, int, int], backend: str) -> None:
    if isinstance(rule, idsel.MaxMin):
        rule = idsel.MaxMin()
    sel = idsel.select(torch.zeros(shape), 3, rule=rule, importance=torch.zeros(shape[:2]), backend=backend)
    assert sel.indices.shape == sel.scores.shape == (shape[0], 3)
    assert (sel.indices == -1).all() and sel.scores.isneginf().all()


@ALL_RULES
def test_k_zero_selects_nothing(rule: idsel.Rule, backend: str) -> None:
    sel = idsel.select(torch.eye(3), 0, rule=rule, importance=torch.ones(3), backend=backend)
    assert sel.indices.shape == sel.scores.shape == (1, 0)
    assert (sel.indices.dtype, sel.scores.dtype) == (torch.int64, torch.float32)


@ALL_RULES
def test_k_beyond_n_takes_everything_once_and_pads(rule: idsel.Rule, backend: str) -> None:
    case = clustered(2, 9, 5)
    sel = idsel.select(**case.inputs(), k=12, rule=rule, backend=backend)
    assert sel.indices[:, :9].sort().values.tolist() == [list(range(9))] * 2
    assert (sel.indices[:, 9:] == -1).all() and sel.scores[:, 9:].isneginf().all()


@ALL_RULES
def test_duplicates_are_never_picked_twice(rule: idsel.Rule, backend: str) -> None:
    case = near_duplicates(1, 32, 8, copies=8)
    sel = idsel.select(**case.inputs(), k=32, rule=rule, backend=backend)
    assert sorted(sel.indices[0].tolist()) == list(range(32))


@ALL_RULES
def test_rank_deficient_features_give_k_distinct_tokens(rule: idsel.Rule, backend: str) -> None:
    case = clustered(1, 60, 4)
    sel = idsel.select(**case.inputs(), k=60, rule=rule, backend=backend)
    assert sorted(sel.indices[0].tolist()) == list(range(60))


@ALL_RULES
def test_sort_orders_indices_and_keeps_scores_with_them(rule: idsel.Rule, backend: str) -> None:
    case = clustered(2, 30, 8)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 5:] = False
    picked = idsel.select(**case.inputs(), k=10, rule=rule, mask=mask, backend=backend)
    ordered = idsel.select(**case.inputs(), k=10, rule=rule, mask=mask, sort=True, backend=backend)
    for b in range(2):
        pairs = sorted((i, s) for i, s in zip(picked.indices[b].tolist(), picked.scores[b].tolist(), strict=True))
        padding = [pair for pair in pairs if pair[0] == -1]
        assert (
            list(zip(ordered.indices[b].tolist(), ordered.scores[b].tolist(), strict=True))
            == [pair for pair in pairs if pair[0] >= 0] + padding
        )


@ALL_RULES
def test_masked_tokens_are_never_picked(rule: idsel.Rule, backend: str) -> None:
    case = clustered(2, 20, 8)
    mask = torch.arange(20).expand(2, 20) % 4 != 0
    sel = idsel.select(**case.inputs(), k=20, rule=rule, mask=mask, backend=backend)
    assert sel.indices[:, :15].sort().values.tolist() == [[i for i in range(20) if i % 4]] * 2
    assert (sel.indices[:, 15:] == -1).all()


@ALL_RULES
def test_unusable_tokens_come_last_in_index_order(rule: idsel.Rule, backend: str) -> None:
    features, importance, _ = clustered(1, 12, 8, seed=3)
    importance[0, 2], importance[0, 9] = float("nan"), float("-inf")
    features[0, 4, 1], features[0, 6, 0] = float("nan"), float("inf")
    sel = idsel.select(features, 12, rule=rule, importance=importance, backend=backend)
    assert sel.indices[0, 8:].tolist() == [2, 4, 6, 9]
    assert sel.scores[0, 8:].isneginf().all()
    usable = [i for i in range(12) if i not in (2, 4, 6, 9)]
    kept = idsel.select(features[:, usable], 8, rule=rule, importance=importance[:, usable], backend=backend)
    assert sel.indices[0, :8].tolist() == [usable[i] for i in kept.indices[0]]


@ALL_RULES
def test_only_unusable_tokens_still_give_k(rule: idsel.Rule, backend: str) -> None:
    features = torch.full((1, 5, 3), float("nan"))
    sel = idsel.select(features, 4, rule=rule, importance=torch.ones(1, 5), backend=backend)
    assert sel.indices[0].tolist() == [0, 1, 2, 3]


def test_infinite_importance_is_picked_first_and_leaves_numbers(backend: str) -> None:
    features, importance, _ = clustered(1, 20, 8, seed=1)
    importance[0, 7] = float("inf")
    for rule in (idsel.IDSelection(), idsel.MMR(), idsel.TopK(), idsel.HardSuppress(), idsel.DPP(), idsel.Coverage()):
        sel = idsel.select(features, 20, rule=rule, importance=importance, backend=backend)
        assert sel.indices[0, 0] == 7
        assert sorted(sel.indices[0].tolist()) == list(range(20))
        assert not sel.scores.isnan().any()


def test_maxmin_start_falls_back_to_the_lowest_selectable_token(backend: str) -> None:
    case = clustered(1, 10, 4)
    mask = torch.tensor([[False, False, True, True, True, True, True, False, True, True]])
    sel = idsel.select(**case.inputs(), k=3, rule=idsel.MaxMin(start=7), mask=mask, backend=backend)
    assert sel.indices[0, 0] == 2
    assert sel.scores[0, 0] == math.inf


def test_maxmin_ignores_importance_but_its_unusable_tokens(backend: str) -> None:
    case = clustered(1, 30, 8)
    plain = idsel.select(case.features, 10, rule=idsel.MaxMin(), backend=backend)
    weighted = idsel.select(**case.inputs(), k=10, rule=idsel.MaxMin(), backend=backend)
    assert torch.equal(plain.indices, weighted.indices)


def test_coverage_without_importance_weighs_all_tokens_alike(backend: str) -> None:
    case = clustered(1, 30, 8)
    plain = idsel.select(case.features, 10, rule=idsel.Coverage(), backend=backend)
    ones = idsel.select(case.features, 10, rule=idsel.Coverage(), importance=torch.ones(1, 30), backend=backend)
    assert torch.equal(plain.indices, ones.indices)


@ALL_RULES
def test_ragged_batch_equals_its_samples_alone(rule: idsel.Rule, backend: str) -> None:
    case = ragged((12, 0, 45, 1, 7), 8, seed=2)
    counts = [5, 3, 20, 2, 0]
    sel = idsel.select(**case.inputs(), k=counts, rule=rule, backend=backend)
    assert sel.indices.shape == (5, 20)
    offsets = case.cu_seqlens.tolist()
    for b, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if begin == end:
            assert (sel.indices[b] == -1).all()
            continue
        alone = idsel.select(
            case.features[begin:end], counts[b], rule=rule, importance=case.importance[begin:end], backend=backend
        )
        assert torch.equal(sel.indices[b, : counts[b]], alone.indices[0])
        assert torch.equal(sel.scores[b, : counts[b]], alone.scores[0])
        assert (sel.indices[b, counts[b] :] == -1).all()


def test_unbatched_input_gives_a_batch_of_one(backend: str) -> None:
    case = clustered(1, 20, 8)
    batched = idsel.select(**case.inputs(), k=5, backend=backend)
    single = idsel.select(case.features[0], 5, importance=case.importance[0], backend=backend)
    assert single.indices.shape == (1, 5)
    assert torch.equal(batched.indices, single.indices)


def test_importance_is_used_as_float32(backend: str) -> None:
    importance = torch.tensor([1.0, 1.0 + 2**-20, 1.0 + 2**-30, -1e300], dtype=torch.float64)
    sel = idsel.select(torch.eye(4), 4, rule=idsel.TopK(), importance=importance, backend=backend)
    # The third is 1 in float32, and the last -inf.
    assert sel.indices[0].tolist() == [1, 0, 2, 3]
    assert sel.scores[0].tolist() == [1.0 + 2**-20, 1.0, 1.0, -math.inf]


def test_k_far_beyond_n_costs_no_more_than_n(backend: str) -> None:
    case = clustered(1, 10, 4)
    sel = idsel.select(**case.inputs(), k=10**6, rule=idsel.DPP(), backend=backend)
    assert sel.indices.shape == (1, 10**6)
    assert torch.equal(sel.indices[:, :10], idsel.select(**case.inputs(), k=10, rule=idsel.DPP()).indices)


def test_forward_mode_tangents_do_not_reach_the_scores(backend: str) -> None:
    case = clustered(1, 20, 8)
    with forward_ad.dual_level():
        features = forward_ad.make_dual(case.features, torch.ones_like(case.features))
        importance = forward_ad.make_dual(case.importance, torch.ones_like(case.importance))
        sel = idsel.select(features, 5, importance=importance, backend=backend)
        assert forward_ad.unpack_dual(sel.scores).tangent is None


def test_inputs_are_left_unchanged(backend: str) -> None:
    case = clustered(2, 25, 8)
    before = case.features.clone(), case.importance.clone()
    for rule in RULE_CASES.values():
        idsel.select(**case.inputs(), k=10, rule=rule, backend=backend)
    assert torch.equal(case.features, before[0]) and torch.equal(case.importance, before[1])


def test_outputs_never_require_grad(backend: str) -> None:
    case = clustered(1, 20, 8)
    features, importance = case.features.requires_grad_(), case.importance.requires_grad_()
    for tensor in (features, torch.nn.Parameter(features.detach())):
        sel = idsel.select(tensor, 5, importance=importance, backend=backend)
        assert not sel.scores.requires_grad

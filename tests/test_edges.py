"""Shapes and values at the edge: empty, single, padded, masked, unusable."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from backends import Backend
from cases import RULE_CASES
from torch.autograd import forward_ad

import idsel_kernels as idsel
from idsel_kernels.testing import clustered, near_duplicates, ragged

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES.keys())


@ALL_RULES
def test_one_token(rule: idsel.Rule, backend: Backend) -> None:
    sel = backend.select(torch.tensor([[3.0, 4.0]]), 1, rule=rule, importance=torch.tensor([0.5]))
    assert sel.indices.tolist() == [[0]]
    # Alone it covers itself: MaxMin knows no distance, Coverage adds or multiplies its gain of 1.
    expected = {idsel.MaxMin: math.inf, idsel.DPP: 0.25, idsel.MatrixCoverage: 7.0}.get(type(rule), 0.5)
    if isinstance(rule, idsel.Coverage) and rule.combine == "add":
        expected = 1 + 0.5**rule.alpha
    assert sel.scores.item() == pytest.approx(expected)


@ALL_RULES
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (0, 0, 4)], ids=str)
def test_empty_batches_and_samples(rule: idsel.Rule, shape: tuple[int, int, int], backend: Backend) -> None:
    if isinstance(rule, idsel.MaxMin):
        rule = idsel.MaxMin()
    sel = backend.select(torch.zeros(shape), 3, rule=rule, importance=torch.zeros(shape[:2]))
    assert sel.indices.shape == sel.scores.shape == (shape[0], 3)
    assert (sel.indices == -1).all() and sel.scores.isneginf().all()


@ALL_RULES
def test_k_zero_selects_nothing(rule: idsel.Rule, backend: Backend) -> None:
    sel = backend.select(torch.eye(3), 0, rule=rule, importance=torch.ones(3))
    assert sel.indices.shape == sel.scores.shape == (1, 0)
    assert (sel.indices.dtype, sel.scores.dtype) == (torch.int64, torch.float32)


@ALL_RULES
def test_k_beyond_n_takes_everything_once_and_pads(rule: idsel.Rule, backend: Backend) -> None:
    case = clustered(2, 9, 5)
    sel = backend.select(**case.inputs(), k=12, rule=rule)
    assert sel.indices[:, :9].sort().values.tolist() == [list(range(9))] * 2
    assert (sel.indices[:, 9:] == -1).all() and sel.scores[:, 9:].isneginf().all()


@ALL_RULES
def test_duplicates_are_never_picked_twice(rule: idsel.Rule, backend: Backend) -> None:
    case = near_duplicates(1, 32, 8, copies=8)
    sel = backend.select(**case.inputs(), k=32, rule=rule)
    assert sorted(sel.indices[0].tolist()) == list(range(32))


@ALL_RULES
def test_rank_deficient_features_give_k_distinct_tokens(rule: idsel.Rule, backend: Backend) -> None:
    case = clustered(1, 60, 4)
    sel = backend.select(**case.inputs(), k=60, rule=rule)
    assert sorted(sel.indices[0].tolist()) == list(range(60))


@ALL_RULES
def test_sort_orders_indices_and_keeps_scores_with_them(rule: idsel.Rule, backend: Backend) -> None:
    case = clustered(2, 30, 8)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 5:] = False
    picked = backend.select(**case.inputs(), k=10, rule=rule, mask=mask)
    ordered = backend.select(**case.inputs(), k=10, rule=rule, mask=mask, sort=True)
    for b in range(2):
        pairs = sorted((i, s) for i, s in zip(picked.indices[b].tolist(), picked.scores[b].tolist(), strict=True))
        padding = [pair for pair in pairs if pair[0] == -1]
        assert (
            list(zip(ordered.indices[b].tolist(), ordered.scores[b].tolist(), strict=True))
            == [pair for pair in pairs if pair[0] >= 0] + padding
        )


@ALL_RULES
def test_masked_tokens_are_never_picked(rule: idsel.Rule, backend: Backend) -> None:
    case = clustered(2, 20, 8)
    mask = torch.arange(20).expand(2, 20) % 4 != 0
    sel = backend.select(**case.inputs(), k=20, rule=rule, mask=mask)
    assert sel.indices[:, :15].sort().values.tolist() == [[i for i in range(20) if i % 4]] * 2
    assert (sel.indices[:, 15:] == -1).all()


@ALL_RULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_unusable_tokens_come_last_in_index_order(rule: idsel.Rule, dtype: torch.dtype, backend: Backend) -> None:
    # Fragments of tensor cores have 8 rows, so that tokens 8 places from these and before the last are looked at too.
    features, importance, _ = clustered(1, 28, 8, seed=3, dtype=dtype)
    importance[0, 2], importance[0, 9] = float("nan"), float("-inf")
    features[0, 4, 1], features[0, 14, 0], features[0, 27] = float("nan"), float("inf"), float("inf")
    unusable = [2, 4, 9, 14, 27]
    usable = [i for i in range(28) if i not in unusable]
    sel = backend.select(features, 28, rule=rule, importance=importance)
    assert sel.indices[0, 23:].tolist() == unusable
    assert sel.scores[0, 23:].isneginf().all()
    k = backend.fewer(23)
    kept = backend.select(features[:, usable], k, rule=rule, importance=importance[:, usable])
    assert sel.indices[0, :k].tolist() == [usable[i] for i in kept.indices[0]]


@ALL_RULES
def test_only_unusable_tokens_still_give_k(rule: idsel.Rule, backend: Backend) -> None:
    features = torch.full((1, 5, 3), float("nan"))
    sel = backend.select(features, 4, rule=rule, importance=torch.ones(1, 5))
    assert sel.indices[0].tolist() == [0, 1, 2, 3]


def test_infinite_importance_is_picked_first_and_leaves_numbers(backend: Backend) -> None:
    features, importance, _ = clustered(1, 20, 8, seed=1)
    importance[0, 7] = float("inf")
    for rule in (idsel.IDSelection(), idsel.MMR(), idsel.TopK(), idsel.HardSuppress(), idsel.DPP(), idsel.Coverage()):
        sel = backend.select(features, 20, rule=rule, importance=importance)
        assert sel.indices[0, 0] == 7
        assert sorted(sel.indices[0].tolist()) == list(range(20))
        assert not sel.scores.isnan().any()


def test_coverage_of_hugely_unwanted_tokens_has_an_order(backend: Backend) -> None:
    """A gain times less than -2**100 would be -inf, and a token once without a priority gets none any more."""
    features = torch.tensor([[[1, 0, 0], [1, 0.2, 0], [1, 0, 0.1], [0, 1, 0], [0, 0, 1]]])
    importance = torch.tensor([[1, -3e38, -2.9e38, -2e38, -2.5e38]])
    sel = backend.select(features, 5, rule=idsel.Coverage(), importance=importance)
    assert sel.indices.tolist() == [[0, 2, 1, 3, 4]]
    assert sel.scores.isfinite().all()


def test_maxmin_start_falls_back_to_the_lowest_selectable_token(backend: Backend) -> None:
    case = clustered(1, 10, 4)
    mask = torch.tensor([[False, False, True, True, True, True, True, False, True, True]])
    sel = backend.select(**case.inputs(), k=3, rule=idsel.MaxMin(start=7), mask=mask)
    assert sel.indices[0, 0] == 2
    assert sel.scores[0, 0] == math.inf


def test_maxmin_ignores_importance_but_its_unusable_tokens(backend: Backend) -> None:
    case = clustered(1, 30, 8)
    plain = backend.select(case.features, 10, rule=idsel.MaxMin())
    weighted = backend.select(**case.inputs(), k=10, rule=idsel.MaxMin())
    assert torch.equal(plain.indices, weighted.indices)


def test_coverage_without_importance_weighs_all_tokens_alike(backend: Backend) -> None:
    case = clustered(1, 30, 8)
    plain = backend.select(case.features, 10, rule=idsel.Coverage())
    ones = backend.select(case.features, 10, rule=idsel.Coverage(), importance=torch.ones(1, 30))
    assert torch.equal(plain.indices, ones.indices)


@ALL_RULES
def test_ragged_batch_equals_its_samples_alone(rule: idsel.Rule, backend: Backend) -> None:
    case = ragged((12, 0, 45, 1, 7), 8, seed=2)
    counts = [5, 3, 20, 2, 0]
    sel = backend.select(**case.inputs(), k=counts, rule=rule)
    assert sel.indices.shape == (5, 20)
    offsets = case.cu_seqlens.tolist()
    for b, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if begin == end:
            assert (sel.indices[b] == -1).all()
            continue
        alone = backend.select(case.features[begin:end], counts[b], rule=rule, importance=case.importance[begin:end])
        assert torch.equal(sel.indices[b, : counts[b]], alone.indices[0])
        assert torch.equal(sel.scores[b, : counts[b]], alone.scores[0])
        assert (sel.indices[b, counts[b] :] == -1).all()


def test_unbatched_input_gives_a_batch_of_one(backend: Backend) -> None:
    case = clustered(1, 20, 8)
    batched = backend.select(**case.inputs(), k=5)
    single = backend.select(case.features[0], 5, importance=case.importance[0])
    assert single.indices.shape == (1, 5)
    assert torch.equal(batched.indices, single.indices)


def test_importance_is_used_as_float32(backend: Backend) -> None:
    importance = torch.tensor([1.0, 1.0 + 2**-20, 1.0 + 2**-30, -1e300], dtype=torch.float64)
    sel = backend.select(torch.eye(4), 4, rule=idsel.TopK(), importance=importance)
    # The third is 1 in float32, and the last -inf.
    assert sel.indices[0].tolist() == [1, 0, 2, 3]
    assert sel.scores[0].tolist() == [1.0 + 2**-20, 1.0, 1.0, -math.inf]


def test_k_far_beyond_n_costs_no_more_than_n(backend: Backend) -> None:
    case = clustered(1, 10, 4)
    k = 10**6 if backend.most_picks is None else 10**4
    sel = backend.select(**case.inputs(), k=k, rule=idsel.DPP())
    assert sel.indices.shape == (1, k)
    assert torch.equal(sel.indices[:, :10], idsel.select(**case.inputs(), k=10, rule=idsel.DPP()).indices)


def test_forward_mode_tangents_do_not_reach_the_scores(backend: Backend) -> None:
    case = clustered(1, 20, 8)
    with forward_ad.dual_level():
        features, importance = (
            forward_ad.make_dual(tensor, torch.ones_like(tensor)) for tensor in map(backend.put, case[:2])
        )
        sel = backend.select(features, 5, importance=importance)
        assert forward_ad.unpack_dual(sel.scores).tangent is None


@ALL_RULES
def test_inputs_are_left_unchanged(rule: idsel.Rule, backend: Backend) -> None:
    before = clustered(2, 25, 8).inputs()
    inputs = backend.inputs(clustered(2, 25, 8).inputs())
    backend.select(**inputs, k=backend.fewer(10), rule=rule)
    assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in inputs.items())


def test_outputs_never_require_grad(backend: Backend) -> None:
    features, importance = (backend.put(tensor).requires_grad_() for tensor in clustered(1, 20, 8)[:2])
    for tensor in (features, torch.nn.Parameter(features.detach())):
        sel = backend.select(tensor, 5, importance=importance)
        assert not sel.scores.requires_grad


@pytest.mark.parametrize("shape", [(2, 0, 4, 2), (0, 5, 4, 2)])
def test_samples_without_tokens_may_have_any_strides(shape: tuple[int, ...], backend: Backend) -> None:
    sel = backend.select(torch.zeros(shape)[..., 0], 3, idsel.MaxMin())
    assert sel.indices.shape == (shape[0], 3) and (sel.indices == -1).all()

"""Bits do not change: from run to run, with the batch a sample travels in, or on the route of the call."""

from __future__ import annotations

import pytest
import torch
from backends import Backend, same
from cases import INPUT_CASES, RULE_CASES

import idsel_kernels as idsel
from idsel_kernels.testing import clustered

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES.keys())


@ALL_RULES
def test_ten_runs_give_the_same_bits(rule: idsel.Rule, backend: Backend) -> None:
    case = clustered(2, 130, 40)
    k = backend.fewer(30)
    first = backend.select(**case.inputs(), k=k, rule=rule)
    for _ in range(9):
        assert same(first, backend.select(**case.inputs(), k=k, rule=rule))


@ALL_RULES
@pytest.mark.parametrize("tokens", [57, 200])
def test_batch_mates_change_no_bit(rule: idsel.Rule, tokens: int, backend: Backend) -> None:
    case = clustered(6, tokens, 33, seed=tokens)
    k = backend.fewer(20)
    together = backend.select(**case.inputs(), k=k, rule=rule)
    for b in range(6):
        alone = backend.select(case.features[b], k, rule=rule, importance=case.importance[b])
        assert torch.equal(together.indices[b], alone.indices[0])
        assert torch.equal(together.scores[b], alone.scores[0])


@ALL_RULES
def test_longer_batch_mates_and_larger_counts_change_no_bit(rule: idsel.Rule, backend: Backend) -> None:
    lengths, counts = (90, 700, 40), backend.fewer([20, 3, 40])
    case = idsel.testing.ragged(lengths, 33, seed=1)
    together = backend.select(**case.inputs(), k=counts, rule=rule)
    begin = 0
    for b, (length, k) in enumerate(zip(lengths, counts, strict=True)):
        rows = slice(begin, begin + length)
        alone = backend.select(case.features[rows], k, rule=rule, importance=case.importance[rows])
        assert torch.equal(together.indices[b, :k], alone.indices[0])
        assert torch.equal(together.scores[b, :k], alone.scores[0])
        begin += length


@ALL_RULES
def test_ragged_and_dense_give_the_same_bits(rule: idsel.Rule, backend: Backend) -> None:
    case = clustered(3, 40, 12)
    dense = backend.select(**case.inputs(), k=15, rule=rule)
    ragged = backend.select(
        case.features.flatten(0, 1),
        15,
        rule=rule,
        importance=case.importance.flatten(),
        cu_seqlens=torch.tensor([0, 40, 80, 120], dtype=torch.int32),
    )
    assert same(dense, ragged)


@ALL_RULES
def test_strides_and_storage_offset_change_no_bit(rule: idsel.Rule, backend: Backend) -> None:
    features, importance, _ = clustered(1, 50, 24)
    plain = backend.select(features, 12, rule=rule, importance=importance)
    shifted = torch.empty(50 * 24 + 1)[1:].view(1, 50, 24).copy_(features)
    transposed = features.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (shifted, transposed):
        assert same(plain, backend.select(view, 12, rule=rule, importance=importance))


@pytest.mark.parametrize("case", INPUT_CASES)
def test_operator_and_direct_call_give_the_same_bits(case: str, backend: Backend) -> None:
    call = INPUT_CASES[case]
    tensors = backend.inputs(call.inputs())
    features = tensors.pop("features")
    k = backend.fewer(call.k, case)
    counts = k if isinstance(k, list) else [k]
    for rule in RULE_CASES.values():
        direct = backend.select(**call.inputs(), k=k, rule=rule)
        rule_id, params = rule.encode()
        routed = torch.ops.idsel.select(features, counts, rule_id, params, **tensors, backend=backend.name)
        assert same(direct, backend.fetch(routed))


@ALL_RULES
def test_fewer_picks_are_a_prefix_of_more(rule: idsel.Rule) -> None:
    case = clustered(1, 80, 16)
    many = idsel.testing.oracle(**case.inputs(), k=80, rule=rule)
    for k in (1, 2, 17, 79):
        few = idsel.testing.oracle(**case.inputs(), k=k, rule=rule)
        clear = idsel.testing.check_selection(many, **case.inputs(), rule=rule).clear_prefix(1e-9)[0]
        assert torch.equal(few.indices[0, :clear], many.indices[0, : min(k, clear)])

"""Bits do not change: from run to run, with the batch a sample travels in, or on the route of the call."""

from __future__ import annotations

import pytest
import torch
from cases import INPUT_CASES, RULE_CASES

import idsel_kernels as idsel
from idsel_kernels.testing import clustered

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES.keys())


def _same(a: idsel.Selection, b: idsel.Selection) -> bool:
    return torch.equal(a.indices, b.indices) and torch.equal(a.scores, b.scores)


@ALL_RULES
def test_ten_runs_give_the_same_bits(rule: idsel.Rule, backend: str) -> None:
    case = clustered(2, 130, 40)
    first = idsel.select(**case.inputs(), k=30, rule=rule, backend=backend)
    for _ in range(9):
        assert _same(first, idsel.select(**case.inputs(), k=30, rule=rule, backend=backend))


@ALL_RULES
@pytest.mark.parametrize("tokens", [57, 200])
def test_batch_mates_change_no_bit(rule: idsel.Rule, tokens: int, backend: str) -> None:
    case = clustered(6, tokens, 33, seed=tokens)
    together = idsel.select(**case.inputs(), k=20, rule=rule, backend=backend)
    for b in range(6):
        alone = idsel.select(case.features[b], 20, rule=rule, importance=case.importance[b], backend=backend)
        assert torch.equal(together.indices[b], alone.indices[0])
        assert torch.equal(together.scores[b], alone.scores[0])


@ALL_RULES
def test_longer_batch_mates_and_larger_counts_change_no_bit(rule: idsel.Rule, backend: str) -> None:
    lengths, counts = (90, 700, 40), [20, 3, 40]
    case = idsel.testing.ragged(lengths, 33, seed=1)
    together = idsel.select(**case.inputs(), k=counts, rule=rule, backend=backend)
    begin = 0
    for b, (length, k) in enumerate(zip(lengths, counts, strict=True)):
        rows = slice(begin, begin + length)
        alone = idsel.select(case.features[rows], k, rule=rule, importance=case.importance[rows], backend=backend)
        assert torch.equal(together.indices[b, :k], alone.indices[0])
        assert torch.equal(together.scores[b, :k], alone.scores[0])
        begin += length


@ALL_RULES
def test_ragged_and_dense_give_the_same_bits(rule: idsel.Rule, backend: str) -> None:
    case = clustered(3, 40, 12)
    dense = idsel.select(**case.inputs(), k=15, rule=rule, backend=backend)
    ragged = idsel.select(
        case.features.flatten(0, 1),
        15,
        rule=rule,
        importance=case.importance.flatten(),
        cu_seqlens=torch.tensor([0, 40, 80, 120], dtype=torch.int32),
        backend=backend,
    )
    assert _same(dense, ragged)


@ALL_RULES
def test_strides_and_storage_offset_change_no_bit(rule: idsel.Rule, backend: str) -> None:
    features, importance, _ = clustered(1, 50, 24)
    plain = idsel.select(features, 12, rule=rule, importance=importance, backend=backend)
    shifted = torch.empty(50 * 24 + 1)[1:].view(1, 50, 24).copy_(features)
    transposed = features.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (shifted, transposed):
        assert _same(plain, idsel.select(view, 12, rule=rule, importance=importance, backend=backend))


@pytest.mark.parametrize("case", INPUT_CASES)
def test_operator_and_direct_call_give_the_same_bits(case: str, backend: str) -> None:
    call = INPUT_CASES[case]
    tensors = dict(call.inputs())
    features = tensors.pop("features")
    counts = call.k if isinstance(call.k, list) else [call.k]
    for rule in RULE_CASES.values():
        direct = idsel.select(**call.inputs(), k=call.k, rule=rule, backend=backend)
        rule_id, params = rule.encode()
        routed = torch.ops.idsel.select(features, counts, rule_id, params, **tensors, backend=backend)
        assert _same(direct, idsel.Selection(*routed))


@ALL_RULES
def test_fewer_picks_are_a_prefix_of_more(rule: idsel.Rule) -> None:
    case = clustered(1, 80, 16)
    many = idsel.testing.oracle(**case.inputs(), k=80, rule=rule)
    for k in (1, 2, 17, 79):
        few = idsel.testing.oracle(**case.inputs(), k=k, rule=rule)
        clear = idsel.testing.check_selection(many, **case.inputs(), rule=rule).clear_prefix(1e-9)[0]
        assert torch.equal(few.indices[0, :clear], many.indices[0, : min(k, clear)])

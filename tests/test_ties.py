"""Among equal priorities the lowest index wins, in every backend."""

from __future__ import annotations

import pytest
import torch
from backends import Backend
from cases import RULE_CASES

import idsel_kernels as idsel


@pytest.mark.parametrize("rule", RULE_CASES)
def test_identical_tokens_are_picked_in_index_order(rule: str, backend: Backend) -> None:
    features = torch.ones(1, 40, 16)
    sel = backend.select(features, 40, rule=RULE_CASES[rule], importance=torch.ones(1, 40))
    assert sel.indices[0].tolist() == list(range(40))


@pytest.mark.parametrize("rule", RULE_CASES)
def test_zero_features_and_equal_importance_are_picked_in_index_order(rule: str, backend: Backend) -> None:
    sel = backend.select(torch.zeros(2, 35, 4), 35, rule=RULE_CASES[rule], importance=torch.ones(2, 35))
    assert sel.indices.tolist() == [list(range(35))] * 2


@pytest.mark.parametrize("rule", RULE_CASES)
def test_orthogonal_tokens_of_equal_importance_are_picked_in_index_order(rule: str, backend: Backend) -> None:
    sel = backend.select(torch.eye(33), 33, rule=RULE_CASES[rule], importance=torch.full((33,), 0.5))
    assert sel.indices[0].tolist() == list(range(33))


def test_negative_zero_ties_with_zero(backend: Backend) -> None:
    importance = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    sel = backend.select(torch.eye(4), 4, rule=idsel.TopK(), importance=importance)
    assert sel.indices[0].tolist() == [0, 1, 2, 3]


def test_floor_makes_ties_that_go_by_index(backend: Backend) -> None:
    features = torch.ones(6, 4)
    importance = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.4, 0.5])
    sel = backend.select(features, 6, importance=importance)
    # Everything is suppressed to the floor by the first pick.
    assert sel.indices[0].tolist() == [2, 0, 1, 3, 4, 5]
    assert sel.scores[0].tolist() == pytest.approx([0.9, 0, 0, 0, 0, 0])


def test_suppressed_tokens_of_equal_importance_follow_by_index(backend: Backend) -> None:
    importance = torch.tensor([0.5, 1.0, 0.5, 0.7, 0.5])
    sel = backend.select(torch.ones(5, 4), 5, rule=idsel.HardSuppress(), importance=importance)
    assert sel.indices[0].tolist() == [1, 3, 0, 2, 4]
    assert sel.scores[0, 1:].isneginf().all()

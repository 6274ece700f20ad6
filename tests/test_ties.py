"""Among equal priorities the lowest index wins, in every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from backends import EMULATED, INTERPRETED, Backend
from cases import RULE_CASES
from naive import naive_select

import idsel_kernels as idsel

# Every branch of a rule that copies of a token go through.
COPY_RULES = ("idselection", "mmr", "maxmin", "hardsuppress", "dpp", "coverage")


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


# --- Tokens that are there twice, among others ------------------------------------------------------------------------


@pytest.fixture
def ordered_sums(backend: Backend) -> Iterator[None]:
    """Under Triton's interpreter, the products of a GPU in place of NumPy's, which round by position."""
    if backend is not INTERPRETED:
        yield
        return
    from triton_interpreter import products_in_order

    with products_in_order():
        yield


def _seeds(backend: Backend, usual: int, slow: int) -> range:
    return range(slow if backend in (EMULATED, INTERPRETED) else usual)


def _twice(tokens: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and importance in which token i + `tokens` is a copy of token i."""
    generator = torch.Generator().manual_seed(seed)
    features, importance = torch.randn(tokens, dim, generator=generator), torch.rand(tokens, generator=generator)
    return features.repeat(2, 1), importance.repeat(2)


def _assert_originals_first(picks: torch.Tensor) -> None:
    """`picks` (2n,) are all tokens of `_twice`, and no copy comes before its original."""
    place = picks.argsort()
    assert torch.equal(picks[place], torch.arange(len(picks)))
    originals, copies = place.chunk(2)
    assert (originals < copies).all()


@pytest.mark.usefixtures("ordered_sums")
def test_a_token_and_its_copy_on_either_side_of_a_pick_tie(backend: Backend) -> None:
    importance = torch.tensor([0.5, 1.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    for _ in _seeds(backend, 100, 15):
        a, b = torch.randn(2, 24, generator=generator)
        sel = backend.select(torch.stack([a, b, a]), 3, rule=idsel.MMR(), importance=importance)
        assert sel.indices[0].tolist() == [1, 0, 2]


@pytest.mark.usefixtures("ordered_sums")
@pytest.mark.parametrize("dim", [75, 147])  # patches of 5 x 5 and of 7 x 7 pixels in three colours
@pytest.mark.parametrize("rule", COPY_RULES)
def test_no_copy_is_picked_before_its_original(rule: str, dim: int, backend: Backend) -> None:
    for seed in _seeds(backend, 10, 1):
        features, importance = _twice(28, dim, seed)
        _assert_originals_first(backend.select(features, 56, RULE_CASES[rule], importance).indices[0])


@pytest.mark.usefixtures("ordered_sums")
def test_no_copy_is_picked_before_its_original_in_any_sample_of_a_batch(backend: Backend) -> None:
    samples = [_twice(13, 75, seed) for seed in _seeds(backend, 6, 3)]
    features, importance = (torch.stack(part) for part in zip(*samples, strict=True))
    for picks in backend.select(features, 26, idsel.Coverage(), importance).indices:
        _assert_originals_first(picks)


@pytest.mark.usefixtures("ordered_sums")
def test_no_copy_is_picked_before_its_original_in_any_sample_of_a_ragged_batch(backend: Backend) -> None:
    lengths = [9, 17, 1, 13]
    samples = [_twice(n, 75, n) for n in lengths]
    features, importance = (torch.cat(part) for part in zip(*samples, strict=True))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) * 2
    sel = backend.select(features, [2 * n for n in lengths], idsel.Coverage(), importance, cu_seqlens=cu_seqlens)
    for picks, n in zip(sel.indices, lengths, strict=True):
        _assert_originals_first(picks[: 2 * n])


@pytest.mark.parametrize("gram", ["full", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rule", COPY_RULES)
def test_the_reference_ties_copies_in_each_of_its_ways(rule: str, dtype: torch.dtype, gram: str) -> None:
    tokens = 300 if rule == "maxmin" else 40  # more than one tile of `Batch.nearest_other`
    features, importance = _twice(tokens, 75, 0)
    sel = idsel.testing.oracle(features, 2 * tokens, RULE_CASES[rule], importance, dtype=dtype, gram=gram)
    _assert_originals_first(sel.indices[0])


@pytest.mark.parametrize("rule", COPY_RULES)
def test_copies_of_another_importance_keep_their_own_priorities(rule: str) -> None:
    features, importance = _twice(15, 24, 0)
    importance[15:] *= torch.linspace(0.5, 1.5, 15)
    importance[3], importance[20] = float("nan"), float("-inf")
    mask = torch.ones(30, dtype=torch.bool)
    mask[[7, 24]] = False
    sel = idsel.testing.oracle(features, 12, RULE_CASES[rule], importance, mask)
    picks, scores = naive_select(features.numpy(), 12, RULE_CASES[rule], importance.numpy(), mask.numpy())
    assert sel.indices[0].tolist() == picks
    assert sel.scores[0].tolist() == pytest.approx(scores, rel=1e-9, abs=1e-9)

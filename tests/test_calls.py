"""Calls that are remembered: what is checked once stays checked, and nothing that differs is taken for the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import same

import idsel_kernels as idsel
from idsel_kernels import api, calls

X, S = torch.randn(2, 12, 8), torch.rand(2, 12)


def _named(change: object) -> str | None:
    return ", ".join(change) if isinstance(change, dict) else ""


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each call that is checked anew."""
    seen: list[object] = []
    prepare = api.prepare
    monkeypatch.setattr(api, "prepare", lambda *args, **more: seen.append(args) or prepare(*args, **more))
    return seen


def test_a_call_is_checked_once(checked: list[object]) -> None:
    first = idsel.select(X, 3, importance=S)
    assert same(first, idsel.select(X.clone(), 3, importance=S.clone())) and len(checked) == 1
    one = idsel.select(X[0], [4], "mmr", S[0])
    assert same(one, idsel.select(X[0], [4], "mmr", S[0])) and len(checked) == 2
    assert same(one, idsel.select(X[:1], 4, idsel.MMR(), S[:1])) and len(checked) == 2, "the same"


@pytest.mark.parametrize(
    "change",
    [
        {"k": 4},
        {"k": [3, 3]},
        {"rule": idsel.IDSelection(gamma=5.0)},
        {"rule": idsel.MMR()},
        {"importance": S.half()},
        {"features": X.double().float().transpose(1, 2).contiguous().transpose(1, 2)},
        {"features": X[:, :, :4]},
        {"mask": S > 0.5},
        {"rule": idsel.HardSuppress(radius=1), "grids": torch.tensor([[3, 4], [2, 6]])},
        {"sort": True},
        {"backend": "torch"},
        {"validate": True},
        {"keep_ratio": 0.25, "k": None},
    ],
    ids=_named,
)
def test_what_differs_is_another_call(change: dict[str, Any], checked: list[object]) -> None:
    call = {"features": X, "k": 3, "importance": S, "backend": None}
    idsel.select(**call)
    expected = idsel.select(**{**call, "backend": "torch", **change})
    before = len(checked)
    calls.forget()
    idsel.select(**call)
    sel = idsel.select(**{**call, **change})
    assert len(checked) == before + 2
    assert torch.equal(sel.indices, expected.indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": True}, "k must be an int, got bool"),
        ({"k": 1.0}, "k must be an int, got float"),
        ({"k": [1]}, "k must be an int or a list of B = 2 ints, got a list of 1"),
        ({"k": [1, True]}, "must be an int, got bool"),
        ({"sort": 0}, "sort must be True or False, got 0"),
        ({"validate": 0}, "validate must be True or False, got 0"),
        ({"rule": idsel.IDSelection}, "rule must be an instance, got the class"),
        ({"importance": S.tolist()}, "importance must be a torch.Tensor, got list"),
        ({"importance": S.to_sparse()}, "importance must be a dense"),
        ({"backend": ["cpu"]}, "backend must be a string"),
        ({"k_max": 1}, "k_max goes with k as a tensor"),
    ],
    ids=_named,
)
def test_what_is_equal_to_a_known_call_but_wrong_is_still_refused(change: dict[str, Any], message: str) -> None:
    for k in (1, [1, 1]):
        idsel.select(X, k, importance=S)
        idsel.select(X[0], k if k == 1 else [1], importance=S[0])
    with pytest.raises((TypeError, ValueError)) as caught:
        idsel.select(**{"features": X, "k": 1, "importance": S, **change})
    assert message in str(caught.value)


def test_values_of_a_known_call_are_read_again() -> None:
    offsets = torch.tensor([0, 5, 12], dtype=torch.int32)
    idsel.select(X[0], 2, importance=S[0], cu_seqlens=offsets)
    with pytest.raises(ValueError, match="cu_seqlens must end at T = 12, got 11"):
        idsel.select(X[0], 2, importance=S[0], cu_seqlens=torch.tensor([0, 5, 11], dtype=torch.int32))
    k = torch.tensor([1, 2])
    idsel.select(X, k, importance=S, k_max=2)
    with pytest.raises(ValueError, match=r"k\[0\] must be in \[0, k_max = 2\], got 3"):
        idsel.select(X, k + 2, importance=S, k_max=2)
    rule, grids = idsel.HardSuppress(radius=1), torch.tensor([[3, 4], [2, 6]])
    idsel.select(X, 2, rule, S, grids=grids)
    with pytest.raises(ValueError, match=r"grids\[0\] must have N = 12 cells, got 4 x 5"):
        idsel.select(X, 2, rule, S, grids=grids + 1)


def test_the_backend_is_asked_for_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    idsel.select(X, 3, importance=S)
    monkeypatch.setenv("IDSEL_BACKEND", "cuda")
    with pytest.raises(idsel.UnsupportedProblem, match=r"'cuda' \(by IDSEL_BACKEND\)"):
        idsel.select(X, 3, importance=S)
    with idsel.use_backend("torch"):
        idsel.select(X, 3, importance=S)


def test_there_is_a_limit_to_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_MOST", 10)
    for tokens in range(1, 30):
        idsel.select(torch.randn(1, tokens, 2), 1, "maxmin")
        assert len(calls._kept) <= 10

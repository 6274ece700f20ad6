"""How many tokens are kept: numbers as people have them, a k on the device, a share of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends import Backend
from cases import RULE_CASES

import idsel_kernels as idsel

CASE = idsel.inputs.clustered(3, 40, 16)
RAGGED = idsel.inputs.ragged([30, 0, 7, 41], 16)


@pytest.mark.parametrize(
    "k", [[2, 0, 5], (2, 0, 5), np.array([2, 0, 5]), [np.int64(2), 0, np.uint8(5)]], ids=lambda k: type(k).__name__
)
def test_sequences_of_counts(k: Any) -> None:
    sel = idsel.mmr_select(*CASE[:1], k, CASE.importance)
    assert sel.counts.tolist() == [2, 0, 5]


def test_a_range_is_a_sequence_and_numpy_integers_are_ints() -> None:
    assert idsel.mmr_select(CASE.features, range(3), CASE.importance).counts.tolist() == [0, 1, 2]
    for k in (np.int32(4), np.array(4)):
        assert idsel.mmr_select(CASE.features, k, CASE.importance).indices.shape == (3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_k_on_the_device_is_a_list_of_counts(rule: idsel.Rule, dtype: torch.dtype, backend: Backend) -> None:
    k = [4, 0, 9]
    listed = backend.select(**CASE.inputs(), k=k, rule=rule)
    given = backend.inputs({**CASE.inputs(), "k": torch.tensor(k, dtype=dtype)})
    sel = backend.fetch(idsel.select(**given, k_max=11, rule=rule, backend=backend.name))
    assert sel.indices.shape == (3, 11)
    assert torch.equal(sel.indices[:, :9], listed.indices) and torch.equal(sel.scores[:, :9], listed.scores)
    assert (sel.indices[:, 9:] == -1).all() and (sel.scores[:, 9:] == -torch.inf).all()


@pytest.mark.parametrize("sort", [False, True])
def test_k_on_the_device_of_a_ragged_batch(sort: bool, backend: Backend) -> None:
    k = [5, 3, 9, 2]  # more than the second and third sample have
    listed = backend.select(**RAGGED.inputs(), k=k, rule=idsel.MMR(), sort=sort)
    given = backend.inputs({**RAGGED.inputs(), "k": torch.tensor(k)})
    sel = backend.fetch(idsel.select(**given, k_max=9, rule=idsel.MMR(), sort=sort, backend=backend.name))
    assert torch.equal(sel.indices, listed.indices)
    # The torch engine chooses between Gram and rows by k_max, not by the counts, and they round differently.
    torch.testing.assert_close(sel.scores, listed.scores, rtol=0, atol=1e-6)


def test_one_number_on_the_device_is_for_all_samples() -> None:
    sel = idsel.mmr_select(CASE.features, torch.tensor(3), CASE.importance, k_max=5)
    assert sel.counts.tolist() == [3, 3, 3]


def test_int64_offsets_are_those_of_cumsum(backend: Backend) -> None:
    assert RAGGED.cu_seqlens is not None
    wide = {**RAGGED.inputs(), "cu_seqlens": RAGGED.cu_seqlens.long()}
    narrow, wide_sel = (backend.select(**inputs, k=4, rule=idsel.MMR()) for inputs in (RAGGED.inputs(), wide))
    assert all(map(torch.equal, narrow, wide_sel))


@pytest.mark.parametrize(
    ("tokens", "ratio", "k"), [(40, 0.25, 10), (5, 0.1, 1), (10, 0.25, 2), (14, 0.25, 4), (3, 1, 3)]
)
def test_keep_ratio_is_a_rounded_share_and_at_least_one(tokens: int, ratio: float, k: int) -> None:
    case = idsel.inputs.clustered(2, tokens, 8)
    sel = idsel.select(**case.inputs(), keep_ratio=ratio)
    assert sel.indices.shape == (2, k) and sel.counts.tolist() == [k, k]


def test_k_max_cuts_a_share() -> None:
    assert idsel.select(**CASE.inputs(), keep_ratio=0.5, k_max=3).indices.shape == (3, 3)
    assert idsel.select(**CASE.inputs(), keep_ratio=0.5, k_max=30).indices.shape == (3, 20)
    assert idsel.mmr_select(CASE.features, None, CASE.importance, keep_ratio=0.5).indices.shape == (3, 20)


def test_keep_ratio_is_of_the_tokens_that_exist(backend: Backend) -> None:
    mask = torch.arange(40) < torch.tensor([[40], [8], [1]])
    given = backend.inputs({**CASE.inputs(), "mask": mask})
    sel = backend.fetch(idsel.select(**given, keep_ratio=0.25, backend=backend.name))
    assert sel.indices.shape == (3, 10) and sel.counts.tolist() == [10, 2, 1]


def test_keep_ratio_of_a_ragged_batch() -> None:
    lengths = [30, 0, 7, 41]
    sel = idsel.select(**RAGGED.inputs(), keep_ratio=0.25)
    assert sel.counts.tolist() == [min(n, max(1, round(0.25 * n))) for n in lengths]
    narrow = idsel.select(**RAGGED.inputs(), keep_ratio=0.25, k_max=10)
    assert narrow.indices.shape == (4, 10)
    assert torch.equal(narrow.indices, sel.indices[:, :10])
    masked = idsel.select(**RAGGED.inputs(), keep_ratio=0.25, mask=torch.arange(78) % 2 == 0, k_max=10)
    assert masked.counts.tolist() == [4, 0, 1, 5]  # of 15, 0, 3 or 4, and 20 or 21


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TypeError, "either k or keep_ratio must be given, got neither"),
        ({"k": 3, "keep_ratio": 0.5}, TypeError, "either k or keep_ratio must be given, got k=3 and keep_ratio=0.5"),
        ({"k": torch.tensor([1, 2, 3])}, TypeError, "k as a tensor needs k_max="),
        (
            {"k": torch.tensor([1.0, 2, 3]), "k_max": 3},
            TypeError,
            "k as a tensor must hold integers, got torch.float32",
        ),
        ({"k": torch.tensor([True] * 3), "k_max": 3}, TypeError, "k as a tensor must hold integers, got torch.bool"),
        ({"k": torch.tensor([1, 2]), "k_max": 3}, ValueError, r"k as a tensor must be \(B,\) = \(3,\)"),
        ({"k": torch.tensor([1, 2, 4]), "k_max": 3}, ValueError, r"k\[2\] must be in \[0, k_max = 3\], got 4"),
        ({"k": torch.tensor([1, -1, 2]), "k_max": 3}, ValueError, r"k\[1\] must be in \[0, k_max = 3\], got -1"),
        ({"k": torch.zeros(3, dtype=torch.int64, device="meta"), "k_max": 3}, ValueError, "k must be on the device of"),
        ({"k": 3, "k_max": 3}, TypeError, "k_max goes with k as a tensor or with keep_ratio, got k_max=3 with k=3"),
        ({"keep_ratio": 0.5, "k_max": -3}, ValueError, "k_max must be >= 0, got -3"),
        ({"keep_ratio": 0}, ValueError, r"keep_ratio must be in \(0, 1\], got 0"),
        ({"keep_ratio": 1.5}, ValueError, r"keep_ratio must be in \(0, 1\], got 1.5"),
        ({"keep_ratio": "half"}, TypeError, r"keep_ratio must be a number in \(0, 1\], got 'half'"),
        ({"keep_ratio": float("nan")}, ValueError, r"keep_ratio must be in \(0, 1\], got nan"),
        ({"k": 0.25}, TypeError, "k must be an int, got float; for a fraction of the tokens pass keep_ratio="),
        ({"k": "3"}, TypeError, "k must be an int, got str"),
        ({"k": [1, 2.0, 3]}, TypeError, r"k\[1\] must be an int, got float"),
        ({"k": np.array([1.0, 2.0, 3.0])}, TypeError, r"k\[0\] must be an int, got float"),
    ],
)
def test_counts_that_are_none(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        idsel.select(**CASE.inputs(), **arguments)
    with pytest.raises(error, match=words):
        idsel.prune(CASE.features, importance=CASE.importance, **arguments)

"""Which rows are the same."""

from __future__ import annotations

import pytest
import torch

from idsel_kernels import alike
from idsel_kernels.alike import differ_early, first_alike, first_equal

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _literally(rows: torch.Tensor) -> list[int]:
    return [next((j for j in range(i) if bool((rows[j] == rows[i]).all())), i) for i in range(len(rows))]


def _with_copies(tokens: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, dim, generator=generator)
    return rows[torch.randint(0, tokens, (tokens,), generator=generator)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 33])
def test_gives_the_lowest_index_of_an_equal_row(dim: int, dtype: torch.dtype) -> None:
    rows = _with_copies(60, dim).to(dtype)
    first = first_alike(rows)
    assert first.dtype is torch.int64
    assert first.tolist() == _literally(rows)


def test_rows_beyond_one_part_are_compared_with_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(alike._PART_NUMBERS, "cpu", 600)
    rows = _with_copies(500, 3)
    assert first_alike(rows).tolist() == first_alike(rows.double()).tolist() == _literally(rows)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 100])
def test_rows_that_differ_early_have_no_equal(dim: int) -> None:
    rows = torch.randn(60, dim, generator=torch.Generator().manual_seed(0))
    assert differ_early(rows) and differ_early(rows[:1]) and differ_early(rows[:0])
    assert not differ_early(_with_copies(60, dim))
    late = rows.clone()
    late[7, :16] = late[3, :16]
    assert not differ_early(late)


def test_each_sample_of_a_batch_is_on_its_own() -> None:
    rows = torch.stack([_with_copies(50, 4, seed) for seed in range(6)]).view(2, 3, 50, 4)
    rows[1, 2] = rows[0, 0]
    expected = [[_literally(sample) for sample in samples] for samples in rows]
    assert first_alike(rows).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_zero_equals_zero(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0], [1.0, -0.0]], dtype=dtype)
    assert first_alike(rows).tolist() == [0, 1, 0, 1]


def test_a_row_with_nan_is_alike_to_none_and_infinities_are_values() -> None:
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[nan, 1.0], [inf, 1.0], [nan, 1.0], [inf, 1.0], [-inf, 1.0]])
    assert first_alike(rows).tolist() == [0, 1, 2, 1, 4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_differ_in_signs_alone_are_told_apart(dtype: torch.dtype) -> None:
    signs = torch.randint(0, 2, (1000, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(first_alike(signs.repeat(2, 1).to(dtype)), torch.arange(1000).repeat(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_element_each_are_told_apart(dtype: torch.dtype) -> None:
    assert torch.equal(first_alike(torch.eye(300).repeat(2, 1).to(dtype)), torch.arange(300).repeat(2))


def test_a_collision_misses_rows_and_invents_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "_hashes", lambda rows: rows.new_zeros(len(rows), dtype=torch.int64))
    rows = torch.tensor([[1.0], [2.0], [1.0], [2.0]])
    assert first_alike(rows).tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 2, 3)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    assert first_alike(torch.zeros(shape)).shape == shape[:-1]


def test_rows_without_elements_are_all_alike() -> None:
    assert first_alike(torch.zeros(3, 0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    rows = _with_copies(40, 6).to(dtype)
    assert first_alike(rows.T.contiguous().T).tolist() == first_alike(rows).tolist()


def test_keys() -> None:
    keys = torch.tensor([[5, -1, 5, 2**62], [0, 0, 1, 0]])
    assert first_equal(keys).tolist() == [[0, 1, 0, 3], [0, 0, 2, 0]]


def test_can_be_traced() -> None:
    rows = torch.stack([_with_copies(30, 5, seed) for seed in range(2)])
    compiled = torch.compile(first_alike, fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows), first_alike(rows))

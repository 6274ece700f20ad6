"""What a `Selection` does for its caller: counts, masks, rows, order; padding never counts as a token."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch

import idsel_kernels as idsel

PADDED = idsel.Selection(
    torch.tensor([[4, 0, 2], [1, -1, -1], [-1, -1, -1]]),
    torch.tensor([[3.0, 2, 1], [5, -torch.inf, -torch.inf]] * 2)[:3],
)
CU_SEQLENS = torch.tensor([0, 5, 7, 7])


def test_it_is_a_tuple_of_two() -> None:
    indices, scores = PADDED
    assert isinstance(PADDED, tuple) and len(PADDED) == 2
    assert (indices, scores) == PADDED
    assert PADDED._fields == ("indices", "scores")


def test_counts() -> None:
    assert PADDED.counts.tolist() == [3, 1, 0]
    assert PADDED.counts.dtype is torch.int64


def test_keep_mask() -> None:
    mask = PADDED.keep_mask(5)
    assert mask.tolist() == [[True, False, True, False, True], [False, True, False, False, False], [False] * 5]
    assert torch.equal(mask.sum(1), PADDED.counts)


def test_keep_mask_of_a_ragged_batch_is_flat() -> None:
    assert PADDED.keep_mask(7, CU_SEQLENS).nonzero().flatten().tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
def test_gather_takes_rows_and_zeros(dtype: torch.dtype, trailing: tuple[int, ...]) -> None:
    x = torch.arange(1, 1 + 15 * max(1, torch.Size(trailing).numel())).reshape(3, 5, *trailing).to(dtype)
    rows = PADDED.gather(x)
    assert rows.dtype is dtype and rows.shape == (3, 3, *trailing)
    for sample, picks in enumerate(PADDED.indices.tolist()):
        for place, pick in enumerate(picks):
            wanted = x[sample, pick] if pick >= 0 else torch.zeros_like(x[0, 0])
            assert torch.equal(rows[sample, place], wanted)


def test_gather_of_strided_rows() -> None:
    x = torch.randn(5, 4, 3).permute(2, 0, 1)
    assert torch.equal(PADDED.gather(x), PADDED.gather(x.contiguous()))
    assert torch.equal(PADDED.gather(x[..., ::2]), PADDED.gather(x)[..., ::2])


def test_gather_of_a_ragged_batch() -> None:
    x = torch.arange(14.0).reshape(7, 2)
    rows = PADDED.gather(x, CU_SEQLENS)
    assert torch.equal(rows[0], x[[4, 0, 2]])
    assert torch.equal(rows[1], torch.stack([x[6], torch.zeros(2), torch.zeros(2)]))
    assert not rows[2].any()


def test_gather_of_samples_without_tokens_is_zeros() -> None:
    nothing = idsel.Selection(torch.full((2, 3), -1), torch.full((2, 3), -torch.inf))
    assert not nothing.gather(torch.zeros(2, 0, 4)).any()
    assert nothing.gather(torch.zeros(2, 0, 4)).shape == (2, 3, 4)
    assert nothing.keep_mask(0).shape == (2, 0)


def test_what_padding_holds_does_not_show() -> None:
    """A NaN in the token that -1 could be taken for, or that a product with 0 would keep."""
    x = torch.full((3, 5, 2), torch.nan)
    x[1, 1] = 1.0
    assert torch.equal(PADDED.gather(x)[1], torch.tensor([[1.0, 1.0], [0, 0], [0, 0]]))


def test_gradients_flow_to_the_rows_taken() -> None:
    x = torch.randn(3, 5, 2, requires_grad=True)
    PADDED.gather(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[..., 0] == 1, PADDED.keep_mask(5))


def test_flat_leaves_out_padding() -> None:
    assert PADDED.flat(CU_SEQLENS).tolist() == [4, 0, 2, 6]
    assert PADDED.flat(CU_SEQLENS, total=6).tolist() == [4, 0, 2, 6, -1, -1]
    assert PADDED.flat(CU_SEQLENS, total=3).tolist() == [4, 0, 2]
    assert PADDED.flat(CU_SEQLENS.int()).tolist() == [4, 0, 2, 6]


def test_sorted_ascends_with_padding_last() -> None:
    ordered = PADDED.sorted()
    assert ordered.indices.tolist() == [[0, 2, 4], [1, -1, -1], [-1, -1, -1]]
    assert ordered.scores[0].tolist() == [2.0, 1.0, 3.0]
    assert torch.equal(ordered.keep_mask(5), PADDED.keep_mask(5))


def test_sorted_is_what_sort_gives() -> None:
    case = idsel.inputs.clustered(2, 60, 8)
    picked, ordered = (idsel.select(**case.inputs(), k=70, sort=sort) for sort in (False, True))
    assert all(map(torch.equal, picked.sorted(), ordered))


def test_gather_refuses_what_has_no_row_for_every_token() -> None:
    with pytest.raises(ValueError, match=r"x must be \(B, N, ...\) with B = 3, got shape \(2, 5\)"):
        PADDED.gather(torch.zeros(2, 5))


@pytest.mark.parametrize(
    "use",
    [
        lambda sel: sel.gather(torch.zeros(3, 4, 2)),
        lambda sel: sel.gather(torch.zeros(6, 2), CU_SEQLENS),
        lambda sel: sel.keep_mask(4),
        lambda sel: sel.keep_mask(6, CU_SEQLENS),
    ],
)
def test_picks_of_tokens_that_are_not_there_are_refused_on_a_cpu(use: Callable[[idsel.Selection], object]) -> None:
    with pytest.raises(ValueError, match=r"must have a token for every pick, got [46] and a pick of token [46]"):
        use(PADDED)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: PADDED.flat(CU_SEQLENS[:-1]), r"cu_seqlens must be \(B\+1,\) = \(4,\), got shape \(3,\)"),
        (lambda: PADDED.keep_mask(7, CU_SEQLENS[None]), r"cu_seqlens must be \(B\+1,\) = \(4,\), got shape \(1, 4\)"),
        (lambda: PADDED.flat(CU_SEQLENS, -1), "total must be >= 0, got -1"),
        (lambda: PADDED.gather([1]), "x must be a torch.Tensor, got list"),  # type: ignore[arg-type]
        (lambda: PADDED.flat([0, 5]), "cu_seqlens must be a torch.Tensor, got list"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_named(use: Callable[[], object], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        use()


@pytest.mark.filterwarnings("ignore")  # that it is deprecated, and that sizes are constants of a trace
def test_it_can_be_traced_by_torchscript() -> None:
    def use(indices: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sel = idsel.Selection.of(indices)
        return sel.gather(x), sel.keep_mask(5)

    inputs = PADDED.indices, torch.randn(3, 5, 2)
    assert all(map(torch.equal, torch.jit.trace(use, inputs)(*inputs), use(*inputs)))


def test_results_survive_being_saved() -> None:
    out = idsel.prune(torch.randn(2, 6, 3), 2, "maxmin", merge="mean")
    merged = idsel.merge(torch.randn(2, 6, 3), out.selection)
    file = io.BytesIO()
    torch.save((out, merged), file)
    file.seek(0)
    loaded, again = torch.load(file)
    assert isinstance(loaded, idsel.Pruned) and isinstance(loaded.selection, idsel.Selection)
    assert torch.equal(loaded.hidden, out.hidden) and torch.equal(again.sizes, merged.sizes)


def test_a_selection_of_indices_alone() -> None:
    sel = idsel.Selection.of(PADDED.indices)
    assert sel.indices is PADDED.indices and sel.scores.dtype is torch.float32 and not sel.scores.any()


def test_a_compiled_function_may_use_all_of_it() -> None:
    def use(sel: idsel.Selection, x: torch.Tensor, cu_seqlens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = sel.flat(cu_seqlens, total=4)
        return sel.counts, sel.keep_mask(x.shape[1]), sel.gather(x), flat, *sel.sorted()

    compiled = torch.compile(use, fullgraph=True, dynamic=True, backend="aot_eager")
    for width in (5, 6):
        x = torch.randn(3, width, 2)
        assert all(map(torch.equal, compiled(PADDED, x, CU_SEQLENS), use(PADDED, x, CU_SEQLENS)))

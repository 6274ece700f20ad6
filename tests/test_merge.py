"""`merge`: every dropped token goes to the most similar kept one, and sums are what float64 makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from no_sync import META, nothing_read, to_meta

import idsel_kernels as idsel
from idsel_kernels.combine import combine

HOWS = ("mean", "add_mean", "weighted")
CASE = idsel.inputs.clustered(3, 50, 16)
HIDDEN = torch.randn((3, 50, 6), generator=torch.Generator().manual_seed(1))
SEL = idsel.select(**CASE.inputs(), k=9)


def literal(
    hidden: torch.Tensor,
    picks: list[int],
    features: torch.Tensor,
    how: str,
    beta: float = 0.3,
    there: list[bool] | None = None,
    receivers: list[bool] | None = None,
    sizes: list[float] | None = None,
) -> tuple[torch.Tensor, list[float], list[int]]:
    """One sample, token by token, in float64: hidden states, sizes, assignment."""
    x, f = hidden.double(), features.double()
    tokens, kept = len(x), [pick for pick in picks if pick >= 0]
    there, receivers, sizes = there or [True] * tokens, receivers or [True] * tokens, sizes or [1.0] * tokens
    may = [slot for slot, pick in enumerate(kept) if receivers[pick]]

    def cosine(i: int, j: int) -> float:
        norms = float(f[i].norm() * f[j].norm())
        return float(f[i] @ f[j]) / norms if norms > 0 else 0.0

    groups: list[list[int]] = [[] for _ in kept]
    assignment = [kept.index(j) if j in kept else -1 for j in range(tokens)]
    for j in range(tokens):
        if j not in kept and there[j] and may:
            assignment[j] = max(may, key=lambda slot: (cosine(j, kept[slot]), -slot))
            groups[assignment[j]].append(j)
    rows, totals = torch.zeros((len(picks), x.shape[1]), dtype=torch.float64), [0.0] * len(picks)
    for slot, (s, group) in enumerate(zip(kept, groups, strict=True)):
        totals[slot] = sizes[s] + sum(sizes[j] for j in group)
        if how == "mean":
            rows[slot] = (sizes[s] * x[s] + sum(sizes[j] * x[j] for j in group)) / totals[slot]
            continue
        weights = [sizes[j] * (cosine(j, s) if how == "weighted" else 1.0) for j in group]
        mean = sum(weight * x[j] for weight, j in zip(weights, group, strict=True)) / max(sum(weights), 1e-8)
        if how == "add_mean":
            rows[slot] = x[s] + mean
        else:
            rows[slot] = beta * x[s] + (1 - beta) * mean if sum(weights) > 0 else x[s]
    return rows, totals, assignment


def assert_is_literal(merged: idsel.Merged, sample: int, wanted: tuple[torch.Tensor, list[float], list[int]]) -> None:
    rows, sizes, assignment = wanted
    torch.testing.assert_close(merged.hidden[sample].double(), rows, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(merged.sizes[sample].double(), torch.tensor(sizes).double(), rtol=1e-6, atol=0)
    assert merged.assignment[sample].tolist() == assignment


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("own_features", [True, False])
def test_it_is_the_literal_one(how: Any, own_features: bool) -> None:
    features = CASE.features if own_features else None
    merged = idsel.merge(HIDDEN, SEL, features, how, beta=0.4)
    for b in range(3):
        compared = (CASE.features if own_features else HIDDEN)[b]
        assert_is_literal(merged, b, literal(HIDDEN[b], SEL.indices[b].tolist(), compared, how, 0.4))


@pytest.mark.parametrize("how", HOWS)
def test_masks_receivers_and_sizes(how: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand((3, 50), generator=generator) > 0.3
    sel = idsel.select(**CASE.inputs(), k=9, mask=mask)
    receivers = torch.rand((3, 50), generator=generator) > 0.4
    sizes = torch.randint(1, 5, (3, 50), generator=generator)
    options = {"mask": mask, "receivers": receivers, "sizes": sizes}
    merged = idsel.merge(HIDDEN, sel, CASE.features, how, **options)
    for b in range(3):
        scalars = [t[b].tolist() for t in (mask, receivers, sizes)]
        assert_is_literal(merged, b, literal(HIDDEN[b], sel.indices[b].tolist(), CASE.features[b], how, 0.3, *scalars))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("max_seqlen", [None, 30, 64])
def test_ragged_batches_are_their_samples(how: Any, max_seqlen: int | None) -> None:
    lengths, k = [30, 0, 7, 13], [6, 2, 10, 1]
    case = idsel.inputs.ragged(lengths, 16)
    hidden = torch.randn((50, 6), generator=torch.Generator().manual_seed(3))
    sel = idsel.select(**case.inputs(), k=k)
    merged = idsel.merge(hidden, sel, case.features, how, cu_seqlens=case.cu_seqlens, max_seqlen=max_seqlen)
    assert merged.hidden.shape == (4, 10, 6) and merged.assignment.shape == (50,)
    begin = 0
    for b, length in enumerate(lengths):
        rows = slice(begin, begin + length)
        picks = idsel.Selection(*(t[b : b + 1] for t in sel))
        alone = idsel.merge(hidden[None, rows], picks, case.features[None, rows], how)
        assert torch.equal(alone.hidden[0], merged.hidden[b])
        assert torch.equal(alone.sizes[0], merged.sizes[b])
        assert torch.equal(alone.assignment[0], merged.assignment[rows])
        begin += length


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_types_are_summed_in_float32_and_float64_in_its_own(dtype: torch.dtype) -> None:
    hidden = HIDDEN.to(dtype)
    merged = idsel.merge(hidden, SEL, CASE.features)
    assert merged.hidden.dtype is dtype and merged.sizes.dtype is torch.float32
    wide = idsel.merge(hidden.double(), SEL, CASE.features).hidden
    if dtype is torch.float64:
        assert torch.equal(merged.hidden, wide)
    else:  # one rounding at the end
        torch.testing.assert_close(merged.hidden.double(), wide, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("how", HOWS)
def test_the_default_dtype_changes_nothing(how: Any, default: torch.dtype) -> None:
    def both() -> tuple[torch.Tensor, ...]:
        merged = idsel.merge(HIDDEN, SEL, CASE.features, how)
        protect = torch.zeros(3, 50, dtype=torch.bool)
        out = idsel.prune(HIDDEN, 9, "mmr", CASE.importance, features=CASE.features, protect=protect, merge=how)
        return *merged, out.hidden, *out.selection, *idsel.Selection.of(SEL.indices)

    wanted = both()
    torch.set_default_dtype(default)
    try:
        given = both()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(wanted, given, strict=True))


def test_float64_hidden_states_have_weights_of_their_own() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=torch.float64)
    merged = idsel.merge(hidden, idsel.Selection.of(torch.tensor([[0]])), hidden.float())
    torch.testing.assert_close(merged.hidden, torch.tensor([[[7 / 3]]], dtype=torch.float64), rtol=1e-15, atol=0)


def test_only_the_ratios_of_sizes_count() -> None:
    sizes = torch.rand((3, 50), generator=torch.Generator().manual_seed(4))
    plain, tiny = (idsel.merge(HIDDEN, SEL, CASE.features, sizes=scale * sizes) for scale in (1.0, 1e-12))
    torch.testing.assert_close(plain.hidden, tiny.hidden, rtol=1e-5, atol=1e-6)
    alone = idsel.merge(
        torch.ones(1, 2, 3), idsel.Selection.of(torch.tensor([[0, 1]])), sizes=torch.tensor([[0.0, 1.0]])
    )
    assert (alone.hidden == 1).all()  # a kept token that is given none stays as it is, whatever its size


def test_transforms_of_torch_func_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"and none for forward mode or transforms of torch\.func"):
        torch.func.jvp(lambda x: idsel.merge(x, SEL, CASE.features).hidden, (HIDDEN,), (HIDDEN,))


def test_forward_mode_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(HIDDEN, HIDDEN)
        with pytest.raises(NotImplementedError, match=r"and none for forward mode or transforms of torch\.func"):
            idsel.merge(dual, SEL, CASE.features)
        assert torch.equal(idsel.merge(HIDDEN, SEL).sizes, idsel.merge(HIDDEN, SEL, HIDDEN).sizes)


def test_every_run_gives_the_same_bits() -> None:
    case = idsel.inputs.clustered(2, 900, 32)
    sel = idsel.select(**case.inputs(), k=20)
    first = idsel.merge(case.features, sel, how="weighted")
    for _ in range(5):
        assert all(map(torch.equal, first, idsel.merge(case.features, sel, how="weighted")))


def test_long_samples_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = idsel.merge(HIDDEN, SEL, CASE.features, "weighted")
    monkeypatch.setattr("idsel_kernels.combine._STEP_NUMBERS", 500)
    parts = idsel.merge(HIDDEN, SEL, CASE.features, "weighted")
    assert torch.equal(whole.assignment, parts.assignment)
    torch.testing.assert_close(whole.hidden, parts.hidden)


def test_repeated_with_sizes_it_is_the_mean_over_all() -> None:
    first = idsel.merge(HIDDEN, SEL, CASE.features)
    again = idsel.topk_select(first.hidden, 3, first.sizes)
    second = idsel.merge(first.hidden, again, sizes=first.sizes)
    final = second.assignment.gather(1, first.assignment)  # of the tokens at the start
    assert second.sizes.sum(1).tolist() == [50.0] * 3
    for b in range(3):
        for slot in range(3):
            mean = HIDDEN[b][final[b] == slot].double().mean(0)
            torch.testing.assert_close(second.hidden[b, slot].double(), mean, rtol=1e-5, atol=1e-6)


def test_a_kept_token_that_is_given_none_stays_as_it_is() -> None:
    hidden = torch.eye(4)
    sel = idsel.topk_select(hidden, 4, torch.ones(4))
    for how in HOWS:
        merged = idsel.merge(hidden, sel, how=how)  # type: ignore[arg-type]
        assert torch.equal(merged.hidden[0], hidden) and merged.sizes.tolist() == [[1.0] * 4]


def test_opposite_tokens_leave_a_weighted_one_as_it_is() -> None:
    hidden = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    merged = idsel.merge(hidden, idsel.topk_select(hidden, 1, torch.tensor([1.0, 0.0])), how="weighted")
    assert merged.hidden.tolist() == [[[1.0, 0.0]]] and merged.sizes.tolist() == [[2.0]]


def test_padding_is_zeros_of_size_zero() -> None:
    sel = idsel.select(**CASE.inputs(), k=[3, 0, 5])
    merged = idsel.merge(HIDDEN, sel, CASE.features)
    assert not merged.hidden[0, 3:].any() and not merged.hidden[1].any() and not merged.sizes[1].any()
    assert (merged.assignment[1] == -1).all()
    assert merged.sizes.sum(1).tolist() == [50, 0, 50]


@pytest.mark.parametrize("dim", [3, 24, 75])
def test_ties_go_to_the_lowest_pick(dim: int) -> None:
    """Among kept tokens that are the same, and for a token without a direction."""
    distinct = torch.randn((5, dim), generator=torch.Generator().manual_seed(dim))
    hidden = torch.cat([distinct, distinct, torch.randn((20, dim)), torch.zeros(2, dim)])
    picks = torch.tensor([[5, 0, 6, 1, 7, 2]])  # the copy before its original
    merged = idsel.merge(hidden[None], idsel.Selection(picks, torch.zeros(1, 6)))
    given = set(merged.assignment[0, 10:].tolist())
    assert given <= {0, 2, 4}
    assert merged.assignment[0, -2:].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kept", [True, False])
def test_tokens_that_are_not_finite_spoil_no_other(bad: float, kept: bool) -> None:
    hidden = HIDDEN.clone()
    token = int(SEL.indices[0, 2]) if kept else int((~SEL.keep_mask(50)[0]).nonzero()[0])
    hidden[0, token] = bad
    merged = idsel.merge(hidden, SEL)
    spoilt = ~torch.isfinite(merged.hidden).all(-1)
    assert spoilt.nonzero().tolist() == ([[0, 2]] if kept else [])
    assert merged.assignment[0, token] == (2 if kept else -1)
    if kept:
        assert merged.sizes[0, 2] == 1


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("is_ragged", [False, True])
def test_gradients_flow_to_hidden_states(how: Any, is_ragged: bool) -> None:
    case = idsel.inputs.ragged([9, 0, 5], 4) if is_ragged else idsel.inputs.clustered(2, 7, 4)
    sel = idsel.select(**case.inputs(), k=3)
    hidden = torch.randn((*case.features.shape[:-1], 2), dtype=torch.float64, requires_grad=True)

    def merged(x: torch.Tensor) -> torch.Tensor:
        return idsel.merge(x, sel, case.features, how, cu_seqlens=case.cu_seqlens).hidden

    assert torch.autograd.gradcheck(merged, hidden)


def _arguments(how: str, is_ragged: bool) -> tuple[Any, ...]:
    case = idsel.inputs.ragged([9, 0, 5], 4) if is_ragged else idsel.inputs.clustered(2, 7, 4)
    sel = idsel.select(**case.inputs(), k=3)
    hidden = torch.randn((*case.features.shape[:-1], 2), requires_grad=True)
    scalars = torch.ones(hidden.shape[:-1], dtype=torch.bool)
    return hidden, case.features, sel.indices, scalars, scalars, scalars.float(), case.cu_seqlens, how, 0.3, 9


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("is_ragged", [False, True])
def test_opcheck(how: str, is_ragged: bool) -> None:
    torch.library.opcheck(torch.ops.idsel.merge.default, _arguments(how, is_ragged))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("is_ragged", [False, True])
def test_nothing_waits_for_a_gpu(how: str, is_ragged: bool) -> None:
    arguments = _arguments(how, is_ragged)
    with nothing_read():
        answers = combine(*(to_meta(value) for value in arguments))
    assert {answer.device for answer in answers} == {META}


@pytest.mark.parametrize("r", [0, 1, 12, 25, 100])
@pytest.mark.parametrize("class_token", [False, True])
def test_bipartite_pairing_drops_r_tokens_at_even_positions(r: int, class_token: bool) -> None:
    kept, receivers = idsel.bipartite_pairing(CASE.features, r, class_token)
    dropped = min(r, (50 - class_token) // 2)
    assert kept.indices.shape == (3, 50 - dropped)
    left_out = ~kept.keep_mask(50)
    assert not left_out[:, 1::2].any() and left_out.sum(1).tolist() == [dropped] * 3
    assert not (class_token and left_out[:, 0].any())
    merged = idsel.merge(HIDDEN, kept, CASE.features, receivers=receivers)
    assert merged.sizes.sum(1).tolist() == [50.0] * 3
    even = kept.indices % 2 == 0
    assert (merged.sizes[even] == 1).all()


@pytest.mark.parametrize("class_token", [False, True])
def test_bipartite_pairing_of_one_token_or_none(class_token: bool) -> None:
    kept, receivers = idsel.bipartite_pairing(torch.ones(1, 4), 3, class_token)
    assert kept.indices.tolist() == [[0]] and receivers.tolist() == [[False]]
    kept, receivers = idsel.bipartite_pairing(torch.ones(2, 0, 4), 3, class_token)
    assert kept.indices.shape == kept.scores.shape == receivers.shape == (2, 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hidden": HIDDEN.long()}, TypeError, "hidden must be floating point to be merged, got torch.int64"),
        ({"hidden": HIDDEN[..., None]}, ValueError, r"hidden must be \(B, N, C\) or \(N, C\), got shape"),
        ({"sel": SEL.indices}, TypeError, "sel must be a Selection, got Tensor"),
        ({"sel": idsel.Selection(SEL.indices[:2], SEL.scores)}, ValueError, r"sel.indices must be \(B, k\) int64"),
        ({"features": HIDDEN[:, :4]}, ValueError, r"features must be \(3, 50, D\) with D >= 1 to match hidden, got"),
        ({"how": "sum"}, ValueError, "how must be one of 'mean', 'add_mean', 'weighted', got 'sum'"),
        ({"beta": 2}, ValueError, r"beta must be a number in \[0, 1\], got 2"),
        ({"mask": torch.ones(3, 50)}, TypeError, "mask must be torch.bool, got torch.float32"),
        ({"receivers": torch.ones(3, 4)}, ValueError, r"receivers must be \(B, N\) = \(3, 50\) to match hidden, got"),
        ({"sizes": [1.0] * 50}, TypeError, "sizes must be a torch.Tensor, got list"),
        ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, r"hidden must be \(T, C\) with cu_seqlens, got shape"),
        ({"features": "mean"}, TypeError, r"features must be a torch.Tensor, got 'mean'; did you mean how=\?"),
        ({"sel": idsel.Pruned(HIDDEN, SEL)}, TypeError, "sel must be a Selection, got Pruned; pass its .selection"),
        ({"sel": idsel.Selection.of(SEL.indices + 9)}, ValueError, "sel.indices must be positions in their sample"),
        ({"how": HIDDEN}, ValueError, "how must be one of 'mean', 'add_mean', 'weighted', got Tensor"),
        ({"sel": idsel.bipartite_pairing(HIDDEN, 3)}, TypeError, "sel.indices must be a torch.Tensor, got Selection"),
        ({"sizes": torch.ones(3, 50) * 1j}, TypeError, "sizes must be real, got torch.complex64"),
        ({"max_seqlen": 2.5}, TypeError, "max_seqlen must be an int, got float$"),
        ({"max_seqlen": "10"}, TypeError, "max_seqlen must be an int, got str"),
        ({"max_seqlen": -1}, ValueError, "max_seqlen must be >= 0, got -1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        idsel.merge(**{"hidden": HIDDEN, "sel": SEL, **change})


@pytest.mark.parametrize(
    ("offsets", "max_seqlen", "words"),
    [
        ([0, 20, 40], None, "cu_seqlens must end at T = 50, got 40"),
        ([1, 20, 50], None, "cu_seqlens must start at 0, got 1"),
        ([0, 20, 50], 29, "max_seqlen must be at least 30, the longest sample, got 29"),
        ([0, 4, 50], None, "sel.indices must be positions in their sample, got"),
    ],
)
def test_values_are_checked_on_a_cpu(offsets: list[int], max_seqlen: int | None, words: str) -> None:
    sel = idsel.Selection.of(torch.tensor([[5, 0], [7, 3]]))
    with pytest.raises(ValueError, match=words):
        idsel.merge(HIDDEN[0], sel, cu_seqlens=torch.tensor(offsets), max_seqlen=max_seqlen)


@pytest.mark.parametrize(("r", "words"), [(-1, "r must be >= 0, got -1"), (1.5, "r must be an int, got float")])
def test_bad_arguments_of_a_pairing(r: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        idsel.bipartite_pairing(HIDDEN, r)
    with pytest.raises(ValueError, match="features must be"):
        idsel.bipartite_pairing(HIDDEN.double(), 1)

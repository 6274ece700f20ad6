"""`prune`: from hidden states to hidden states, on every backend, as the long way round gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import Backend
from cases import RULE_CASES
from no_sync import META, CountedLaunches, nothing_read, to_meta

import idsel_kernels as idsel
from idsel_kernels import pruning
from idsel_kernels.selection import gather_rows

CASE = idsel.inputs.clustered(3, 60, 16)
HIDDEN = torch.randn((3, 60, 5), generator=torch.Generator().manual_seed(1))
LENGTHS = [30, 0, 7, 23]
RAGGED = idsel.inputs.ragged(LENGTHS, 16)
FLAT = torch.randn((60, 5), generator=torch.Generator().manual_seed(2))
MROPE = torch.arange(180).view(3, 60)


def pruned(backend: Backend, hidden: torch.Tensor, **arguments: Any) -> idsel.Pruned:
    """On the backend's device, the result on the CPU."""
    out = idsel.prune(**backend.inputs({"hidden": hidden, **arguments}), backend=backend.name)
    assert out.hidden.device.type == backend.device.type
    tensors = (None if t is None else t.cpu() for t in (out.hidden, *out[2:]))
    kept, *rest = tensors
    assert kept is not None
    return idsel.Pruned(kept, idsel.Selection(*(t.cpu() for t in out.selection)), *rest)


# --- What people write it for -----------------------------------------------------------------------------------------


def divprune(hidden: torch.Tensor) -> torch.Tensor:
    return idsel.prune(hidden, 9, "maxmin").hidden


def llava(projected: torch.Tensor, clip: torch.Tensor, cls_attention: torch.Tensor) -> tuple[Any, ...]:
    out = idsel.prune(projected, 9, importance=cls_attention, features=clip, position_ids=torch.arange(60))
    return out.hidden, out.position_ids


def qwen(hidden: torch.Tensor, scores: torch.Tensor, offsets: torch.Tensor, mrope: torch.Tensor) -> tuple[Any, ...]:
    k = idsel.budgets.proportional(offsets.diff().float(), total=20, most=offsets.diff())
    out = idsel.prune(hidden, k, "mmr", scores, k_max=20, cu_seqlens=offsets, position_ids=mrope)
    return out.trimmed()


def cdpruner(hidden: torch.Tensor, clip: torch.Tensor, relevance: torch.Tensor) -> tuple[Any, ...]:
    out = idsel.prune(hidden, 9, "dpp", relevance, features=clip, merge="mean")
    return out.hidden, out.sizes


@pytest.mark.parametrize("story", [divprune, llava, qwen, cdpruner], ids=lambda story: story.__name__)
def test_each_takes_at_most_three_lines(story: Callable[..., Any]) -> None:
    lines = inspect.getsource(story).strip().splitlines()
    assert len(lines) - 1 <= 3


def test_divprune_of_a_dense_batch() -> None:
    sel = idsel.maxmin_select(HIDDEN, 9)
    for b, kept in enumerate(divprune(HIDDEN)):
        assert torch.equal(kept, HIDDEN[b, sel.indices[b].sort().values])


def test_llava_in_raster_order_with_positions() -> None:
    kept, positions = llava(HIDDEN, CASE.features, CASE.importance)
    indices = idsel.select(**CASE.inputs(), k=9, sort=True).indices
    assert torch.equal(positions, indices)
    assert torch.equal(kept, torch.stack([HIDDEN[b, indices[b]] for b in range(3)]))


def test_qwen_with_a_budget_per_image_and_mrope_positions() -> None:
    assert RAGGED.cu_seqlens is not None
    offsets = RAGGED.cu_seqlens.long()
    kept, sel, positions, cu_seqlens, _ = qwen(FLAT, RAGGED.importance, offsets, MROPE)
    budgets = [10, 0, 2, 8]
    assert cu_seqlens.tolist() == [0, 10, 10, 12, 20] and cu_seqlens.dtype is torch.int64
    wanted = idsel.mmr_select(FLAT, budgets, RAGGED.importance, cu_seqlens=RAGGED.cu_seqlens, sort=True)
    rows = wanted.flat(offsets)
    assert torch.equal(sel.flat(offsets), rows)
    assert torch.equal(kept, FLAT[rows]) and torch.equal(positions, MROPE[:, rows])


def test_cdpruner_with_merge() -> None:
    kept, sizes = cdpruner(HIDDEN, CASE.features, CASE.importance)
    sel = idsel.dpp_select(CASE.features, 9, CASE.importance, sort=True)
    merged = idsel.merge(HIDDEN, sel, CASE.features)
    assert torch.equal(kept, merged.hidden) and torch.equal(sizes, merged.sizes)
    assert sizes.sum(1).tolist() == [60.0] * 3


def literal_d2pruner(
    features: torch.Tensor, importance: torch.Tensor, k: int, radius: int, sides: tuple[int, int]
) -> list[int]:
    """Pivots; the others by importance, past what is like one chosen before or beside it; then the rest."""
    x = torch.nn.functional.normalize(features.double(), dim=-1)
    order = sorted(range(len(x)), key=lambda j: (-float(importance[j]), j))
    pivots, others = order[: int(0.7 * k)], order[int(0.7 * k) :]
    chosen: list[int] = []
    for j in others:
        row, column = divmod(j, sides[1])
        beside = (max(abs(row - i // sides[1]), abs(column - i % sides[1])) <= radius for i in chosen)
        if all(float(x[i] @ x[j]) <= 0.8 for i in chosen) and not (radius and any(beside)):
            chosen.append(j)
    chosen += [j for j in others if j not in chosen]
    return pivots + chosen[: k - len(pivots)]


@pytest.mark.parametrize("radius", [0, 1])
def test_d2pruner_is_protected_pivots_and_an_independent_set(radius: int, backend: Backend) -> None:
    sides = [(6, 10), (4, 15), (1, 60)]
    k, rule = backend.fewer(20), idsel.HardSuppress(radius=radius)
    pivots = idsel.topk_select(CASE.features, int(0.7 * k), CASE.importance).keep_mask(60)
    grids = {"grids": torch.tensor(sides)} if radius else {}
    more = {"rule": rule, "importance": CASE.importance, "protect": pivots, "order": "pick"}
    out = pruned(backend, CASE.features, k=k, **more, **grids)
    for b, (height, width) in enumerate(sides):
        expected = literal_d2pruner(CASE.features[b], CASE.importance[b], k, radius, (height, width))
        first = int(0.7 * k)
        assert sorted(out.selection.indices[b, :first].tolist()) == sorted(expected[:first])
        assert out.selection.indices[b, first:].tolist() == expected[first:]


def test_d2pruner_of_a_ragged_batch(backend: Backend) -> None:
    """A grid and a k for each picture, and debiased attention."""
    sides, k = [(5, 6), (0, 3), (7, 1), (1, 23)], backend.fewer([20, 0, 3, 11])
    offsets, prior = RAGGED.cu_seqlens, torch.rand(60, generator=torch.Generator().manual_seed(4)) + 0.5
    importance = idsel.importance.debias(RAGGED.importance, prior)
    shares = [int(0.7 * count) for count in k]
    chosen = idsel.topk_select(RAGGED.features, shares, importance, cu_seqlens=offsets).flat(offsets)
    pivots = torch.zeros(60, dtype=torch.bool).index_fill(0, chosen, True)
    out = pruned(
        backend, FLAT, k=k, rule=idsel.HardSuppress(radius=1), importance=importance, features=RAGGED.features,
        cu_seqlens=offsets, protect=pivots, grids=torch.tensor(sides), order="pick",
    )  # fmt: skip
    samples = zip(RAGGED.features.split(LENGTHS), importance.split(LENGTHS), k, shares, sides, strict=True)
    for b, (features, of_sample, count, share, grid) in enumerate(samples):
        expected = literal_d2pruner(features, of_sample, count, 1, grid)
        picked = out.selection.indices[b]
        assert sorted(picked[:share].tolist()) == sorted(expected[:share])
        assert picked[share:count].tolist() == expected[share:]


# --- On every backend -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
def test_rows_and_positions_are_those_of_the_picks(rule: idsel.Rule, backend: Backend) -> None:
    sel = backend.select(**CASE.inputs(), k=7, rule=rule)
    out = pruned(backend, HIDDEN, k=7, rule=rule, importance=CASE.importance, features=CASE.features, order="pick",
                 position_ids=torch.arange(180).view(3, 60))  # fmt: skip
    assert all(map(torch.equal, out.selection, sel))
    assert torch.equal(out.hidden, sel.gather(HIDDEN))
    assert torch.equal(out.position_ids, sel.indices + 60 * torch.arange(3)[:, None])  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["raster", "pick"])
@pytest.mark.parametrize("how", [None, "mean", "add_mean", "weighted"])
def test_all_of_it_together(order: Any, how: Any, backend: Backend) -> None:
    """A ragged batch with a mask, protected tokens and a k on the device: as sample by sample on the reference."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(60, generator=generator) > 0.2
    protect = torch.rand(60, generator=generator) > 0.9
    k, options = torch.tensor([9, 2, 4, 0]), {"rule": idsel.MMR(), "order": order, "merge": how}
    arguments = {"importance": RAGGED.importance, "features": RAGGED.features, "mask": mask, "protect": protect}
    out = pruned(backend, FLAT, k=k, k_max=9, cu_seqlens=RAGGED.cu_seqlens, position_ids=MROPE, **arguments, **options)
    rows = {"hidden": [], "position_ids": [], "sizes": []}  # type: ignore[var-annotated]
    begin = 0
    for b, length in enumerate(LENGTHS):
        part = slice(begin, begin + length)
        alone = {name: value[part] for name, value in arguments.items()}
        one = idsel.prune(FLAT[part], int(k[b]), position_ids=MROPE[:, part], backend="torch", **alone, **options)
        indices = out.selection.indices[b, : int(k[b])]
        assert torch.equal(indices, one.indices[0])
        one = one.trimmed()
        begin += length
        rows["hidden"].append(one.hidden[0])
        rows["position_ids"].append(one.position_ids[:, 0])  # type: ignore[index]
        rows["sizes"].append(one.sizes[0] if one.sizes is not None else torch.ones(0))
    kept = int(out.cu_seqlens[-1])  # type: ignore[index]
    torch.testing.assert_close(out.hidden[:kept], torch.cat(rows["hidden"]), rtol=1e-5, atol=1e-6)
    assert not out.hidden[kept:].any()
    assert torch.equal(out.position_ids[:, :kept], torch.cat(rows["position_ids"], 1))  # type: ignore[index]
    if how is not None:
        assert torch.equal(out.sizes[:kept], torch.cat(rows["sizes"]))  # type: ignore[index]


# --- Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_hidden_states_of_any_dtype(dtype: torch.dtype) -> None:
    hidden = (10 * HIDDEN).to(dtype)
    out = idsel.prune(hidden, 7, importance=CASE.importance, features=CASE.features)
    assert out.hidden.dtype is dtype and torch.equal(out.hidden, out.selection.gather(hidden))


def test_a_single_sample_gets_a_batch_axis() -> None:
    one = {"importance": CASE.importance[0], "features": CASE.features[0], "protect": torch.arange(60) == 7}
    out = idsel.prune(HIDDEN[0], 9, **one, position_ids=torch.arange(60), merge="mean")
    batch = idsel.prune(HIDDEN[:1], 9, **{name: value[None] for name, value in one.items()}, merge="mean")
    assert out.hidden.shape == (1, 9, 5) and torch.equal(out.hidden, batch.hidden)
    assert torch.equal(out.position_ids, out.indices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "got"),
    [((60,), (3, 7)), ((1, 60), (3, 7)), ((3, 60), (3, 7)), ((3, 1, 60), (3, 3, 7)), ((2, 4, 3, 60), (2, 4, 3, 7))],
)
def test_positions_with_any_leading_axes(given: tuple[int, ...], got: tuple[int, ...]) -> None:
    positions = torch.randint(1000, given)
    out = idsel.prune(HIDDEN, 7, importance=CASE.importance, features=CASE.features, position_ids=positions)
    full = positions.expand(*given[:-2], 3, 60)
    assert out.position_ids is not None and out.position_ids.shape == got
    for b in range(3):
        assert torch.equal(out.position_ids[..., b, :], full[..., b, :][..., out.indices[b]])


@pytest.mark.parametrize(
    ("given", "got"), [((60,), (1, 7)), ((1, 60), (1, 7)), ((3, 60), (3, 1, 7)), ((3, 1, 60), (3, 1, 7))]
)
def test_positions_of_a_single_sample(given: tuple[int, ...], got: tuple[int, ...]) -> None:
    out = idsel.prune(HIDDEN[0], 7, "maxmin", position_ids=torch.zeros(given))
    assert out.position_ids is not None and out.position_ids.shape == got


def test_padding_is_zeros_at_the_end() -> None:
    mask = torch.arange(60) < torch.tensor([[60], [4], [0]])
    out = idsel.prune(HIDDEN, 7, "mmr", CASE.importance, mask=mask, position_ids=torch.arange(60) + 1)
    assert out.counts.tolist() == [7, 4, 0]
    assert torch.equal(out.keep_mask(60).sum(1), out.counts)
    assert out.position_ids is not None
    for b, count in enumerate(out.counts.tolist()):
        assert not out.hidden[b, count:].any() and not out.position_ids[b, count:].any()
        assert (out.position_ids[b, :count] > 0).all()


def test_trimmed_cuts_what_no_sample_has() -> None:
    mask = torch.arange(60) < torch.tensor([[5], [4], [0]])
    options = {"importance": CASE.importance, "mask": mask, "position_ids": torch.arange(60), "merge": "mean"}
    out = idsel.prune(HIDDEN, 7, "mmr", **options)  # type: ignore[arg-type]
    trimmed = out.trimmed()
    assert trimmed.hidden.shape == (3, 5, 5) and trimmed.indices.shape == (3, 5)
    assert trimmed.position_ids.shape == trimmed.sizes.shape == (3, 5)  # type: ignore[union-attr]
    assert torch.equal(trimmed.hidden, out.hidden[:, :5])


@pytest.mark.parametrize("k", [5, [9, 9, 9, 9]])
def test_rows_of_a_ragged_batch_are_as_many_as_asked_for(k: Any) -> None:
    """So that nothing has to be read; samples that are too short leave zeros behind the last row."""
    out = idsel.prune(FLAT, k, "mmr", RAGGED.importance, cu_seqlens=RAGGED.cu_seqlens)
    asked = 20 if k == 5 else 36
    assert out.hidden.shape == (asked, 5)
    assert out.cu_seqlens is not None and out.cu_seqlens.dtype is torch.int32
    kept = int(out.cu_seqlens[-1])
    assert kept == sum(min(n, asked // 4) for n in LENGTHS)
    assert out.hidden[:kept].any(1).all() and not out.hidden[kept:].any()
    assert out.trimmed().hidden.shape == (kept, 5)


def test_a_total_that_is_known_leaves_no_rows_behind() -> None:
    given = {"importance": RAGGED.importance, "cu_seqlens": RAGGED.cu_seqlens, "position_ids": MROPE, "merge": "mean"}
    k = torch.tensor([5, 0, 2, 6])
    wide, exact = (idsel.prune(FLAT, k, "mmr", k_max=6, total=total, **given) for total in (None, 13))  # type: ignore[arg-type]
    assert wide.hidden.shape == (24, 5) and exact.hidden.shape == (13, 5)
    assert wide.mask.tolist() == [True] * 13 + [False] * 11 and exact.mask.all()
    trimmed = wide.trimmed()
    for name in ("hidden", "position_ids", "cu_seqlens", "sizes"):
        assert torch.equal(getattr(trimmed, name), getattr(exact, name))
    second = idsel.prune(exact.hidden, 2, "maxmin", cu_seqlens=exact.cu_seqlens, sizes=exact.sizes, merge="mean")
    assert second.sizes.sum() == exact.sizes.sum() == 60  # type: ignore[union-attr]


def test_a_total_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="total must be at least 13, the tokens kept, got 12"):
        k = torch.tensor([5, 0, 2, 6])
        idsel.prune(FLAT, k, "mmr", RAGGED.importance, k_max=6, cu_seqlens=RAGGED.cu_seqlens, total=12)


def test_mask_says_which_rows_are_tokens() -> None:
    there = torch.arange(60) < torch.tensor([[60], [4], [0]])
    out = idsel.prune(HIDDEN, 7, "mmr", CASE.importance, mask=there)
    assert torch.equal(out.mask.sum(1), out.counts)
    again = idsel.prune(out.hidden, 3, "mmr", CASE.importance[:, :7], mask=out.mask)
    assert again.counts.tolist() == [3, 3, 0]


@pytest.mark.parametrize("how", ["mean", "add_mean", "weighted"])
def test_the_order_changes_no_merged_row(how: Any) -> None:
    hidden = HIDDEN.clone()
    hidden[:, ::9] = 0.0  # similar to none: they go to the first pick
    picked, raster = (
        idsel.prune(hidden, 9, "mmr", CASE.importance, order=order, merge=how) for order in ("pick", "raster")
    )
    order = picked.indices.argsort(1)
    assert torch.equal(raster.indices, picked.indices.gather(1, order))
    assert torch.equal(raster.sizes, picked.sizes.gather(1, order))  # type: ignore[arg-type, union-attr]
    assert torch.equal(raster.hidden, picked.hidden.gather(1, order[..., None].expand(-1, -1, 5)))


@pytest.mark.parametrize("keep_ratio", [0.1, 0.5, 1.0])
def test_a_share_of_a_ragged_batch(keep_ratio: float) -> None:
    out = idsel.prune(
        FLAT, rule="mmr", importance=RAGGED.importance, cu_seqlens=RAGGED.cu_seqlens, keep_ratio=keep_ratio
    )
    shares = [min(n, max(1, round(keep_ratio * n))) for n in LENGTHS]
    assert out.counts.tolist() == shares
    assert sum(shares) <= len(out.hidden) <= min(60, keep_ratio * 60 + 4)
    if keep_ratio == 1.0:
        assert torch.equal(out.hidden, FLAT)


def test_nothing_at_all() -> None:
    for shape in ((0, 6, 4), (2, 0, 4), (2, 6, 4)):
        hidden, scores = torch.randn(shape), torch.rand(shape[:2])
        k = 0 if shape[1] else 3
        out = idsel.prune(
            hidden, k, "mmr", scores, protect=scores > 2, merge="mean", position_ids=torch.arange(shape[1])
        )
        assert out.hidden.shape == (shape[0], k, 4) and not out.hidden.any()
    empty = idsel.prune(torch.zeros(0, 4), 3, "mmr", torch.zeros(0), cu_seqlens=torch.tensor([0, 0]), merge="mean")
    assert empty.hidden.shape == (0, 4) and empty.cu_seqlens.tolist() == [0, 0]  # type: ignore[union-attr]


# --- Protected tokens -------------------------------------------------------------------------------------------------


def test_protected_tokens_are_kept_and_count() -> None:
    protect = torch.zeros(3, 60, dtype=torch.bool)
    protect[0, [3, 40, 59]] = protect[2, [0]] = True
    out = idsel.prune(HIDDEN, 7, "mmr", CASE.importance, features=CASE.features, protect=protect)
    assert out.counts.tolist() == [7, 7, 7]
    assert (out.keep_mask(60) | ~protect).all()
    others = idsel.mmr_select(CASE.features, [4, 7, 6], CASE.importance, mask=~protect)
    assert torch.equal(out.keep_mask(60), others.keep_mask(60) | protect)
    assert torch.equal(out.hidden, out.selection.gather(HIDDEN))
    assert (out.indices.diff() > 0).all()


def test_protected_tokens_come_first_in_the_order_of_picks() -> None:
    protect = torch.arange(60).expand(3, 60) % 25 == 24
    out = idsel.prune(HIDDEN, 7, "mmr", CASE.importance, protect=protect, order="pick")
    others = idsel.mmr_select(HIDDEN, 5, CASE.importance, mask=~protect)
    assert out.indices[:, :2].tolist() == [[24, 49]] * 3 and torch.isinf(out.selection.scores[:, :2]).all()
    assert torch.equal(out.indices[:, 2:], others.indices) and torch.equal(out.selection.scores[:, 2:], others.scores)


def test_the_first_k_protected_tokens_are_kept_where_there_are_more() -> None:
    protect = torch.arange(60).expand(3, 60) % 10 == 5
    out = idsel.prune(HIDDEN, [4, 0, 6], "mmr", CASE.importance, protect=protect)
    assert out.counts.tolist() == [4, 0, 6]
    assert out.indices[0, :4].tolist() == [5, 15, 25, 35]
    assert out.indices[2].tolist() == [5, 15, 25, 35, 45, 55]


def test_protected_positions_may_be_those_of_all_samples() -> None:
    one = torch.arange(60) % 25 == 24
    shared, each = (idsel.prune(HIDDEN, 7, "mmr", CASE.importance, protect=mask) for mask in (one, one.expand(3, 60)))
    assert torch.equal(shared.indices, each.indices)


def test_masked_tokens_are_not_there_even_if_protected() -> None:
    protect = torch.arange(60).expand(3, 60) < 4
    mask = torch.arange(60).expand(3, 60) % 2 == 0
    out = idsel.prune(HIDDEN, 7, "mmr", CASE.importance, protect=protect, mask=mask)
    assert (out.indices % 2 == 0).all() and out.indices[:, :2].tolist() == [[0, 2]] * 3


def test_nothing_is_merged_into_protected_tokens() -> None:
    protect = torch.arange(60).expand(3, 60) % 30 == 7
    out = idsel.prune(HIDDEN, 7, "mmr", CASE.importance, protect=protect, merge="mean")
    at = protect.gather(1, out.indices)
    assert at.sum(1).tolist() == [2] * 3
    assert torch.equal(out.hidden[at], HIDDEN[protect]) and (out.sizes[at] == 1).all()  # type: ignore[index]
    assert out.sizes.sum(1).tolist() == [60] * 3  # type: ignore[union-attr]


# --- Traced, and without a word to the host ---------------------------------------------------------------------------


def test_gradients_flow_to_hidden_states() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    for how in (None, "weighted"):
        hidden.grad = None
        out = idsel.prune(hidden, 7, "mmr", CASE.importance, features=CASE.features, merge=how)  # type: ignore[arg-type]
        out.hidden.sum().backward()
        assert hidden.grad is not None
        assert torch.equal(hidden.grad.ne(0).all(-1), out.keep_mask(60) if how is None else torch.ones(3, 60).bool())


def test_a_dense_batch_takes_one_launch_more_than_select() -> None:
    """Where no sample can be too short: without mask, and with no k beyond N."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "gather_rows", lambda *arguments: seen.append(arguments) or HIDDEN[:, :7])
        idsel.prune(HIDDEN, 7, "mmr", CASE.importance)
    ((hidden, indices, padded),) = seen
    assert hidden is HIDDEN and padded is False
    with CountedLaunches() as launches:
        gather_rows(to_meta(hidden), to_meta(indices), padded)
    assert launches.names == ["aten::gather"]


@pytest.mark.parametrize("how", [None, "mean", "add_mean", "weighted"])
@pytest.mark.parametrize("is_ragged", [False, True])
def test_nothing_waits_for_a_gpu(how: Any, is_ragged: bool) -> None:
    case = RAGGED if is_ragged else CASE
    protect = torch.zeros_like(case.importance, dtype=torch.bool)
    arguments = {
        "hidden": FLAT if is_ragged else HIDDEN,
        "importance": case.importance,
        "features": case.features,
        "mask": ~protect,
        "protect": protect,
        "position_ids": MROPE if is_ragged else torch.arange(60),
        "cu_seqlens": case.cu_seqlens,
    }
    counts = torch.tensor([3, 1, 2, 2][: 4 if is_ragged else 3])
    for budget in ({"k": 5}, {"k": counts, "k_max": 3}, {"keep_ratio": 0.2}):
        given = {name: to_meta(value) for name, value in {**arguments, **budget}.items()}
        with nothing_read():
            out = idsel.prune(**given, rule="mmr", merge=how, max_seqlen=30 if is_ragged else None)
            assert out.hidden.device == META
            out.keep_mask(60, given["cu_seqlens"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": torch.zeros(3, 61, 4)}, ValueError, r"features must have the tokens of hidden, \(3, 60\), got"),
        ({"features": [1.0]}, TypeError, "features must be a torch.Tensor, got list"),
        ({"hidden": HIDDEN.double()}, TypeError, "hidden must be float32, float16 or bfloat16 where no features are"),
        ({"hidden": HIDDEN[0, 0]}, ValueError, r"hidden must be \(B, N, C\) or \(N, C\), got shape \(5,\)"),
        ({"order": "random"}, ValueError, "order must be one of 'raster', 'pick', got 'random'"),
        ({"merge": "sum"}, ValueError, "merge must be one of 'mean', 'add_mean', 'weighted', got 'sum'"),
        ({"protect": torch.ones(3, 60)}, TypeError, "protect must be torch.bool .True = always kept., got torch"),
        ({"protect": torch.ones(3, 9).bool()}, ValueError, r"protect must be \(B, N\) = \(3, 60\) to match hidden"),
        ({"position_ids": torch.zeros(59)}, ValueError, r"position_ids must have N = 60 as its last axis, got"),
        ({"position_ids": torch.zeros(4, 60)}, ValueError, r"position_ids must be \(N,\) or \(..., B, N\) with B = 3"),
        ({"position_ids": [0] * 60}, TypeError, "position_ids must be a torch.Tensor, got list"),
        ({"importance": None}, ValueError, "importance is required by MMR, got None"),
        ({"sizes": torch.ones(3, 60)}, ValueError, "sizes goes with merge=, got merge=None"),
        ({"k": torch.tensor([3, 70, 1]), "k_max": 9, "protect": CASE.importance > 2}, ValueError, r"k\[1\] must be in"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"hidden": HIDDEN, "k": 7, "rule": "mmr", "importance": CASE.importance, **change}
    with pytest.raises(error, match=words):
        idsel.prune(**given)

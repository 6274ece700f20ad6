"""Budgets: exact totals and bounds, literal versions in plain Python, and stored runs of the official code."""

from __future__ import annotations

import doctest
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import idsel_kernels as idsel
import idsel_kernels.budgets as budgets_module
from idsel_kernels.budgets import (
    by_top_scores,
    evs,
    holov,
    holov_scores,
    per_frame,
    proportional,
    vidcom2,
    vidcom2_scores,
)
from idsel_kernels.importance import frame_difference

GOLDEN = Path(__file__).parent / "data" / "budgets"
INDEX = json.loads((GOLDEN / "index.json").read_text())
NAN, INF = math.nan, math.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Stored runs of the official code


def golden_cases(*sources: str) -> list[Any]:
    cases = [case for case in INDEX["cases"] if case["source"] in sources and case["clear"]]
    assert cases
    return [pytest.param(case, id=f"{case['id']}-{case['source']}") for case in cases]


def golden_arrays(case: dict[str, Any]) -> tuple[Tensor, Callable[[str], Tensor]]:
    """The features of a case, and a function that returns an array of its run by name."""
    data = np.load(GOLDEN / case["file"])
    features = torch.from_numpy(data["features"].astype(np.float32))
    return features, lambda name: torch.from_numpy(data[f"{case['run']}_{name}"])


def golden_video(case: dict[str, Any]) -> tuple[Tensor, Tensor, Callable[[str], Tensor]]:
    """The features as (T, n, D), the tokens that the source kept as (T, n), and its arrays."""
    features, array = golden_arrays(case)
    video = features.reshape(case["params"]["frames"], -1, features.shape[-1])
    return video, array("mask").reshape(video.shape[:-1]), array


@pytest.mark.parametrize("name", INDEX["files"])
def test_golden_files_are_those_of_the_index(name: str) -> None:
    assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == INDEX["files"][name]


@pytest.mark.parametrize("case", golden_cases("holov"))
def test_holov_golden(case: dict[str, Any]) -> None:
    features, array = golden_arrays(case)
    attention = torch.from_numpy(np.load(GOLDEN / case["file"])["importance"])
    crops = case["params"]["num_patches"]
    scores = holov_scores(features, attention, crops, alpha=case["params"]["alpha"])
    torch.testing.assert_close(scores.float(), array("crop_scores"), rtol=1e-5, atol=1e-6)
    sizes = per_frame(case["n"], min(crops, case["n"]))
    for weights in (scores, array("crop_scores")):
        budgets = holov(weights, case["k"])
        assert budgets.tolist() == array("replay_budgets").tolist()
        assert torch.minimum(budgets, torch.tensor(sizes)).tolist() == array("counts").tolist()
        exact = holov(weights, case["k"], sizes)
        assert exact.sum() == case["k"]
        assert bool((exact >= array("counts")).all())
        assert case["padded"] or exact.tolist() == array("counts").tolist()


@pytest.mark.parametrize("case", golden_cases("vidcom2", "vllm-vidcom2"))
def test_vidcom2_golden(case: dict[str, Any]) -> None:
    video, kept, array = golden_video(case)
    n, counts = video.shape[1], kept.sum(1).tolist()
    params = case["params"]
    keep_ratio = params["base_scale"] if case["source"] == "vidcom2" else 1.0 - params["q"]
    frame_scores, token_scores = vidcom2_scores(video)
    torch.testing.assert_close(token_scores, array("scores"), rtol=1e-5, atol=1e-5)
    rounded = vidcom2(frame_scores, n, keep_ratio, exact=False)
    assert rounded.tolist() == case["budgets"]
    if case["source"] == "vidcom2":
        assert rounded.tolist() == counts
    else:
        assert vidcom2(frame_scores, n, keep_ratio, token_scores).tolist() == counts
        assert vidcom2(frame_scores, n, keep_ratio).sum() == case["target"]
    assert torch.equal(idsel.topk_select(video, counts, -token_scores).keep_mask(n), kept)


@pytest.mark.parametrize("case", golden_cases("vllm-evs"))
def test_evs_golden(case: dict[str, Any]) -> None:
    video, kept, array = golden_video(case)
    counts = kept.sum(1).tolist()
    assert evs(video, 1.0 - case["params"]["q"]).tolist() == counts
    assert by_top_scores(array("scores").reshape(video.shape[:-1]), case["target"]).tolist() == counts
    changed = frame_difference(video, first=255.0).flatten()
    sel = idsel.topk_select(video.flatten(0, 1), case["target"], changed)
    assert torch.equal(sel.keep_mask(kept.numel())[0], kept.flatten())


# per_frame


@given(st.integers(0, 10**6), st.integers(1, 200))
def test_per_frame_is_even_and_exact(total: int, n_frames: int) -> None:
    counts = per_frame(total, n_frames)
    assert len(counts) == n_frames and sum(counts) == total
    assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1


# proportional


def literal_shares(weights: Sequence[int], total: int, most: Sequence[int], least: Sequence[int]) -> list[Fraction]:
    """Shares in exact arithmetic: round by round, the groups that break a bound are held at it."""
    held: dict[int, int] = {}
    while True:
        free = [g for g in range(len(weights)) if g not in held]
        pool, scale = total - sum(held.values()), sum(weights[g] for g in free)
        shares = {g: Fraction(pool * weights[g], scale) for g in free}
        bounded = {g: min(max(x, Fraction(least[g])), Fraction(most[g])) for g, x in shares.items()}
        excess = sum(bounded.values()) - sum(shares.values())
        if excess == 0:
            return [Fraction(bounded.get(g, held.get(g, 0))) for g in range(len(weights))]
        held |= {g: int(x) for g, x in bounded.items() if (x > shares[g] if excess > 0 else x < shares[g])}


def literal(weights: Sequence[int], total: int, most: Sequence[int], least: Sequence[int]) -> list[int]:
    """Largest remainders in exact arithmetic; groups of weight 0 come into play when the others are full."""
    least = [min(pair) for pair in zip(least, most, strict=True)]
    total = max(min(total, sum(most)), sum(least))
    strong = [g for g, w in enumerate(weights) if w > 0]
    weak = [g for g, w in enumerate(weights) if w == 0]
    for_strong = min(total - sum(least[g] for g in weak), sum(most[g] for g in strong))
    counts = [0] * len(weights)
    for groups, pool, even in ((strong, for_strong, False), (weak, total - for_strong, True)):
        if not groups:
            continue
        shares = literal_shares(
            [1 if even else weights[g] for g in groups], pool, [most[g] for g in groups], [least[g] for g in groups]
        )
        whole = [math.floor(x) for x in shares]
        by_fraction = sorted(range(len(groups)), key=lambda i: (whole[i] - shares[i], i))
        for i in by_fraction[: pool - sum(whole)]:
            whole[i] += 1
        for g, count in zip(groups, whole, strict=True):
            counts[g] = count
    return counts


@st.composite
def bounded_problems(draw: st.DrawFn) -> tuple[list[int], int, list[int], list[int]]:
    groups = draw(st.integers(1, 9))

    def column(high: int) -> list[int]:
        return draw(st.lists(st.integers(0, high), min_size=groups, max_size=groups))

    return column(draw(st.sampled_from([1, 6, 500]))), draw(st.integers(0, 150)), column(40), column(12)


@given(bounded_problems())
@settings(max_examples=300, deadline=None)
def test_proportional_is_the_literal_version(problem: tuple[list[int], int, list[int], list[int]]) -> None:
    weights, total, most, least = problem
    none, huge = [0] * len(weights), [10**9] * len(weights)
    assert proportional(weights, total).tolist() == literal(weights, total, huge, none)
    assert proportional(weights, total, most).tolist() == literal(weights, total, most, none)
    assert proportional(weights, total, least=least).tolist() == literal(weights, total, huge, least)
    assert proportional(weights, total, most, least=least).tolist() == literal(weights, total, most, least)


@given(
    st.lists(st.floats(0.0, 1e300) | st.sampled_from([0.0, 1.0, 1e-300, 5e-324]), min_size=1, max_size=40),
    st.integers(0, 10**7),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_proportional_is_exact_for_any_weights(weights: list[float], total: int, data: st.DataObject) -> None:
    assert proportional(weights, total).sum() == total
    caps = data.draw(st.lists(st.integers(0, 10**6), min_size=len(weights), max_size=len(weights)))
    counts = proportional(weights, total, caps)
    assert counts.sum() == min(total, sum(caps))
    assert bool((counts >= 0).all()) and bool((counts <= torch.tensor(caps)).all())


@pytest.mark.parametrize("groups", [1, 2, 3, 100, 3000])
def test_proportional_stays_within_one_of_the_quota(groups: int) -> None:
    weights = randn(groups, seed=groups, dtype=torch.float64).exp()
    counts = proportional(weights, 10**6)
    assert counts.sum() == 10**6
    assert float((counts - weights / weights.sum() * 10**6).abs().max()) < 1.0


def test_proportional_ties_go_to_the_lowest_group() -> None:
    # 4/3, 1/3 and 1/3 tie, though not as floats.
    assert proportional([4.0, 1.0, 1.0], 2).tolist() == [2, 0, 0]
    assert proportional([1.0, 4.0, 1.0], 2).tolist() == [1, 1, 0]
    assert proportional([1.0, 1.0, 1.0, 1.0], 6).tolist() == [2, 2, 1, 1]


def test_proportional_shares_again_what_caps_cut_off() -> None:
    # 60 of 100 becomes 10; the 90 left go 3 : 1 to the others, of which the first stops at 20.
    assert proportional([60.0, 30.0, 10.0], 100, [10, 20, 1000]).tolist() == [10, 20, 70]
    assert proportional([60.0, 30.0, 10.0], 100, [10, 20, 30]).tolist() == [10, 20, 30]
    assert proportional([1.0, 0.0, 0.0], 9, [3, 9, 9]).tolist() == [3, 3, 3]


def test_proportional_least() -> None:
    assert proportional([98.0, 1.0, 1.0], 10, least=2).tolist() == [6, 2, 2]
    assert proportional([0.0, 1.0], 5, least=1).tolist() == [1, 4]
    assert proportional([1.0, 1.0], 3, least=[5, 1]).tolist() == [5, 1], "least sums to more than the total"
    assert proportional([1.0, 1.0], 9, most=[2, 3], least=4).tolist() == [2, 3], "most wins over least"


@pytest.mark.parametrize("odd", [NAN, INF, -INF, -1.0, 0.0])
def test_proportional_odd_weights_count_as_zero(odd: float) -> None:
    assert proportional(torch.tensor([odd, 3.0, 1.0]), 8).tolist() == [0, 6, 2]
    assert proportional(torch.tensor([odd, odd, odd]), 8).tolist() == [3, 3, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_proportional_takes_rows_totals_and_bounds_as_tensors(dtype: torch.dtype) -> None:
    weights = randn(2, 3, 5, dtype=dtype).abs()
    totals = torch.tensor([[0, 7, 20], [41, 9, 1000]], dtype=torch.int32)
    most = torch.arange(30, dtype=torch.int64).reshape(2, 3, 5)
    actual = proportional(weights, totals, most, least=torch.tensor([0, 1, 0, 2, 0], dtype=torch.int8))
    assert actual.dtype == torch.int64 and actual.shape == weights.shape
    for b in range(2):
        for s in range(3):
            row = proportional(weights[b, s], int(totals[b, s]), most[b, s].tolist(), least=[0, 1, 0, 2, 0])
            assert actual[b, s].tolist() == row.tolist()
    uncapped = proportional(weights, totals.clamp(max=100))
    assert uncapped.sum(-1).tolist() == totals.clamp(max=100).tolist()


def test_proportional_of_nothing() -> None:
    assert proportional([], 5).tolist() == []
    assert proportional(torch.ones(0, 3), 5, most=2).shape == (0, 3)
    assert proportional([1.0, 2.0], 0).tolist() == [0, 0]
    assert proportional(torch.ones(2), torch.tensor(-3)).tolist() == [0, 0]


def test_counts_are_a_k_of_select() -> None:
    features = randn(3, 10, 4)
    counts = proportional([5.0, 1.0, 2.0], 12, most=10, least=1).tolist()
    assert idsel.select(features, counts, idsel.MaxMin()).indices.ge(0).sum(-1).tolist() == counts


# VidCom2


@given(st.lists(st.floats(-5.0, 0.0), min_size=1, max_size=20), st.integers(1, 60), st.floats(0.001, 1.0))
@settings(max_examples=150, deadline=None)
def test_vidcom2_is_exact(frame_scores: list[float], n: int, keep_ratio: float) -> None:
    scores = torch.tensor(frame_scores)
    frames = len(frame_scores)
    total = max(frames, math.floor(frames * n * keep_ratio))
    counts = vidcom2(scores, n, keep_ratio)
    assert counts.sum() == total
    assert int(counts.min()) >= 1 and int(counts.max()) <= n
    rounded = vidcom2(scores, n, keep_ratio, exact=False)
    assert int(rounded.min()) >= 1 and int(rounded.max()) <= n
    token_scores = randn(frames, n).round(decimals=1)
    assert vidcom2(scores, n, keep_ratio, token_scores).tolist() == reconciled(rounded.tolist(), token_scores, total)


def reconciled(counts: list[int], token_scores: Tensor, total: int) -> list[int]:
    """Token by token: drop the worst kept one, or add the best of the others, until the total is met."""
    n = token_scores.shape[1]
    scores = {(t, i): float(token_scores[t, i]) for t in range(len(counts)) for i in range(n)}
    kept = {(t, i) for t, k in enumerate(counts) for i in sorted(range(n), key=lambda i: (scores[t, i], i))[:k]}
    while len(kept) > total:
        kept.remove(max(kept, key=lambda at: (scores[at], at)))
    while len(kept) < total:
        kept.add(min(scores.keys() - kept, key=lambda at: (scores[at], at)))
    return [sum(t == frame for t, _ in kept) for frame in range(len(counts))]


def test_vidcom2_rounds_halves_to_even() -> None:
    assert vidcom2(torch.zeros(4), 10, 0.25, exact=False).tolist() == [2, 2, 2, 2]
    assert vidcom2(torch.zeros(4), 10, 0.35, exact=False).tolist() == [4, 4, 4, 4]
    assert vidcom2(torch.zeros(4), 10, 0.25).tolist() == [3, 3, 2, 2]


def test_vidcom2_batch_and_nan() -> None:
    scores = torch.stack([torch.tensor([-1.0, -1.01, -1.02]), torch.tensor([-1.0, NAN, -1.02])])
    counts = vidcom2(scores, 10, 0.5)
    assert counts[0].tolist() == vidcom2(scores[0], 10, 0.5).tolist()
    assert counts[1].tolist() == [5, 5, 5]
    assert vidcom2(scores[1], 10, 0.5, exact=False).tolist() == [1, 1, 1]
    assert vidcom2(scores[:, :0], 10, 0.5).shape == (2, 0)
    tokens = randn(2, 3, 10)
    batch = vidcom2(scores, 10, 0.5, tokens)
    assert batch.tolist() == [vidcom2(s, 10, 0.5, t).tolist() for s, t in zip(scores, tokens, strict=True)]
    assert batch.sum(-1).tolist() == [15, 15]


def test_vidcom2_scores_are_the_formulas() -> None:
    video = randn(3, 5, 9, dtype=torch.float64)
    frame_scores, token_scores = vidcom2_scores(video)
    tokens = video.reshape(-1, 9)
    channels = ((tokens - tokens.mean(0)) ** 2).mean(0).argsort()[:4]
    x = F.normalize(tokens[:, channels], dim=-1)

    def nearness(points: Tensor, centre: Tensor) -> Tensor:
        squared = ((points - centre) ** 2).sum(-1)
        return torch.stack([torch.exp(-squared / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2)]).sum(0)

    v = nearness(x, x.mean(0)).reshape(3, 5)
    f = torch.stack([nearness(frame, frame.mean(0)) for frame in x.reshape(3, 5, 4)])
    torch.testing.assert_close(frame_scores, -v.mean(-1))
    torch.testing.assert_close(token_scores, v + f)


def test_vidcom2_scores_of_a_batch_are_those_of_its_videos() -> None:
    videos = randn(2, 4, 6, 10)
    for batched, alone in zip(vidcom2_scores(videos), zip(*map(vidcom2_scores, videos), strict=True), strict=True):
        torch.testing.assert_close(batched, torch.stack(alone))


# HoloV


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20),
    st.integers(0, 500),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_holov_is_exact(weights: list[float], total: int, data: st.DataObject) -> None:
    free = holov(weights, total)
    assert free.sum() == total and bool((free >= 0).all())
    sizes = data.draw(st.lists(st.integers(0, 60), min_size=len(weights), max_size=len(weights)))
    counts = holov(weights, total, sizes)
    assert counts.sum() == min(total, sum(sizes))
    assert bool((counts >= torch.minimum(free, torch.tensor(sizes))).all())
    assert bool((counts <= torch.tensor(sizes)).all())


def test_holov_gives_the_remainder_to_the_heaviest() -> None:
    # 1.2, 2.4, 2.4 and 6.0 less a little: floors 1, 2, 2, 5 leave 2 for the last and the first of the equal ones.
    assert holov([1.0, 2.0, 2.0, 5.0], 12).tolist() == [1, 3, 2, 6]
    assert holov([1.0, 0.0], 4).tolist() == [4, 0]


def test_holov_hands_out_the_surplus() -> None:
    assert holov([9.0, 1.0, 2.0], 12, sizes=[5, 5, 5]).tolist() == [5, 2, 5]
    assert holov([9.0, 1.0, 2.0], 99, sizes=[5, 5, 5]).tolist() == [5, 5, 5]


def test_holov_without_attention_is_even() -> None:
    assert holov([0.0] * 4, 18).tolist() == [5, 5, 4, 4]
    assert holov(torch.tensor([NAN, -INF, -1.0, INF]), 18, sizes=torch.tensor([2, 9, 9, 9])).sum() == 18


def test_holov_takes_rows() -> None:
    weights, totals = randn(3, 6).abs(), torch.tensor([5, 20, 60])
    sizes = torch.tensor([4, 4, 4, 9, 9, 9])
    actual = holov(weights, totals, sizes)
    for row, total, counts in zip(weights, totals.tolist(), actual, strict=True):
        assert counts.tolist() == holov(row.tolist(), total, sizes.tolist()).tolist()
    assert actual.sum(-1).tolist() == [5, 20, 39]
    assert holov(torch.ones(0, 3), 5).shape == (0, 3)


def literal_crop_score(x: Tensor, attention: Tensor, alpha: float) -> float:
    m = len(x)
    if m == 1:
        return float(attention)
    u = x / (x.norm(dim=-1, keepdim=True) + 1e-6)
    b = 1000.0 * attention
    variances = []
    for i in range(m):
        row = [0.0 if i == j else float(u[i] @ u[j]) for j in range(m)]
        mean = sum(row) / (m - 1)
        variances.append(sum((s - mean) ** 2 for s in row) / (m - 1))
    variance = torch.tensor(variances, dtype=torch.float64)
    return float((b + alpha * variance * b.abs().mean() / (variance.abs().mean() + 1e-6)).mean())


@pytest.mark.parametrize("crops", [1, 3, 4, 9, 13, 20])
def test_holov_scores_are_the_formulas(crops: int) -> None:
    features, attention = randn(13, 5, dtype=torch.float64), randn(13, seed=1, dtype=torch.float64).softmax(0)
    actual = holov_scores(features, attention, crops, alpha=0.3)
    sizes = [size for size in per_frame(13, crops) if size]
    parts = zip(torch.split(features, sizes), torch.split(attention, sizes), strict=True)
    expected = torch.tensor([literal_crop_score(x, a, 0.3) for x, a in parts], dtype=torch.float64)
    torch.testing.assert_close(actual, expected)
    batch = holov_scores(features.expand(2, 13, 5), attention.expand(2, 13), crops, alpha=0.3)
    torch.testing.assert_close(batch, actual.expand(2, -1))


# Ranking over all frames


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 45), st.integers(0, 2**16))
@settings(max_examples=150, deadline=None)
def test_by_top_scores_is_the_literal_version(frames: int, n: int, total: int, seed: int) -> None:
    scores = randn(frames, n, seed=seed).mul(2).round()
    scores[scores == 3] = NAN
    flat = [-INF if math.isnan(s) else s for s in scores.flatten().tolist()]
    chosen = sorted(range(frames * n), key=lambda i: (-flat[i], i))[:total]
    counts = by_top_scores(scores, total)
    assert counts.tolist() == [sum(i // n == t for i in chosen) for t in range(frames)]
    assert by_top_scores(torch.stack([scores, scores]), torch.tensor([total, 0])).tolist() == [
        counts.tolist(),
        [0] * frames,
    ]


def test_by_top_scores_takes_nan_after_minus_infinity() -> None:
    assert by_top_scores(torch.tensor([[NAN], [-INF], [1.0]]), 2).tolist() == [0, 1, 1]
    assert by_top_scores(torch.tensor([[NAN], [-INF], [1.0]]), 9).tolist() == [1, 1, 1]


def test_evs_keeps_the_first_frame_and_what_changes() -> None:
    video = randn(1, 6, 4).repeat(3, 1, 1)
    video[2, :2] = -video[2, :2]
    assert evs(video, 8 / 18).tolist() == [6, 0, 2]
    assert evs(video, 0.01).tolist() == [6, 0, 0]
    assert evs(video, 1.0).tolist() == [6, 6, 6]
    assert evs(torch.stack([video, video]), 0.01).tolist() == [[6, 0, 0]] * 2


# All of them


class NoSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises on operations that hand values to the host, or whose output's size depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name == word or name.startswith(f"{word}_") for word in self.FORBIDDEN), name
        if name in ("index", "index_put", "index_put_"):
            assert not any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]), "boolean indexing"
        return func(*args, **(kwargs or {}))


CALLS: dict[str, Callable[[torch.device], Any]] = {
    "proportional": lambda d: proportional(torch.rand(2, 4, device=d), 9),
    "proportional, bounds": lambda d: proportional(
        torch.rand(2, 4, device=d), torch.ones(2, dtype=torch.int64, device=d), [1, 2, 3, 4], least=1
    ),
    "vidcom2": lambda d: vidcom2(torch.rand(4, device=d), 6, 0.5),
    "vidcom2, rounded": lambda d: vidcom2(torch.rand(4, device=d), 6, 0.5, exact=False),
    "vidcom2, tokens": lambda d: vidcom2(torch.rand(4, device=d), 6, 0.5, torch.rand(4, 6, device=d)),
    "vidcom2_scores": lambda d: vidcom2_scores(torch.rand(4, 6, 8, device=d)),
    "holov": lambda d: holov(torch.rand(4, device=d), 9),
    "holov, sizes": lambda d: holov(torch.rand(4, device=d), 9, [3, 3, 2, 2]),
    "holov_scores": lambda d: holov_scores(torch.rand(10, 8, device=d), torch.rand(10, device=d), 4),
    "evs": lambda d: evs(torch.rand(4, 6, 8, device=d), 0.5),
    "by_top_scores": lambda d: by_top_scores(torch.rand(4, 6, device=d), 9),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_reads_a_value_back(name: str) -> None:
    with NoSync():  # type: ignore[no-untyped-call]
        on_cpu = CALLS[name](torch.device("cpu"))
    # Tensors without values: reading one is an error, and so is mixing in a tensor of another device.
    on_meta = CALLS[name](torch.device("meta"))
    assert torch.utils._pytree.tree_map(lambda x: x.shape, on_cpu) == torch.utils._pytree.tree_map(
        lambda x: x.shape, on_meta
    )
    assert all(x.is_meta for x in torch.utils._pytree.tree_leaves(on_meta))


@pytest.mark.parametrize("operation", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0]])
def test_the_guard_against_reading_back_works(operation: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError), NoSync():  # type: ignore[no-untyped-call]
        operation(torch.ones(3))


def test_budgets_trace_without_a_break() -> None:
    def all_of_them(video: Tensor, attention: Tensor) -> list[Tensor]:
        frame_scores, token_scores = vidcom2_scores(video)
        crops = holov(holov_scores(video[0], attention, 3), 5, [2, 2, 2])
        return [
            vidcom2(frame_scores, 6, 0.5, token_scores),
            evs(video, 0.5),
            proportional(frame_scores + 5, 9, 4),
            crops,
        ]

    inputs = randn(4, 6, 8), torch.rand(6)
    compiled = torch.compile(all_of_them, fullgraph=True, backend="eager")
    for traced, eager in zip(compiled(*inputs), all_of_them(*inputs), strict=True):
        assert traced.tolist() == eager.tolist()


@pytest.mark.parametrize("name", CALLS)
def test_results_are_the_same_each_time_and_take_no_gradient(name: str) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(torch.utils._pytree.tree_leaves(CALLS[name](torch.device("cpu"))))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second) and not first.requires_grad


def test_inputs_may_require_grad() -> None:
    leaf = torch.rand(3, 4, 6, requires_grad=True)
    for result in (*vidcom2_scores(leaf), evs(leaf, 0.5), proportional(leaf[0, 0], 5), by_top_scores(leaf[0], 3)):
        assert not result.requires_grad


WEIGHTS = torch.ones(3)
VIDEO = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: per_frame(-1, 2), ValueError, r"total must be >= 0, got -1"),
        (lambda: per_frame(1, 0), ValueError, r"n_frames must be >= 1, got 0"),
        (lambda: per_frame(1.5, 2), TypeError, r"total must be an int, got float"),  # type: ignore[arg-type]
        (lambda: per_frame(True, 2), TypeError, r"total must be an int, got bool"),
        (lambda: proportional("abc", 2), TypeError, r"weights must be a torch.Tensor or a sequence .*, got str"),  # type: ignore[arg-type]
        (lambda: proportional([1.0, NAN], 2), ValueError, r"weights\[1\] must be finite and >= 0, got nan"),
        (lambda: proportional([1.0, -1.0], 2), ValueError, r"weights\[1\] must be finite and >= 0, got -1"),
        (lambda: proportional(["a"], 2), TypeError, r"weights\[0\] must be a number, got str"),  # type: ignore[list-item]
        (lambda: proportional(torch.tensor([1, 2]), 2), TypeError, r"weights must be float16, .*, got int64"),
        (lambda: proportional(torch.tensor(1.0), 2), ValueError, r"weights must be \(\.\.\., G\), got \(\)"),
        (lambda: proportional(WEIGHTS, -2), ValueError, r"total must be >= 0, got -2"),
        (lambda: proportional(WEIGHTS, torch.tensor(2.0)), TypeError, r"total must be an integer tensor, got float32"),
        (lambda: proportional(WEIGHTS, torch.tensor([2])), ValueError, r"total must be \(\) to match weights, got \(1"),
        (lambda: proportional(WEIGHTS, 2, [1, 2]), ValueError, r"most must have 3 ints to match weights, got 2"),
        (lambda: proportional(WEIGHTS, 2, [1, 2, -1]), ValueError, r"most\[2\] must be >= 0, got -1"),
        (lambda: proportional(WEIGHTS, 2, WEIGHTS), TypeError, r"most must be an integer tensor, got float32"),
        (lambda: proportional(WEIGHTS, 2, WEIGHTS.bool()), TypeError, r"most must be an integer tensor, got bool"),
        (lambda: proportional(WEIGHTS, 2, torch.ones(2).int()), ValueError, r"most must be \(3,\) to match weights"),
        (lambda: proportional(WEIGHTS, 2, WEIGHTS.int().to("meta")), ValueError, r"most must be on cpu .*, got meta"),
        (lambda: proportional(WEIGHTS, 2, least=-1), ValueError, r"least must be >= 0, got -1"),
        (lambda: proportional(WEIGHTS, 2, 1.5), TypeError, r"most must be an int, got float"),  # type: ignore[arg-type]
        (lambda: vidcom2([1.0], 2, 0.5), TypeError, r"frame_scores must be a torch.Tensor, got list"),  # type: ignore[arg-type]
        (lambda: vidcom2(WEIGHTS, 0, 0.5), ValueError, r"tokens_per_frame must be >= 1, got 0"),
        (lambda: vidcom2(WEIGHTS, 2, 0.0), ValueError, r"keep_ratio must be in \(0, 1\], got 0.0"),
        (lambda: vidcom2(WEIGHTS, 2, 1.5), ValueError, r"keep_ratio must be in \(0, 1\], got 1.5"),
        (lambda: vidcom2(WEIGHTS, 2, "1"), TypeError, r"keep_ratio must be a number, got str"),  # type: ignore[arg-type]
        (lambda: vidcom2(WEIGHTS, 2, 0.5, exact=1), TypeError, r"exact must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: vidcom2(WEIGHTS, 2, 0.5, temperature=0.0), ValueError, r"temperature must be > 0, got 0"),
        (lambda: vidcom2(WEIGHTS, 2, 0.5, torch.ones(3, 4)), ValueError, r"token_scores must be \(3, 2\) to match"),
        (lambda: vidcom2(WEIGHTS, 2, 0.5, torch.ones(3, 2), exact=False), ValueError, r"token_scores must be None"),
        (lambda: vidcom2_scores(VIDEO[0]), ValueError, r"features must be \(\.\.\., T, n, D\), got \(3, 4\)"),
        (lambda: vidcom2_scores(VIDEO[:, :0]), ValueError, r"features must have T, n and D >= 1, got"),
        (lambda: vidcom2_scores(VIDEO[..., :1]), ValueError, r"features must have D \* channel_share >= 1, got shape"),
        (lambda: vidcom2_scores(VIDEO, 0.0), ValueError, r"channel_share must be in \(0, 1\], got 0.0"),
        (lambda: holov("abc", 3), TypeError, r"crop_weights must be a torch.Tensor or a sequence"),  # type: ignore[arg-type]
        (lambda: holov(WEIGHTS, 3, [1]), ValueError, r"sizes must have 3 ints to match crop_weights, got 1"),
        (lambda: holov_scores(VIDEO[0], WEIGHTS, 0), ValueError, r"crops must be >= 1, got 0"),
        (lambda: holov_scores(VIDEO[0], torch.ones(4), 1), ValueError, r"attention must be \(3,\) to match"),
        (lambda: holov_scores(VIDEO[0, :0], torch.ones(0), 1), ValueError, r"features must have N >= 1 and D >= 1"),
        (lambda: holov_scores(VIDEO[0], WEIGHTS, 1, alpha=INF), ValueError, r"alpha must be finite and >= 0, got inf"),
        (lambda: evs(VIDEO.int(), 0.5), TypeError, r"features must be float16, .*, got int32"),
        (lambda: evs(VIDEO, -0.5), ValueError, r"keep_ratio must be finite and >= 0, got -0.5"),
        (lambda: by_top_scores(WEIGHTS, 2), ValueError, r"scores must be \(\.\.\., T, n\), got \(3,\)"),
        (lambda: by_top_scores(VIDEO, torch.tensor(2)), ValueError, r"total must be \(2,\) to match scores, got \(\)"),
    ],
)  # fmt: skip
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_numpy_integers_are_ints() -> None:
    assert per_frame(np.int64(5), np.int32(2)) == [3, 2]
    assert proportional([1.0, 1.0], np.int64(3), [np.int64(1), np.int64(5)]).tolist() == [1, 2]


def test_docstring_examples() -> None:
    result = doctest.testmod(budgets_module)
    assert result.attempted >= len(budgets_module.__all__) and result.failed == 0

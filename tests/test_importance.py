"""Importance scores: against naive float64 references, stored runs of the official code, and edge cases."""

from __future__ import annotations

import doctest
import json
import math
from collections.abc import Callable
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

import idsel_kernels.importance as importance_module
from idsel_kernels.importance import (
    cls_attention,
    cross_attention,
    debias,
    event_relevance,
    frame_difference,
    key_norms,
    minmax,
    norms,
    text_relevance,
    unify,
)

GOLDEN = Path(__file__).parent / "data" / "golden"
MINMAX_FILES = sorted([*GOLDEN.glob("idpruner-*.npz"), *GOLDEN.glob("idselection-*.npz")])
RELEVANCE_FILES = sorted(GOLDEN.glob("cdpruner-*.npz"))
BUDGETS = GOLDEN.with_name("budgets")
EVS_CASES = [c for c in json.loads((BUDGETS / "index.json").read_text())["cases"] if c["source"] == "vllm-evs"]

# Half the spacing of float32 between 1 and 2: the rounding error of one operation with a result near 1.
ULP = 2.0**-24
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FUSIONS: list[Any] = ["product", "sum", "max", "geometric"]
NAN, INF = math.nan, math.inf


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal bit for bit, a NaN equalling a NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def stem(path: Path) -> str:
    return path.stem


# Stored runs of the official code


@pytest.mark.parametrize("prefix", ["idpruner", "idselection", "cdpruner"])
def test_golden_files_are_present(prefix: str) -> None:
    assert sorted(GOLDEN.glob(f"{prefix}-*.npz")), f"no {prefix}-*.npz under {GOLDEN}"


@pytest.mark.parametrize("path", MINMAX_FILES, ids=stem)
def test_minmax_golden_gives_the_stored_importance_bit_for_bit(path: Path) -> None:
    data = np.load(path)
    raw, expected = torch.from_numpy(data["raw_scores"]), torch.from_numpy(data["importance"])
    if path.stem.startswith("idpruner"):
        assert_same(minmax(raw, eps=1e-6), expected)
    else:  # stored after a float64 computation, hence rounded once
        assert_same(minmax(raw.double()).float(), expected)
        # Two differences and a quotient, each rounded once.
        torch.testing.assert_close(minmax(raw), expected, rtol=0, atol=3 * ULP)


@pytest.mark.parametrize("path", RELEVANCE_FILES, ids=stem)
def test_text_relevance_golden_matches_the_official_code(path: Path) -> None:
    data = np.load(path)
    image, text = torch.from_numpy(data["image_embeds"]), torch.from_numpy(data["text_embeds"])
    expected = torch.from_numpy(data["importance"])
    cosine = text_relevance(image.double(), text.double())
    spread = float(cosine.max() - cosine.min())
    actual = text_relevance(image, text, convention="cdpruner")
    # The cosines of both sides round by an ulp or two (measured); dividing by the spread magnifies that.
    torch.testing.assert_close(actual, expected, rtol=0, atol=8 * ULP / spread)
    # The lowest is (0 + 1e-6) / spread, which no rounding of a cosine touches: this pins the constant.
    torch.testing.assert_close(actual.min(), expected.min(), rtol=16 * ULP / spread, atol=0)


# minmax


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_minmax_matches_the_formula_row_by_row(dtype: torch.dtype, eps: float) -> None:
    scores = randn(2, 3, 17, dtype=dtype)
    actual = minmax(scores, eps=eps)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for i in range(2):
        for j in range(3):
            row = scores[i, j].double().tolist()
            low, high = min(row), max(row)
            expected = torch.tensor([(x - low) / (high - low + eps) for x in row], dtype=torch.float64)
            torch.testing.assert_close(actual[i, j].double(), expected, rtol=0, atol=4 * ULP)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minmax_constant_rows_are_ones_without_eps_and_zeros_with_it(dtype: torch.dtype) -> None:
    scores = torch.tensor([[3.0, 3.0, 3.0], [0.0, 0.0, 0.0], [-2.0, -2.0, -1.0]], dtype=dtype)
    assert minmax(scores).tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert minmax(scores, eps=1.0).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0.5]]
    assert minmax(torch.tensor([7.0], dtype=dtype)).tolist() == [1.0]


def test_minmax_nonfinite_scores_stay_and_do_not_touch_the_others() -> None:
    scores = torch.tensor([[NAN, 1.0, 3.0, -INF, 2.0, INF], [NAN, NAN, -INF, INF, NAN, NAN]])
    assert_same(minmax(scores), torch.tensor([[NAN, 0.0, 1.0, -INF, 0.5, INF], [NAN, NAN, -INF, INF, NAN, NAN]]))
    # One finite score is a constant row.
    assert_same(minmax(torch.tensor([NAN, 5.0, -INF])), torch.tensor([NAN, 1.0, -INF]))
    assert_same(minmax(torch.tensor([NAN, 5.0, -INF]), eps=1e-6), torch.tensor([NAN, 0.0, -INF]))


def test_minmax_masked_tokens_get_0_and_take_no_part() -> None:
    scores = torch.tensor([[100.0, 1.0, 3.0, NAN, 2.0], [4.0, 4.0, 9.0, -INF, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert minmax(scores, mask).tolist() == [[0, 0, 1, 0, 0.5], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert_same(minmax(scores, torch.ones_like(mask)), minmax(scores))


def test_minmax_masking_equals_leaving_the_tokens_out() -> None:
    scores, keep = randn(40, seed=1), randn(40, seed=2) > 0
    assert 0 < int(keep.sum()) < 40
    assert_same(minmax(scores, keep)[keep], minmax(scores[keep]))


def test_minmax_empty_input_gives_empty_output() -> None:
    for shape in [(0,), (2, 0), (0, 5)]:
        assert minmax(torch.empty(shape)).shape == shape
        assert minmax(torch.empty(shape, dtype=torch.float16)).dtype == torch.float32
        assert minmax(torch.empty(shape), torch.empty(shape, dtype=torch.bool)).shape == shape


def test_minmax_reads_strided_input_and_leaves_it_unchanged() -> None:
    wide = randn(5, 12)
    before = wide.clone()
    assert_same(minmax(wide.t()[::2]), minmax(wide.t()[::2].contiguous()))
    assert_same(wide, before)


def test_minmax_power_of_two_scale_changes_no_bit() -> None:
    scores = randn(4, 50)
    assert_same(minmax(scores * 8), minmax(scores))
    assert_same(minmax(scores / 1024), minmax(scores))
    # With eps the unit of the scores matters, as documented.
    assert float(minmax(scores, eps=0.1).max()) < float(minmax(scores * 8, eps=0.1).max()) < 1.0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30),
    st.floats(0.1, 100.0),
    st.floats(-100.0, 100.0, allow_subnormal=False),
)
def test_minmax_keeps_order_reaches_both_ends_and_ignores_affine_maps(
    values: list[float], factor: float, offset: float
) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    result = minmax(scores)
    assert float(result.max()) == 1.0
    assert float(result.min()) == (0.0 if len(set(values)) > 1 else 1.0)
    order = scores.argsort(stable=True)
    assert bool((result[order].diff() >= 0).all())
    spread = float(scores.max() - scores.min())
    if spread > 1e-3:  # else the offset rounds the differences away
        torch.testing.assert_close(minmax(scores * factor + offset), result, rtol=0, atol=1e-5)


# cls_attention


def cls_reference(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """The full S x S attention in float64, its CLS row without the CLS column, averaged over heads."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = (q.double() @ k.double().mT * scale).softmax(-1)
    return weights[..., 0, 1:].mean(-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 1.0, 0.03])
@pytest.mark.parametrize("shape", [(2, 4, 50, 16), (3, 9, 8), (2, 3, 2, 7, 5), (1, 1, 1, 4)], ids=str)
def test_cls_attention_matches_full_attention(dtype: torch.dtype, scale: float | None, shape: tuple[int, ...]) -> None:
    q, k = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    actual = cls_attention(q, k, scale)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == (*shape[:-3], shape[-2] - 1)
    expected = cls_reference(q, k, scale)
    # The relative error of a weight is the absolute error of its logit: |logit| < 20, rounded by a few ulp.
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


def test_cls_attention_matches_torch_attention_with_identity_values() -> None:
    q, k = randn(2, 4, 30, 8, dtype=torch.float64), randn(2, 4, 30, 8, seed=1, dtype=torch.float64)
    values = torch.eye(30, dtype=torch.float64).expand(2, 4, 30, 30)
    expected = F.scaled_dot_product_attention(q, k, values)[:, :, 0, 1:].mean(1)
    torch.testing.assert_close(cls_attention(q, k), expected, rtol=0, atol=1e-14)


def test_cls_attention_rows_sum_to_one_minus_the_share_of_cls() -> None:
    q, k = randn(2, 4, 30, 8), randn(2, 4, 30, 8, seed=1)
    own = (q.double() @ k.double().mT * 8**-0.5).softmax(-1)[:, :, 0, 0].mean(1)
    torch.testing.assert_close(cls_attention(q, k).double().sum(-1), 1 - own, rtol=0, atol=30 * ULP)


def test_cls_attention_uses_no_query_but_that_of_cls() -> None:
    q, k = randn(2, 4, 30, 8), randn(2, 4, 30, 8, seed=1)
    expected = cls_attention(q, k)
    q[:, :, 1:] = NAN
    assert_same(cls_attention(q, k), expected)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the element count of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_cls_attention_never_holds_more_than_a_copy_of_the_keys() -> None:
    q, k = randn(2, 3, 200, 8), randn(2, 3, 200, 8, seed=1)
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        cls_attention(q, k)
    assert 2 * 3 * 200 <= largest.numel <= k.numel() < 2 * 3 * 200 * 200


def test_cls_attention_large_logits_stay_finite() -> None:
    q, k = 100 * randn(1, 2, 20, 8), 100 * randn(1, 2, 20, 8, seed=1)
    actual = cls_attention(q, k)
    assert bool(actual.isfinite().all())
    torch.testing.assert_close(actual.double(), cls_reference(q, k), rtol=0, atol=1e-4)


def test_cls_attention_scale_of_queries_and_keys_cancels_against_scale() -> None:
    q, k = randn(2, 4, 30, 16), randn(2, 4, 30, 16, seed=1)
    assert_same(cls_attention(4 * q, k / 2, scale=0.125), cls_attention(q, k))  # 16**-0.5 = 0.25 = 2 * 0.125
    assert not torch.equal(cls_attention(q, k, scale=1.0), cls_attention(q, k))


def test_cls_attention_nan_key_spoils_its_own_sample_only() -> None:
    q, k = randn(2, 4, 30, 8), randn(2, 4, 30, 8, seed=1)
    expected = cls_attention(q, k)
    k[0, 0, 7, 0] = NAN
    actual = cls_attention(q, k)
    assert bool(actual[0].isnan().all())
    assert_same(actual[1], expected[1])


# cross_attention


def cross_reference(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Head by head in float64: softmax over the visual keys, then the mean."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads, group = q.shape[-2], q.shape[-2] // k.shape[-3]
    rows = [
        ((k[..., h // group, :, :].double() @ q[..., h, :, None].double())[..., 0] * scale).softmax(-1)
        for h in range(heads)
    ]
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("leading", [(), (3,), (2, 2)], ids=str)
def test_cross_attention_matches_a_loop_over_heads(
    dtype: torch.dtype, scale: float | None, key_heads: int, leading: tuple[int, ...]
) -> None:
    q, k = randn(*leading, 6, 16, dtype=dtype), randn(*leading, key_heads, 37, 16, seed=1, dtype=dtype)
    actual = cross_attention(q, k, scale)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == (*leading, 37)
    torch.testing.assert_close(actual.double(), cross_reference(q, k, scale), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(actual.double().sum(-1), torch.ones(leading, dtype=torch.float64), rtol=0, atol=1e-6)


def test_cross_attention_grouped_heads_match_torch_attention() -> None:
    q, k = randn(2, 8, 16, dtype=torch.float64), randn(2, 2, 25, 16, seed=1, dtype=torch.float64)
    values = torch.eye(25, dtype=torch.float64).expand(2, 2, 25, 25)
    expected = F.scaled_dot_product_attention(q.unsqueeze(2), k, values, enable_gqa=True)[:, :, 0].mean(1)
    torch.testing.assert_close(cross_attention(q, k), expected, rtol=0, atol=1e-14)


def test_cross_attention_is_the_visual_part_of_full_attention_with_equal_heads() -> None:
    q, k = randn(4, 8, dtype=torch.float64), 2 * randn(4, 30, 8, seed=1, dtype=torch.float64)
    visual = (torch.einsum("hd,hnd->hn", q, k) * 8**-0.5).softmax(-1)[:, :20]  # the last 10 keys are text
    torch.testing.assert_close(cross_attention(q, k[:, :20]), (visual / visual.sum(-1, True)).mean(0))
    # The docstring's warning: heads weighted by their share of visual attention rank the tokens differently.
    assert visual.mean(0).argsort().tolist() != cross_attention(q, k[:, :20]).argsort().tolist()


def test_cross_attention_grouped_heads_never_hold_more_than_a_copy_of_the_keys() -> None:
    q, k = randn(2, 8, 16), randn(2, 2, 100, 16, seed=1)
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        cross_attention(q, k)
    assert 2 * 8 * 100 <= largest.numel <= k.numel()


def test_attention_empty_token_and_batch_dimensions() -> None:
    assert cross_attention(torch.zeros(2, 4, 8), torch.zeros(2, 2, 0, 8)).shape == (2, 0)
    assert cross_attention(torch.zeros(0, 4, 8), torch.zeros(0, 2, 5, 8)).shape == (0, 5)
    assert cls_attention(torch.zeros(0, 4, 6, 8), torch.zeros(0, 4, 6, 8)).shape == (0, 5)


def test_attention_mixed_dtypes_compute_in_the_wider() -> None:
    q, k = randn(2, 4, 9, 8, dtype=torch.bfloat16), randn(2, 4, 9, 8, seed=1)
    assert_same(cls_attention(q, k), cls_attention(q.float(), k))
    assert_same(cls_attention(k, q), cls_attention(k, q.float()))
    assert_same(cross_attention(q[:, :, 0], k.double()), cross_attention(q[:, :, 0].double(), k.double()))
    assert_same(cross_attention(k[:, :, 0].double(), q), cross_attention(k[:, :, 0].double(), q.double()))


# text_relevance


def relevance_reference(image: Tensor, text: Tensor) -> Tensor:
    """All N x M cosines one by one in float64, then their mean."""
    pairs = F.cosine_similarity(image.double().unsqueeze(-2), text.double().unsqueeze(-3), dim=-1, eps=1e-300)
    return pairs.mean(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("texts", [(1, 24), (5, 24), (3, 5, 24)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_text_relevance_matches_all_pairs(dtype: torch.dtype, texts: tuple[int, ...], per_sample: bool) -> None:
    image, text = randn(3, 40, 24, dtype=dtype), randn(*texts, seed=1, dtype=dtype)
    expected = relevance_reference(image, text)
    actual = text_relevance(image, text)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=8 * ULP)
    quality = -expected
    low = quality.amin(-1, True) if per_sample else quality.min()
    high = quality.amax(-1, True) if per_sample else quality.max()
    actual = text_relevance(image, text, convention="cdpruner", per_sample=per_sample)
    spread = float((high - low).min())
    expected = (quality - low + 1e-6) / (high - low)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=16 * ULP / spread)


def test_text_relevance_mixed_dtypes_compute_in_the_wider() -> None:
    image, text = randn(10, 8, dtype=torch.float16), randn(3, 8, seed=1)
    assert_same(text_relevance(image, text), text_relevance(image.float(), text))
    assert_same(text_relevance(image, text.double()), text_relevance(image.double(), text.double()))


def test_text_relevance_half_precision_norms_do_not_overflow() -> None:
    image = torch.full((2, 4096), 60000.0, dtype=torch.float16)  # the squared length is 1.5e13, far above 65504
    image[1, ::2] *= -1
    actual = text_relevance(image, torch.ones(1, 4096, dtype=torch.float16))
    torch.testing.assert_close(actual, torch.tensor([1.0, 0.0]), rtol=0, atol=4096 * ULP)


def test_text_relevance_ignores_the_length_of_every_vector() -> None:
    image, text = randn(3, 40, 24), randn(5, 24, seed=1)
    expected = text_relevance(image, text)
    assert_same(text_relevance(4 * image, text), expected)
    powers = torch.tensor([1.0, 2.0, 0.25, 8.0, 0.5]).unsqueeze(-1)
    assert_same(text_relevance(image, powers * text), expected)  # each text counts the same, however long


def test_text_relevance_batch_extremes_couple_samples_unless_per_sample() -> None:
    image, text = randn(3, 40, 24), randn(2, 24, seed=1)
    image[0] += 2 * text[0]  # the first sample is nearer to the text
    coupled = text_relevance(image, text, "cdpruner")
    apart = text_relevance(image, text, "cdpruner", per_sample=True)
    alone = torch.stack([text_relevance(sample, text, "cdpruner") for sample in image])
    assert_same(apart, alone)
    assert bool(((coupled - alone).abs().amax(-1) > 0.05).all())
    assert_same(text_relevance(image[:1], text, "cdpruner"), apart[:1])
    assert_same(text_relevance(image, text, per_sample=True), text_relevance(image, text))


def test_text_relevance_cdpruner_prefers_tokens_unlike_the_text() -> None:
    image, text = randn(40, 24), randn(2, 24, seed=1)
    cosine, quality = text_relevance(image, text), text_relevance(image, text, "cdpruner")
    assert int(quality.argmax()) == int(cosine.argmin())
    assert int(quality.argmin()) == int(cosine.argmax())


def test_text_relevance_cosine_never_leaves_its_range() -> None:
    text = randn(1, 24)
    image = randn(2000, 1, seed=1) * text  # parallel and antiparallel: some quotients round to beyond 1
    cosine = text_relevance(image, text)
    assert float(cosine.max()) == 1.0
    assert float(cosine.min()) == -1.0


def test_text_relevance_zero_vectors_have_cosine_0() -> None:
    image = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert text_relevance(image, torch.tensor([[2.0, 0.0]])).tolist() == [0.0, 1.0]
    assert text_relevance(image, torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist() == [0.0, 0.5]


@pytest.mark.parametrize("per_sample", [False, True])
def test_text_relevance_nan_token_stays_nan_and_takes_no_part(per_sample: bool) -> None:
    image, text = randn(2, 20, 8), randn(3, 8, seed=1)
    image[1, 4] = image[1, 5]  # repeating a token changes neither min nor max
    expected = text_relevance(image, text, "cdpruner", per_sample=per_sample)
    image[1, 4, 3] = NAN
    actual = text_relevance(image, text, "cdpruner", per_sample=per_sample)
    expected[1, 4] = NAN
    assert_same(actual, expected)
    assert int(text_relevance(image, text).isnan().sum()) == 1


def test_text_relevance_constant_quality_is_ones() -> None:
    image = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [NAN, 1.0]]])
    text = torch.tensor([[1.0, 0.0]])
    assert text_relevance(image[0], text, "cdpruner").tolist() == [1.0, 1.0]
    assert text_relevance(image[0, :1], text, "cdpruner").tolist() == [1.0]
    apart = text_relevance(image, text, "cdpruner", per_sample=True)
    assert_same(apart, torch.tensor([[1.0, 1.0], [1.0, NAN]]))
    assert bool(text_relevance(image * NAN, text, "cdpruner").isnan().all())


def test_text_relevance_empty_input_gives_empty_output() -> None:
    for convention in ("clip", "cdpruner"):
        assert text_relevance(torch.empty(2, 0, 8), torch.ones(1, 8), convention).shape == (2, 0)
        assert text_relevance(torch.empty(0, 3, 8), torch.ones(1, 8), convention).shape == (0, 3)


# debias


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.25])
@pytest.mark.parametrize("shared", [True, False])
def test_debias_matches_the_formula(dtype: torch.dtype, eps: float, shared: bool) -> None:
    attention, prior = randn(3, 11, dtype=dtype).abs(), randn(3, 11, seed=1, dtype=dtype).abs() + 0.1
    prior = prior[0] if shared else prior
    actual = debias(attention, prior, eps)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b in range(3):
        for i in range(11):
            usual = float(prior[i] if shared else prior[b, i])
            assert float(actual[b, i]) == pytest.approx(float(attention[b, i]) / (usual + eps), rel=4 * ULP)


def test_debias_undoes_a_bias_of_position() -> None:
    seen = torch.tensor([[4.0, 1.0, 2.0], [1.0, 8.0, 0.5]])  # powers of 2: no rounding
    bias = torch.tensor([0.25, 0.5, 2.0])
    assert_same(debias(seen * bias, bias, eps=0), seen)


def test_debias_where_the_prior_is_zero() -> None:
    attention, prior = torch.tensor([0.5, 0.0, NAN]), torch.zeros(3)
    assert_same(debias(attention, prior, eps=0.25), torch.tensor([2.0, 0.0, NAN]))
    assert_same(debias(attention, prior, eps=0), torch.tensor([INF, NAN, NAN]))
    # The default is not lost in half precision, whose smallest number is about as large.
    torch.testing.assert_close(debias(attention[:1].half(), prior[:1].half()), torch.tensor([5e6]), rtol=1e-6, atol=0)


def test_debias_computes_in_the_wider_dtype() -> None:
    attention, prior = randn(2, 5).abs(), randn(5, seed=1, dtype=torch.float64).abs()
    assert_same(debias(attention, prior), debias(attention.double(), prior))
    assert_same(debias(prior, attention[0].half()), debias(prior, attention[0].half().double()))


# norms and key_norms


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [1, 1.5, 2.0, 3])
@pytest.mark.parametrize("shape", [(2, 5, 7), (5, 7), (2, 3, 2, 1)], ids=str)
def test_norms_match_a_loop_over_tokens(dtype: torch.dtype, p: float, shape: tuple[int, ...]) -> None:
    x = randn(*shape, dtype=dtype)
    actual = norms(x, p)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == shape[:-1]
    for row, norm in zip(x.reshape(-1, shape[-1]).double().tolist(), actual.flatten().tolist(), strict=True):
        assert norm == pytest.approx(sum(abs(v) ** p for v in row) ** (1 / p), rel=16 * ULP)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [1, 1.5, 2.0])
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (3, 5, 7), (1, 1, 1, 1)], ids=str)
def test_key_norms_match_a_loop_over_heads(dtype: torch.dtype, p: float, shape: tuple[int, ...]) -> None:
    k = randn(*shape, dtype=dtype)
    actual = key_norms(k, p)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == (*shape[:-3], shape[-2])
    samples = k.reshape(-1, *shape[-3:]).double().numpy()
    expected = np.zeros((len(samples), shape[-2]))
    for b, sample in enumerate(samples):
        for head in sample:
            for i, key in enumerate(head):
                expected[b, i] += sum(abs(value) ** p for value in key)
    np.testing.assert_allclose(actual.reshape(expected.shape).numpy(), expected ** (1 / p), rtol=16 * ULP)
    assert_same(key_norms(k, p, largest=False), -actual)


def test_key_norms_default_is_the_sum_of_the_heads_l1_norms() -> None:
    k = randn(2, 4, 9, 8)
    assert_same(key_norms(k), norms(k, 1).sum(-2))


def test_key_norms_of_grouped_heads_only_scale_when_they_are_repeated() -> None:
    k = randn(2, 2, 9, 8)
    torch.testing.assert_close(key_norms(k.repeat_interleave(4, 1)), 4 * key_norms(k), rtol=8 * ULP, atol=0)


def test_half_precision_norms_do_not_overflow() -> None:
    x = torch.full((2, 4, 3, 4096), 60000.0, dtype=torch.float16)  # the squared length is 1.5e13, far above 65504
    torch.testing.assert_close(norms(x), torch.full((2, 4, 3), 60000.0 * 64), rtol=4096 * ULP, atol=0)
    torch.testing.assert_close(key_norms(x), torch.full((2, 3), 4 * 4096 * 60000.0), rtol=4096 * ULP, atol=0)


def test_nan_spoils_the_norm_of_its_token_only() -> None:
    k = randn(2, 3, 5, 4)
    expected = key_norms(k)
    k[1, 2, 3, 0] = expected[1, 3] = NAN
    assert_same(key_norms(k), expected)
    assert int(norms(k).isnan().sum()) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 9), st.sampled_from([1.0, 2.0]))
def test_norms_scale_with_the_token_and_ignore_signs(seed: int, tokens: int, width: int, p: float) -> None:
    x = randn(tokens, width, seed=seed)
    assert_same(norms(-4 * x, p), 4 * norms(x, p))
    assert bool((norms(x, 1) >= norms(x, 2) * (1 - 16 * ULP)).all())
    assert_same(key_norms(x[None], p), norms(x, p))


# frame_difference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", [(), (2,), (2, 2)], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frame_difference_matches_a_loop_over_frames(dtype: torch.dtype, leading: tuple[int, ...], frames: int) -> None:
    video = randn(*leading, frames, 3, 8, dtype=dtype)
    actual = frame_difference(video, first=0.5)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == video.shape[:-1]
    results = actual.reshape(-1, frames, 3)
    for sample, result in zip(video.reshape(-1, frames, 3, 8).double().numpy(), results.tolist(), strict=True):
        assert result[0] == [0.5] * 3
        for t in range(1, frames):
            for i in range(3):
                a, b = sample[t, i], sample[t - 1, i]
                cosine = float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5)
                assert result[t][i] == pytest.approx(1 - cosine, abs=8 * ULP)


@pytest.mark.parametrize("case", EVS_CASES, ids=lambda case: case["id"])
def test_frame_difference_gives_the_recorded_scores_of_evs(case: dict[str, Any]) -> None:
    data = np.load(BUDGETS / case["file"])
    video = torch.from_numpy(data["features"]).reshape(case["params"]["frames"], -1, data["features"].shape[-1])
    expected = torch.from_numpy(data[f"{case['run']}_scores"])
    # The code was given the same float16 values, upcast.
    torch.testing.assert_close(frame_difference(video, first=255).flatten(), expected, rtol=0, atol=2e-6)


def test_frame_difference_first_frame_is_by_default_as_after_zeros() -> None:
    video = randn(4, 5, 8)
    assert_same(frame_difference(video)[0], torch.ones(5))
    after_zeros = torch.cat([torch.zeros(1, 5, 8), video])
    assert_same(frame_difference(after_zeros)[1:], frame_difference(video))


def test_frame_difference_ignores_the_length_of_tokens() -> None:
    video = randn(4, 5, 8)
    factors = torch.tensor([1.0, 4.0, 0.5, 16.0])[:, None, None]
    torch.testing.assert_close(frame_difference(factors * video), frame_difference(video), rtol=0, atol=4 * ULP)
    assert float(frame_difference(torch.cat([video, -video[-1:]]))[-1].min()) == pytest.approx(2.0)


def test_frame_difference_nan_stays_in_its_frame_and_the_next() -> None:
    video = randn(4, 5, 8)
    expected = frame_difference(video)
    video[1, 2, 0] = NAN
    expected[1:3, 2] = NAN
    assert_same(frame_difference(video), expected)


def test_frame_difference_widens_one_frame_at_a_time() -> None:
    video = randn(20, 30, 8, dtype=torch.float16)
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        frame_difference(video)
    assert largest.numel <= max(30 * 8, 20 * 30)


# event_relevance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 5, 8), (1, 3, 8), (2, 3, 5, 8)], ids=str)
def test_event_relevance_matches_a_loop_over_frames(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    features = randn(*shape, dtype=dtype)
    actual = event_relevance(features)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == shape[:-1]
    videos = features.reshape(-1, *shape[-3:]).double().numpy()
    for video, result in zip(videos, actual.reshape(-1, *shape[-3:-1]).tolist(), strict=True):
        for t, frame in enumerate(video):
            for j, token in enumerate(frame):
                agreement = [float(token @ other.mean(0)) for other in video]
                assert result[t][j] == pytest.approx(sum(agreement) / len(agreement), abs=64 * ULP)


def test_event_relevance_is_of_second_degree_and_signed() -> None:
    features = randn(3, 4, 8)
    assert_same(event_relevance(4 * features), 16 * event_relevance(features))
    features[:, 1::2] = -features[:, ::2]  # all means are 0
    torch.testing.assert_close(event_relevance(features), torch.zeros(3, 4), rtol=0, atol=1e-6)


def test_event_relevance_half_precision_means_do_not_overflow() -> None:
    features = torch.full((2, 40, 16), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(event_relevance(features), torch.full((2, 40), 16 * 60000.0**2), rtol=1e-5, atol=0)


def test_event_relevance_nan_spoils_its_own_video_only() -> None:
    features = randn(2, 3, 4, 8)
    expected = event_relevance(features)
    features[0, 1, 2, 3] = expected[0] = NAN
    assert_same(event_relevance(features), expected)


def test_scores_of_no_tokens_are_none() -> None:
    assert norms(torch.empty(2, 0, 8)).shape == key_norms(torch.empty(2, 3, 0, 8)).shape == (2, 0)
    for shape in [(0, 3, 8), (3, 0, 8), (0, 2, 3, 8), (2, 0, 3, 8)]:
        assert frame_difference(torch.empty(shape)).shape == event_relevance(torch.empty(shape)).shape == shape[:-1]
    assert debias(torch.empty(2, 0), torch.empty(0)).shape == (2, 0)


def test_new_scores_read_strided_input_and_leave_it_unchanged() -> None:
    wide = randn(2, 6, 4, 10)
    before, strided = wide.clone(), wide[:, ::2].transpose(1, 2)[..., 1::3]
    for function in (norms, key_norms, frame_difference, event_relevance):
        torch.testing.assert_close(function(strided), function(strided.contiguous()), rtol=1e-6, atol=1e-6)
    assert_same(wide, before)


# unify

SALIENCY = torch.tensor([[0.0, 1.0, 4.0, 2.0], [7.0, 5.0, 5.0, 6.0]])
RELEVANCE = torch.tensor([[3.0, 2.0, 1.0, 5.0], [-1.0, 0.0, 3.0, 3.0]])
S = torch.tensor([[0.0, 0.25, 1.0, 0.5], [1.0, 0.0, 0.0, 0.5]])
R = torch.tensor([[0.5, 0.25, 0.0, 1.0], [0.0, 0.25, 1.0, 1.0]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_unify_matches_the_formulas(dtype: torch.dtype, weight: float) -> None:
    expected = {
        "product": S * R,
        "sum": weight * S + (1 - weight) * R,
        "max": torch.where(S > R, S, R),
        "geometric": torch.from_numpy(S.numpy() ** weight * R.numpy() ** (1 - weight)),
    }
    for how in FUSIONS:
        actual = unify(SALIENCY.to(dtype), RELEVANCE.to(dtype), how, weight)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(actual.float(), expected[how], rtol=0, atol=2 * ULP)


@pytest.mark.parametrize("how", FUSIONS)
def test_unify_default_weight_treats_both_scores_alike(how: Any) -> None:
    assert_same(unify(SALIENCY, RELEVANCE, how), unify(RELEVANCE, SALIENCY, how))


def test_unify_default_is_the_product() -> None:
    assert_same(unify(SALIENCY, RELEVANCE), S * R)


@pytest.mark.parametrize("how", ["sum", "geometric"])
def test_unify_weight_1_is_saliency_and_weight_0_relevance(how: Any) -> None:
    assert_same(unify(SALIENCY, RELEVANCE, how, 1), S)
    assert_same(unify(SALIENCY, RELEVANCE, how, 0), R)


@pytest.mark.parametrize("how", FUSIONS)
def test_unify_samples_are_independent_and_scale_free(how: Any) -> None:
    weight = 0.5 if how == "geometric" else 0.3  # torch's power has no fixed rounding but for the square root
    saliency, relevance = randn(3, 50), randn(3, 50, seed=1)
    expected = unify(saliency, relevance, how, weight)
    alone = torch.stack([unify(s, r, how, weight) for s, r in zip(saliency, relevance, strict=True)])
    assert_same(alone, expected)
    factors = torch.tensor([[0.5], [4.0], [64.0]])
    assert_same(unify(saliency * factors, relevance / factors, how, weight), expected)


def test_unify_constant_score_is_neutral_in_the_product() -> None:
    assert_same(unify(torch.full((2, 4), 0.3), RELEVANCE), R)
    assert_same(unify(SALIENCY, torch.zeros(2, 4), "geometric", 1.0), S)


@pytest.mark.parametrize("how", FUSIONS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_unify_token_ruled_out_by_either_score_stays_so(how: Any, weight: float) -> None:
    saliency = torch.tensor([1.0, NAN, -INF, 3.0, 3.0, -INF, NAN])
    relevance = torch.tensor([2.0, 2.0, 2.0, -INF, NAN, NAN, -INF])
    actual = unify(saliency, relevance, how, weight)
    assert_same(actual[1:], torch.tensor([NAN, -INF, -INF, NAN, NAN, NAN]))
    assert math.isfinite(float(actual[0]))
    swapped = unify(relevance, saliency, how, weight)
    assert_same(swapped[1:], torch.tensor([NAN, -INF, -INF, NAN, NAN, NAN]))


@pytest.mark.parametrize("how", FUSIONS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_unify_masked_tokens_get_0_and_take_no_part(how: Any, weight: float) -> None:
    extra_s, extra_r = torch.tensor([[99.0, NAN]] * 2), torch.tensor([[-99.0, -INF]] * 2)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    actual = unify(torch.cat([SALIENCY, extra_s], -1), torch.cat([RELEVANCE, extra_r], -1), how, weight, mask=mask)
    assert_same(actual[:, :4], unify(SALIENCY, RELEVANCE, how, weight))
    assert actual[:, 4:].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_unify_mixed_dtypes_compute_in_the_wider() -> None:
    for how in FUSIONS:
        mixed = unify(SALIENCY.half(), RELEVANCE.double(), how)
        assert mixed.dtype == torch.float64
        assert_same(mixed, unify(SALIENCY.double(), RELEVANCE.double(), how))


# All of them

CALLS: dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]] = {
    "minmax": (minmax, lambda n: (randn(2, n), randn(2, n, seed=1) > 0)),
    "minmax-eps": (lambda x: minmax(x, eps=1e-6), lambda n: (randn(2, n),)),
    "cls": (cls_attention, lambda n: (randn(2, 3, n, 8), randn(2, 3, n, 8, seed=1))),
    "cross": (cross_attention, lambda n: (randn(2, 4, 8), randn(2, 2, n, 8, seed=1))),
    "clip": (text_relevance, lambda n: (randn(2, n, 8), randn(3, 8, seed=1))),
    "cdpruner": (
        lambda a, b: text_relevance(a, b, "cdpruner"),
        lambda n: (randn(2, n, 8), randn(2, 3, 8, seed=1)),
    ),
    "cdpruner-per-sample": (
        lambda a, b: text_relevance(a, b, "cdpruner", per_sample=True),
        lambda n: (randn(2, n, 8), randn(3, 8, seed=1)),
    ),
    "unify": (unify, lambda n: (randn(2, n), randn(2, n, seed=1))),
    "unify-geometric": (
        lambda a, b, m: unify(a, b, "geometric", mask=m),
        lambda n: (randn(2, n), randn(2, n, seed=1), randn(2, n, seed=2) > 0),
    ),
    "debias": (debias, lambda n: (randn(2, n).abs(), randn(n, seed=1).abs())),
    "norms": (norms, lambda n: (randn(2, n, 8),)),
    "norms-l1": (lambda x: norms(x, 1), lambda n: (randn(2, n, 8, dtype=torch.bfloat16),)),
    "key-norms": (key_norms, lambda n: (randn(2, 3, n, 8),)),
    "key-norms-l2": (lambda k: key_norms(k, 2, largest=False), lambda n: (randn(2, 3, n, 8),)),
    "frame-difference": (frame_difference, lambda n: (randn(2, 3, n, 8),)),
    "event-relevance": (event_relevance, lambda n: (randn(2, 3, n, 8),)),
}


@pytest.fixture
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", CALLS)
def test_compiled_full_graph_gives_the_same_bits(name: str) -> None:
    function, make = CALLS[name]
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert_same(compiled(*make(33)), function(*make(33)))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", CALLS)
def test_compiled_once_serves_every_token_count(name: str) -> None:
    function, make = CALLS[name]
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for n in (33, 40, 57):
        assert_same(compiled(*make(n)), function(*make(n)))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", CALLS)
def test_no_value_is_read_back_to_the_host(name: str) -> None:
    function, make = CALLS[name]
    inputs = make(33)
    result = function(*(x.to("meta") for x in inputs))  # a meta tensor has no values: reading one raises
    assert result.device.type == "meta"
    assert result.shape == function(*inputs).shape


@pytest.mark.parametrize("name", [name for name in CALLS if name != "cdpruner"])
def test_a_sample_gets_the_same_bits_in_any_batch(name: str) -> None:
    function, make = CALLS[name]
    inputs = make(33)
    whole = function(*inputs)
    alone = function(*(x[:1] if x.shape[0] == 2 else x for x in inputs))
    assert_same(alone, whole[:1])


@pytest.mark.parametrize("name", CALLS)
def test_autocast_does_not_lower_the_precision(name: str) -> None:
    function, make = CALLS[name]
    inputs = make(33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(*inputs)
    assert_same(inside, function(*inputs))


def test_docstring_examples_run() -> None:
    results = doctest.testmod(importance_module)
    assert results.attempted >= 20
    assert results.failed == 0


X = torch.zeros(2, 5)
Q = torch.zeros(2, 4, 9, 8)
IMAGE, TEXT = torch.zeros(2, 7, 8), torch.zeros(3, 8)
FLOATS = "float16, bfloat16, float32 or float64"

untyped: Any = importance_module  # the calls below are wrong on purpose

ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # minmax
    (lambda: untyped.minmax([1.0]), TypeError, "scores must be a torch.Tensor, got list"),
    (lambda: untyped.minmax(X.long()), TypeError, f"scores must be {FLOATS}, got int64"),
    (lambda: untyped.minmax(torch.zeros(())), ValueError, "scores must be (..., N), got ()"),
    (lambda: untyped.minmax(X, [True]), TypeError, "mask must be a torch.Tensor or None, got list"),
    (lambda: untyped.minmax(X, X), TypeError, "mask must be bool, got float32"),
    (
        lambda: untyped.minmax(X, X[0] > 0),
        ValueError,
        "mask must be (B, N) = (2, 5) to match scores, got (5,)",
    ),
    (lambda: untyped.minmax(X[0], X > 0), ValueError, "mask must be (N,) = (5,) to match scores, got (2, 5)"),
    (lambda: untyped.minmax(Q, X > 0), ValueError, "mask must be (2, 4, 9, 8) to match scores, got (2, 5)"),
    (
        lambda: untyped.minmax(X, (X > 0).to("meta")),
        ValueError,
        "mask must be on cpu to match scores, got meta",
    ),
    (lambda: untyped.minmax(X, eps=-1.0), ValueError, "eps must be finite and >= 0, got -1.0"),
    (lambda: untyped.minmax(X, eps=NAN), ValueError, "eps must be finite and >= 0, got nan"),
    (lambda: untyped.minmax(X, eps=INF), ValueError, "eps must be finite and >= 0, got inf"),
    (lambda: untyped.minmax(X, eps="0"), TypeError, "eps must be a number, got str"),
    (lambda: untyped.minmax(X, eps=True), TypeError, "eps must be a number, got bool"),
    # cls_attention
    (lambda: untyped.cls_attention(None, Q), TypeError, "q must be a torch.Tensor, got NoneType"),
    (lambda: untyped.cls_attention(Q, Q.int()), TypeError, f"k must be {FLOATS}, got int32"),
    (lambda: untyped.cls_attention(X, X), ValueError, "q must be (B, H, S, d) or (H, S, d), got (2, 5)"),
    (
        lambda: untyped.cls_attention(Q, Q[:, :2]),
        ValueError,
        "k must be (2, 4, 9, 8) to match q, got (2, 2, 9, 8)",
    ),
    (
        lambda: untyped.cls_attention(Q[:, :, :0], Q[:, :, :0]),
        ValueError,
        "q must have at least one head, token and channel, got (2, 4, 0, 8)",
    ),
    (lambda: untyped.cls_attention(Q, Q.to("meta")), ValueError, "k must be on cpu to match q, got meta"),
    (lambda: untyped.cls_attention(Q, Q, INF), ValueError, "scale must be finite, got inf"),
    (lambda: untyped.cls_attention(Q, Q, "x"), TypeError, "scale must be a number, got str"),
    # cross_attention
    (lambda: untyped.cross_attention(1.0, Q), TypeError, "q_last must be a torch.Tensor, got float"),
    (lambda: untyped.cross_attention(Q[:, :, 0], Q > 0), TypeError, f"k_visual must be {FLOATS}, got bool"),
    (lambda: untyped.cross_attention(X[0], Q), ValueError, "q_last must be (B, H, d) or (H, d), got (5,)"),
    (
        lambda: untyped.cross_attention(Q[:, :, 0], Q[0]),
        ValueError,
        "k_visual must be (2, Hkv, N, 8) to match q_last (2, 4, 8), got (4, 9, 8)",
    ),
    (
        lambda: untyped.cross_attention(Q[:, :, 0], Q[:1]),
        ValueError,
        "k_visual must be (2, Hkv, N, 8) to match q_last (2, 4, 8), got (1, 4, 9, 8)",
    ),
    (
        lambda: untyped.cross_attention(Q[0, :, 0], Q[0, ..., :6]),
        ValueError,
        "k_visual must be (Hkv, N, 8) to match q_last (4, 8), got (4, 9, 6)",
    ),
    (
        lambda: untyped.cross_attention(Q[0, :, 0], Q[0, 0]),
        ValueError,
        "k_visual must be (Hkv, N, 8) to match q_last (4, 8), got (9, 8)",
    ),
    (
        lambda: untyped.cross_attention(Q[:, :, 0], Q[:, :3]),
        ValueError,
        "q_last must have a multiple of the 3 heads of k_visual, got 4",
    ),
    (
        lambda: untyped.cross_attention(Q[:, :, 0], Q[:, :0]),
        ValueError,
        "q_last and k_visual must have at least one head and one channel, got (2, 4, 8) and (2, 0, 9, 8)",
    ),
    (
        lambda: untyped.cross_attention(Q[:, :, 0], Q.to("meta")),
        ValueError,
        "k_visual must be on cpu to match q_last, got meta",
    ),
    (lambda: untyped.cross_attention(Q[:, :, 0], Q, NAN), ValueError, "scale must be finite, got nan"),
    # text_relevance
    (lambda: untyped.text_relevance("a", TEXT), TypeError, "image_embeds must be a torch.Tensor, got str"),
    (
        lambda: untyped.text_relevance(IMAGE, TEXT.to(torch.int8)),
        TypeError,
        f"text_embeds must be {FLOATS}, got int8",
    ),
    (
        lambda: untyped.text_relevance(X[0], TEXT),
        ValueError,
        "image_embeds must be (B, N, C) or (N, C), got (5,)",
    ),
    (
        lambda: untyped.text_relevance(IMAGE, TEXT[:, :4]),
        ValueError,
        "text_embeds must be (M, 8) or (2, M, 8) to match image_embeds (2, 7, 8), got (3, 4)",
    ),
    (
        lambda: untyped.text_relevance(IMAGE, TEXT.expand(5, 3, 8)),
        ValueError,
        "text_embeds must be (M, 8) or (2, M, 8) to match image_embeds (2, 7, 8), got (5, 3, 8)",
    ),
    (
        lambda: untyped.text_relevance(IMAGE[0], TEXT[0]),
        ValueError,
        "text_embeds must be (M, 8) to match image_embeds (7, 8), got (8,)",
    ),
    (
        lambda: untyped.text_relevance(IMAGE, TEXT[:0]),
        ValueError,
        "text_embeds must hold at least one embedding, got (0, 8)",
    ),
    (
        lambda: untyped.text_relevance(IMAGE, TEXT.to("meta")),
        ValueError,
        "text_embeds must be on cpu to match image_embeds, got meta",
    ),
    (
        lambda: untyped.text_relevance(IMAGE, TEXT, "siglip"),
        ValueError,
        "convention must be one of 'clip', 'cdpruner', got 'siglip'",
    ),
    # debias
    (lambda: untyped.debias([0.5], X), TypeError, "attention must be a torch.Tensor, got list"),
    (lambda: untyped.debias(X, X.int()), TypeError, f"prior must be {FLOATS}, got int32"),
    (lambda: untyped.debias(torch.tensor(0.0), X), ValueError, "attention must be (..., N), got ()"),
    (
        lambda: untyped.debias(X, X[:1]),
        ValueError,
        "prior must be (B, N) = (2, 5) or (5,) to match attention, got (1, 5)",
    ),
    (lambda: untyped.debias(X[0], X), ValueError, "prior must be (N,) = (5,) to match attention, got (2, 5)"),
    (lambda: untyped.debias(X, X.to("meta")), ValueError, "prior must be on cpu to match attention, got meta"),
    (lambda: untyped.debias(X, X, -1e-7), ValueError, "eps must be finite and >= 0, got -1e-07"),
    (lambda: untyped.debias(X, X, None), TypeError, "eps must be a number, got NoneType"),
    # norms and key_norms
    (lambda: untyped.norms(X.tolist()), TypeError, "x must be a torch.Tensor, got list"),
    (lambda: untyped.norms(X > 0), TypeError, f"x must be {FLOATS}, got bool"),
    (lambda: untyped.norms(X[0]), ValueError, "x must be (B, N, D) or (N, D) with D >= 1, got (5,)"),
    (lambda: untyped.norms(X[:, :0]), ValueError, "x must be (B, N, D) or (N, D) with D >= 1, got (2, 0)"),
    (lambda: untyped.norms(X, 0.5), ValueError, "p must be finite and >= 1, got 0.5"),
    (lambda: untyped.norms(X, INF), ValueError, "p must be finite and >= 1, got inf"),
    (lambda: untyped.norms(X, "fro"), TypeError, "p must be a number, got str"),
    (lambda: untyped.key_norms(None), TypeError, "k must be a torch.Tensor, got NoneType"),
    (
        lambda: untyped.key_norms(X),
        ValueError,
        "k must be (B, H, N, d) or (H, N, d) with a head and a channel, got (2, 5)",
    ),
    (
        lambda: untyped.key_norms(Q[:, :0]),
        ValueError,
        "k must be (B, H, N, d) or (H, N, d) with a head and a channel, got (2, 0, 9, 8)",
    ),
    (lambda: untyped.key_norms(Q, 0), ValueError, "p must be finite and >= 1, got 0"),
    (lambda: untyped.key_norms(Q, largest=0), TypeError, "largest must be True or False, got 0"),
    # frame_difference and event_relevance
    (lambda: untyped.frame_difference(1), TypeError, "video must be a torch.Tensor, got int"),
    (lambda: untyped.frame_difference(Q.long()), TypeError, f"video must be {FLOATS}, got int64"),
    (
        lambda: untyped.frame_difference(X),
        ValueError,
        "video must be (F, P, D) or (B, F, P, D) with D >= 1, got (2, 5)",
    ),
    (lambda: untyped.frame_difference(Q, INF), ValueError, "first must be in [-3.40282e+38, 3.40282e+38], got inf"),
    (lambda: untyped.frame_difference(Q, None), TypeError, "first must be a number, got NoneType"),
    (lambda: untyped.event_relevance("a"), TypeError, "features must be a torch.Tensor, got str"),
    (
        lambda: untyped.event_relevance(Q[..., :0]),
        ValueError,
        "features must be (F, P, D) or (B, F, P, D) with D >= 1, got (2, 4, 9, 0)",
    ),
    # unify
    (lambda: untyped.unify(None, X), TypeError, "saliency must be a torch.Tensor, got NoneType"),
    (lambda: untyped.unify(X, X.bool()), TypeError, f"relevance must be {FLOATS}, got bool"),
    (lambda: untyped.unify(torch.tensor(0.0), X), ValueError, "saliency must be (..., N), got ()"),
    (
        lambda: untyped.unify(torch.zeros(2, 577), torch.zeros(2, 576)),
        ValueError,
        "relevance must be (B, N) = (2, 577) to match saliency, got (2, 576)",
    ),
    (
        lambda: untyped.unify(X, X.to("meta")),
        ValueError,
        "relevance must be on cpu to match saliency, got meta",
    ),
    (
        lambda: untyped.unify(X, X, mask=X[:1] > 0),
        ValueError,
        "mask must be (B, N) = (2, 5) to match saliency, got (1, 5)",
    ),
    (lambda: untyped.unify(X, X, mask=X), TypeError, "mask must be bool, got float32"),
    (
        lambda: untyped.unify(X, X, "mean"),
        ValueError,
        "how must be one of 'product', 'sum', 'max', 'geometric', got 'mean'",
    ),
    (lambda: untyped.unify(X, X, "sum", 1.5), ValueError, "weight must be in [0, 1], got 1.5"),
    (lambda: untyped.unify(X, X, "product", NAN), ValueError, "weight must be in [0, 1], got nan"),
    (lambda: untyped.unify(X, X, "sum", None), TypeError, "weight must be a number, got NoneType"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message for _, _, message in ERRORS])
def test_bad_input_is_refused_in_these_words(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == message

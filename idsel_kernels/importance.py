"""Importance scores to feed into a selection: from attention, from text, from the tokens alone; rescaling and fusion.

`norms`, `key_norms`, `frame_difference` and `event_relevance` need no attention, so they go with fused attention, which
returns none.

Plain torch on any device. Nothing here reads a value back to the host, so the functions never wait for the
device and trace under `torch.compile`. Half-precision inputs are computed and returned in float32; float64
stays float64. Dot products are taken as a product and a sum, not a matmul: that stays IEEE float32 where
autocast or TF32 would round the operands of a matmul.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cls_attention",
    "cross_attention",
    "debias",
    "event_relevance",
    "frame_difference",
    "key_norms",
    "minmax",
    "norms",
    "text_relevance",
    "unify",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONVENTIONS = ("clip", "cdpruner")
_FUSIONS = ("product", "sum", "max", "geometric")
_LARGEST = torch.finfo(torch.float32).max
_CDPRUNER_EPS = 1e-6  # a constant of the official code, not a parameter there


def minmax(scores: Tensor, mask: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """Rescale each row of scores to [0, 1]: `(x - min) / (max - min + eps)` over the last dimension.

    Only finite, unmasked scores take part in the minimum and maximum. NaN and infinite scores stay what they
    are, so one broken score does not spoil its row and the selection still sees a token that is not to be
    taken. Rule tokens out with `mask` or -inf, not with a large negative number: that one would take part and
    squeeze all the others towards 1.

    Args:
        scores: (..., N), float16, bfloat16, float32 or float64, any sign; max - min must not overflow.
        mask: bool, same shape as `scores`; False leaves a token out, its result is 0. None: all take part.
        eps: >= 0, in units of `scores`. 0.0 gives the importance of ID-Selection (arXiv 2604.05601) as public
            re-implementations compute it; 1e-6 is what the official code of IDPruner (arXiv 2602.13315) adds.

    Returns:
        (..., N), float64 for float64 scores, else float32. A row whose scores are all equal (or that has a
        single one) becomes ones with `eps=0`, zeros with a positive `eps`.

    Raises:
        TypeError: `scores` is not a floating tensor, `mask` not a bool tensor, `eps` not a number.
        ValueError: shapes or devices differ, `scores` has no dimension, or `eps` is negative or not finite.

    Example:
        >>> minmax(torch.tensor([[2.0, 4.0, 3.0], [5.0, 5.0, 5.0]]))
        tensor([[0.0000, 1.0000, 0.5000],
                [1.0000, 1.0000, 1.0000]])
    """
    _check_tensor("scores", scores)
    if scores.ndim == 0:
        raise ValueError("scores must be (..., N), got ()")
    if mask is not None:
        _check_mask(mask, "scores", scores)
    _check_number("eps", eps, low=0.0)
    if scores.numel() == 0:
        return _widen(scores).clone()
    x = _widen(scores)
    finite = torch.isfinite(x)
    low, high = _extremes(x, finite if mask is None else finite & mask)
    rescaled = (x - low) / (high - low + eps)
    if eps == 0.0:
        rescaled = torch.where(high == low, 1.0, rescaled)
    result = torch.where(finite, rescaled, x)
    return result if mask is None else result.masked_fill(~mask, 0.0)


def cls_attention(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Attention the CLS token of a vision encoder pays to every other token, averaged over the heads.

    Only the CLS row is computed: `softmax(scale * <q_0, k_j>)` over all S keys, the CLS key among them, then
    the mean over heads, then the CLS column is dropped. The S x S matrix never exists, so encoders with fused
    attention, which returns no weights, can be used. The scratch memory is that of one float32 copy of `k`.

    This is the score of FasterVLM (arXiv 2412.01818). VisionZip (arXiv 2412.04467) sums over the heads, which
    is this times H. LLaVA-PruMerge (arXiv 2403.15388) does not split the heads: pass q and k with H = 1 and d
    the full width. A NaN in the CLS query or in any key makes the scores of its sample NaN.

    Args:
        q: (B, H, S, d) queries, token 0 being CLS; also (H, S, d), or any leading dimensions.
        k: keys, same shape as `q`; dtypes may differ (float16, bfloat16, float32, float64).
        scale: factor of the dot products; None means d**-0.5. Pass 1.0 for queries that are scaled already.

    Returns:
        (B, S-1), float32 (float64 if an input is), in [0, 1]; a row sums to 1 minus what CLS pays to itself.

    Raises:
        TypeError: `q` or `k` is not a floating tensor, `scale` not a number.
        ValueError: shapes or devices differ, a dimension that must not be empty is, or `scale` is not finite.

    Example:
        >>> q = torch.zeros(1, 2, 5, 8)  # all logits equal: a fifth of the attention for each of the 5 keys
        >>> cls_attention(q, torch.randn(1, 2, 5, 8))
        tensor([[0.2000, 0.2000, 0.2000, 0.2000]])
    """
    _check_tensor("q", q)
    _check_tensor("k", k)
    if q.ndim < 3:
        raise ValueError(f"q must be (B, H, S, d) or (H, S, d), got {_shape(q)}")
    if q.shape != k.shape:
        raise ValueError(f"k must be {_shape(q)} to match q, got {_shape(k)}")
    if min(q.shape[-3:]) == 0:
        raise ValueError(f"q must have at least one head, token and channel, got {_shape(q)}")
    _check_device("k", k, "q", q)
    return _attention_row(q[..., :1, :], k, scale)[..., 1:]


def cross_attention(q_last: Tensor, k_visual: Tensor, scale: float | None = None) -> Tensor:
    """Attention the last text token pays to each visual token, averaged over the heads.

    Computed: `p_h = softmax over i of scale * <q_last_h, k_visual_h,i>` for each head h, then the mean of the
    p_h. This stands for the cross-modal importance of ID-Selection (arXiv 2604.05601, Eq. 3), in the form
    of a public re-implementation; the paper has no official code to compare with.

    The softmax is over the visual keys alone, so every head counts the same. In a full attention row, the
    visual part of head h is p_h times the share of that head's attention that falls on the image. Within one
    head the order is the same; but a mean of such parts weights the heads by their shares and can rank the
    tokens differently.

    Args:
        q_last: (B, H, d) query of the last text token, or (H, d), or any leading dimensions; after the rotary
            embedding, as the attention itself would use it.
        k_visual: (B, Hkv, N, d) keys of the visual tokens, likewise after it. H must be a multiple of Hkv
            (grouped-query attention); head h uses key head h // (H / Hkv). Dtypes may differ.
        scale: factor of the dot products; None means d**-0.5.

    Returns:
        (B, N), float32 (float64 if an input is), in [0, 1]; a row sums to 1. A NaN spoils its sample's row.

    Raises:
        TypeError: `q_last` or `k_visual` is not a floating tensor, `scale` not a number.
        ValueError: shapes or devices do not fit, there is no head or channel, or `scale` is not finite.

    Example:
        >>> keys = torch.tensor([[[[3.0], [1.0], [1.0]]]])  # one key head, 3 visual tokens, d = 1
        >>> cross_attention(torch.zeros(1, 2, 1), keys)
        tensor([[0.3333, 0.3333, 0.3333]])
        >>> cross_attention(torch.full((1, 2, 1), 9.0), keys)
        tensor([[1.0000e+00, 1.5230e-08, 1.5230e-08]])
    """
    _check_tensor("q_last", q_last)
    _check_tensor("k_visual", k_visual)
    _check_cross_shapes(q_last, k_visual)
    _check_device("k_visual", k_visual, "q_last", q_last)
    heads, key_heads = q_last.shape[-2], k_visual.shape[-3]
    grouped = q_last.reshape(*q_last.shape[:-2], key_heads, heads // key_heads, q_last.shape[-1])
    return _attention_row(grouped, k_visual, scale)


def text_relevance(
    image_embeds: Tensor,
    text_embeds: Tensor,
    convention: Literal["clip", "cdpruner"] = "clip",
    *,
    per_sample: bool = False,
) -> Tensor:
    """Mean cosine similarity of each image token with the text embeddings, raw or as CDPruner uses it.

    "clip" returns `m_i = mean over t of cos(image_i, text_t)`. "cdpruner" returns what the official code of
    CDPruner (arXiv 2506.10967) feeds into its DPP: `(q_i - min + 1e-6) / (max - min)` with `q_i = -m_i` and
    min and max those of q. Note the sign: a token comes out high when its cosine is low.

    The official code takes min and max over the whole batch. The relevance of a sample, and with it the
    selection, then depends on the samples it is batched with; `per_sample=True` avoids that. For a batch of
    one both agree.

    Args:
        image_embeds: (B, N, C) or (N, C) or any leading dimensions; float16, bfloat16, float32 or float64.
            They must live in the space of the text embeddings (after CLIP's visual projection, for instance).
        text_embeds: (M, C), shared by all samples, or (B, M, C), the leading dimensions as in `image_embeds`.
        convention: "clip" or "cdpruner".
        per_sample: for "cdpruner", take min and max over each sample's N tokens. No effect on "clip".

    Returns:
        (B, N), float32 (float64 if an input is). "clip": in [-1, 1]; a zero vector has cosine 0. "cdpruner":
        in [u, 1 + u] with `u = 1e-6 / (max - min)`; ones where all are equal (the official code divides by 0
        there). A NaN token stays NaN and takes no part in min and max.

    Raises:
        TypeError: an embedding is not a floating tensor.
        ValueError: shapes or devices do not fit, there is no text embedding, or `convention` is unknown.

    Example:
        >>> image = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> text_relevance(image, torch.tensor([[1.0, 0.0]]))
        tensor([1.0000, 0.6000, 0.0000])
        >>> text_relevance(image, torch.tensor([[1.0, 0.0]]), convention="cdpruner")
        tensor([1.0000e-06, 4.0000e-01, 1.0000e+00])
    """
    _check_tensor("image_embeds", image_embeds)
    _check_tensor("text_embeds", text_embeds)
    _check_relevance_shapes(image_embeds, text_embeds)
    _check_device("text_embeds", text_embeds, "image_embeds", image_embeds)
    _check_choice("convention", convention, _CONVENTIONS)
    cosine = _mean_cosine(image_embeds, text_embeds)
    if convention == "clip" or cosine.numel() == 0:
        return cosine
    quality = -cosine
    low, high = _extremes(quality if per_sample else quality.flatten(), None)
    rescaled = (quality - low + _CDPRUNER_EPS) / (high - low)
    return torch.where((high == low) & quality.isfinite(), 1.0, rescaled)


def debias(attention: Tensor, prior: Tensor, eps: float = 1e-7) -> Tensor:
    """Attention relative to what a position gets whatever it shows: `attention / (prior + eps)`.

    The debiased importance of D2Pruner (AAAI 2026, arXiv 2512.19443). Formula, prior and `eps` are as two public
    re-implementations have them; with the official code (github.com/EvelynZhang-epiclab/D2Pruner) this was not
    compared. The prior there is the mean, over 1000 images of COCO with a generic prompt, of the attention that the
    last text token pays to each visual token. The result is not normalised; `minmax` rescales it.

    A prior belongs to a model, a layer and a grid: `torch.stack(rows).mean(0)` of rows made like `attention`, by
    `cross_attention` for instance, for pictures with as many tokens.

    Args:
        attention: (B, N) or (N,) or any leading dimensions, >= 0, float16, bfloat16, float32 or float64.
        prior: (N,), shared by all samples, or the shape of `attention`; >= 0. Dtypes may differ.
        eps: >= 0, in units of the attention. It bounds the result where the prior is 0; with `eps=0` such a token
            gets infinity, or NaN if its attention is 0 too.

    Returns:
        The shape of `attention`, float32 (float64 if an input is); 1 where the attention is as usual. NaN stays NaN.

    Raises:
        TypeError: `attention` or `prior` is not a floating tensor, `eps` not a number.
        ValueError: shapes or devices do not fit, or `eps` is negative or not finite.

    Example:
        >>> prior = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.4, 0.5]]).mean(0)  # the last position always gets most
        >>> debias(torch.tensor([0.2, 0.3, 0.5]), prior)
        tensor([2.0000, 1.0000, 0.8333])
    """
    _check_tensor("attention", attention)
    _check_tensor("prior", prior)
    if attention.ndim == 0:
        raise ValueError("attention must be (..., N), got ()")
    if prior.shape not in (attention.shape, attention.shape[-1:]):
        shared = f" or ({attention.shape[-1]},)" if attention.ndim > 1 else ""
        raise ValueError(f"prior must be {_tokens(attention)}{shared} to match attention, got {_shape(prior)}")
    _check_device("prior", prior, "attention", attention)
    _check_number("eps", eps, low=0.0)
    dtype = _work_dtype(attention, prior)
    return attention.to(dtype) / (prior.to(dtype) + eps)


def norms(x: Tensor, p: float = 2.0) -> Tensor:
    """Norm of each token's features, keys or values over the last axis: `(sum over channels of |x|**p)**(1 / p)`.

    For keys or values of several heads see `key_norms`. That long vectors are important ones is a common assumption
    and our default p = 2 a common choice; neither is the rule of a paper. In vision transformers without registers the
    longest tokens are artefacts in the background (Darcet et al., ICLR 2024, arXiv 2309.16588): look before you use it.

    Args:
        x: (B, N, D), (N, D), ragged (T, D) or any leading dimensions, float16, bfloat16, float32 or float64.
        p: >= 1 and finite. Powers of a large p leave the range of the dtype.

    Returns:
        (B, N), the shape of `x` without its last axis, float32 (float64 for float64), >= 0; accumulated in that
        dtype, so half precision does not overflow. A token with a NaN gets NaN.

    Raises:
        TypeError: `x` is not a floating tensor or `p` not a number.
        ValueError: `x` has fewer than 2 dimensions or no channel, or `p` is below 1 or not finite.

    Example:
        >>> x = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
        >>> norms(x), norms(x, p=1)
        (tensor([5., 1.]), tensor([7., 1.]))
    """
    _check_tensor("x", x)
    if x.ndim < 2 or x.shape[-1] == 0:
        raise ValueError(f"x must be (B, N, D) or (N, D) with D >= 1, got {_shape(x)}")
    _check_number("p", p, low=1.0)
    lengths: Tensor = torch.linalg.vector_norm(x, p, dim=-1, dtype=_work_dtype(x))
    return lengths


def key_norms(k: Tensor, p: float = 1.0, *, largest: bool = True) -> Tensor:
    """Norm of each token's keys, or values, over all heads and channels together.

    The default is the importance by which DART (EMNLP 2025, arXiv 2502.11494) takes its pivots: the L1 norm of the keys
    of all heads. In a decoder low L2 norms of keys were found to go with high attention (Devoto et al., EMNLP 2024,
    arXiv 2406.11430, where each head is ranked on its own): `p=2, largest=False` scores that way. Of values the L1 norm
    times the attention a token gets is the score of VATP (Guo et al., EMNLP 2024, arXiv 2406.12335).

    Args:
        k: keys or values, (B, H, N, d), (H, N, d) or any leading dimensions; float16, bfloat16, float32 or float64. In
            grouped-query attention H counts the key heads: repeating each for its group would scale all norms alike.
        p: >= 1 and finite.
        largest: False returns the norms negated, so that higher is still more important. For rules that ask for
            importance >= 0 rescale them, `minmax(key_norms(k, 2, largest=False))`.

    Returns:
        (B, N), float32 (float64 for float64), accumulated in that dtype. A token with a NaN gets NaN.

    Raises:
        TypeError: `k` is not a floating tensor, `p` not a number or `largest` not a bool.
        ValueError: `k` has fewer than 3 dimensions, no head or no channel, or `p` is below 1 or not finite.

    Example:
        >>> k = torch.tensor([[[3.0, -4.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])  # 2 heads, 2 tokens, d = 2
        >>> key_norms(k), key_norms(k, 2, largest=False)
        (tensor([8., 1.]), tensor([-5.0990, -1.0000]))
    """
    _check_tensor("k", k)
    if k.ndim < 3 or 0 in (k.shape[-3], k.shape[-1]):
        raise ValueError(f"k must be (B, H, N, d) or (H, N, d) with a head and a channel, got {_shape(k)}")
    if not isinstance(largest, bool):
        raise TypeError(f"largest must be True or False, got {largest!r}")
    of_heads = norms(k, p)  # the norm of the heads' norms is that of all their channels
    lengths: Tensor = torch.linalg.vector_norm(of_heads, p, dim=-2)
    return lengths if largest else -lengths


def frame_difference(video: Tensor, first: float = 1.0) -> Tensor:
    """How much each token of a video changed: 1 minus its cosine with the token at its place in the frame before.

    This is the score of EVS (arXiv 2510.14624) in vLLM. With `first=255` the first frame comes before all others, as
    there; the default 1 is what it would get after a frame of zeros, a prior for rules that weigh importance against
    similarity. Between identical frames the result is 0 up to rounding, as long as squares do not overflow.

    Args:
        video: (F, P, D) frames, positions and channels, (B, F, P, D) or any leading dimensions; float16, bfloat16,
            float32 or float64. One frame at a time is widened, never the whole video.
        first: what all tokens of the first frame get; within the range of float32.

    Returns:
        (F, P) or (B, F, P), float32 (float64 for float64), in [0, 2] up to rounding. A row of zeros has cosine 0, and
        one shorter than 1e-8 a cosine smaller than its own. A NaN stays, in the frame after it too.

    Raises:
        TypeError: `video` is not a floating tensor or `first` not a number.
        ValueError: `video` has fewer than 3 dimensions or no channel, or `first` is not finite.

    Example:
        >>> still, changed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> frame_difference(torch.stack([still, still, changed]), first=255)
        tensor([[255., 255.],
                [  0.,   0.],
                [  1.,   0.]])
    """
    _check_video("video", video)
    _check_number("first", first, low=-_LARGEST, high=_LARGEST)
    dtype, frames = _work_dtype(video), video.unbind(-3)
    scores = [video.new_full((*video.shape[:-3], video.shape[-2]), first, dtype=dtype)]
    for t in range(1, len(frames)):
        scores.append(1.0 - F.cosine_similarity(frames[t].to(dtype), frames[t - 1].to(dtype), dim=-1))
    return torch.stack(scores, dim=-2)[..., : len(frames), :]


def event_relevance(features: Tensor) -> Tensor:
    """How much each token of a video agrees with its frames: `e_j = mean over frames f of <x_j, m_f>`.

    m_f is the mean token of frame f; nothing is normalised. FlashVID's second version weights its attention a with it,
    `w = a * e` (github.com/Fanziyang-v/FlashVID/flashvid/token_selection.py), and in each frame keeps the tokens that
    are farthest apart in distances times the candidate's w: w is the importance for `MaxMin(weighted=True)`. Tokens of
    negative e have negative weights there; with `e.clamp(min=0)` they only come last.

    Args:
        features: (F, P, D) frames, tokens and channels, (B, F, P, D) or any leading dimensions, each (F, P, D) a
            video of its own; float16, bfloat16, float32 or float64. An image is a video of one frame.

    Returns:
        (F, P) or (B, F, P), float32 (float64 for float64), any sign. A NaN makes its whole video NaN.

    Raises:
        TypeError: `features` is not a floating tensor.
        ValueError: `features` has fewer than 3 dimensions or no channel.

    Example:
        >>> frames = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [-2.0, 0.0]]])  # means (2, 0) and (-1, 1)
        >>> event_relevance(frames)
        tensor([[ 0.5000,  1.5000],
                [ 1.0000, -1.0000]])
    """
    _check_video("features", features)
    # The mean of the dot products with the m_f is the one with the mean of the m_f.
    mean = features.mean(-2, dtype=_work_dtype(features)).mean(-2)
    return (features * mean[..., None, None, :]).sum(-1)


def unify(
    saliency: Tensor,
    relevance: Tensor,
    how: Literal["product", "sum", "max", "geometric"] = "product",
    weight: float = 0.5,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Fuse visual saliency and text relevance into one importance per token.

    Both are first rescaled by `minmax`, each sample on its own; with s and r the rescaled scores and w the
    weight:

    - "product": `s * r`; a token must be good at both. `weight` is not used.
    - "sum": `w * s + (1 - w) * r`; the one can make up for the other.
    - "max": `max(s, r)`; being good at either is enough. `weight` is not used.
    - "geometric": `s**w * r**(1 - w)`, with `0**0 = 1`; at w = 0.5 the square root of the product: the same
      order, spaced wider near 0. With other weights, torch's power on a CPU may round the last bit of a token
      differently in another batch.

    The official codes weigh tokens by one score each: SCOPE by the attention of the CLS token, CDPruner
    (arXiv 2506.10967) by text relevance, IDPruner (arXiv 2602.13315) by a learned scorer. ID-Selection
    (arXiv 2604.05601) is reported to allow a score uniting both kinds. The four fusions are common choices made
    here, not formulas of a paper.

    Args:
        saliency: (B, N) or any leading dimensions, e.g. from `cls_attention`; higher is better.
        relevance: same shape, e.g. from `text_relevance` or `cross_attention`; higher is better.
        how: "product", "sum", "max" or "geometric".
        weight: share of the saliency in "sum" and "geometric", in [0, 1]; 0.5, our choice, treats both alike.
        mask: bool, same shape; False leaves a token out, its result is 0. None: all take part.

    Returns:
        (B, N), float32 (float64 if an input is), in [0, 1]. A score equal for all tokens of a sample counts
        as 1 for each of them (see `minmax`). A token with a NaN in either score gets NaN, as does +inf
        with -inf; otherwise one with -inf in either gets -inf.

    Raises:
        TypeError: a score is not a floating tensor, `mask` not a bool tensor, `weight` not a number.
        ValueError: shapes or devices differ, `how` is unknown, or `weight` is not in [0, 1].

    Example:
        >>> saliency, relevance = torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.3, 0.4]])
        >>> unify(saliency, relevance)
        tensor([[0.0000, 0.3750, 0.0000]])
        >>> unify(saliency, relevance, how="sum", weight=0.75)
        tensor([[0.7500, 0.5625, 0.2500]])
    """
    _check_tensor("saliency", saliency)
    _check_tensor("relevance", relevance)
    if saliency.ndim == 0:
        raise ValueError("saliency must be (..., N), got ()")
    if relevance.shape != saliency.shape:
        raise ValueError(f"relevance must be {_tokens(saliency)} to match saliency, got {_shape(relevance)}")
    _check_device("relevance", relevance, "saliency", saliency)
    if mask is not None:
        _check_mask(mask, "saliency", saliency)
    _check_choice("how", how, _FUSIONS)
    _check_number("weight", weight, low=0.0, high=1.0)
    dtype = _work_dtype(saliency, relevance)
    s, r = minmax(saliency.to(dtype), mask), minmax(relevance.to(dtype), mask)
    # The sum keeps a NaN or an infinity; max and powers would turn a token that is ruled out into a good one.
    return torch.where(torch.isfinite(s) & torch.isfinite(r), _fuse(s, r, how, weight), s + r)


def _fuse(s: Tensor, r: Tensor, how: str, weight: float) -> Tensor:
    if how == "product":
        return s * r
    if how == "sum":
        return weight * s + (1.0 - weight) * r
    if how == "max":
        return torch.maximum(s, r)
    return s.pow(weight) * r.pow(1.0 - weight)


def _attention_row(query: Tensor, keys: Tensor, scale: float | None) -> Tensor:
    """Head mean (..., N) of softmax(scale * query keys^T): query (..., Hkv, G, d), keys (..., Hkv, N, d)."""
    if scale is None:
        scale = keys.shape[-1] ** -0.5
    _check_number("scale", scale)
    query = query.to(_work_dtype(query, keys))
    # One query of a group at a time: the product is then no larger than a float32 copy of the keys.
    logits = [(query[..., g, None, :] * keys).sum(-1) for g in range(query.shape[-2])]
    return (torch.stack(logits, dim=-2) * scale).softmax(-1).mean((-3, -2))


def _mean_cosine(image: Tensor, text: Tensor) -> Tensor:
    """Mean over the texts of the cosines, as one dot product with the mean of the unit text vectors."""
    dtype = _work_dtype(image, text)
    text = text.to(dtype)
    direction = (text / _norm(text, dtype)).mean(-2, keepdim=True)
    dots = (image * direction).sum(-1)
    return (dots / _norm(image, dtype).squeeze(-1)).clamp(-1.0, 1.0)


def _norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Length of the rows of x, keeping the dimension; 1 for a zero row, whose cosines then come out as 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return torch.where(norm == 0.0, 1.0, norm)


def _extremes(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Min and max over the last dimension of the valid (None: finite) entries; inf and -inf if none is."""
    invalid = ~(torch.isfinite(x) if valid is None else valid)
    low = x.masked_fill(invalid, math.inf).amin(-1, keepdim=True)
    high = x.masked_fill(invalid, -math.inf).amax(-1, keepdim=True)
    return low, high


def _work_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _widen(x: Tensor) -> Tensor:
    return x.to(_work_dtype(x))


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _tokens(x: Tensor) -> str:
    """The shape of a tensor with one number per token, with the names of its dimensions where usual."""
    return {1: "(N,) = ", 2: "(B, N) = "}.get(x.ndim, "") + _shape(x)


def _pattern(*dims: int | str) -> str:
    return f"({', '.join(map(str, dims))})"


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {_dtype_name(x)}")


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_mask(mask: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {_dtype_name(mask)}")
    if mask.shape != other.shape:
        raise ValueError(f"mask must be {_tokens(other)} to match {other_name}, got {_shape(mask)}")
    _check_device("mask", mask, other_name, other)


def _check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} must be on {other.device} to match {other_name}, got {x.device}")


def _check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (low <= value <= high and -math.inf < value < math.inf):
        lower = "" if low == -math.inf else f" and >= {low:g}"
        wanted = f"finite{lower}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_video(name: str, video: Tensor) -> None:
    _check_tensor(name, video)
    if video.ndim < 3 or video.shape[-1] == 0:
        raise ValueError(f"{name} must be (F, P, D) or (B, F, P, D) with D >= 1, got {_shape(video)}")


def _check_cross_shapes(q_last: Tensor, k_visual: Tensor) -> None:
    if q_last.ndim < 2:
        raise ValueError(f"q_last must be (B, H, d) or (H, d), got {_shape(q_last)}")
    *leading, heads, channels = q_last.shape
    if k_visual.ndim < 3 or (*k_visual.shape[:-3], k_visual.shape[-1]) != (*leading, channels):
        wanted = f"{_pattern(*leading, 'Hkv', 'N', channels)} to match q_last {_shape(q_last)}"
        raise ValueError(f"k_visual must be {wanted}, got {_shape(k_visual)}")
    key_heads = k_visual.shape[-3]
    if 0 in (heads, channels, key_heads):
        got = f"{_shape(q_last)} and {_shape(k_visual)}"
        raise ValueError(f"q_last and k_visual must have at least one head and one channel, got {got}")
    if heads % key_heads != 0:
        raise ValueError(f"q_last must have a multiple of the {key_heads} heads of k_visual, got {heads}")


def _check_relevance_shapes(image: Tensor, text: Tensor) -> None:
    if image.ndim < 2:
        raise ValueError(f"image_embeds must be (B, N, C) or (N, C), got {_shape(image)}")
    *leading, _, channels = image.shape
    batch = list(text.shape[:-2])
    if text.ndim < 2 or (batch and batch != leading) or text.shape[-1] != channels:
        wanted = _pattern("M", channels)
        if leading:
            wanted += f" or {_pattern(*leading, 'M', channels)}"
        wanted += f" to match image_embeds {_shape(image)}"
        raise ValueError(f"text_embeds must be {wanted}, got {_shape(text)}")
    if text.shape[-2] == 0:
        raise ValueError(f"text_embeds must hold at least one embedding, got {_shape(text)}")

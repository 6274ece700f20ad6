"""Token budgets: how many tokens each frame, crop or segment may keep, before a selection picks which.

Plain torch on any device. Nothing here reads a value back to the host, so the functions never wait for the
device; shares are computed in float64 (float32 on mps, which has no float64) and the counts returned are
int64. Values are therefore not checked, only types, shapes and devices; each function says what odd values
do. The counts are meant as `k` of a selection with one sample per frame, crop or segment.

The segment budgets of MMG-Vid (arXiv 2508.21044) are not among them: there was no official code to follow. With
segment scores of your own, see the recipe under `proportional`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from .counts import check_count, on_device
from .importance import frame_difference

__all__ = [
    "by_top_scores",
    "evs",
    "holov",
    "holov_scores",
    "per_frame",
    "proportional",
    "vidcom2",
    "vidcom2_scores",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_EPS = 1e-6  # HoloV's constant under its fractions
_EVS_FIRST = 255.0  # the dissimilarity EVS gives to the first frame, above any cosine's
_VIDCOM2_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
# Weights of zero become this share of the largest: as good as nothing while another group has room, even shares
# afterwards. Its root is the smallest share that counts as a weight.
_FAINT = {torch.float64: 1e-200, torch.float32: 1e-30}
# Fractions are compared on this grid: 4/3 and 1/3 leave the same fraction, but not the same float.
_GRID = {torch.float64: 2.0**20, torch.float32: 2.0**8}


def per_frame(total: int, n_frames: int) -> list[int]:
    """Share a total evenly, the remainder going one each to the first frames.

    Args:
        total: tokens to keep over all frames, >= 0.
        n_frames: number of frames, >= 1.

    Returns:
        `n_frames` ints >= 0 that sum to `total`, and differ by at most 1.

    Raises:
        TypeError: an argument is not an int.
        ValueError: `total` is negative or `n_frames` is below 1.

    Example:
        >>> per_frame(11, 4)
        [3, 3, 3, 2]
    """
    total, n_frames = check_count("total", total), check_count("n_frames", n_frames, low=1)
    share, rest = divmod(total, n_frames)
    return [share + 1] * rest + [share] * (n_frames - rest)


def proportional(
    weights: Tensor | Sequence[float],
    total: int | Tensor,
    most: int | Sequence[int] | Tensor | None = None,
    *,
    least: int | Sequence[int] | Tensor = 0,
) -> Tensor:
    """Share a total in proportion to weights, by largest remainders, within bounds for each group.

    The shares are `x_g = min(max(c * w_g, least_g), most_g)`, with the c for which they sum to the total: what a
    cap cuts off is shared out again in proportion to the weights of the groups with room, and so on. Each share
    is rounded down, and what is left goes one each to the largest fractions, ties to the lowest group.
    Fractions that agree to about 1e-6 count as tied (4e-3 on mps).

    The method is Hamilton's (largest remainders), the bounds are ours. For a ragged batch of video segments with
    a score each: `proportional(scores, total, most=sizes, least=1)`.

    Args:
        weights: (..., G), float16, bfloat16, float32 or float64, >= 0, any unit; or a sequence of G numbers. In a
            tensor, NaN, infinite and negative weights count as 0. Groups of weight 0 get tokens above `least` only
            when all others are full, and then evenly; with all weights 0 the whole total is shared evenly.
        total: tokens to keep over the G groups, >= 0 (a negative entry of a tensor counts as 0), below 2**40 (2**20
            on mps); an int, or an integer tensor (...) on the device of `weights`.
        most: largest count of a group, >= 0: an int, G ints, or an integer tensor (..., G) or (G,) on the
            device of `weights`. None, the default: no cap.
        least: smallest count of a group, >= 0, in the same forms; 0 by default. `most` wins over `least`.

    Returns:
        (..., G) int64 on the device of `weights` (of a sequence: on the CPU). The sum is `total` exactly, unless the
        caps sum to less (then the caps are returned) or the `least` to more (then those).

    Raises:
        TypeError: an argument has none of the types above.
        ValueError: shapes or devices do not fit, an int is negative, or a sequence of weights holds a negative,
            infinite or NaN number.

    Example:
        >>> proportional([3.0, 1.0, 1.0], 8)
        tensor([5, 2, 1])
        >>> proportional([3.0, 1.0, 1.0], 8, most=3)
        tensor([3, 3, 2])
    """
    w = _weights("weights", weights)
    total = _check_total(total, "weights", w)
    low = _check_bound("least", least, "weights", w)
    high = None if most is None else _check_bound("most", most, "weights", w)
    if w.numel() == 0:
        return torch.zeros_like(w, dtype=torch.int64)
    return _share(_clean(w), _as_tensor(total, w), low, high)


def vidcom2(
    frame_scores: Tensor,
    tokens_per_frame: int,
    keep_ratio: float,
    token_scores: Tensor | None = None,
    *,
    exact: bool = True,
    temperature: float = 0.01,
) -> Tensor:
    """Budgets per frame of VidCom2 (arXiv 2505.14454): more tokens for the frames that stand out in the video.

    With n tokens per frame, r the ratio to keep and `p = softmax(frame_scores / temperature)` over the T frames:

    - `exact=False`: `k_t = min(max(round(n * min(1, r * (1 + p_t - mean p))), 1), n)`, half to even, as the
      official code (github.com/xuyang-liu16/VidCom2/token_compressor/vidcom2/vidcom2.py) and the first step of vLLM's
      (github.com/vllm-project/vllm/multimodal/video_prune/vidcom2.py) have it. The total drifts from the nominal
      one (137 for 144, say). Where a share lies on a half to within rounding, another order of operations may round
      otherwise.
    - `exact=True` without token scores (our default; no official code does this): the same shares by largest
      remainders within [1, n], so that the total is `max(T, floor(T * n * r))`.
    - `exact=True` with token scores, as vLLM reconciles: starting from the rounded counts, the kept tokens of the
      highest score over all frames are dropped, or the others of the lowest added, to reach the same total.

    Args:
        frame_scores: (..., T), float16, bfloat16, float32 or float64, how unique a frame is: minus a mean of
            kernel values in [0, 5], from `vidcom2_scores`. A NaN spoils its video's shares: frames are then
            treated evenly, except with `exact=False` and with token scores, where every frame gets 1 at first.
        tokens_per_frame: n >= 1.
        keep_ratio: r in (0, 1]: VidCom2's base_scale (0.25 in its code), or 1 - q for vLLM's pruning rate q. Pass
            the difference itself: the products are rounded down, so the last bit can count.
        token_scores: (..., T, n), same kinds, lower is better: from `vidcom2_scores`. Only with `exact=True`.
        exact: bool, whether to meet the nominal total.
        temperature: > 0, of the softmax; 0.01 in both official codes.

    Returns:
        (..., T) int64 in [0, n], on the device of `frame_scores`. At least 1, except that the reconciliation on
        token scores may empty a frame.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit, a number is out of its range, or `token_scores` come with
            `exact=False`.

    Example:
        >>> frame_scores = torch.tensor([-1.00, -1.02, -1.02, -1.02])
        >>> vidcom2(frame_scores, tokens_per_frame=8, keep_ratio=0.3)
        tensor([3, 2, 2, 2])
        >>> vidcom2(frame_scores, tokens_per_frame=8, keep_ratio=0.3, exact=False)
        tensor([4, 2, 2, 2])
    """
    _check_floats("frame_scores", frame_scores, "(..., T)", 1)
    n = check_count("tokens_per_frame", tokens_per_frame, low=1)
    _check_ratio(keep_ratio)
    _check_vidcom2_options(exact, temperature)
    if token_scores is not None:
        _check_token_scores(token_scores, frame_scores, n, exact)
    frames = frame_scores.shape[-1]
    if frame_scores.numel() == 0:
        return torch.zeros_like(frame_scores, dtype=torch.int64)
    p = (frame_scores.detach().to(_share_dtype(frame_scores)) / temperature).softmax(-1)
    relative = 1.0 + p - p.mean(-1, keepdim=True)
    total = max(frames, math.floor(frames * n * keep_ratio))
    if exact and token_scores is None:
        return proportional(relative, total, most=n, least=1)
    scales = (keep_ratio * relative).clamp(max=1.0).nan_to_num(nan=0.0)
    counts = (n * scales).round().to(torch.int64).clamp(1, n)
    return counts if token_scores is None else _reconcile(counts, token_scores, total)


def vidcom2_scores(features: Tensor, channel_share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Frame uniqueness and token scores of VidCom2 (arXiv 2505.14454), as its code and vLLM's compute them.

    Only the `floor(D * channel_share)` channels of lowest variance over all tokens count; the tokens are scaled to
    unit length on them. With `G(x, m) = sum of exp(-|x - m|^2 / (2 a))` over a = 1/8, 1/4, 1/2, 1, 2, a token
    has v = G to the mean of all tokens and f = G to the mean of its frame. A frame's uniqueness is minus the
    mean of its v. Source: github.com/xuyang-liu16/VidCom2/token_compressor/vidcom2/vidcom2.py.

    Args:
        features: (..., T, n, D), float16, bfloat16, float32 or float64: n tokens in each of T frames.
        channel_share: share of the channels that count, in (0, 1], at least one of them; 0.5 in both official
            codes. Ties in variance go to the lowest channel.

    Returns:
        frame_scores (..., T) in [-5, 0], higher for the frames that differ from the video; token_scores v + f
        (..., T, n) in [0, 10], lower for the tokens to keep. Both float32 (float64 for float64 features). A NaN
        spoils its whole video.

    Raises:
        TypeError: `features` is not a floating tensor or `channel_share` not a number.
        ValueError: `features` has no token or too few channels or dimensions, or `channel_share` is out of range.

    Example:
        >>> video = torch.eye(4).expand(2, 4, 4).clone()  # two equal frames
        >>> frame_scores, token_scores = vidcom2_scores(video)
        >>> frame_scores.shape, token_scores.shape
        (torch.Size([2]), torch.Size([2, 4]))
        >>> vidcom2(frame_scores, 4, 0.5, token_scores)
        tensor([2, 2])
    """
    _check_video(features)
    _check_share("channel_share", channel_share)
    channels = math.floor(features.shape[-1] * channel_share)
    if channels == 0:
        raise ValueError(f"features must have D * channel_share >= 1, got shape {_shape(features)}")
    x = _widen(features.detach())
    variance = x.var((-3, -2), correction=0)
    quiet = variance.argsort(dim=-1, stable=True)[..., :channels]
    x = x.take_along_dim(quiet[..., None, None, :], -1)
    x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
    v = _nearness(x, x.mean((-3, -2), keepdim=True))
    return -v.mean(-1), v + _nearness(x, x.mean(-2, keepdim=True))


def holov(
    crop_weights: Tensor | Sequence[float],
    total: int | Tensor,
    sizes: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Budgets per crop of HoloV: a share of the total by the crop's weight, rounded down, the rest to the heaviest.

    Computed: `floor(s_p / (sum of s + 1e-6) * total)`, then one more token each for the heaviest crops until the
    total is reached, ties to the lowest crop. Source:
    github.com/obananas/HoloV/qwen-model-HoloV/utils.py.

    The official code loses what a crop is given beyond its size. With `sizes`, that surplus goes to the crops
    with room by `proportional`, so the total is exact; `holov(...)` without `sizes`, cut to the sizes, gives the
    official counts. And it hands out one extra token per crop at most, which falls short when all weights
    are tiny against 1e-6; here the extra tokens go round as often as needed.

    Args:
        crop_weights: (..., P), float16, bfloat16, float32 or float64, >= 0, from `holov_scores`; or a sequence of P
            numbers. In a tensor, NaN, infinite and negative weights count as 0.
        total: tokens to keep over all crops, >= 0, as in `proportional`.
        sizes: tokens in each crop, >= 0: P ints, e.g. `per_frame(n_tokens, n_crops)`, or an integer tensor (..., P)
            or (P,) on the device of `crop_weights`. None: crops hold as many as they are given.

    Returns:
        (..., P) int64 on the device of `crop_weights` (of a sequence: on the CPU), `total` in sum, or the sizes
        where those sum to less.

    Raises:
        TypeError: an argument has none of the types above.
        ValueError: shapes or devices do not fit, an int is negative, or a sequence of weights holds a negative,
            infinite or NaN number.

    Example:
        >>> holov([7.0, 2.0, 1.0], 9)
        tensor([7, 2, 0])
        >>> holov([7.0, 2.0, 1.0], 9, sizes=[4, 4, 4])
        tensor([4, 4, 1])
    """
    w = _weights("crop_weights", crop_weights)
    total = _check_total(total, "crop_weights", w)
    room = None if sizes is None else _check_bound("sizes", sizes, "crop_weights", w)
    if w.numel() == 0:
        return torch.zeros_like(w, dtype=torch.int64)
    w, wanted = _clean(w), _as_tensor(total, w)
    budgets = (w / (w.sum(-1, keepdim=True) + _EPS) * wanted).floor().to(torch.int64)
    rest = wanted - budgets.sum(-1, keepdim=True)
    crops = w.shape[-1]
    budgets = budgets + rest // crops + (_ranks(-w) < rest % crops)
    if room is None:
        return budgets
    kept = torch.minimum(budgets, room)
    surplus = (budgets - kept).sum(-1, keepdim=True)
    return kept + _share(w, surplus, torch.zeros_like(kept), room - kept)


def holov_scores(features: Tensor, attention: Tensor, crops: int, alpha: float = 0.09) -> Tensor:
    """Weights of the crops for `holov`: their attention, and how varied the tokens of a crop are.

    The N tokens are cut into runs, as long as `per_frame(N, crops)` says. In a run of m > 1 tokens, S holds the
    cosines of the tokens with a zero diagonal, mean_i and var_i are the mean and variance of row i with m - 1 as
    divisor (the zero on the diagonal counts as an entry of the variance), and `b = 1000 * attention`; a token
    scores `b_i + alpha * var_i * mean|b| / (mean|var| + 1e-6)`, the crop the mean of that. A crop of a single token
    scores its attention, not times 1000. Source: github.com/obananas/HoloV/qwen-model-HoloV/utils.py.

    Args:
        features: (..., N, D), float16, bfloat16, float32 or float64, with N and D >= 1.
        attention: (..., N), same kinds, >= 0, e.g. from `importance.cls_attention`.
        crops: number of crops, >= 1; with more crops than tokens there are N of one token each.
        alpha: share of the variance, >= 0; 0.09 in the official code.

    Returns:
        (..., P) with P = min(crops, N), float64 (float32 on mps). A NaN in a token spoils the weight of its crop.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit, `crops` is below 1, or `alpha` is negative or not finite.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
        >>> holov_scores(features, torch.tensor([0.1, 0.1, 0.4, 0.4]), crops=2)
        tensor([100.0000, 436.0000], dtype=torch.float64)
    """
    _check_floats("features", features, "(..., N, D)", 2)
    if 0 in features.shape[-2:]:
        raise ValueError(f"features must have N >= 1 and D >= 1, got shape {_shape(features)}")
    _check_floats("attention", attention, "(..., N)", 1)
    _check_same("attention", attention, features.shape[:-1], "features", features)
    crops = min(check_count("crops", crops, low=1), features.shape[-2])
    _check_number("alpha", alpha, low=0.0)
    dtype = _share_dtype(features)  # float64 also keeps autocast and TF32 out of the product
    x, a = features.detach().to(dtype), attention.detach().to(dtype)
    x = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + _EPS)
    size, longer = divmod(x.shape[-2], crops)
    cut = longer * (size + 1)
    parts = [_crop_scores(x[..., :cut, :], a[..., :cut], size + 1, alpha)] if longer else []
    parts.append(_crop_scores(x[..., cut:, :], a[..., cut:], size, alpha))
    return torch.cat(parts, dim=-1)


def evs(features: Tensor, keep_ratio: float) -> Tensor:
    """Budgets per frame of EVS (arXiv 2510.14624): its share of the tokens that changed most over the video.

    A token's dissimilarity is 1 minus its cosine with the token at the same place in the frame before; the first
    frame has 255, so it is kept whole. The `max(n, floor(T * n * keep_ratio))` largest of all T * n are counted,
    ties to the lowest index. Source: github.com/vllm-project/vllm/multimodal/video_prune/evs.py.

    Between identical frames the dissimilarity is 0 up to rounding, and the order of such tokens is that of the
    rounding errors; the total is exact all the same.

    Args:
        features: (..., T, n, D), float16, bfloat16, float32 or float64: n tokens in each of T frames.
        keep_ratio: in (0, 1], 1 - q for vLLM's pruning rate q. Pass the difference itself: the product is
            rounded down, so its last bit can count.

    Returns:
        (..., T) int64 in [0, n], on the device of `features`. A token with a NaN, or after one, is kept last.

    Raises:
        TypeError: `features` is not a floating tensor or `keep_ratio` not a number.
        ValueError: `features` has no token or too few dimensions, or `keep_ratio` is out of range.

    Example:
        >>> still, changed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> evs(torch.stack([still, still, changed]), keep_ratio=0.5)
        tensor([2, 0, 1])
    """
    _check_video(features)
    _check_ratio(keep_ratio)
    frames, n = features.shape[-3:-1]
    scores = frame_difference(features.detach(), _EVS_FIRST)
    return by_top_scores(scores, max(n, math.floor(frames * n * keep_ratio)))


def by_top_scores(scores: Tensor, total: int | Tensor) -> Tensor:
    """Count, frame by frame, the tokens that are among the highest scores of the whole video.

    Ties go to the lowest index, frame after frame; NaN scores come last, after -inf. A ranking over all tokens
    with a budget for the whole is the rule of EVS (arXiv 2510.14624), without its scores.

    Args:
        scores: (..., T, n), float16, bfloat16, float32 or float64, higher is better.
        total: tokens to keep over all T frames, >= 0 (a negative entry of a tensor counts as 0): an int, or an
            integer tensor (...) on the device of `scores`.

    Returns:
        (..., T) int64 in [0, n], on the device of `scores`, that sums to min(total, T * n).

    Raises:
        TypeError: `scores` is not a floating tensor, `total` neither an int nor an integer tensor.
        ValueError: shapes or devices do not fit, or `total` is a negative int.

    Example:
        >>> by_top_scores(torch.tensor([[0.9, 0.1], [0.8, 0.7]]), 3)
        tensor([1, 2])
    """
    _check_floats("scores", scores, "(..., T, n)", 2)
    flat = scores.detach().flatten(-2)
    total = _check_total(total, "scores", scores, scores.shape[:-2])
    missing = flat.isnan()
    order = torch.where(missing, -math.inf, flat).argsort(dim=-1, descending=True, stable=True)
    ranks = _positions(_then_by(order, missing))
    return _count_below(ranks, _as_tensor(total, flat), scores.shape)


def _share(w: Tensor, total: Tensor, low: Tensor, high: Tensor | None) -> Tensor:
    """Largest remainders of the bounded shares; `total` (..., 1), the bounds int64 as wide as w."""
    faint = _FAINT[w.dtype]
    w = w / w.amax(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    w = torch.where(w < math.sqrt(faint), faint, w)
    # Nothing needs more room than the whole total, and the sums of huge caps would not be exact.
    low = low if high is None else torch.minimum(low, high)
    enough = torch.maximum(low, total)
    high = enough if high is None else torch.minimum(high, enough)
    total = torch.maximum(torch.minimum(total, high.sum(-1, keepdim=True)), low.sum(-1, keepdim=True))
    x = _bounded(w, total, low, high)
    whole = x.floor().to(torch.int64)
    fraction = ((x - whole) * _GRID[w.dtype]).round()
    rest = total - whole.sum(-1, keepdim=True)
    return whole + (_ranks(torch.where(whole < high, -fraction, 1.0)) < rest)


def _bounded(w: Tensor, total: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """min(max(c * w, low), high), with the c for which the sum is `total`, where there is one.

    As c grows, a group is at `low`, then proportional, then at `high`. Bisection over the values of c at which
    a group changes finds which groups are proportional; they share what the bounds leave.
    """
    enters, leaves = low / w, high / w
    turns = torch.cat([enters, leaves], dim=-1).sort(dim=-1).values
    position = torch.zeros_like(total)
    count = turns.shape[-1]
    for exponent in reversed(range((count - 1).bit_length())):
        ahead = position + 2**exponent
        sums = _clamp(turns.gather(-1, ahead.clamp(max=count - 1)) * w, low, high).sum(-1, keepdim=True)
        position = torch.where((ahead < count) & (sums <= total), ahead, position)
    c = turns.gather(-1, position)
    shares = (enters <= c) & (leaves > c)
    fixed = torch.where(shares, 0, torch.where(enters > c, low, high))
    pool = total - fixed.sum(-1, keepdim=True)
    divisor = torch.where(shares, w, 0.0).sum(-1, keepdim=True)
    level = pool / torch.where(divisor == 0.0, 1.0, divisor)
    return torch.where(shares, _clamp(level * w, low, high), fixed.to(w.dtype))


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low.to(x.dtype)), high.to(x.dtype))


def _reconcile(counts: Tensor, token_scores: Tensor, total: int) -> Tensor:
    """The frames' lowest scores first, then all others, each by score: the first `total` of these are kept."""
    scores = token_scores.detach()
    dropped = (_ranks(scores) >= counts[..., None]).flatten(-2)
    order = _then_by(scores.flatten(-2).argsort(dim=-1, stable=True), dropped)
    target = torch.full_like(order[..., :1], total)
    return _count_below(_positions(order), target, scores.shape)


def _then_by(order: Tensor, last: Tensor) -> Tensor:
    """The same order, with the entries marked in `last` moved behind all others."""
    moved = last.gather(-1, order).to(torch.uint8).argsort(dim=-1, stable=True)
    return order.gather(-1, moved)


def _ranks(keys: Tensor) -> Tensor:
    """Position of each entry in ascending order, ties to the lowest index."""
    return _positions(keys.argsort(dim=-1, stable=True))


def _positions(order: Tensor) -> Tensor:
    """The inverse of a permutation."""
    return order.argsort(dim=-1)


def _count_below(ranks: Tensor, total: Tensor, shape: torch.Size) -> Tensor:
    return (ranks < total).reshape(shape).sum(-1)


def _nearness(x: Tensor, centre: Tensor) -> Tensor:
    """Sum of Gaussians of several widths around the centre."""
    squared = (x - centre).square().sum(-1)
    return torch.stack([torch.exp(squared / (-2.0 * width)) for width in _VIDCOM2_WIDTHS]).sum(0)


def _crop_scores(x: Tensor, attention: Tensor, size: int, alpha: float) -> Tensor:
    """Mean score of each run of `size` tokens; x (..., M, D) of unit length, attention (..., M)."""
    if size == 1:
        return attention
    x = x.reshape(*x.shape[:-2], -1, size, x.shape[-1])
    b = 1000.0 * attention.reshape(*attention.shape[:-1], -1, size)
    diagonal = torch.eye(size, dtype=torch.bool, device=x.device)
    cosines = (x @ x.mT).masked_fill(diagonal, 0.0)
    mean = cosines.sum(-1, keepdim=True) / (size - 1)
    variance = (cosines - mean).square().sum(-1) / (size - 1)
    scale = b.abs().mean(-1, keepdim=True) / (variance.abs().mean(-1, keepdim=True) + _EPS)
    scores = b + alpha * variance * scale
    return scores.mean(-1)


def _weights(name: str, weights: Tensor | Sequence[float]) -> Tensor:
    """Weights in the dtype that shares are computed in, checked."""
    if isinstance(weights, Tensor):
        _check_floats(name, weights, "(..., G)", 1)
        return weights.detach().to(_share_dtype(weights))
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"{name} must be a torch.Tensor or a sequence of numbers, got {type(weights).__name__}")
    for i, weight in enumerate(weights):
        _check_number(f"{name}[{i}]", weight, low=0.0)
    return torch.tensor([float(weight) for weight in weights], dtype=torch.float64)


def _clean(w: Tensor) -> Tensor:
    return torch.where(w.isfinite() & (w > 0.0), w, 0.0)


def _share_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _as_tensor(total: int | Tensor, like: Tensor) -> Tensor:
    """Total as int64 (..., 1) on the device of `like` (..., G), not negative."""
    if isinstance(total, Tensor):
        return total.to(torch.int64).clamp(min=0)[..., None]
    return torch.full((*like.shape[:-1], 1), total, dtype=torch.int64, device=like.device)


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _check_floats(name: str, x: Tensor, pattern: str, least_dims: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {_dtype_name(x)}")
    if x.ndim < least_dims:
        raise ValueError(f"{name} must be {pattern}, got {_shape(x)}")


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_integers(name: str, x: Tensor) -> None:
    if x.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be an integer tensor, got {_dtype_name(x)}")


def _check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} must be on {other.device} to match {other_name}, got {x.device}")


def _check_same(name: str, x: Tensor, wanted: Sequence[int], other_name: str, other: Tensor) -> None:
    if tuple(x.shape) != tuple(wanted):
        raise ValueError(f"{name} must be {tuple(wanted)} to match {other_name}, got {_shape(x)}")
    _check_device(name, x, other_name, other)


def _check_total(total: int | Tensor, name: str, other: Tensor, shape: Sequence[int] | None = None) -> int | Tensor:
    """A count, or integers of the given shape (None: one for each row of `other`, the tensor called `name`)."""
    if not isinstance(total, Tensor):
        return check_count("total", total)
    _check_integers("total", total)
    _check_same("total", total, other.shape[:-1] if shape is None else shape, name, other)
    return total


def _check_bound(name: str, value: int | Sequence[int] | Tensor, other_name: str, w: Tensor) -> Tensor:
    """A bound as an int64 tensor of the shape of the weights, not negative."""
    if isinstance(value, Tensor):
        _check_integers(name, value)
        if value.shape != w.shape:
            _check_same(name, value, w.shape[-1:], other_name, w)
        _check_device(name, value, other_name, w)
        return value.to(torch.int64).clamp(min=0).expand_as(w)
    if isinstance(value, Sequence):
        if len(value) != w.shape[-1]:
            raise ValueError(f"{name} must have {w.shape[-1]} ints to match {other_name}, got {len(value)}")
        counts = [check_count(f"{name}[{i}]", count) for i, count in enumerate(value)]
        return on_device(counts, w.device).to(torch.int64).expand_as(w)
    return torch.full_like(w, check_count(name, value), dtype=torch.int64)


def _check_number(name: str, value: float, low: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value < math.inf:
        raise ValueError(f"{name} must be finite and >= {low:g}, got {value}")


def _check_share(name: str, value: float) -> None:
    _check_number(name, value, low=0.0)
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def _check_ratio(keep_ratio: float) -> None:
    _check_share("keep_ratio", keep_ratio)


def _check_video(features: Tensor) -> None:
    _check_floats("features", features, "(..., T, n, D)", 3)
    if 0 in features.shape[-3:]:
        raise ValueError(f"features must have T, n and D >= 1, got shape {_shape(features)}")


def _check_vidcom2_options(exact: bool, temperature: float) -> None:
    if not isinstance(exact, bool):
        raise TypeError(f"exact must be True or False, got {exact!r}")
    _check_number("temperature", temperature, low=0.0)
    if temperature == 0.0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _check_token_scores(token_scores: Tensor, frame_scores: Tensor, n: int, exact: bool) -> None:
    _check_floats("token_scores", token_scores, "(..., T, n)", 2)
    _check_same("token_scores", token_scores, (*frame_scores.shape, n), "frame_scores", frame_scores)
    if not exact:
        raise ValueError("token_scores must be None with exact=False, which keeps the rounded counts")

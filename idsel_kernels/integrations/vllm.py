"""vLLM: rules of this package in the place of vLLM's own pruning of video tokens.

vLLM asks twice: before the encoder how many tokens of a video will be left, so that the prompt has as many
placeholders, and after it which tokens those are. Its answers are two functions per method, EVS and VidCom2. Here the
count stays vLLM's, and `retention_mask` is put in the place of the mask.

`register` is the entry point `idsel` of the group `vllm.general_plugins`. vLLM calls it in each of its processes; it
does nothing unless `IDSEL_VLLM_RULE` is set. Nothing here imports vLLM before that.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _env, api, budgets, checks
from ..importance import frame_difference
from ..rules import IDSelection, Rule, TopK, by_name

__all__ = [
    "KNOWN",
    "evs_scores",
    "install",
    "novelty",
    "register",
    "retained_tokens_count",
    "retention_mask",
    "uninstall",
]

Importance = Callable[[Tensor], Tensor]
Method = Literal["evs", "vidcom2"]
Budget = Literal["video", "evs", "even"]

KNOWN = ("0.11.2", "0.22.1", "0.33.0")  # versions of vLLM whose pruning was read and compared

# Where a method's two functions are, the newest layout first.
_PLACES: dict[Method, tuple[str, ...]] = {
    "evs": ("vllm.multimodal.video_prune.evs", "vllm.multimodal.evs"),
    "vidcom2": ("vllm.multimodal.video_prune.vidcom2",),
}
_COUNT, _MASK = "compute_retained_tokens_count", "compute_retention_mask"
_PARAMETERS = {
    _COUNT: ("tokens_per_frame", "num_frames", "q"),
    _MASK: ("video_embeds", "video_size_thw", "spatial_merge_size", "q"),
}
_ORIGINAL = "_idsel_original"  # of a mask of ours: the function in whose place it is
_BUDGETS = ("video", "evs", "even")
_EVS_FIRST = 255.0
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def retained_tokens_count(tokens_per_frame: int, num_frames: int, q: float, *, method: Method = "evs") -> int:
    """How many tokens vLLM's `compute_retained_tokens_count` leaves of a video.

    Args:
        tokens_per_frame: n, tokens of a frame, >= 0.
        num_frames: T >= 0.
        q: share of the tokens to prune, in [0, 1), vLLM's `--video-pruning-rate`.
        method: vLLM's `--video-pruning-method`. "evs": at least one frame, `max(n, int(T * n * (1 - q)))`. "vidcom2":
            at least a token for each frame, `max(T, min(int(T * n * (1 - q)), T * n))`.

    Returns:
        The number of tokens.

    Raises:
        TypeError: `q` is not a number.
        ValueError: `q` is not in [0, 1), or `method` is neither of the two.

    Example:
        >>> retained_tokens_count(100, 8, 0.75), retained_tokens_count(100, 8, 0.95)
        (200, 100)
        >>> retained_tokens_count(100, 8, 0.95, method="vidcom2")
        40
    """
    checks.check_choice("method", method, tuple(_PLACES))
    _check_rate(q)
    total = tokens_per_frame * num_frames
    share = int(total * (1 - q))  # in this order of operations: the last bit decides how a product is rounded down
    return max(tokens_per_frame, share) if method == "evs" else max(num_frames, min(share, total))


def evs_scores(video: Tensor) -> Tensor:
    """EVS (arXiv 2510.14624): 1 minus a token's cosine with the token at its place in the frame before; 255 at first.

    With the rule "topk" they are EVS: the first frame is kept whole, then the tokens that changed most.

    Args:
        video: (T, n, D), float16, bfloat16 or float32, computed in float32.

    Returns:
        (T, n) float32, 255 in the first frame and in [0, 2], up to rounding, in the others.

    Example:
        >>> still, changed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> evs_scores(torch.stack([still, still, changed]))
        tensor([[255., 255.],
                [  0.,   0.],
                [  1.,   0.]])
    """
    return frame_difference(video.detach(), _EVS_FIRST)


def novelty(video: Tensor) -> Tensor:
    """What `evs_scores` says, but for the first frame 1, as after a frame of zeros; nothing is below 0.

    A prior for rules that weigh importance against likeness, which 255 would overrule.

    Args:
        video: (T, n, D), float16, bfloat16 or float32, computed in float32.

    Returns:
        (T, n) float32, in [0, 2] up to rounding.

    Example:
        >>> novelty(torch.eye(2).reshape(2, 1, 2))
        tensor([[1.],
                [1.]])
    """
    return frame_difference(video.detach()).clamp(min=0.0)


def retention_mask(
    video_embeds: Tensor,
    video_size_thw: Sequence[int] | Tensor,
    spatial_merge_size: int,
    q: float,
    *,
    rule: Rule | str = IDSelection(),
    importance: Importance | None = None,
    method: Method = "evs",
    budget: Budget = "video",
    channels: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Which tokens of a video are kept: vLLM's `compute_retention_mask`, by any rule.

    Args:
        video_embeds: (T * n, D), what the encoder made of the video, with n = (H // m) * (W // m) tokens a frame, frame
            after frame; float16, bfloat16 or float32.
        video_size_thw: (T, H, W), three ints, or a tensor of them.
        spatial_merge_size: m >= 1.
        q: share of the tokens to prune, in [0, 1).
        rule: as for `select`.
        importance: makes the prior scores (T, n) of a (T, n, D) video, for rules that need them or may have them.
            None: `evs_scores` for `TopK`, which is then EVS, and `novelty` for all others.
        method: whose count, as in `retained_tokens_count`.
        budget: "video": one selection over the whole video. "evs" and "even": each frame has a budget, and all frames
            are selected at once, each on its own, in as many steps as the fullest keeps tokens. "evs" gives a frame as
            many as EVS would keep of it, "even" all the same, the remainder to the first frames.
        channels: how many leading channels of a token count, in [1, D]; None: all. Qwen3-VL's tokens end in deepstack
            channels, which vLLM's own masks compare too.
        backend: as for `select`.

    Returns:
        (T * n,) bool on the device of `video_embeds`, True for exactly `retained_tokens_count(n, T, q, method=method)`
        tokens, whatever the values. The same bits in each process on the same kind of device.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    Example:
        >>> still, changed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> retention_mask(torch.cat([still, still, changed]), (3, 2, 1), 1, 0.5, rule="topk")
        tensor([ True,  True, False, False,  True, False])
    """
    frames, n = _sizes(video_embeds, video_size_thw, spatial_merge_size)
    checks.check_choice("budget", budget, _BUDGETS)
    width = _check_channels(channels, video_embeds)
    video = video_embeds.detach()[:, :width].reshape(frames, n, width)
    wanted = retained_tokens_count(n, frames, q, method=method)
    if wanted >= frames * n:
        return torch.ones(frames * n, dtype=torch.bool, device=video.device)
    rule = by_name(rule)() if isinstance(rule, str) else rule
    scores = (importance or (evs_scores if isinstance(rule, TopK) else novelty))(video)
    if scores.shape != (frames, n):
        raise ValueError(f"importance must make (T, n) = {(frames, n)} scores, got shape {tuple(scores.shape)}")
    if budget == "video":
        return api.select(video.flatten(0, 1), wanted, rule, scores.flatten(), backend=backend).keep_mask(frames * n)[0]
    counts = budgets.per_frame(wanted, frames) if budget == "even" else _evs_budgets(video, wanted)
    k_max = None if isinstance(counts, list) else n
    return api.select(video, counts, rule, scores, k_max=k_max, backend=backend).keep_mask(n).flatten()


def _evs_budgets(video: Tensor, wanted: int) -> Tensor:
    return budgets.by_top_scores(evs_scores(video), wanted)


def _sizes(video_embeds: Tensor, video_size_thw: Sequence[int] | Tensor, spatial_merge_size: int) -> tuple[int, int]:
    """Frames, and tokens in each."""
    checks.check_tensor("video_embeds", video_embeds)
    if video_embeds.dtype not in _DTYPES:
        raise TypeError(f"video_embeds must be float16, bfloat16 or float32, got {video_embeds.dtype}")
    if len(video_size_thw) != 3:
        raise ValueError(f"video_size_thw must be (T, H, W), got {len(video_size_thw)} numbers")
    frames, height, width = map(int, video_size_thw)
    if spatial_merge_size < 1:
        raise ValueError(f"spatial_merge_size must be >= 1, got {spatial_merge_size}")
    n = (height // spatial_merge_size) * (width // spatial_merge_size)
    if video_embeds.dim() != 2 or video_embeds.shape[0] != frames * n:
        raise ValueError(
            f"video_embeds must be (T * n, D) with T * n = {frames} * {n} = {frames * n} for video_size_thw "
            f"{(frames, height, width)} and spatial_merge_size {spatial_merge_size}, "
            f"got shape {tuple(video_embeds.shape)}"
        )
    return frames, n


def _check_rate(q: float) -> None:
    if isinstance(q, bool) or not isinstance(q, (int, float)):
        raise TypeError(f"q must be a number, got {type(q).__name__}")
    if not 0 <= q < 1:
        raise ValueError(f"q must be in [0, 1), got {q}")


def _check_channels(channels: int | None, video_embeds: Tensor) -> int:
    width = video_embeds.shape[1]
    if channels is None:
        return width
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise TypeError(f"channels must be an int or None, got {type(channels).__name__}")
    if not 1 <= channels <= width:
        raise ValueError(f"channels must be in [1, D = {width}], got {channels}")
    return channels


# --- Into vLLM --------------------------------------------------------------------------------------------------------


def register() -> None:
    """Calls `install` as the environment says; without `IDSEL_VLLM_RULE` it does nothing, and imports nothing.

    `IDSEL_VLLM_RULE` is the name of a rule, `IDSEL_VLLM_BUDGET` and `IDSEL_VLLM_CHANNELS` are `budget` and `channels`
    of `retention_mask`. May be called several times in a process.

    Raises:
        ValueError: a variable has a value that does not exist; the message names it.
        RuntimeError: as `install`.

    Example:
        >>> register()  # IDSEL_VLLM_RULE is not set
    """
    name = _env.vllm_rule()
    if name is None:
        return
    try:
        rule = by_name(name)()
    except ValueError as error:
        raise ValueError(f"IDSEL_VLLM_RULE: {error}") from None
    install(rule, budget=_budget_from_environment(), channels=_channels_from_environment())


def _budget_from_environment() -> Budget:
    budget = _env.vllm_budget() or "video"
    checks.check_choice("IDSEL_VLLM_BUDGET", budget, _BUDGETS)
    return budget  # type: ignore[return-value]


def _channels_from_environment() -> int | None:
    channels = _env.vllm_channels()
    if channels is None:
        return None
    if not channels.isdecimal() or int(channels) < 1:
        raise ValueError(f"IDSEL_VLLM_CHANNELS must be a number >= 1, got {channels!r}")
    return int(channels)


def install(rule: Rule | str = IDSelection(), **options: Any) -> None:
    """Puts `retention_mask` in the place of vLLM's masks, in this process.

    Where a module of vLLM has imported one by name, it is replaced there too, so it does not matter whether models
    were imported before. vLLM's counts stay. The last call holds.

    For a rule with other parameters, or an importance of your own, call this from an entry point of yours in the group
    `vllm.general_plugins`: vLLM has several processes, and all of them must choose alike.

    Args:
        rule: as for `select`.
        options: `importance`, `budget`, `channels` and `backend` of `retention_mask`.

    Raises:
        TypeError: an option does not exist.
        ValueError: no rule has this name.
        RuntimeError: vLLM's pruning is not where it was in the versions known, or takes or counts something else.
    """
    if unknown := options.keys() - {"importance", "budget", "channels", "backend"}:
        raise TypeError(f"install takes importance, budget, channels and backend, got {', '.join(sorted(unknown))}")
    rule = by_name(rule)() if isinstance(rule, str) else rule
    checks.check_rule(rule)
    checks.check_choice("budget", options.get("budget", "video"), _BUDGETS)
    found = list(_methods())  # all are checked before any is replaced
    for method, module in found:
        theirs = getattr(module, _MASK)
        ours = functools.partial(retention_mask, rule=rule, method=method, **options)
        _replace(theirs, _like(getattr(theirs, _ORIGINAL, theirs), ours))
    names = " and ".join(method for method, _ in found)
    # A logger below vLLM's, and a level that is shown before vLLM has configured its own: plugins are loaded early.
    log = logging.getLogger("vllm.idsel_kernels")
    log.warning("idsel_kernels: video tokens by %r, for the methods %s", rule, names)


def uninstall() -> None:
    """Puts vLLM's own masks back, in this process.

    Raises:
        RuntimeError: as `install`.
    """
    for _, module in _methods():
        ours = getattr(module, _MASK)
        if hasattr(ours, _ORIGINAL):
            _replace(ours, getattr(ours, _ORIGINAL))


def _methods() -> Iterator[tuple[Method, ModuleType]]:
    """The methods that the installed vLLM has, with their modules; EVS at least."""
    for method, places in _PLACES.items():
        module = next(filter(None, map(_imported, places)), None)
        if module is not None:
            _check_module(method, module)
            yield method, module
        elif method == "evs":
            raise _unknown(f"there is none of {', '.join(places)}")


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # That of the module itself or of a package above it; any other is an error of vLLM's.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None


def _check_module(method: Method, module: ModuleType) -> None:
    for name, expected in _PARAMETERS.items():
        function = getattr(module, name, None)
        if not callable(function):
            raise _unknown(f"{module.__name__} has no {name}")
        if (taken := tuple(inspect.signature(function).parameters)) != expected:
            raise _unknown(f"{module.__name__}.{name} takes ({', '.join(taken)}), not ({', '.join(expected)})")
    for n, frames, q in itertools.product((1, 7, 196), (1, 2, 33), (0.1, 0.5, 0.75, 0.97)):
        theirs, ours = getattr(module, _COUNT)(n, frames, q), retained_tokens_count(n, frames, q, method=method)
        if theirs != ours:
            raise _unknown(f"{module.__name__}.{_COUNT}({n}, {frames}, {q}) is {theirs}, not {ours}")


def _unknown(what: str) -> RuntimeError:
    try:
        version = f"vLLM {importlib.metadata.version('vllm')}"
    except importlib.metadata.PackageNotFoundError:
        version = "this vLLM"
    return RuntimeError(
        f"idsel_kernels does not know how {version} prunes video tokens: {what}. It knows "
        f"{', '.join(KNOWN)}; unset IDSEL_VLLM_RULE to run without"
    )


def _like(theirs: Callable[..., Tensor], ours: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function with vLLM's signature, name and docstring that does what ours does."""

    @functools.wraps(theirs)
    def mask(video_embeds: Tensor, video_size_thw: Sequence[int] | Tensor, spatial_merge_size: int, q: float) -> Tensor:
        return ours(video_embeds, video_size_thw, spatial_merge_size, q)

    setattr(mask, _ORIGINAL, theirs)
    return mask


def _replace(old: object, new: object) -> None:
    """In each module of vLLM that has it: `from ... import` has copied the name into the modules of models."""
    for path, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and path.partition(".")[0] == "vllm":
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)

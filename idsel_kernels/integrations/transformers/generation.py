"""`pruned`: `model.generate` with fewer visual tokens."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...rules import Rule
from .families import MODALITIES, takes_encoder_outputs, uncompiled
from .inputs import Options, PrunedInputs, prune_with
from .scores import Importance

__all__ = ["Pruner", "pruned"]


@dataclass
class Pruner:
    """What `pruned` yields.

    Attributes:
        last: what the last call of `generate` was given in place of its inputs; None where it had no image.
    """

    last: PrunedInputs | None = None


@contextlib.contextmanager
def pruned(
    model: Any,
    k: int | Sequence[int] | None = None,
    *,
    keep_ratio: float | None = None,
    rule: Rule | str = "id",
    importance: Importance | None = None,
    positions: Literal["original", "contiguous"] = "original",
    backend: str | None = None,
) -> Iterator[Pruner]:
    """Inside, `model.generate(**inputs)` keeps k tokens of every image and video, and returns what it returned before.

    The sequences start with the whole prompt, so what cuts it off needs no change; `max_length` counts it too, and
    stopping criteria and logits processors see it. What `generate` gives besides (scores, cache, attention, the prompt
    of a streamer) is that of the shorter prompt. `model(**inputs)` is not pruned: for that there is `prune_inputs`.

    Args:
        model, k, keep_ratio, rule, importance, positions, backend: as for `prune_inputs`.

    Yields:
        A `Pruner`, whose `last` says what was kept.

    Raises:
        TypeError, ValueError: an argument is not as above; on entry, where that can be seen without inputs.

    Example:
        >>> import torch, transformers
        >>> text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
        >>> vision = dict(text, num_hidden_layers=2, image_size=8, patch_size=2, projection_dim=16)
        >>> config = transformers.LlavaConfig(
        ...     vision_config=transformers.CLIPVisionConfig(**vision),
        ...     text_config=transformers.LlamaConfig(**text),
        ...     image_token_id=31,
        ... )
        >>> model = transformers.LlavaForConditionalGeneration(config).eval()
        >>> ids = torch.tensor([[1] + [31] * 16 + [2, 3]])
        >>> with pruned(model, 4) as pruner:
        ...     out = model.generate(input_ids=ids, pixel_values=torch.randn(1, 3, 8, 8), max_new_tokens=2)
        >>> pruner.last.counts, (out[:, :19] == ids).all().item()
        ([4], True)
    """
    model = uncompiled(model)
    options = Options(k, keep_ratio, rule, importance, positions, backend).checked_for(model)
    pruner = Pruner()
    generate = model.generate
    shadowed = vars(model).get("generate")
    model.generate = _pruning(generate, model, options, pruner)
    try:
        yield pruner
    finally:
        if shadowed is None:
            del model.generate
        else:
            model.generate = shadowed


def _pruning(generate: Callable[..., Any], model: Any, options: Options, pruner: Pruner) -> Callable[..., Any]:
    names = tuple(inspect.signature(generate).parameters)

    @functools.wraps(generate)
    def with_fewer_tokens(*args: Any, **kwargs: Any) -> Any:
        kwargs |= zip(names, args, strict=False)
        pruner.last = None
        if all(kwargs.get(pixels) is None for pixels in MODALITIES.values()):
            _check_cache_without_images(kwargs, model)
            return generate(**kwargs)
        if (ids := kwargs.pop("inputs", None)) is not None:
            if kwargs.get("input_ids") is not None:
                raise ValueError("input_ids must be given once, got inputs too")
            kwargs["input_ids"] = ids
        _check_options(kwargs, model)
        # What is one of the inputs of the model goes by name, the rest is `generate`'s own.
        with torch.no_grad():
            last = prune_with(options, model, kwargs)
        prompt, width = kwargs["input_ids"], last.input_ids.shape[1]
        _check_end(kwargs, model)
        given = {**last.inputs, "input_ids": last.input_ids, **_lengths(kwargs, model, prompt.shape[1] - width)}
        given |= _on_whole_prompt(kwargs, prompt, width)
        with last.handed_on(model):
            out = generate(**given)
        pruner.last = last
        return _with_whole_prompt(out, prompt, width)

    return with_fewer_tokens


def _effective(name: str, kwargs: dict[str, Any], model: Any) -> Any:
    """What `generate` goes by: its argument, or else what a configuration says that is not the default."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    for config in filter(None, (kwargs.get("generation_config"), model.generation_config)):
        value = getattr(config, name, None)
        if value is not None and value != getattr(type(config)(), name, None):
            return value
    return None


def _check_options(kwargs: dict[str, Any], model: Any) -> None:
    use_cache = _effective("use_cache", kwargs, model)
    if use_cache is not None and not use_cache:
        # Without a cache transformers takes a jump of the positions for the start of another sequence.
        raise ValueError(f"use_cache must not be False with pruned tokens, got {use_cache}")
    chunk = _effective("prefill_chunk_size", kwargs, model)
    if chunk is not None:  # most versions would show the model placeholders without their features
        raise ValueError(f"prefill_chunk_size must be None with pruned tokens, got {chunk}")
    if kwargs.get("assistant_model") is not None and not takes_encoder_outputs(model):
        raise ValueError("assistant_model must be None with pruned tokens before transformers 5.18, got a model")
    if (length := _cache_length(kwargs)) > 0:
        raise ValueError(f"the cache must be empty where images are given, got one of {length} tokens")


def _check_cache_without_images(kwargs: dict[str, Any], model: Any) -> None:
    """A prompt that goes on from a pruned one: its cache has fewer tokens than the whole prompt."""
    ids = kwargs.get("inputs") if kwargs.get("input_ids") is None else kwargs["input_ids"]
    if not isinstance(ids, Tensor) or _cache_length(kwargs) == 0:
        return
    if any(bool((ids == token).any()) for token in _placeholders(model)):
        raise ValueError(
            "the cache must be empty for a prompt with image tokens, since that of a pruned prompt lacks some: give "
            f"the images again, got one of {_cache_length(kwargs)} tokens"
        )


def _check_end(kwargs: dict[str, Any], model: Any) -> None:
    """The last token of a prompt says what comes next, and where: no token of an image, which may be dropped."""
    prompt, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    place = torch.arange(prompt.shape[1], device=prompt.device).expand_as(prompt)
    last = (place if mask is None else place * mask.bool()).amax(1, keepdim=True)
    is_image = torch.stack([prompt.gather(1, last) == token for token in _placeholders(model)]).any(0)
    if bool(is_image.any()):
        samples = is_image.flatten().nonzero().flatten().tolist()
        raise ValueError(f"input_ids must end with text in every sample, got an image at the end of {samples}")


def _placeholders(model: Any) -> list[int]:
    tokens = [getattr(model.config, f"{modality}_token_id", None) for modality in MODALITIES]
    return [token for token in tokens if token is not None]


def _cache_length(kwargs: dict[str, Any]) -> int:
    caches = [kwargs.get("past_key_values"), kwargs.get("cache")]
    return max(0 if cache is None else int(cache.get_seq_length()) for cache in caches)


def _lengths(kwargs: dict[str, Any], model: Any, dropped: int) -> dict[str, int]:
    """The lengths asked for that count the prompt, less what it has become shorter."""
    lengths = {}
    for name, without_prompt in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = _effective(name, kwargs, model)
        if value is not None and _effective(without_prompt, kwargs, model) is None:
            lengths[name] = max(value - dropped, 0)
    return lengths


def _on_whole_prompt(kwargs: dict[str, Any], prompt: Tensor, width: int) -> dict[str, Any]:
    """What the caller gave that looks at the tokens so far, made to see the prompt that the caller knows."""

    def whole(ids: Tensor) -> Tensor:
        return torch.cat([prompt.repeat_interleave(len(ids) // len(prompt), 0).to(ids), ids[:, width:]], 1)

    def seeing_it(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda ids, scores, **more: function(whole(ids), scores, **more)

    given: dict[str, Any] = {}
    for name in ("stopping_criteria", "logits_processor"):
        if kwargs.get(name) is not None:
            given[name] = type(kwargs[name])([seeing_it(function) for function in kwargs[name]])
    allowed = kwargs.get("prefix_allowed_tokens_fn")
    if allowed is not None:
        given["prefix_allowed_tokens_fn"] = lambda sample, ids: allowed(
            sample, torch.cat([prompt[sample].to(ids), ids[width:]])
        )
    return given


def _with_whole_prompt(out: Any, prompt: Tensor, width: int) -> Any:
    """The result of `generate` with sequences that start with `prompt` in place of its `width` first tokens."""
    sequences = out if isinstance(out, Tensor) else out.sequences
    times = sequences.shape[0] // prompt.shape[0]
    whole = torch.cat([prompt.repeat_interleave(times, 0).to(sequences), sequences[:, width:]], 1)
    if isinstance(out, Tensor):
        return whole
    out.sequences = whole
    return out

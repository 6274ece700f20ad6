"""What `generate` was asked for: what cannot be done with fewer tokens, and what has to count the whole prompt."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .families import placeholders, takes_encoder_outputs

__all__ = [
    "check_cache_without_images",
    "check_end",
    "check_options",
    "effective_config",
    "lengths",
    "on_whole_prompt",
]

_LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}  # with the prompt, without


def effective_config(kwargs: dict[str, Any], model: Any) -> Any:
    """The configuration that `generate` goes by, as it makes it of its arguments and of what the model has."""
    names = {*vars(model.generation_config), "use_model_defaults"}
    given = {name: value for name, value in kwargs.items() if name in names and value is not None}
    config, _ = model._prepare_generation_config(kwargs.get("generation_config"), **given)
    return config


def check_options(kwargs: dict[str, Any], config: Any, model: Any) -> None:
    """Refuses ways of generating for which a prompt with jumps in its positions is not the whole one."""
    if config.use_cache is not None and not config.use_cache:
        # Without a cache transformers takes a jump of the positions for the start of another sequence.
        raise ValueError(f"use_cache must not be False with pruned tokens, got {config.use_cache}")
    chunk = getattr(config, "prefill_chunk_size", None)
    if chunk is not None:  # most versions would show the model placeholders without their features
        raise ValueError(f"prefill_chunk_size must be None with pruned tokens, got {chunk}")
    if not takes_encoder_outputs(model):  # the hook would take other passes for those of the prompt
        if kwargs.get("assistant_model") is not None:
            raise ValueError("assistant_model must be None with pruned tokens before transformers 5.18, got a model")
        if config.guidance_scale not in (None, 1):
            raise ValueError(
                f"guidance_scale must be None with pruned tokens before transformers 5.18, got {config.guidance_scale}"
            )
    if (length := _cache_length(kwargs)) > 0:
        raise ValueError(f"the cache must be empty where images are given, got one of {length} tokens")


def check_cache_without_images(kwargs: dict[str, Any], model: Any) -> None:
    """A prompt that goes on from a pruned one: its cache has fewer tokens than the whole prompt."""
    ids = kwargs.get("inputs") if kwargs.get("input_ids") is None else kwargs["input_ids"]
    if not isinstance(ids, Tensor) or _cache_length(kwargs) == 0:
        return
    if any(bool((ids == token).any()) for token in placeholders(model.config).values()):
        raise ValueError(
            "the cache must be empty for a prompt with image tokens, since that of a pruned prompt lacks some: give "
            f"the images again, got one of {_cache_length(kwargs)} tokens"
        )


def check_end(kwargs: dict[str, Any], model: Any) -> None:
    """The last token of a prompt says what comes next, and where: no token of an image, which may be dropped."""
    prompt, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    place = torch.arange(prompt.shape[1], device=prompt.device).expand_as(prompt)
    last = (place if mask is None else place * mask.bool()).amax(1, keepdim=True)
    is_image = torch.stack([prompt.gather(1, last) == token for token in placeholders(model.config).values()]).any(0)
    if bool(is_image.any()):
        samples = is_image.flatten().nonzero().flatten().tolist()
        raise ValueError(f"input_ids must end with text in every sample, got an image at the end of {samples}")


def _cache_length(kwargs: dict[str, Any]) -> int:
    caches = [kwargs.get("past_key_values"), kwargs.get("cache")]
    return max(0 if cache is None else int(cache.get_seq_length()) for cache in caches)


def lengths(kwargs: dict[str, Any], config: Any, model: Any, dropped: int) -> dict[str, int]:
    """The lengths asked for that count the prompt, less what it has become shorter."""
    shorter = {}
    for name, without_prompt in _LENGTHS.items():
        value, unset = getattr(config, name), getattr(type(config)(), name)
        asked = kwargs.get(name) is not None or value != unset
        if unset is None:  # then a default has been filled in
            sources = (kwargs.get("generation_config"), model.generation_config)
            asked = kwargs.get(name) is not None or any(getattr(source, name, None) is not None for source in sources)
        if asked and value is not None and getattr(config, without_prompt) is None:
            shorter[name] = max(value - dropped, 0)
    return shorter


class _OnWholePrompt:
    """Something of the caller's that looks at the tokens so far, made to see the prompt that the caller knows."""

    def __init__(self, function: Any, prompt: Tensor, width: int) -> None:
        self._function, self._prompt, self._width = function, prompt, width

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy that is being made has no function yet
            raise AttributeError(name)
        return getattr(self._function, name)

    def _whole(self, ids: Tensor) -> Tensor:
        times = len(ids) // len(self._prompt)
        return torch.cat([self._prompt.repeat_interleave(times, 0).to(ids), ids[:, self._width :]], 1)


class _Criterion(_OnWholePrompt):
    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Any:
        return self._function(self._whole(input_ids), scores, **more)


class _Processor(_OnWholePrompt):
    """transformers reads from the signature what to hand over."""

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        return self._function(self._whole(input_ids), scores)


def on_whole_prompt(kwargs: dict[str, Any], prompt: Tensor, short: Tensor) -> dict[str, Any]:
    """What the caller gave that looks at the tokens so far, so that it does what it did with the whole prompt.

    What is transformers' own stays, because its type tells `generate` what it replaces; only numbers that count the
    prompt become less.
    """
    given: dict[str, Any] = {}
    for name, wrapper in (("stopping_criteria", _Criterion), ("logits_processor", _Processor)):
        if kwargs.get(name) is not None:
            given[name] = copy.copy(kwargs[name])
            given[name][:] = [
                _shortened(each, prompt.shape[1] - short.shape[1])
                if type(each).__module__.startswith("transformers.")
                else wrapper(each, prompt, short.shape[1])
                for each in kwargs[name]
            ]
    allowed = kwargs.get("prefix_allowed_tokens_fn")
    if allowed is not None:
        given["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(
            row, torch.cat([prompt[_sample_of(row, ids, short)].to(ids), ids[short.shape[1] :]])
        )
    return given


def _sample_of(row: int, ids: Tensor, short: Tensor) -> int:
    """Whose prompt this is. Versions before 5.19 tell the row of a batch in which samples may be repeated."""
    same = (short == ids[: short.shape[1]]).all(1)
    return row if row < len(same) and bool(same[row]) else int(same.int().argmax())


def _shortened(each: Any, dropped: int) -> Any:
    each = copy.copy(each)
    for name in ("max_length", "min_length", "prompt_length_to_skip", "prompt_ignore_length"):
        if isinstance(value := getattr(each, name, None), int):
            setattr(each, name, max(value - dropped, 0))
    return each

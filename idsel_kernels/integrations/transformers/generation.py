"""`pruned`: `model.generate` with fewer visual tokens."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...rules import Rule
from .families import MODALITIES
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

    The sequences start with the whole prompt, so what cuts it off needs no change; `max_length` counts it too. What
    `generate` gives besides (scores, cache, attention) is that of the shorter prompt. `model(**inputs)` is not pruned:
    for that there is `prune_inputs`.

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
    @functools.wraps(generate)
    def with_fewer_tokens(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        pruner.last = None
        if all(kwargs.get(pixels) is None for pixels in MODALITIES.values()):
            return generate(inputs, *args, **kwargs)
        if inputs is not None:
            kwargs["input_ids"] = inputs
        _check_options(kwargs, model)
        # What is one of the inputs of the model goes by name, the rest is `generate`'s own.
        with torch.no_grad():
            last = prune_with(options, model, kwargs)
        prompt, short = kwargs["input_ids"], last.input_ids
        dropped = prompt.shape[1] - short.shape[1]
        given = {**last.inputs, "input_ids": short}
        for name in ("max_length", "min_length"):
            if kwargs.get(name) is not None:
                given[name] = kwargs[name] - dropped
        with last.handed_on(model):
            out = generate(None, *args, **given)
        pruner.last = last
        return _with_whole_prompt(out, prompt, short.shape[1])

    return with_fewer_tokens


def _check_options(kwargs: dict[str, Any], model: Any) -> None:
    config = kwargs.get("generation_config") or model.generation_config
    if kwargs.get("use_cache", config.use_cache) is False:
        # Without a cache transformers takes a jump of the positions for the start of another sequence.
        raise ValueError("use_cache must not be False with pruned tokens, got False")
    chunk = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
    if chunk is not None:  # most versions would show the model placeholders without their features
        raise ValueError(f"prefill_chunk_size must be None with pruned tokens, got {chunk}")
    for name in ("past_key_values", "cache"):
        cache = kwargs.get(name)
        if cache is not None and cache.get_seq_length():
            raise ValueError(f"{name} must be empty where images are given, got {cache.get_seq_length()} tokens")


def _with_whole_prompt(out: Any, prompt: Tensor, width: int) -> Any:
    """The result of `generate` with sequences that start with `prompt` in place of its `width` first tokens."""
    sequences = out if isinstance(out, Tensor) else out.sequences
    times = sequences.shape[0] // prompt.shape[0]
    whole = torch.cat([prompt.repeat_interleave(times, 0).to(sequences), sequences[:, width:]], 1)
    if isinstance(out, Tensor):
        return whole
    out.sequences = whole
    return out

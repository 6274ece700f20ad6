"""`pruned`: `model.generate` with fewer visual tokens."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...rules import Rule
from .arguments import (
    check_cache_without_images,
    check_end,
    check_options,
    effective_config,
    lengths,
    on_whole_prompt,
)
from .families import MODALITIES, uncompiled
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
    entry = _Entry(Options(k, keep_ratio, rule, importance, positions, backend).checked_for(model))
    with _lock:
        if not isinstance(vars(model).get("generate"), _PruningGenerate):
            model.generate = _PruningGenerate(model)
        generate = model.generate
        generate.entries.append(entry)
    try:
        yield entry.pruner
    finally:
        with _lock:
            generate.entries.remove(entry)
            if not generate.entries and vars(model).get("generate") is generate:
                generate.put_back()


_lock = threading.Lock()


@dataclass(eq=False)
class _Entry:
    """A `pruned` that has not ended."""

    options: Options
    pruner: Pruner = field(default_factory=Pruner)
    thread: int = field(default_factory=threading.get_ident)


class _PruningGenerate:
    """Stands for `generate` of one model while there are entries; without any it is that `generate`."""

    def __init__(self, model: Any) -> None:
        self.original = model.generate
        self.shadowed = vars(model).get("generate")
        self.model = model
        self.entries: list[_Entry] = []
        self.names = tuple(inspect.signature(self.original).parameters)
        functools.update_wrapper(self, self.original)

    def put_back(self) -> None:
        if self.shadowed is None:
            del self.model.generate
        else:
            self.model.generate = self.shadowed

    def _entry(self) -> _Entry | None:
        """The last of this thread, or of all if this thread has none."""
        with _lock:
            own = [entry for entry in self.entries if entry.thread == threading.get_ident()]
            candidates = own or self.entries
            return candidates[-1] if candidates else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs |= zip(self.names, args, strict=False)
        entry, model = self._entry(), self.model
        if entry is None:
            return self.original(**kwargs)
        entry.pruner.last = None
        if all(kwargs.get(pixels) is None for pixels in MODALITIES.values()):
            check_cache_without_images(kwargs, model)
            return self.original(**kwargs)
        if (ids := kwargs.pop("inputs", None)) is not None:
            if kwargs.get("input_ids") is not None:
                raise ValueError("input_ids must be given once, got inputs too")
            kwargs["input_ids"] = ids
        config = effective_config(kwargs, model)
        check_options(kwargs, config, model)
        # What is one of the inputs of the model goes by name, the rest is `generate`'s own.
        with torch.no_grad():
            last = prune_with(entry.options, model, kwargs)
        prompt, width = kwargs["input_ids"], last.input_ids.shape[1]
        check_end(kwargs, model)
        given = {**last.inputs, "input_ids": last.input_ids}
        given |= lengths(kwargs, config, model, prompt.shape[1] - width)
        given |= on_whole_prompt(kwargs, prompt, last.input_ids)
        with last.handed_on(model):
            out = self.original(**given)
        entry.pruner.last = last
        return _with_whole_prompt(out, prompt, width)


def _with_whole_prompt(out: Any, prompt: Tensor, width: int) -> Any:
    """The result of `generate` with sequences that start with `prompt` in place of its `width` first tokens."""
    sequences = out if isinstance(out, Tensor) else out.sequences
    times = sequences.shape[0] // prompt.shape[0]
    whole = torch.cat([prompt.repeat_interleave(times, 0).to(sequences), sequences[:, width:]], 1)
    if isinstance(out, Tensor):
        return whole
    out.sequences = whole
    return out

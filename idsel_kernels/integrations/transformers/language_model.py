"""What versions of transformers before 5.18 do not let through to the language model."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LanguageModelHook"]


@dataclass
class LanguageModelHook:
    """Gives a language model its positions and deepstack features, in the prompt and behind it.

    Attributes:
        positions: (..., B, L') of the prompt; behind it they go on from its last token.
        visual: (B, L') bool, which tokens have deepstack features; None where the model has none.
        deepstack: (T', D) of each layer.
    """

    positions: Tensor
    visual: Tensor | None
    deepstack: list[Tensor]
    caller: int = field(default_factory=threading.get_ident)  # other threads may run the model too

    def __call__(
        self, _module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The arguments of the language model, for a forward pre-hook: of the prompt, or of what follows it.

        Without kwargs torch calls a hook that another thread is just removing.
        """
        if threading.get_ident() != self.caller or kwargs is None:
            return None
        batch, length = kwargs["inputs_embeds"].shape[:2]
        past = _past_length(kwargs)
        beams = batch // self.positions.shape[-2]
        positions = self._positions_up_to(past + length)[..., past : past + length]
        kwargs["position_ids"] = positions.repeat_interleave(beams, -2)
        if self.visual is not None and past == 0:
            row = self.visual.flatten().cumsum(0).view_as(self.visual) - 1
            visual, row = self.visual.repeat_interleave(beams, 0), row.repeat_interleave(beams, 0)
            kwargs["visual_pos_masks"] = visual
            kwargs["deepstack_visual_embeds"] = [layer[row[visual]] for layer in self.deepstack]
        return args, kwargs

    def _positions_up_to(self, end: int) -> Tensor:
        behind = torch.arange(1, max(end - self.positions.shape[-1], 0) + 1, device=self.positions.device)
        return torch.cat([self.positions, self.positions[..., -1:] + behind], -1)


def _past_length(kwargs: dict[str, Any]) -> int:
    """How many tokens were there before these."""
    if kwargs.get("cache_position") is not None:  # what a static cache says of itself depends on its values
        return int(kwargs["cache_position"][0])
    cache = kwargs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())

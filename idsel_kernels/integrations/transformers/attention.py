"""What the class token of a vision tower pays attention to, while the tower runs as it always does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...importance import cls_attention

__all__ = ["has_class_token", "watch_class_token"]


def has_class_token(base: Any) -> bool:
    """Whether the vision tower of a model has a class token, and projections of queries and keys to watch it by."""
    tower = getattr(base, "vision_tower", None)
    if tower is None or not _layers(tower):
        return False
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())


@contextlib.contextmanager
def watch_class_token(base: Any, hidden_state: int | list[int]) -> Iterator[list[Tensor]]:
    """Collects the attention of the class token in the layer behind which features are taken: (images, patches) a run.

    It is computed from queries and keys, so the tower may keep a fused attention, which returns no weights.

    Args:
        base: a model with a `vision_tower`.
        hidden_state: index of the hidden state that is taken, the last counts if there are several; 0 is the embedding,
            and state i what layer i - 1 returned.
    """
    index = hidden_state if isinstance(hidden_state, int) else hidden_state[-1]
    layers = _layers(base.vision_tower)
    if index == 0 or not -len(layers) <= index <= len(layers):
        behind = f"a layer of the {len(layers)} of the vision tower, for the attention in it"
        raise ValueError(f"vision_feature_layer must be what is behind {behind}, got {index}")
    attention = layers[index if index < 0 else index - 1]
    caller = threading.get_ident()
    seen: dict[str, Tensor] = {}
    rows: list[Tensor] = []

    def keep(which: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if threading.get_ident() != caller:  # the tower runs on another thread too
                return
            seen[which] = output.detach().view(*output.shape[:-1], attention.num_heads, -1).transpose(1, 2)
            if len(seen) == 2:
                rows.append(cls_attention(seen.pop("q"), seen.pop("k")))

        return hook

    with contextlib.ExitStack() as hooks:
        for which in "qk":
            last_step = getattr(attention, f"{which}_norm", getattr(attention, f"{which}_proj"))
            hooks.callback(last_step.register_forward_hook(keep(which)).remove)
        yield rows


def _layers(tower: nn.Module) -> list[Any]:
    """The attention modules of the tower, from the first layer to the last."""
    return [module for module in tower.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]

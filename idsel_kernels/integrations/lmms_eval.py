"""lmms-eval: its `llava_hf` with pruned visual tokens, so that people with weights can measure accuracy.

`manifests` is the entry point `idsel` of the group `lmms_eval.models`: it adds a model, `llava_hf_idsel`, and changes
none. `with_pruning` makes the same of any other of its models that calls `generate` of a transformers model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

__all__ = ["MODEL", "manifests", "with_pruning"]

MODEL = "llava_hf_idsel"

# Made when lmms-eval asks for them by name: their bases can be imported only where it is installed.
_BASES = {
    "ChatLlavaHf": "lmms_eval.models.chat.llava_hf",
    "SimpleLlavaHf": "lmms_eval.models.simple.llava_hf",
}
_OPTIONS = ("k", "keep_ratio", "rule", "importance", "positions", "backend")


def manifests() -> Any:
    """What lmms-eval is told: a `ModelManifest` of the model `llava_hf_idsel`, for both kinds of prompt."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(
        model_id=MODEL,
        simple_class_path=f"{__name__}.SimpleLlavaHf",
        chat_class_path=f"{__name__}.ChatLlavaHf",
    )


def __getattr__(name: str) -> type:
    if name not in _BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made(name)


@functools.cache
def _made(name: str) -> type:
    made = with_pruning(importlib.import_module(_BASES[name]).LlavaHf)
    made.__name__ = made.__qualname__ = name
    return made


class _Failed(BaseException):
    """Carries an error past `except Exception`: there lmms-eval goes on with an empty answer, which counts as wrong."""


def with_pruning(base: type) -> type:
    """A model of lmms-eval whose `generate_until` prunes.

    Args:
        base: a class of lmms-eval whose `model` is a transformers model that `idsel_kernels.integrations.transformers`
            knows, and that answers with `self.model.generate`.

    Returns:
        A subclass. Besides the arguments of `base` it takes those of `pruned`: `k` or `keep_ratio`, `rule`,
        `importance`, `positions`, `backend`. They are checked once the model is loaded. An error in `generate` stops
        the run. Tasks that compare likelihoods raise `NotImplementedError`, because there nothing would be pruned.

    Example:
        >>> class Base:
        ...     is_simple = False
        >>> with_pruning(Base).__name__, with_pruning(Base).is_simple
        ('PrunedBase', False)
    """

    class Pruning(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._pruning = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
            super().__init__(*args, **kwargs)
            with _pruned(self.model, self._pruning):
                pass  # a wrong option is an error now, and not when the data sets are loaded

        def generate_until(self, requests: Any) -> Any:
            return self._with_pruning(super().generate_until, requests)

        def generate_until_multi_round(self, requests: Any) -> Any:
            return self._with_pruning(super().generate_until_multi_round, requests)

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError("likelihoods are not pruned; choose a task that generates its answers")

        def _with_pruning(self, answer: Any, requests: Any) -> Any:
            try:
                with _pruned(self.model, self._pruning), _errors_get_out(self.model):
                    return answer(requests)
            except _Failed as failed:
                raise RuntimeError(f"pruning or generating failed: {failed.__cause__}") from failed.__cause__

    Pruning.__name__ = Pruning.__qualname__ = f"Pruned{base.__name__}"
    Pruning.__module__ = __name__
    return Pruning


def _pruned(model: Any, options: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    pruned: Any = importlib.import_module("idsel_kernels.integrations.transformers").pruned
    entered: contextlib.AbstractContextManager[Any] = pruned(model, **options)
    return entered


@contextlib.contextmanager
def _errors_get_out(model: Any) -> Iterator[None]:
    """Inside, an error of `model.generate` is a `_Failed`."""
    model = getattr(model, "_orig_mod", model)  # of a compiled one, where `pruned` has its own too
    pruning = model.generate

    @functools.wraps(pruning)
    def generate(*args: Any, **kwargs: Any) -> Any:
        try:
            return pruning(*args, **kwargs)
        except Exception as error:
            raise _Failed from error

    shadowed = vars(model).get("generate")
    model.generate = generate
    try:
        yield
    finally:
        if shadowed is None:
            del model.generate
        else:
            model.generate = shadowed

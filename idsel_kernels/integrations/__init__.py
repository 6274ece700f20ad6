"""Adapters for other frameworks; each imports its framework only when it is used."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["lmms_eval", "transformers", "vllm"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")

"""Loads the compiled library, once, and remembers why that failed."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

__all__ = ["ABI", "build_notes", "failure", "library", "rule_ids"]

# Of csrc/include/idsel/select.h: the layout of arguments that this package passes.
ABI = 4


@functools.cache
def _load() -> ModuleType | str:
    """The library, or why there is none."""
    try:
        core = importlib.import_module("._core", __package__)
    except ImportError as error:
        if getattr(error, "name", None) == f"{__package__}._core" or "_core" in str(error).split("(")[0]:
            notes = build_notes() or "it needs a C++ compiler when idsel_kernels is installed"
            return f"the compiled library is not built ({notes})"
        return f"the compiled library does not load: {error}"
    if core.ABI != ABI:
        return f"the compiled library has ABI {core.ABI}, this package needs {ABI}: reinstall idsel_kernels"
    return core


def library() -> ModuleType:
    """The compiled library.

    Raises:
        ImportError: there is none; the message says why.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise ImportError(loaded)
    return loaded


def build_notes() -> str | None:
    """What the installation left out, and why; None where it left out nothing."""
    notes = Path(__file__).with_name("_core.txt")  # setup.py writes it
    return "; ".join(notes.read_text(encoding="utf-8").splitlines()) if notes.exists() else None


def failure() -> str | None:
    """Why the library is missing; None where it is there."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def rule_ids() -> frozenset[int]:
    """The rules that the compiled library knows."""
    return frozenset(rule_id for rule_id, *_ in library().rules())

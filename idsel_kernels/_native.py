"""Loads the compiled library, once, and remembers why that failed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from . import _copies

__all__ = ["ABI", "build_notes", "build_state", "failure", "library", "rule_ids"]

# Of csrc/include/idsel/select.h: the library that this package calls.
ABI = 12


@functools.cache
def _load() -> ModuleType | str:
    """The library, or why there is none."""
    try:
        built_here = importlib.util.find_spec(_copies.CORE) is not None
        core = importlib.import_module(_copies.CORE) if built_here else _copies.load_from_other_copy()
    except _copies.NotBuilt as error:
        return str(error)
    except (ImportError, OSError) as error:
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
    return _copies.notes_in(_folder())


def build_state() -> tuple[str | None, str]:
    """The file of the library in use and what it was built without, or None and why there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        return None, loaded
    state = build_notes() or "complete"
    if _folder() != _copies.PACKAGE:
        state += "; this source tree has no library of its own, that of an installed copy has the same C++ sources"
    return str(loaded.__file__), state


def failure() -> str | None:
    """Why the library is missing; None where it is there."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def rule_ids() -> frozenset[int]:
    """The rules that the compiled library knows."""
    return frozenset(rule_id for rule_id, *_ in library().rules())


def _folder() -> Path:
    """Where the library in use lies, or would lie."""
    loaded = _load()
    return _copies.PACKAGE if isinstance(loaded, str) else Path(str(loaded.__file__)).resolve().parent

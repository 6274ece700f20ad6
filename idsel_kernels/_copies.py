"""Which copy of the package this is, and which other one has the compiled library where this one has none.

`pip install .` builds the library into the copy that it installs. Python started in the checkout's root still imports
the sources there, because the current folder comes first on `sys.path`. Those take the library of the installed copy
if it was built from the very C++ sources that lie beside them, and otherwise say where it is.

setup.py runs this file by its path: it may import nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from types import ModuleType

__all__ = ["CORE", "DIGEST", "NOTES", "NotBuilt", "add_triton_impl", "digest", "load_from_other_copy", "notes_in"]

CORE = "idsel_kernels._core"
# What setup.py writes beside the library: what it left out and why, and the digest of what it compiled.
NOTES, DIGEST = "_core.txt", "_core.sha256"

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent

_SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".cmake", ".txt", ".version"}


class NotBuilt(Exception):
    """There is no compiled library to use; the message says where one is missing and what to do."""


def digest(root: Path) -> str | None:
    """SHA-256 of everything in a checkout that the library is compiled from; None where `root` is not a checkout."""
    if not (root / "csrc").is_dir():
        return None
    files = [root / "CMakeLists.txt", *(root / "cmake").rglob("*"), *(root / "csrc").rglob("*")]
    total = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in _SUFFIXES and path.is_file()):
        content = path.read_bytes()
        total.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def notes_in(folder: Path) -> str | None:
    """What the installation into a folder left out, and why; None where it left out nothing, or was never made."""
    notes = folder / NOTES
    return "; ".join(notes.read_text(encoding="utf-8").splitlines()) if notes.exists() else None


def load_from_other_copy() -> ModuleType:
    """Loads the library of another copy, for a copy that has none.

    Raises:
        NotBuilt: no other copy has a library, or only one of other C++ sources.
        ImportError: it does not load.
    """
    others = list(dict.fromkeys(_other_copies()))
    built = [(folder, library) for folder in others if (library := _library_in(folder)) is not None]
    if not built:
        raise NotBuilt(f"the compiled library is not built ({_why_nowhere(others)})")
    sources = digest(ROOT)
    for folder, library in built:
        if sources is not None and _digest_in(folder) == sources:
            return _load(library)
    raise NotBuilt(
        f"the compiled library is not built in {PACKAGE}, the copy of idsel_kernels in use, and that of {built[0][0]} "
        f"is not of the C++ sources here: start Python in another folder to use that copy{_or_build_here()}"
    )


def add_triton_impl() -> None:
    """Makes `triton_impl/` of a checkout `idsel_kernels.triton_impl`, which only an installation does by itself."""
    name, init = "idsel_kernels.triton_impl", ROOT / "triton_impl" / "__init__.py"
    if importlib.util.find_spec(name) is None and init.exists():
        _load(init, name)


def _other_copies() -> Iterator[Path]:
    """Folders of the copies that Python would import if this one were not there, first to last."""
    specs = [PathFinder.find_spec("idsel_kernels", [entry]) for entry in sys.path]
    for finder in sys.meta_path:  # that of an editable installation of another checkout
        if finder not in (BuiltinImporter, FrozenImporter, PathFinder):
            with contextlib.suppress(Exception):  # whatever other packages have put there
                specs.append(finder.find_spec("idsel_kernels", None))
    for spec in specs:
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).resolve().parent
            if folder != PACKAGE:
                yield folder


def _library_in(folder: Path) -> Path | None:
    """The library in a copy, if it has one for this Python."""
    spec = PathFinder.find_spec(CORE, [str(folder)])
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _digest_in(folder: Path) -> str | None:
    """Of the sources that the library in a copy was compiled from, if that is known."""
    path = folder / DIGEST
    return path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else None


def _why_nowhere(others: list[Path]) -> str:
    """Why no copy has a library."""
    if notes := notes_in(PACKAGE):
        return notes
    for folder in others:
        if notes := notes_in(folder):
            return f"{folder}: {notes}"
    if (ROOT / "csrc").is_dir():
        return (
            f"{PACKAGE} is a source tree, and no installed copy has one either; `pip install -e {ROOT}` builds it here"
        )
    return "it needs a C++ compiler when idsel_kernels is installed"


def _or_build_here() -> str:
    return f", or build it here with `pip install -e {ROOT}`" if (ROOT / "csrc").is_dir() else ""


def _load(path: Path, name: str = CORE) -> ModuleType:
    """Imports a file under a name of this package."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a module for this Python", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

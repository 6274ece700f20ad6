"""Reads and writes the array files of the `idsel` command: .npy, .npz, .safetensors and .json."""

from __future__ import annotations

import errno
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

__all__ = [
    "OUTPUTS",
    "PRUNED",
    "FileError",
    "array_names",
    "check_output",
    "read_array",
    "write_pruned",
    "write_selection",
]

FORMATS = (".npy", ".npz", ".safetensors")
OUTPUTS = (".json", ".npy")
PRUNED = (".npz",)


class FileError(ValueError):
    """A file does not hold what was asked of it; the message names the file and says what it holds."""


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an archive; empty for a .npy file, whose one array has no name.

    Raises:
        OSError: the file cannot be opened.
        FileError: it is not of a known format, or damaged.
    """
    _check_input(path)
    if path.suffix == ".npy":
        return []
    with _damage_named(path):
        if path.suffix == ".npz":
            with _open_npz(path) as archive:
                return list(archive.files)
        with _safetensors().safe_open(path, framework="pt") as archive:
            return list(archive.keys())


def read_array(path: Path, name: str, key: str | None = None) -> torch.Tensor:
    """Reads one array.

    Args:
        path: .npy, .npz or .safetensors file.
        name: what the array is for; in an archive also the array to take, unless that holds only one.
        key: array of an archive to take instead.

    Raises:
        OSError: the file cannot be opened.
        FileError: it is of another format, damaged, or has no such array.
    """
    names = array_names(path)
    if path.suffix == ".npy":
        if key is not None:
            raise FileError(f"{path}: a .npy file has no names, so there is no array {key!r}")
        with _damage_named(path):
            return _tensor(np.load(path, allow_pickle=False))
    chosen = key or (names[0] if len(names) == 1 else name)
    if chosen not in names:
        hint = "" if key or name != "features" else " (--key takes another)"
        held = ", ".join(sorted(names)) or "nothing"
        raise FileError(f"{path}: no array {chosen!r}{hint}; it holds {held}")
    with _damage_named(path):
        return _load_member(path, chosen)


def check_output(name: str | None, formats: tuple[str, ...]) -> Path | None:
    """The file to write, if any; refuses what could not be written, before any work is done for it.

    Raises:
        OSError: its folder is not there, or it is a folder itself.
        FileError: it is not of one of the formats.
    """
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in formats:
        raise FileError(f"{path}: output must be a {' or '.join(formats)} file")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write to", str(path.parent))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path


def write_selection(path: Path, answer: dict[str, Any]) -> None:
    """Writes the whole answer as .json, or its (B, k) int64 indices as .npy."""
    with _replacing(path) as file:
        if path.suffix == ".json":
            file.write(f"{json.dumps(answer, allow_nan=False)}\n".encode())
        else:
            np.save(file, np.asarray(answer["indices"], dtype=np.int64))


def write_pruned(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes tensors as the arrays of a .npz file, bfloat16 as float32 because NumPy has none."""
    wide = {name: tensor.float() if tensor.dtype is torch.bfloat16 else tensor for name, tensor in tensors.items()}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in wide.items()}
    with _replacing(path) as file:
        np.savez(file, **arrays)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is whole; what ends the writing early leaves `path` as it was."""
    path = path.resolve()  # a link stays one
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(path)  # the user knows of no other
        raise


def _check_input(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.suffix not in FORMATS:
        raise FileError(f"{path}: must be a {', '.join(FORMATS)} file")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns what the readers raise over damaged files into one error that names the file."""
    try:
        yield
    except (FileError, PermissionError, IsADirectoryError, ModuleNotFoundError):
        raise
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path}: not a readable array file: {error}") from error
    except Exception as error:
        # The library's own exception has no base but Exception, and the library is optional.
        if type(error).__name__ != "SafetensorError":
            raise
        raise FileError(f"{path}: not a readable array file: {error}") from error


def _load_member(path: Path, name: str) -> torch.Tensor:
    if path.suffix == ".npz":
        with _open_npz(path) as archive:
            return _tensor(archive[name])
    with _safetensors().safe_open(path, framework="pt") as archive:
        tensor: torch.Tensor = archive.get_tensor(name)
        return tensor


def _open_npz(path: Path) -> Any:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise ValueError("it holds one array, not an archive; is its name extension right?")
    return archive


def _tensor(array: Any) -> torch.Tensor:
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds an archive of arrays; is its name extension right?")
    # torch has no foreign byte order.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _safetensors() -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise FileError("a .safetensors file needs the extra: pip install 'idsel_kernels[demo]'") from error
    return safetensors

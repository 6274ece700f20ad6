"""Where the `idsel` script starts; installed as `_idsel_start`, outside the package.

Importing anything of `idsel_kernels` imports torch, which takes longer than most would wait for a version. So this
imports the package only for what needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the version, or hands on to the command.

    Args:
        argv: arguments without the program's name; None takes them from the command line.

    Returns:
        The exit status.

    Example:
        >>> main(["--version"])
        idsel 0.1.0
        0
    """
    argv = sys.argv[1:] if argv is None else argv
    version = _installed_version() if argv[:1] == ["--version"] else None
    if version is not None:
        print(f"idsel {version}")
        return 0
    from idsel_kernels._cli import command

    return command.main(argv)


def _installed_version() -> str | None:
    """None where there is no installation but only sources, or a damaged one."""
    try:
        return metadata.version("idsel_kernels")
    except metadata.PackageNotFoundError:
        return None

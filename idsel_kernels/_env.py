"""Every environment variable the package reads; docs/env_vars.md lists them."""

from __future__ import annotations

import os

__all__ = ["backend", "triton_interpret"]


def backend() -> str | None:
    """`IDSEL_BACKEND`: the engine to use where neither an argument nor `use_backend` names one."""
    return os.environ.get("IDSEL_BACKEND") or None


def triton_interpret() -> bool:
    """`TRITON_INTERPRET`, a variable of Triton: its interpreter runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

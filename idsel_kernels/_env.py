"""Every environment variable the package reads; docs/env_vars.md lists them."""

from __future__ import annotations

import os

__all__ = ["backend", "scope_alpha", "scope_combined", "triton_interpret", "vllm_budget", "vllm_channels", "vllm_rule"]


def backend() -> str | None:
    """`IDSEL_BACKEND`: the engine to use where neither an argument nor `use_backend` names one."""
    return os.environ.get("IDSEL_BACKEND") or None


def triton_interpret() -> bool:
    """`TRITON_INTERPRET`, a variable of Triton: its interpreter runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def scope_alpha() -> str:
    """`ALPHA`, a variable of SCOPE's: the exponent of the attention."""
    return os.environ.get("ALPHA", "1.0")


def scope_combined() -> str:
    """`COMBINED`, a variable of SCOPE's: how attention meets coverage."""
    return os.environ.get("COMBINED", "multi")


def vllm_rule() -> str | None:
    """`IDSEL_VLLM_RULE`: the rule that prunes video tokens in vLLM; without it vLLM is left as it is."""
    return os.environ.get("IDSEL_VLLM_RULE") or None


def vllm_budget() -> str | None:
    """`IDSEL_VLLM_BUDGET`: whether such a selection is over the video or within frames."""
    return os.environ.get("IDSEL_VLLM_BUDGET") or None


def vllm_channels() -> str | None:
    """`IDSEL_VLLM_CHANNELS`: how many leading channels of a token it compares."""
    return os.environ.get("IDSEL_VLLM_CHANNELS") or None

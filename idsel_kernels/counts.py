"""How many tokens a call keeps of each sample: `k`, `k_max` and `keep_ratio`, made one form."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from . import checks
from .problem import Inputs
from .rules import LARGEST_INTEGER
from .tracing import resolved, sym_max, sym_min

__all__ = ["Count", "check_count", "device_counts", "host_counts", "on_device", "resolve"]

# What `select` takes as k.
Count: TypeAlias = "int | Sequence[int] | torch.Tensor"

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def resolve(
    k: Any, keep_ratio: Any, k_max: Any, inputs: Inputs, batch: int, rows_aside: int = 0
) -> tuple[list[int], torch.Tensor | None]:
    """The counts of a call on the host (one for all samples, or one each), and those that lie on the device.

    Where there are counts on the device, the host knows their upper bound, `k_max`. The last `rows_aside` rows of a
    sample are no tokens, so that a share is not one of them.
    """
    if (k is None) == (keep_ratio is None):
        given = "neither" if k is None else f"k={k!r} and keep_ratio={keep_ratio!r}"
        raise TypeError(f"either k or keep_ratio must be given, got {given}")
    if keep_ratio is not None:
        return _of_ratio(keep_ratio, k_max, inputs, rows_aside)
    if isinstance(k, torch.Tensor):
        counts = device_counts(k, inputs, batch)
        if k_max is None:
            raise TypeError("k as a tensor needs k_max=, the width of the outputs: its values are not read; got None")
        return [_width("k_max", k_max)], counts
    if k_max is not None:
        raise TypeError(f"k_max goes with k as a tensor or with keep_ratio, got k_max={k_max!r} with k={k!r}")
    return host_counts(k, batch), None


def host_counts(k: Any, batch: int) -> list[int]:
    """`k` as a list of one count for all samples, or of one count per sample."""
    if isinstance(k, np.ndarray):
        k = k.tolist()
    if isinstance(k, str) or not isinstance(k, Sequence):
        return [_width("k", k)]
    if len(k) != batch:
        raise ValueError(f"k must be an int or a list of B = {batch} ints, got a list of {len(k)}")
    # An empty list would leave the width of the output open.
    return [_width(f"k[{i}]", count) for i, count in enumerate(k)] or [0]


def check_count(name: str, value: Any, low: int = 0) -> int:
    """An int, also of NumPy or under tracing, that is at least `low`."""
    if not isinstance(value, (int, torch.SymInt)) and isinstance(value, numbers.Integral):
        value = int(value)  # a NumPy integer
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        is_share = isinstance(value, float) and name.startswith("k")
        hint = "; for a fraction of the tokens pass keep_ratio=" if is_share else ""
        hint = "; .item() or .tolist() makes one" if isinstance(value, torch.Tensor) else hint
        raise TypeError(f"{name} must be an int, got {type(value).__name__}{hint}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {value}")
    return value  # type: ignore[return-value]  # a SymInt under tracing


def _width(name: str, value: Any) -> int:
    """A count that may be how wide the outputs are."""
    count = check_count(name, value)
    if isinstance(count, int) and count > LARGEST_INTEGER:  # a SymInt would get a guard, and memory ends before
        raise ValueError(f"{name} must be <= {LARGEST_INTEGER}, the largest int32, got {count}")
    return count


def device_counts(k: torch.Tensor, inputs: Inputs, batch: int) -> torch.Tensor:
    """Counts on the device: (B,) int32 or int64."""
    checks.check_tensor("k", k)
    if k.dtype not in _INTEGERS:
        raise TypeError(f"k as a tensor must hold integers, got {k.dtype}")
    if k.dim() > 1 or (k.dim() == 1 and k.shape[0] != batch):
        raise ValueError(f"k as a tensor must be (B,) = ({batch},), or one number, got shape {tuple(k.shape)}")
    if k.device != inputs.features.device:
        raise ValueError(f"k must be on the device of features ({inputs.features.device}), got {k.device}")
    k = resolved(k) if k.dtype in (torch.int32, torch.int64) else k.to(torch.int32)
    return k.expand(batch) if k.dim() == 0 else k


# Counts that a captured graph copies at every replay.
_captured: list[torch.Tensor] = []


def on_device(k: Sequence[int], device: torch.device) -> torch.Tensor:
    """Counts of the host as a tensor (B,) int32; a copy to a GPU neither waits nor breaks a capture."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return torch.tensor(k, dtype=torch.int32, device=device)
    pinned = _pinned(tuple(k))
    if torch.cuda.is_current_stream_capturing():
        _captured.append(pinned)
    return pinned.to(device, non_blocking=True)


@functools.lru_cache(maxsize=256)
def _pinned(k: tuple[int, ...]) -> torch.Tensor:
    """On the host, page-locked."""
    return torch.tensor(k, dtype=torch.int32).pin_memory()


def _of_ratio(keep_ratio: Any, k_max: Any, inputs: Inputs, rows_aside: int) -> tuple[list[int], torch.Tensor | None]:
    """A share of each sample's tokens that exist, at least one: counted on the device where it has to be."""
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float, numbers.Real)):
        raise TypeError(f"keep_ratio must be a number in (0, 1], got {keep_ratio!r}")
    ratio, features = float(keep_ratio), inputs.features
    if not 0 < ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio!r}")
    most: Any = sym_max(1, round(ratio * (features.shape[-2] - rows_aside)))
    cap = most if k_max is None else _width("k_max", k_max)
    if inputs.mask is None and inputs.cu_seqlens is None:
        return [sym_min(most, cap)], None
    # MPS has no float64. There a product may round the other way at a half.
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    counts = (_tokens(inputs, rows_aside).to(wide) * ratio).round().to(torch.int64)
    return [cap], counts.clamp(min=1).clamp(max=cap)


def _tokens(inputs: Inputs, rows_aside: int) -> torch.Tensor:
    """How many tokens of each sample exist, (B,): inside it, not masked, and none of the last `rows_aside` rows."""
    mask, cu_seqlens = inputs.mask, inputs.cu_seqlens
    if cu_seqlens is None:
        assert mask is not None
        return mask[:, : mask.shape[1] - rows_aside].sum(-1)
    begins, ends = cu_seqlens[:-1], torch.maximum(cu_seqlens[1:] - rows_aside, cu_seqlens[:-1])
    if mask is None:
        return ends - begins
    before = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
    return before[ends.clamp(0, mask.shape[0])] - before[begins.clamp(0, mask.shape[0])]

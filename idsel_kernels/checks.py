"""Every check of user input, with the words of its error. Shapes need no values; values are read only here."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from .problem import Inputs, Problem
from .rules import Coverage, HardSuppress, MaxMin, Rule

__all__ = ["check_backend", "check_flag", "check_inputs", "check_rule", "check_values", "normalise_k"]

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IMPORTANCE_DTYPES = (*FEATURE_DTYPES, torch.float64)


def check_inputs(inputs: Inputs, rule: Rule, batched: bool = True) -> None:
    """Types, dtypes, shapes and devices of the tensors, against each other and the rule.

    `batched` False words the messages for features given as (N, D).
    """
    features, importance, mask, cu_seqlens = inputs
    _check_features(features, cu_seqlens, batched)
    if importance is not None:
        _check_companion("importance", importance, features, cu_seqlens, batched)
        if importance.dtype not in IMPORTANCE_DTYPES:
            raise TypeError(f"importance must be float16, bfloat16, float32 or float64, got {importance.dtype}")
    elif rule.needs_importance:
        name = type(rule).__name__
        raise ValueError(f"importance is required by {name}, got None (MaxMin and Coverage run without)")
    if mask is not None:
        _check_companion("mask", mask, features, cu_seqlens, batched)
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask must be torch.bool (False = not selectable), got {mask.dtype}")
    if cu_seqlens is None:
        _check_rule_fits(rule, features.shape[-2])


def _check_features(features: torch.Tensor, cu_seqlens: torch.Tensor | None, batched: bool) -> None:
    _check_tensor("features", features)
    if features.dtype not in FEATURE_DTYPES:
        raise TypeError(f"features must be float32, float16 or bfloat16, got {features.dtype}")
    if cu_seqlens is None:
        if features.dim() not in (2, 3):
            raise ValueError(f"features must be (B, N, D) or (N, D), got shape {_shape(features)}")
    else:
        _check_cu_seqlens(cu_seqlens, features)
    if features.shape[-1] == 0:
        got = _shape(features) if batched else _shape(features)[1:]
        raise ValueError(f"features must have D >= 1, got shape {got}")


def _check_cu_seqlens(cu_seqlens: torch.Tensor, features: torch.Tensor) -> None:
    _check_tensor("cu_seqlens", cu_seqlens)
    if features.dim() != 2:
        raise ValueError(f"features must be (T, D) with cu_seqlens, got shape {_shape(features)}")
    if cu_seqlens.dtype is not torch.int32:
        raise TypeError(f"cu_seqlens must be torch.int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be (B+1,), got shape {_shape(cu_seqlens)}")
    _check_device("cu_seqlens", cu_seqlens, features)


def _check_companion(
    name: str, value: Any, features: torch.Tensor, cu_seqlens: torch.Tensor | None, batched: bool
) -> None:
    _check_tensor(name, value)
    wanted = features.shape[:-1]
    if value.shape != wanted:
        axes = "(T,)" if cu_seqlens is not None else "(B, N)" if batched else "(N,)"
        size, got = (tuple(wanted), _shape(value)) if batched else (tuple(wanted[1:]), _shape(value)[1:])
        raise ValueError(f"{name} must be {axes} = {size} to match features, got {got}")
    _check_device(name, value, features)


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name} must not be a nested tensor; pass its values with cu_seqlens")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")


def _check_device(name: str, value: torch.Tensor, features: torch.Tensor) -> None:
    if value.device != features.device:
        raise ValueError(f"{name} must be on the device of features ({features.device}), got {value.device}")


def _shape(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _check_rule_fits(rule: Rule, tokens: int) -> None:
    """Rule parameters that name positions must exist among N tokens."""
    if isinstance(rule, MaxMin) and rule.start is not None and rule.start >= max(tokens, 1):
        raise ValueError(f"MaxMin: start must be < N = {tokens}, got {rule.start}")
    _check_grid(rule, tokens)


def _check_grid(rule: Rule, tokens: int) -> None:
    if tokens and isinstance(rule, HardSuppress) and rule.grid is not None and math.prod(rule.grid) != tokens:
        height, width = rule.grid
        raise ValueError(f"HardSuppress: grid must have N = {tokens} cells, got {height} x {width}")


def check_rule(rule: Any) -> None:
    """A rule instance, not its class or its name."""
    if isinstance(rule, Rule) and rule.is_complete:
        return
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"rule must be an instance, got the class {rule.__name__}; write {rule.__name__}(...)")
    raise TypeError(f"rule must be a rule such as IDSelection(), got {rule!r}")


def check_flag(name: str, value: Any) -> None:
    """A real bool: a tensor or string in its place is a slip that truthiness would hide."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_backend(name: Any, known: Sequence[str], source: str = "backend") -> None:
    """A known backend's name; whether it can run is the dispatcher's business."""
    if not isinstance(name, str):
        raise TypeError(f"{source} must be a string, one of {', '.join(known)}, got {name!r}")
    if name not in known:
        raise ValueError(f"{source} must be one of {', '.join(known)}, got {name!r}")


def normalise_k(k: Any, batch: int) -> list[int]:
    """`k` as a list of one count for all samples, or of one count per sample."""
    if not isinstance(k, (list, tuple)):
        return [_check_count("k", k)]
    if len(k) != batch:
        raise ValueError(f"k must be an int or a list of B = {batch} ints, got a list of {len(k)}")
    # An empty list would leave the width of the output open.
    return [_check_count(f"k[{i}]", count) for i, count in enumerate(k)] or [0]


def _check_count(name: str, value: Any) -> int:
    if not isinstance(value, (int, torch.SymInt)) and isinstance(value, numbers.Integral):
        value = int(value)  # a NumPy integer
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        hint = "; for a fraction pass round(fraction * N)" if isinstance(value, float) else ""
        hint = "; .item() or .tolist() makes one" if isinstance(value, torch.Tensor) else hint
        raise TypeError(f"{name} must be an int, got {type(value).__name__}{hint}")
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    return value  # type: ignore[return-value]  # a SymInt under tracing


def check_values(problem: Problem, inputs: Inputs, validate: bool) -> None:
    """Checks that read values: `cu_seqlens` where that costs no device sync, everything with `validate`."""
    if inputs.cu_seqlens is not None and (validate or inputs.cu_seqlens.device.type == "cpu"):
        _check_offsets(inputs.cu_seqlens.tolist(), problem)
    if not validate:
        return
    # Masked tokens are no part of the problem, so they may hold anything.
    ignored = torch.zeros((), dtype=torch.bool) if inputs.mask is None else ~inputs.mask
    _check_finite("features", "row", torch.isfinite(inputs.features).all(-1) | ignored)
    if inputs.importance is not None:
        _check_finite("importance", "token", torch.isfinite(inputs.importance) | ignored)
        if isinstance(problem.rule, Coverage) and bool(((inputs.importance < 0) & ~ignored).any()):
            raise ValueError("importance must be >= 0 for Coverage, got a negative one")


def _check_offsets(offsets: list[int], problem: Problem) -> None:
    if offsets[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {offsets[0]}")
    if offsets[-1] != problem.tokens:
        raise ValueError(f"cu_seqlens must end at T = {problem.tokens}, got {offsets[-1]}")
    for sample, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if end < begin:
            raise ValueError(
                f"cu_seqlens must not decrease, got {begin} then {end} at positions {sample} and {sample + 1}"
            )
        if end > begin:
            _check_grid(problem.rule, end - begin)


def _check_finite(name: str, unit: str, finite: torch.Tensor) -> None:
    if bool(finite.all()):
        return
    *sample, token = (~finite).nonzero()[0].tolist()
    where = f"{unit} {token}" + (f" of sample {sample[0]}" if sample else "")
    raise ValueError(f"{name} must be finite, got a NaN or infinity in {where}")

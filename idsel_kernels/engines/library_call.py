"""A call of the compiled library made ready: in the order of csrc/bindings/module.cpp, all but the addresses."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from ..problem import Inputs, Problem
from .base import Outputs, empty_outputs, in_int32

__all__ = ["LibraryCall", "address"]

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DEVICES = {"cpu": 0, "cuda": 1}


class LibraryCall:
    """What launchers of the compiled library share.

    Args:
        library: the compiled library.
        engine: "cpu" or "cuda".
        problem: of the call.
        inputs: tensors of its layout.
        gram_budget_bytes: what the similarities of a sample may take; 0: what pays.
    """

    def __init__(
        self, library: ModuleType, engine: str, problem: Problem, inputs: Inputs, gram_budget_bytes: int = 0
    ) -> None:
        features, importance, mask, *of_samples = inputs
        self.problem, self.width = problem, problem.k_max
        # A row is D neighbouring elements; how rows lie is free. The library reads everything else where it lies, too.
        self._packs_rows = problem.dim > 1 and features.stride(-1) != 1
        self._converts = importance is not None and importance.dtype is not torch.float32
        self._narrows = any(t is not None and not _is_int32(t) for t in of_samples)
        self.adapts = self._packs_rows or self._converts or self._narrows
        rule_id, params = problem.rule.encode()
        self.call = library.Call(
            DEVICES[engine],
            _DTYPES[problem.dtype],
            (problem.batch, problem.tokens, problem.dim),
            _strides(features, 3, self._packs_rows),
            _strides(importance, 2, self._converts),
            _strides(mask, 2),
            problem.k if problem.batch else (0,),
            self.width,
            rule_id,
            params,
            problem.sort,
            problem.given,
            gram_budget_bytes,
            problem.similarity,
        )

    def adapted(
        self,
        features: torch.Tensor,
        importance: torch.Tensor | None,
        *of_samples: torch.Tensor | None,
    ) -> tuple[Any, ...]:
        """Copies of what the library cannot read as it lies, packed; `of_samples` are offsets, counts and grids."""
        if self._packs_rows:
            features = features.contiguous()
        if self._converts and importance is not None:
            importance = importance.to(torch.float32, memory_format=torch.contiguous_format)
        if self._narrows:
            of_samples = tuple(None if t is None else in_int32(t) for t in of_samples)
        return features, importance, *of_samples

    def outputs(self) -> Outputs:
        return empty_outputs(self.problem, self.width)


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _is_int32(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.int32 and tensor.is_contiguous()


def _strides(tensor: torch.Tensor | None, axes: int, packed: bool = False) -> tuple[int, ...]:
    """With that of the batch axis, which a ragged batch does not have."""
    if tensor is None:
        return (0,) * axes
    stride = tensor.new_empty(tensor.shape, device="meta").stride() if packed else tensor.stride()
    return (0,) * (axes - len(stride)) + tuple(stride)

"""The arguments that every engine of the compiled library takes, in the order of csrc/bindings/module.cpp."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ..problem import Inputs, Problem

__all__ = ["Call", "prepare"]

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Call(NamedTuple):
    """Arguments with the tensors that their addresses point into, which have to live until the library returns."""

    arguments: tuple[object, ...]
    indices: torch.Tensor
    scores: torch.Tensor
    inputs: Inputs


def prepare(problem: Problem, inputs: Inputs) -> Call:
    """Outputs on the device of the features, inputs copied only where the library cannot read them as they lie."""
    features, importance, mask, cu_seqlens, counts = inputs
    if features.stride(-1) != 1 and problem.dim > 1:  # a row is D neighbouring elements; how rows lie is free
        # `contiguous` leaves a tensor without elements as it is.
        features = features.contiguous() if features.numel() else features.new_empty(features.shape)
    if importance is not None and importance.dtype is not torch.float32:
        importance = importance.to(torch.float32)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
    if counts is not None:
        counts = counts.to(torch.int32).contiguous()
    constants, width = _constants(problem)
    indices = torch.empty((problem.batch, width), dtype=torch.int64, device=problem.device)
    scores = torch.empty((problem.batch, width), dtype=torch.float32, device=problem.device)
    arguments = (
        features.data_ptr(),
        features.stride() if features.dim() == 3 else (0, *features.stride()),
        _companion(importance),
        _companion(mask),
        0 if cu_seqlens is None else cu_seqlens.data_ptr(),
        indices.data_ptr(),
        scores.data_ptr(),
        *constants,
    )
    return Call(arguments, indices, scores, Inputs(features, importance, mask, cu_seqlens, counts))


@functools.lru_cache(1024)
def _constants(problem: Problem) -> tuple[tuple[object, ...], int]:
    """What no tensor's address changes, kept because encoding it takes microseconds, and the width of the outputs."""
    rule_id, params = problem.rule.encode()
    shape = (problem.batch, problem.tokens, problem.dim)
    k = problem.k if problem.batch else (0,)
    width = problem.k_max
    return (_DTYPES[problem.dtype], shape, k, width, rule_id, tuple(params), problem.sort), width


def _companion(value: torch.Tensor | None) -> tuple[int, int, int]:
    """(address, batch stride, token stride) of a tensor shaped (B, N) or (T,)."""
    if value is None:
        return 0, 0, 0
    strides = value.stride()
    return value.data_ptr(), strides[0] if len(strides) == 2 else 0, strides[-1]

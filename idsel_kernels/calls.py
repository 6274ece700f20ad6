"""Calls made ready: what depends on shapes, strides and types alone is worked out once, and found again by one key."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from . import checks, dispatch
from .engines.base import Launcher, Outputs
from .problem import Inputs, Problem
from .rules import Rule

__all__ = ["Call", "find", "forget", "layout_of", "make", "reads_values", "run"]

# A serving loop meets few layouts; who meets more begins anew.
_MOST = 1024

_kept: dict[Any, Call] = {}


class Call(NamedTuple):
    """A checked problem and its launcher.

    Attributes:
        reads_values: whether values are checked before each launch, because reading them costs nothing.
    """

    problem: Problem
    launcher: Launcher
    reads_values: bool

    def run(self, inputs: Inputs, out: Outputs | None = None) -> Outputs:
        """Selects; `inputs` as they were when the call was made, or without the axis of a batch of one."""
        if self.reads_values:
            checks.check_values(self.problem, inputs, validate=False)
        return self.launcher(*inputs, out=out)


def layout_of(
    features: torch.Tensor,
    importance: torch.Tensor | None,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    counts: torch.Tensor | None,
    grids: torch.Tensor | None,
    given: torch.Tensor | None,
) -> tuple[Any, ...]:
    """All that a call depends on in its tensors but for their values and where they lie."""
    layout: tuple[Any, ...] = (features.shape, features.stride(), features.dtype, features.device)
    if importance is not None:
        layout += (importance.shape, importance.stride(), importance.dtype, importance.device)
    if mask is None and cu_seqlens is None and counts is None and grids is None and given is None:
        return layout
    for tensor in (mask, cu_seqlens, counts, grids, given):
        layout += (None,) if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return layout


def find(
    inputs: Inputs, rule: Rule | str, k: Any, sort: bool, backend: str | None, similarity: bool = False
) -> tuple[Any, Call | None]:
    """The key of a call, and the call if one with this key has been checked before.

    Args:
        inputs: unchecked. Tensors of a batch of one may lack its axis: they then have another key.
        rule, sort: of types that `select` takes, unchecked.
        k: likewise, a list as a tuple: one number for all samples is not the same as a list of it.
        backend: as in `select`.
        similarity: whether similarities lie in the place of features.

    Returns:
        The key is None where none can be made, for something is wrong with the call.
    """
    name, _ = dispatch.wanted(backend)
    try:
        key = (layout_of(*inputs), rule, k, sort, name, similarity)
        return key, _kept.get(key)
    except (AttributeError, RuntimeError, TypeError):  # no strides, or nothing that can be a key
        return None, None


def run(
    inputs: Inputs,
    rule: Rule,
    k: list[int],
    sort: bool,
    backend: str | None,
    validate: bool,
    other_key: Any = None,
    similarity: bool = False,
) -> Outputs:
    """Selects on checked tensors of plain eager calls.

    Raises:
        UnsupportedProblem: the backend asked for by name cannot run it.
    """
    key, call = find(inputs, rule, k[0] if len(k) == 1 else tuple(k), sort, backend, similarity)
    if call is None:
        call = make(inputs, rule, k, sort, backend, similarity)
        _keep(key, call)
    _keep(other_key, call)
    if validate:
        checks.check_values(call.problem, inputs, validate)
    return call.run(inputs)


def _keep(key: Any, call: Call) -> None:
    """So that `find` finds it."""
    if key is not None:
        if len(_kept) >= _MOST:
            _kept.clear()
        _kept[key] = call


def forget() -> None:
    """After a change to the engines, which otherwise do not change while a process lives."""
    _kept.clear()


def make(inputs: Inputs, rule: Rule, k: list[int], sort: bool, backend: str | None, similarity: bool = False) -> Call:
    """A call of checked tensors, which are not kept.

    Raises:
        UnsupportedProblem: the backend asked for by name cannot run it.
    """
    problem = Problem.of(inputs, rule, k, sort, similarity)
    launcher = dispatch.choose(problem, backend).launcher(problem, inputs)
    return Call(problem, launcher, reads_values(inputs))


def reads_values(inputs: Inputs) -> bool:
    """Whether something about the call is in values that lie on the host."""
    of_samples = inputs.cu_seqlens, inputs.counts, inputs.grids, inputs.given
    return inputs.features.device.type == "cpu" and any(tensor is not None for tensor in of_samples)

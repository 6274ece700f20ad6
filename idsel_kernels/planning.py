"""Calls planned once and run many times: checks, choice of the engine, memory and outputs come before the first run."""

from __future__ import annotations

from typing import Any

import torch

from . import api, calls, checks, dispatch
from .counts import Count, device_counts
from .engines.base import Launcher, Outputs
from .problem import Inputs, Problem
from .rules import IDSelection, Rule
from .selection import Selection
from .tracing import lie_in_memory, must_trace, resolved

__all__ = ["Plan", "plan"]

# Layouts of tensors whose launchers a plan keeps.
_MOST = 64


class Plan:
    """A call of `select` of which only the launch is left; `plan` makes it.

    Its runs share memory: they may be queued on one stream, but not be under way on two streams or in two threads at
    once. A captured run works in the memory of its plan, which has to outlive the graph.

    Attributes:
        backend: the engine that runs it.
        algorithm: how, in words.
        out: the `Selection` that `run` fills unless it is given another one.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.plan(torch.eye(3), 2, "maxmin", backend="torch").backend
        'torch'
    """

    def __init__(self, given: Inputs, backend: str | None, similarity: bool, **options: Any) -> None:
        self._options, self._similarity = options, similarity
        inputs, counts, rule = self._prepared(given, backend)
        checks.check_is_plain("idsel.plan", must_trace(*inputs))
        k = options["k"]
        # Of a share of the tokens that exist, which run by run may be others.
        self._recounts = inputs.counts is not None and k is None
        self._counts = None if self._recounts else inputs.counts
        self._problem = problem = Problem.of(inputs, rule, counts, options["sort"], similarity)
        self._planned = tuple(map(checks.form_of, given._replace(counts=inputs.counts)))
        self._reads_values = calls.reads_values(inputs)
        engine = dispatch.choose(problem, backend)
        self.backend, self.algorithm = engine.name, engine.algorithm(problem)
        shape, device = (problem.batch, problem.k_max), problem.device
        self.out = Selection(torch.full(shape, -1, device=device), torch.full(shape, -torch.inf, device=device))
        self._engine, self._memory = engine, engine.memory(problem)
        # Strides are free, so each layout has its launcher.
        self._launchers: dict[Any, Launcher] = {}
        self._fitted(given._replace(counts=inputs.counts))

    def run(
        self,
        features: torch.Tensor | None = None,
        importance: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        given: torch.Tensor | None = None,
        similarity: torch.Tensor | None = None,
        k: torch.Tensor | None = None,
        out: Outputs | None = None,
    ) -> Selection:
        """Selects, on the current stream of the tensors' device, which nothing waits for.

        Args:
            features, importance, mask, cu_seqlens, grids, given, similarity: as `plan` had them: of the same shapes,
                dtypes and device, and those that it did not have not either. Values and strides are free.
            k: where a tensor was planned: another one like it. None: that one, with the values that it has by now.
            out: contiguous indices (B, k) int64 and scores (B, k) float32 to fill, a `Selection` for example, which do
                not require grad. None: those of the plan, `plan.out`, which the next run overwrites.

        Returns:
            A `Selection` of the tensors that were filled. In `torch.compile` and under transforms of torch a run is a
            `select`, with tensors of its own unless `out` is given.

        Raises:
            TypeError, ValueError: something is not as planned; the message names it, what was planned and what came.

        Example:
            >>> import torch, idsel_kernels as idsel
            >>> features, importance = torch.eye(3), torch.tensor([0.1, 0.9, 0.5])
            >>> plan = idsel.plan(features, 2, importance=importance)
            >>> plan.run(features, importance).indices
            tensor([[1, 2]])
        """
        if similarity is not None or self._similarity:
            features = self._checked_similarity(features, similarity)
        elif features is None:
            checks.check_as_planned("features", self._planned[0], features)
        assert features is not None
        counts = k if isinstance(k, torch.Tensor) else None
        if not lie_in_memory(features, importance, mask, cu_seqlens, grids, given, counts):
            tensors = Inputs(features, importance, mask, cu_seqlens, counts, grids, given)
            if must_trace(*tensors):
                return self._traced(tensors._replace(counts=None), k, out)
            features, importance, mask, cu_seqlens, counts, grids, given = self._resolved(tensors)
            k = k if counts is None else counts
        counts = self._counts
        if k is not None or self._recounts:
            counts = self._counted(Inputs(features, importance, mask, cu_seqlens, None, grids, given), k)
        try:
            layout = calls.layout_of(features, importance, mask, cu_seqlens, counts, grids, given)
            launcher = self._launchers.get(layout)
        except RuntimeError:  # a tensor without strides
            launcher = None
        if launcher is None:
            launcher = self._fitted(Inputs(features, importance, mask, cu_seqlens, counts, grids, given))
        if self._reads_values:
            inputs = Inputs(features, importance, mask, cu_seqlens, counts, grids, given)
            checks.check_values(self._problem, inputs, validate=False)
        if out is None:
            launcher(features, importance, mask, cu_seqlens, counts, grids, given, self.out)
            return self.out
        checks.check_out(out, self.out)
        return Selection(*launcher(features, importance, mask, cu_seqlens, counts, grids, given, out))

    def _prepared(self, given: Inputs, backend: str | None = None) -> tuple[Inputs, list[int], Rule]:
        tensors = given._asdict()
        tensors.pop("counts")
        return api.prepare(**tensors, similarity=self._similarity, backend=backend, **self._options)

    def _checked_similarity(self, features: Any, similarity: Any) -> Any:
        """What takes the place of features, where either of the two has to do with similarities."""
        if not self._similarity:
            checks.check_as_planned("similarity", None, similarity)
        checks.check_as_planned("features", None, features)
        if similarity is None:
            checks.check_as_planned("similarity", self._planned[0], similarity)
        return similarity

    def _name(self, field: str) -> str:
        """What a field of `Inputs` is called in `run`."""
        return {"counts": "k", "features": "similarity" if self._similarity else "features"}.get(field, field)

    def _resolved(self, given: Inputs) -> Inputs:
        """Tensors of a run whose values are not all in memory, or that are none."""
        for field, tensor in zip(Inputs._fields, given, strict=True):
            if tensor is not None and field != "counts":
                checks.check_tensor(self._name(field), tensor)
        return Inputs(*(resolved(t) if isinstance(t, torch.Tensor) else t for t in given))  # type: ignore[arg-type]

    def _counted(self, given: Inputs, k: torch.Tensor | None) -> torch.Tensor | None:
        """How many tokens to keep of each sample, where the plan does not say."""
        if self._recounts and k is None:
            return self._prepared(given)[0].counts
        k = checks.check_planned_k(k, self._counts is not None)
        return device_counts(k, given, self._problem.batch)

    def _fitted(self, given: Inputs) -> Launcher:
        """The launcher for tensors of the planned shapes, but of strides that are new."""
        for field, planned, tensor in zip(Inputs._fields, self._planned, given, strict=True):
            checks.check_as_planned(self._name(field), planned, tensor)
        inputs = self._prepared(given)[0]._replace(counts=given.counts)
        launcher = self._engine.launcher(self._problem, inputs, self._memory)
        if len(self._launchers) >= _MOST:
            self._launchers.clear()
        self._launchers[calls.layout_of(*given)] = launcher
        return launcher

    def _traced(self, given: Inputs, k: torch.Tensor | None, out: Outputs | None) -> Selection:
        options = self._options if k is None else {**self._options, "k": k}
        tensors = {self._name(field): tensor for field, tensor in given._asdict().items() if field != "counts"}
        found = api.select(**tensors, backend=self.backend, **options)
        if out is None:
            return found
        for to, tensor in zip(out, found, strict=True):
            to.copy_(tensor)
        return Selection(*out)


def plan(
    features: torch.Tensor | None = None,
    k: Count | None = None,
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    *,
    keep_ratio: float | None = None,
    k_max: int | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    sort: bool = False,
    backend: str | None = None,
) -> Plan:
    """Makes a call of `select` ready: checked, its engine chosen, its memory and outputs allocated.

    For serving: `run` then costs the host little more than the launch. What it gains over `select`, which remembers its
    layouts too, is the allocations; and a plan says by an error when a tensor is not what was planned. It waits once
    for the current stream of a GPU, so that its runs may be on any, and has to be made outside of a capture.

    Args:
        features, k, rule, importance, keep_ratio, k_max, mask, cu_seqlens, grids, given, similarity, sort, backend: as
            for `select`, except that `given` has to hold indices. Tensors tell their shape, dtype and device: none but
            k is kept, and no values are read. The backend is chosen now, `use_backend` and `IDSEL_BACKEND` included.

    Returns:
        A `Plan`.

    Raises:
        TypeError, ValueError, UnsupportedProblem: as `select`.
        RuntimeError: in a capture, or where torch traces or transforms what it is given.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> features, importance = torch.eye(3), torch.tensor([0.1, 0.9, 0.5])
        >>> plan = idsel.plan(features, 2, importance=importance, backend="torch")
        >>> plan.run(features, importance).indices
        tensor([[1, 2]])
        >>> plan.run(features, torch.tensor([0.7, 0.0, 0.5])).indices, plan.backend
        (tensor([[0, 2]]), 'torch')
        >>> plan.run(torch.eye(4), torch.rand(4))
        Traceback (most recent call last):
        ValueError: features must be (3, 3) torch.float32 on cpu, as planned, got (4, 4) torch.float32 on cpu
    """
    compared = checks.check_either(features, similarity)
    tensors = Inputs(compared, importance, mask, cu_seqlens, grids=grids, given=given)
    if isinstance(given, torch.Tensor) and given.dtype is torch.bool:
        raise TypeError("given must be torch.int32 or torch.int64 in a plan, got torch.bool")
    more: dict[str, Any] = {"keep_ratio": keep_ratio, "k_max": k_max, "sort": sort}
    return Plan(tensors, backend, similarity is not None, k=k, rule=rule, **more)

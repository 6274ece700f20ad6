"""What is timed: the published loops, what makes them faster, lower bounds, and the engines of this package.

Every provider turns features (B, N, D) and importance (B, N) into indices (B, k) in pick order. The published loops
are written after the published algorithms. Where a published loop reads each pick back to the host, ours keeps it on
the device, which is faster on a GPU and lets a CUDA graph capture it: comparisons favour the loops.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import idsel_kernels as idsel
from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MaxMin, Rule, TopK

from . import cdpruner, divprune, id_selection, idpruner, nms, scope

Selector = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(features, importance) -> indices, for a rule and a k that are settled."""

# A rule need not have one: it is then compared with the other providers only, and tables leave the place blank.
LOOPS: dict[type[Rule], Callable[..., torch.Tensor]] = {
    IDSelection: id_selection.select,
    MMR: idpruner.select,
    MaxMin: divprune.select,
    HardSuppress: nms.select,
    DPP: cdpruner.select,
    Coverage: scope.select,
}

LOOP, COMPILED, BOUND, FPS = "published loop", "torch.compile", "top-k alone", "torch_cluster.fps"
ENGINES = ("cuda", "triton", "cpu", "torch")


class Provider(NamedTuple):
    """One way to select.

    Attributes:
        name: column of the tables.
        make: (rule, k) -> selector.
        exact: it follows the rule, so that its regret is checked; the lower bound does not.
        half_arithmetic: it computes in the dtype of the features, which a check of its regret must allow for.
    """

    name: str
    make: Callable[[Rule, int], Selector]
    exact: bool = True
    half_arithmetic: bool = False


def _loop(rule: Rule, k: int) -> Selector:
    select = LOOPS[type(rule)]
    return lambda features, importance: select(features, importance, k, rule)


def _compiled(rule: Rule, k: int) -> Selector:
    # The loop is unrolled into one graph, which is the most that torch.compile can make of it.
    return torch.compile(_loop(rule, k), dynamic=False, fullgraph=True)


def _top_k(rule: Rule, k: int) -> Selector:
    return lambda features, importance: importance.topk(k, dim=-1).indices


def _farthest_points(rule: Rule, k: int) -> Selector:
    from torch_cluster import fps

    def select(features: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        # On unit vectors the Euclidean order is the cosine order.
        batch, tokens, dim = features.shape
        points = torch.nn.functional.normalize(features.float(), dim=-1).reshape(-1, dim)
        sample = torch.arange(batch, device=points.device).repeat_interleave(tokens)
        picks = fps(points, sample, ratio=k / tokens, random_start=False)
        return picks.view(batch, -1)[:, :k] - torch.arange(batch, device=points.device)[:, None] * tokens

    return select


def engine(name: str) -> Provider:
    """`idsel.select` with `backend=name`."""

    def make(rule: Rule, k: int) -> Selector:
        return lambda features, importance: idsel.select(features, k, rule, importance, backend=name).indices

    return Provider(name, make)


def engines(device: torch.device) -> list[Provider]:
    """Our engines that can run on the device, preferred first."""
    kinds = {"cuda": ("cuda",), "triton": ("cuda",), "cpu": ("cpu",), "torch": ("cpu", "cuda")}
    return [engine(name) for name in idsel.available_backends() if device.type in kinds[name]]


def baselines(rule: Rule, compiled: bool = False) -> Iterator[Provider]:
    """Everything that is not ours and can select by this rule; `compiled`: also the loop under torch.compile."""
    if type(rule) in LOOPS:
        yield Provider(LOOP, _loop, half_arithmetic=True)
        if compiled:
            yield Provider(COMPILED, _compiled, half_arithmetic=True)
    if isinstance(rule, MaxMin) and rule.start is not None and not missing_fps():
        yield Provider(FPS, _farthest_points)
    if not isinstance(rule, TopK):
        yield Provider(BOUND, _top_k, exact=False)


def missing_fps() -> str:
    """Why torch_cluster is not run, or nothing."""
    return "" if importlib.util.find_spec("torch_cluster") else "torch_cluster is not installed"

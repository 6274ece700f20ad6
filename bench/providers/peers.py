"""Packages that select on a CPU, where they are installed; bench/tools/cpu_peers.py says how.

Each takes one sample, unit rows x (N, D) that are made beforehand, and the importance (N,), and returns picks. On unit
rows the Euclidean order is the order of the cosines. `Coverage` and `DPP` are theirs too, with the product of all rows
in the call: facility location has no importance, so `Coverage` is compared without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from idsel_kernels import DPP, Coverage, MaxMin, Rule

Selector = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

# What can be imported, and what pip calls it.
PACKAGES = {
    "fpsample": "fpsample",
    "torch_fps": "torch-fps",
    "torch_quickfps": "torch-quickfps",
    "submodlib": "submodlib-py",
    "apricot": "apricot-select",
}


FEW_DIMENSIONS = 8
WITH_INDEX = ("torch-quickfps",)
"""Those that sort points into a tree first, which pays in few dimensions."""


def missing() -> list[str]:
    """Packages that are not installed, as pip calls them."""
    return [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]


def _fpsample(start: int) -> dict[str, Selector]:
    import fpsample

    # Its variants with a k-d tree end in an error beyond eight dimensions, and on some inputs never.
    return {"fpsample": lambda x, _, k: fpsample.fps_sampling(x, k, start_idx=start)}


def _torch_fps(start: int) -> dict[str, Selector]:
    from torch_fps import farthest_point_sampling

    def select(x: np.ndarray, _: np.ndarray, k: int) -> np.ndarray:
        points, valid = torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=torch.bool)
        found = farthest_point_sampling(
            points, valid, k, start_idx=torch.tensor([start]), random_start=False, validate=False, assume_finite=True
        )
        return found[0].numpy()

    return {"torch-fps": select}


def _quickfps(start: int) -> dict[str, Selector]:
    import torch_quickfps

    def select(x: np.ndarray, _: np.ndarray, k: int) -> np.ndarray:
        return torch_quickfps.sample(torch.from_numpy(x)[None], k, start_idx=start, return_points=False)[0].numpy()

    def baseline(x: np.ndarray, _: np.ndarray, k: int) -> np.ndarray:
        found = torch_quickfps.sample_idx_baseline(torch.from_numpy(x)[None], k, start_idx=start)
        return found[0].numpy()

    return {"torch-quickfps": select, "torch-quickfps, all rows": baseline}


def _apricot() -> dict[str, Selector]:
    from apricot import FacilityLocationSelection

    def select(x: np.ndarray, _: np.ndarray, k: int) -> np.ndarray:
        # It takes no similarity below 0, and by this rule such a one is worth as much as 0.
        return FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(np.maximum(x @ x.T, 0)).ranking

    return {"apricot": select}


def _submodlib(rule: Rule) -> dict[str, Selector]:
    from submodlib import FacilityLocationFunction, LogDeterminantFunction

    def select(x: np.ndarray, importance: np.ndarray, k: int) -> np.ndarray:
        if isinstance(rule, Coverage):
            function = FacilityLocationFunction(len(x), mode="dense", sijs=x @ x.T, separate_rep=False)
        else:
            kernel = importance[:, None] * (x @ x.T) * importance
            function = LogDeterminantFunction(len(x), mode="dense", lambdaVal=0.0, sijs=kernel)
        picks = function.maximize(k, optimizer="LazyGreedy", show_progress=False)
        return np.array([token for token, _ in picks])

    return {"submodlib": select}


def selectors(rule: Rule) -> dict[str, Selector]:
    """Those of installed packages that select by this rule."""
    there, found = [module for module in PACKAGES if importlib.util.find_spec(module)], {}
    if isinstance(rule, MaxMin) and rule.start is not None:
        found |= _fpsample(rule.start) if "fpsample" in there else {}
        found |= _torch_fps(rule.start) if "torch_fps" in there else {}
        found |= _quickfps(rule.start) if "torch_quickfps" in there else {}
    if isinstance(rule, Coverage):
        found |= _apricot() if "apricot" in there else {}
    if isinstance(rule, Coverage | DPP):
        found |= _submodlib(rule) if "submodlib" in there else {}
    return found

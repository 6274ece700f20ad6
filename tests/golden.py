"""Golden runs of the published selectors; data/golden/README.md describes the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import idsel_kernels as idsel
from idsel_kernels.rules import RULES, Rule


@dataclass(frozen=True)
class GoldenRun:
    folder: Path
    case: dict[str, Any]

    @property
    def rule(self) -> Rule:
        params = {name: value for name, value in self.case["params"].items() if name != "saliency"}
        return RULES[self.case["rule"]](**params)

    @property
    def k(self) -> int:
        return int(self.case["k"])

    def inputs(self) -> dict[str, torch.Tensor]:
        with np.load(self.folder / self.case["file"]) as data:
            inputs = {"features": torch.from_numpy(data["features"].astype(np.float32))}
            if "importance" in data and self.case["params"].get("saliency", True):
                inputs["importance"] = torch.from_numpy(data["importance"])
        return inputs

    def picks(self) -> torch.Tensor:
        """(B, k), the picks of the official code."""
        with np.load(self.folder / self.case["file"]) as data:
            return torch.from_numpy(np.atleast_2d(data[self.case["run"] + "_order"]))

    def clear_prefix(self) -> list[int]:
        return list(np.atleast_1d(self.case["clear_prefix"]))


def assert_agrees(run: GoldenRun, sel: idsel.Selection, tolerance: float) -> None:
    """Same indices where the margin is clear, of as many as were picked, and a small regret of every pick."""
    for sample, (ours, theirs, clear) in enumerate(
        zip(sel.indices.cpu(), run.picks(), run.clear_prefix(), strict=True)
    ):
        telling = min(clear, len(ours))
        assert ours[:telling].tolist() == theirs[:telling].tolist(), f"sample {sample}"
    report = idsel.testing.check_selection(sel, **run.inputs(), rule=run.rule)
    report.assert_ok(tolerance)

"""What the demo measures of a selection, and how it writes that down."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

__all__ = ["measure", "shown"]


def measure(features: torch.Tensor, importance: torch.Tensor, indices: list[int]) -> dict[str, float | None]:
    """Importance kept, coverage and smallest distance of a selection, in float64; see `run_demo`."""
    unit = normalize(features.double(), dim=-1, eps=1e-30)
    kept = torch.zeros(len(unit), dtype=torch.bool)
    kept[indices] = True
    total = importance.double().sum()
    to_kept = unit[~kept] @ unit[kept].T
    among_kept = (unit[kept] @ unit[kept].T).fill_diagonal_(-1.0)
    return {
        "importance_kept": float(100 * importance.double()[kept].sum() / total) if total > 0 else None,
        "coverage": float(to_kept.amax(dim=1).mean()) if len(to_kept) else None,
        # Rounding may put the cosine of two equal patches just above 1.
        "smallest_distance": max(0.0, float(1 - among_kept.max())) if len(indices) > 1 else None,
    }


def shown(value: float | None, form: str, unit: str = "") -> str:
    """A measure of `run_demo` as text; "none" where there is nothing to measure."""
    return "none" if value is None else f"{value:{form}}{unit}".replace("-", "\N{MINUS SIGN}")

"""What the dispatcher asks of an engine."""

from __future__ import annotations

from typing import Protocol

import torch

from ..problem import Inputs, Problem

__all__ = ["GRAM_BUDGET_BYTES", "Engine"]

# What the similarities of a sample may take, in every engine: N = 16384 in float32. Beyond it an engine computes rows
# or panels when they are needed, and a batch whose Grams exceed it together runs in parts.
GRAM_BUDGET_BYTES = 2**30


class Engine(Protocol):
    """An engine module holds one instance of this, named `ENGINE`.

    It may also have `only_by_name_reasons(problem) -> list[str]`: why it runs this problem only when asked for by name
    and is passed over otherwise; empty where it is not.
    """

    name: str
    # The types of devices whose tensors it takes, the usual one first; empty: of any.
    device_types: tuple[str, ...]

    def unavailable_reasons(self) -> list[str]:
        """Why it cannot run anything on this machine; empty where it can."""
        ...

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        """Why it cannot run this problem; empty where it can."""
        ...

    def algorithm(self, problem: Problem) -> str:
        """How it would run this problem, in a sentence for `explain`."""
        ...

    def run(self, problem: Problem, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Selects: indices (B, k_max) int64 and scores (B, k_max) float32, on the device of the features."""
        ...

"""What the dispatcher asks of an engine."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..problem import Inputs, Problem

__all__ = ["GRAM_BUDGET_BYTES", "Engine", "Launcher", "Outputs", "empty_outputs", "in_int32"]

# What the similarities of a sample may take, in every engine: N = 16384 in float32. Beyond it an engine computes rows
# or panels when they are needed, and a batch whose Grams exceed it together runs in parts.
GRAM_BUDGET_BYTES = 2**30


# Indices (B, k_max) int64 and scores (B, k_max) float32, on the device of the features.
Outputs = tuple[torch.Tensor, torch.Tensor]


class Launcher(Protocol):
    """A problem made ready for tensors of one layout: shapes, strides, types and device. It keeps none of them."""

    def __call__(
        self,
        features: torch.Tensor,
        importance: torch.Tensor | None,
        mask: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        counts: torch.Tensor | None,
        grids: torch.Tensor | None,
        given: torch.Tensor | None,
        out: Outputs | None = None,
    ) -> Outputs:
        """Selects, into `out` where it is given. The tensors of a batch of one may lack its axis."""
        ...


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

    def memory(self, problem: Problem) -> Any:
        """What launches may share that never run at the same time: workspace and the like, on the problem's device.

        None where there is nothing to share.
        """
        ...

    def launcher(self, problem: Problem, inputs: Inputs, memory: Any = None) -> Launcher:
        """Makes a problem ready.

        Args:
            problem: of the call.
            inputs: any tensors of its layout, with their batch axis.
            memory: of such a problem; None: each launch takes memory of its own.
        """
        ...


def empty_outputs(problem: Problem, width: int) -> Outputs:
    """Outputs that nobody has filled."""
    # `empty` takes half as long again; a view of one buffer as long as another buffer (docs/decisions.md).
    shape, strides, device = (problem.batch, width), (max(width, 1), 1), problem.device
    return (
        torch.empty_strided(shape, strides, dtype=torch.int64, device=device),
        torch.empty_strided(shape, strides, dtype=torch.float32, device=device),
    )


def in_int32(integers: torch.Tensor, low: int = -(2**31), high: int = 2**31 - 1) -> torch.Tensor:
    """Packed, as int32, those of int64 cut to [low, high].

    Nobody has read them where they lie on a GPU, and what is cut to 32 bits may be anything: a k of 2**32 would be 0.
    """
    if integers.dtype is torch.int64:
        integers = integers.clamp(low, high).to(torch.int32)
    return integers.contiguous()

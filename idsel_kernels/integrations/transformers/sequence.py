"""Token sequences with visual tokens in them: where each image lies, and the sequence without some tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Cut", "run_lengths", "samples_of", "text_positions"]


class Cut(NamedTuple):
    """Which tokens of (B, L) sequences stay, and where: samples that keep fewer are padded on the side given.

    Attributes:
        at: (B, L') int64, the token that goes to each place.
        real: (B, L') bool, False where it is padding.
    """

    at: Tensor
    real: Tensor

    @classmethod
    def of(cls, keep: Tensor, pad_left: bool) -> Cut:
        """Reads on the host how long the longest sample is: (B, L) bool decides the shape of what follows."""
        counts = keep.sum(1, keepdim=True)
        width = int(counts.max())
        order = (keep if pad_left else ~keep).int().argsort(dim=1, stable=True)
        at = order[:, keep.shape[1] - width :] if pad_left else order[:, :width]
        place = torch.arange(width, device=keep.device)
        return cls(at, place >= width - counts if pad_left else place < counts)

    def apply(self, values: Tensor, padding: Any = 0) -> Tensor:
        """Values (..., B, L) of the tokens that stay: (..., B, L')."""
        at = self.at.expand(*values.shape[:-1], -1)
        return values.gather(-1, at).masked_fill(~self.real, padding)

    def apply_to_positions(self, positions: Tensor) -> Tensor:
        """Positions (..., B, L) of the tokens that stay: (..., B, L'); padding behind them has that of the last."""
        kept = self.apply(positions)
        place = torch.arange(self.real.shape[1], device=self.real.device)
        last = torch.where(self.real, place, 0).amax(1, keepdim=True)
        end = kept.gather(-1, last.expand(*kept.shape[:-1], -1))
        return torch.where(place > last, end, kept)


def run_lengths(placeholders: Tensor) -> list[int]:
    """How long each unbroken run of placeholders is, in (B, L) bool; none goes on from one sample into the next."""
    before = torch.nn.functional.pad(placeholders, (1, 0))[:, :-1]
    starts = (placeholders & ~before).flatten().nonzero().flatten()
    places = placeholders.flatten().nonzero().flatten()
    first = torch.searchsorted(places, starts)
    ends = torch.cat([first[1:], first.new_tensor([len(places)])]) if len(first) else first
    return [int(n) for n in ends - first]


def samples_of(placeholders: Tensor, lengths: list[int]) -> list[int]:
    """In which sample of (B, L) each image or video lies, of so many placeholders each, in order."""
    ends = placeholders.sum(1).cumsum(0)
    starts = torch.tensor([0, *lengths[:-1]], device=ends.device).cumsum(0)
    return [int(b) for b in torch.searchsorted(ends, starts, right=True)]


def text_positions(mask: Tensor) -> Tensor:
    """The place of each token among the real ones of its sample, and 0 in front of them: (B, L)."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)

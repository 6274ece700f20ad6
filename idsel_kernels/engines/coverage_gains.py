"""What tokens gain under `Coverage` in the `torch` engine: from the whole Gram, or from bands of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .reference import Batch

__all__ = ["BandGains", "GramGains"]

# A band of rows: so many bytes go through a few element-wise steps in a cache of a CPU, and are enough for a GPU.
BAND_BYTES = 2**22


class GramGains:
    """Of a batch whose Gram is there."""

    def __init__(self, batch: Batch) -> None:
        assert batch.gram is not None
        self.batch = batch
        both = batch.takes_part[:, :, None] & batch.takes_part[:, None, :]
        self.gram = torch.where(both, batch.gram, 0.0)
        self.cover = torch.zeros_like(batch.importance)

    def first(self) -> torch.Tensor:
        """Before the first pick: (B, N)."""
        gain = torch.zeros_like(self.cover)
        for b, n in enumerate(self.batch.lengths):
            uncovered = (self.gram[b, :n, :n] - self.cover[b, :n, None]).clamp_(min=0)
            gain[b, :n] = uncovered.sum(0)[self.batch.first[b, :n]]
        return gain

    def after(self, pick: torch.Tensor) -> torch.Tensor:
        """After one more pick of each sample: (B,) to (B, N)."""
        samples = torch.arange(len(pick), device=pick.device)
        self.cover = torch.maximum(self.cover, self.gram[samples, pick.clamp(min=0)])
        return self.first()


class BandGains:
    """Of a batch whose Gram is too large: similarities of a band of rows with all tokens, one band after the other.

    What the picks cover of a row comes from the same band as what others gain there, so that nothing is left to gain
    from a copy of a pick. Nothing depends on which bands are kept.

    Args:
        batch: samples without a Gram.
        kept_bytes: what the bands that are kept from pick to pick may take; the others are computed each time.
    """

    def __init__(self, batch: Batch, kept_bytes: int) -> None:
        self.batch = batch
        self.cover = torch.zeros_like(batch.importance)
        self.room = kept_bytes
        self.kept: dict[tuple[int, int], torch.Tensor] = {}

    def first(self) -> torch.Tensor:
        """Before the first pick: (B, N)."""
        return self._gains(None)

    def after(self, pick: torch.Tensor) -> torch.Tensor:
        """After one more pick of each sample: (B,) to (B, N)."""
        return self._gains(pick.clamp(min=0))

    def _gains(self, pick: torch.Tensor | None) -> torch.Tensor:
        gain = torch.zeros_like(self.cover)
        for b, n in enumerate(self.batch.lengths):
            if n:
                gain[b, :n] = self._gain(b, None if pick is None else pick[b : b + 1])[self.batch.first[b, :n]]
        return gain

    def _gain(self, b: int, pick: torch.Tensor | None) -> torch.Tensor:
        """Of one sample; of tokens that are alike only the first one's counts."""
        gain = self.cover.new_zeros(self.batch.lengths[b])
        for rows in self._bands(b):
            c, cover = self._band(b, rows), self.cover[b, rows]
            if pick is not None:
                covered = c.index_select(1, self.batch.first[b, pick])[:, 0]
                cover.copy_(torch.maximum(cover, torch.where(self.batch.takes_part[b, pick], covered, 0.0)))
            gain += (c - cover[:, None]).clamp_(min=0).sum(0)
        return gain

    def _bands(self, b: int) -> Iterator[slice]:
        n = self.batch.lengths[b]
        step = max(1, BAND_BYTES // (n * self.cover.element_size()))
        return (slice(begin, min(begin + step, n)) for begin in range(0, n, step))

    def _band(self, b: int, rows: slice) -> torch.Tensor:
        """c_ij of some tokens i with all others, 0 where i does not take part: (rows, n)."""
        kept = self.kept.get((b, rows.start))
        if kept is not None:
            return kept
        c = self.batch.tile(b, rows, slice(0, self.batch.lengths[b]))
        c = c.masked_fill_(~self.batch.takes_part[b, rows, None], 0.0)
        if self.room >= c.nbytes:
            self.room -= c.nbytes
            self.kept[b, rows.start] = c
        return c

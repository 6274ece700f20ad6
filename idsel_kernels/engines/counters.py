"""Arrival counters of kernels, which have to be zero when a launch begins."""

from __future__ import annotations

import torch

__all__ = ["StreamCounters"]

_LEAST = 256  # so that a batch larger than the first needs no new ones, up to this size


class StreamCounters:
    """Counters by device and stream: launches of two streams may be under way at once, and each leaves its own zero.

    Args:
        dtype: of a counter.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.by_stream: dict[tuple[int | None, int], torch.Tensor] = {}

    def zeros(self, count: int, device: torch.device, stream: int, is_capturing: bool) -> torch.Tensor:
        """At least `count` counters that no other launch in flight uses."""
        if is_capturing:
            # A graph may be replayed on any stream, so it has its own, cleared by a node of the graph.
            return torch.zeros(count, dtype=self._dtype, device=device)
        key = (device.index, stream)
        counters = self.by_stream.get(key)
        if counters is None or len(counters) < count:
            counters = self.by_stream[key] = torch.zeros(max(count, _LEAST), dtype=self._dtype, device=device)
        return counters

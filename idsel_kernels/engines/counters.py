"""Arrival counters of kernels, which have to be zero when a launch begins."""

from __future__ import annotations

import torch

__all__ = ["StreamCounters"]

_LEAST = 256  # so that a batch larger than the first needs no new ones, up to this size
_STOCK = 64  # launches that are captured before a call outside of a capture has to fill it again


class StreamCounters:
    """Counters by device and stream: launches of two streams may be under way at once, and each leaves its own zero.

    A captured graph has counters of its own, since it may be replayed on any stream. They come from a stock that is
    zeroed outside of any capture, so the graph needs no node that clears them: it relies on each replay leaving them
    zero, as each launch does, and on its replays not overlapping.

    Args:
        dtype: of a counter.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._stocks: dict[int | None, list[torch.Tensor]] = {}
        self._given: list[torch.Tensor] = []  # to graphs, whose end nobody tells
        self.by_stream: dict[tuple[int | None, int], torch.Tensor] = {}

    def zeros(self, count: int, device: torch.device, stream: int, is_capturing: bool) -> torch.Tensor:
        """At least `count` counters that no other launch in flight uses."""
        if is_capturing:
            return self._of_graph(count, device)
        key = (device.index, stream)
        counters = self.by_stream.get(key)
        if counters is None or len(counters) < count:
            counters = self.by_stream[key] = torch.zeros(max(count, _LEAST), dtype=self._dtype, device=device)
        stock = self._stocks.get(device.index)
        if not stock or len(stock[-1]) < count:
            fresh = torch.zeros((_STOCK, max(count, _LEAST)), dtype=self._dtype, device=device)
            self._stocks[device.index] = list(fresh.unbind())
        return counters

    def _of_graph(self, count: int, device: torch.device) -> torch.Tensor:
        stock = self._stocks.get(device.index)
        if not stock or len(stock[-1]) < count:
            # No call outside of a capture has filled it: the graph clears its counters itself.
            return torch.zeros(count, dtype=self._dtype, device=device)
        self._given.append(stock.pop())
        return self._given[-1]

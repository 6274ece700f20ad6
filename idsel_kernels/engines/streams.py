"""The current device and stream, and memory that launches share: arrival counters, zero when a launch begins."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["StreamCounters", "current_device", "current_stream", "own_zeros"]

_LEAST = 256  # so that a batch larger than the first needs no new ones, up to this size
_NO_STOCK: tuple[list[torch.Tensor], int] = ([], 0)
_STOCK = 64  # launches that are captured before a call outside of a capture has to fill it again


def current_device() -> int:
    """The number of the current device; where there is a CUDA tensor, CUDA is up."""
    return torch._C._cuda_getDevice()


def current_stream(device: torch.device) -> int:
    """The handle of the current stream of the current device, without an object around it, as Triton's driver asks."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def own_zeros(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Counters for one caller, who may launch on any stream: waits until they are zero.

    Raises:
        RuntimeError: in a capture, which cannot be waited for.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a plan must be made before the capture that runs it, got a stream that is capturing")
    zeros = torch.zeros(count, dtype=dtype, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return zeros


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
        self._lock = threading.Lock()  # of the stocks: two threads may capture at once, each on its stream
        self._stocks: dict[int | None, tuple[list[torch.Tensor], int]] = {}
        self._given: list[torch.Tensor] = []  # to graphs, whose end nobody tells
        self.by_stream: dict[tuple[int | None, int], torch.Tensor] = {}

    def zeros(self, count: int, device: torch.device, stream: int, is_capturing: bool) -> torch.Tensor:
        """At least `count` counters that no other launch in flight uses, on the current stream."""
        if is_capturing:
            return self._of_graph(count, device)
        key = (device.index, stream)
        counters = self.by_stream.get(key)
        if counters is None or len(counters) < count:
            counters = self.by_stream[key] = _kept_zeros((max(count, _LEAST),), self._dtype, device)
        if not self._stock_for(count, device):
            with self._lock:
                self._fill_stock(count, device)
        return counters

    def _stock_for(self, count: int, device: torch.device) -> list[torch.Tensor]:
        """What a capture may take; empty where there is nothing large enough. All in a stock are of one size."""
        stock, size = self._stocks.get(device.index, _NO_STOCK)
        return stock if size >= count else []

    def _fill_stock(self, count: int, device: torch.device) -> None:
        if not self._stock_for(count, device):  # another thread may have been here
            fresh = _kept_zeros((_STOCK, max(count, _LEAST)), self._dtype, device)
            self._stocks[device.index] = list(fresh.unbind()), fresh.shape[1]

    def _of_graph(self, count: int, device: torch.device) -> torch.Tensor:
        with self._lock:
            stock = self._stock_for(count, device)
            if stock:
                self._given.append(counters := stock.pop())
                return counters
        # No call outside of a capture has filled it: the graph clears its counters itself.
        return torch.zeros(count, dtype=self._dtype, device=device)


def _kept_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros for longer than the call, so not from a memory pool that the caller allocates in.

    `torch.compile(mode="reduce-overhead")` runs a call once so, and takes what is left of it for a leak. A pool is
    entered for a thread or a stream, so another thread on the default stream is outside of it.
    """
    if device.type != "cuda":
        return torch.zeros(shape, dtype=dtype, device=device)
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(torch.empty, shape, dtype=dtype, device=device).result()
    # What was there before may still be in use on the default stream.
    torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))
    return made.zero_()

"""Full precision, whatever the caller has set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["ieee_arithmetic"]


class _IeeeMatmul:
    """Float32 products in IEEE float32 while any thread is inside, and the caller's setting afterwards."""

    def __init__(self) -> None:
        self._lock, self._inside, self._saved = threading.Lock(), 0, [""]

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = self._swap(["ieee"] * 2)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._swap(self._saved)

    def _swap(self, settings: list[str]) -> list[str]:
        """Puts settings in place and returns those that were there."""
        torch_backends: Any = torch.backends
        backends = torch_backends.cuda.matmul, torch_backends.mkldnn.matmul
        if not hasattr(backends[0], "fp32_precision"):  # before torch 2.9
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest" if settings[0] == "ieee" else settings[0])
            return [before]
        saved = [backend.fp32_precision for backend in backends]
        for backend, setting in zip(backends, settings, strict=True):
            backend.fp32_precision = setting
        return saved


_ieee_matmul = _IeeeMatmul()


@contextmanager
def ieee_arithmetic(device: torch.device) -> Iterator[None]:
    """Products in full precision, whatever autocast and matmul precision the caller has set."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    with _ieee_matmul, torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
        yield

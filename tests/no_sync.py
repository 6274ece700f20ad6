"""What would wait for a GPU, found without one: a tensor on the meta device has no value to wait for.

PyTorch's own errors name what asks for one (`item`, a condition, a size that depends on values); copies between host
and device are found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["META", "CountedLaunches", "nothing_read", "to_meta"]

META = torch.device("meta")


def to_meta(value: Any) -> Any:
    """A tensor of the same strides without values; all else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    return made.requires_grad_(value.requires_grad)


class _NothingRead(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_copy = func.name() == "aten::_to_copy"  # to the CPU, or from pageable memory of it
        if is_copy and "cpu" in (args[0].device.type, str(kwargs.get("device", ""))):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs)


@contextmanager
def nothing_read() -> Iterator[None]:
    """Fails where something inside waits for the device."""
    with _NothingRead():
        yield


class CountedLaunches(TorchDispatchMode):
    """Counts the operators that launch something: those that do more than look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace != "prim" and not func.name().startswith("aten::empty"):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))

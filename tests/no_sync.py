"""What would wait for a GPU, found without one: on fake CUDA tensors there is no value to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CountedLaunches", "fake_cuda", "nothing_read"]

# What hands values to the host, or has a size that depends on them.
_READING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
)


@contextmanager
def fake_cuda() -> Iterator[Callable[[Any], Any]]:
    """Gives a function that makes a fake CUDA tensor of a tensor, and leaves all else as it is."""
    with FakeTensorMode() as mode:

        def to_gpu(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            with mode:
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            return made.requires_grad_(value.requires_grad)

        yield to_gpu


class _NothingRead(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_copy = func.name() == "aten::_to_copy"  # to the CPU, or from pageable memory of it
        if func in _READING or (is_copy and "cpu" in (args[0].device.type, str(kwargs.get("device", "")))):
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

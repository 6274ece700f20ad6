"""A device that is none, and the torch engine on it: for the test that tests hand a backend tensors of its device.

A tensor on it holds one on the CPU, in which each operation is carried out. As on a GPU, an operation refuses tensors
of two devices, except to copy from one to the other, and single numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

from idsel_kernels import ops
from idsel_kernels.engines.reference import _TorchEngine
from idsel_kernels.problem import Problem

_TYPE = "standin"


class _Module(backend_registration._DummyBackendModule):
    """What `torch.<device>` would be."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []


backend_registration._setup_privateuseone_for_python_backend(_TYPE, _Module())
DEVICE = torch.device(_TYPE, 0)


class _Tensor(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _Tensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {DEVICE}"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is ops.select:
            return ops._select(*args, **kwargs)
        target = torch.device(kwargs.pop("device", None) or DEVICE)
        if "device" in {argument.name for argument in func._schema.arguments}:
            kwargs["device"] = "cpu"
        if func._schema.name not in ("aten::copy_", "aten::_to_copy"):
            tree_map(_refuse_other_devices, (args, kwargs))
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if target.type == "cpu":
            return result
        changed_in_place = {id(value.held): value for value in args if isinstance(value, _Tensor)}
        return tree_map(lambda value: changed_in_place.get(id(value), _wrapped(value)), result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _Tensor) else value


def _wrapped(value: Any) -> Any:
    return _Tensor(value) if isinstance(value, torch.Tensor) else value


def _refuse_other_devices(value: Any) -> None:
    if isinstance(value, torch.Tensor) and not isinstance(value, _Tensor) and value.dim() > 0:
        raise RuntimeError(f"expected all tensors on {DEVICE}, got one on {value.device}")


def _empty(size: Any, dtype: torch.dtype | None = None, **_: Any) -> _Tensor:
    return _Tensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: torch.dtype | None = None, **_: Any) -> _Tensor:
    return _Tensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _held(to).copy_(_held(source))
    return to


# Kept for the life of the process: the registrations go when the library object goes.
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy, "PrivateUse1")


class _Engine(_TorchEngine):
    name = "torch-on-stand-in"
    device_types = (_TYPE,)

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        on_it = problem.device.type == _TYPE
        return [] if on_it else [f"it runs on {_TYPE} tensors, got a tensor on {problem.device}"]


ENGINE = _Engine()

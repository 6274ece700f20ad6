"""Whether a call has to be an operator that others can see, values may be read, and where a tensor has them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

__all__ = [
    "exportable",
    "is_read_freely",
    "is_transformed",
    "lie_in_memory",
    "must_trace",
    "resolved",
    "sym_max",
    "sym_min",
]

# As `max` and `min` of sizes, without a guard on which is which; only some versions of torch have types for them.
sym_max: Any = torch.sym_max
sym_min: Any = torch.sym_min


def must_trace(*tensors: torch.Tensor | None) -> bool:
    """Whether something is watching operators, so that the call has to be one.

    `is_compiling()` alone is not enough: it is False under fake tensors, `make_fx` and dispatch modes.
    """
    if _is_watched():
        return True
    for tensor in tensors:  # noqa: SIM110  # any() over a generator takes 1 µs longer
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return True
    return False


def lie_in_memory(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing is watching operators, and all values of the tensors lie where their addresses say.

    False for what `must_trace` is True for, and for a pending negation (`Tensor.is_neg`), zeros that are kept nowhere
    (`torch._efficientzerotensor`), layouts without strides, and tensors without elements.
    """
    if _is_watched():
        return False
    try:
        for tensor in tensors:
            if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg() or not tensor.data_ptr()):
                return False
    except RuntimeError:  # no address at all
        return False
    return True


def resolved(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its values in memory, for engines that read that: itself, unless they have to be written down.

    What is traced stays as it is, for torch does the same on the way into an operator.
    """
    if torch.compiler.is_compiling() or type(tensor) not in _PLAIN:
        return tensor
    return torch.zeros_like(tensor) if tensor._is_zerotensor() else tensor.resolve_neg()


# Looked up once, because each call asks all of them.
_is_compiling = torch.compiler.is_compiling
_tracing_state: Any = torch._C._get_tracing_state
_transforms: Any = torch._C._functorch.peek_interpreter_stack
_function_modes: Any = torch._C._len_torch_function_stack
_dispatch_modes: Any = torch._C._len_torch_dispatch_stack


def _is_watched() -> bool:
    """Whether something is watching operators."""
    if _is_compiling() or _dispatch_modes() or _function_modes():
        return True
    return _tracing_state() is not None or _transforms() is not None


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a transform of `torch.func` is at work, which compilers use too, or the tensor has a tangent."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    forward_ad: Any = torch.autograd.forward_ad
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def is_read_freely(tensor: torch.Tensor) -> bool:
    """Whether reading a value neither waits for a device nor disturbs a trace."""
    return tensor.device.type == "cpu" and not must_trace(tensor)


Result = TypeVar("Result", bound=type[Any])


def exportable(kind: Result) -> Result:
    """Makes a named tuple a result that `torch.export.save` and `torch.load` know."""
    # Private until torch has another way; what it lacks is missing only from a program that returns such a tuple.
    register = getattr(torch.utils._pytree, "_register_namedtuple", None)
    if register is not None:
        register(kind, serialized_type_name=f"idsel_kernels.{kind.__name__}")
    torch.serialization.add_safe_globals([kind])
    return kind

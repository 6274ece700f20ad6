"""Whether a call has to be an operator that others can see, and values may be read."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["exportable", "is_read_freely", "is_transformed", "must_trace", "sym_max", "sym_min"]

# As `max` and `min` of sizes, without a guard on which is which; only some versions of torch have types for them.
sym_max: Any = torch.sym_max
sym_min: Any = torch.sym_min


def must_trace(*tensors: torch.Tensor | None) -> bool:
    """Whether something is watching operators, so that the call has to be one.

    `is_compiling()` alone is not enough: it is False under fake tensors, `make_fx` and dispatch modes.
    """
    if torch.compiler.is_compiling():
        return True
    if _get_current_dispatch_mode() is not None or torch._C._get_tracing_state() is not None:
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_function_stack() > 0:
        return True
    for tensor in tensors:  # noqa: SIM110  # any() over a generator takes 1 µs longer
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return True
    return False


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

"""Whether a call has to be an operator that others can see."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["must_trace"]


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

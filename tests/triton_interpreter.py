"""Makes Triton's interpreter fast enough for a test suite, and runs its programs in an order of choice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from triton import language as tl
from triton.runtime import interpreter

from idsel_kernels import calls
from idsel_kernels.triton_impl import config, launch

Order = Callable[[int], list[int]]


class _Languages:
    """Stands for a function whose module sees both `tl` and `tl.core`."""

    __globals__ = {"tl": tl, "core": tl.core}  # noqa: RUF012


@functools.cache
def speed_up() -> None:
    """Patches the language once for the process, not at every call of a device function: ten times faster.

    Itself it runs once too: a patch of a patch is a call deeper, and Python gives up at some thousand of them.

    Where the interpreter is built differently this does nothing.
    """
    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None or not hasattr(interpreter.InterpretedFunction, "rewrite"):
        return
    if patch(_Languages) is None:  # versions that patch for good
        return
    interpreter._patch_lang = lambda fn: _Patched()
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    if (numpy_type := getattr(interpreter, "_get_np_dtype", None)) is not None:
        of_scalar = functools.cache(numpy_type)
        interpreter._get_np_dtype = lambda ty: of_scalar(ty) if type(ty) is tl.dtype else numpy_type(ty)


class _Patched:
    """The language stays as it is."""

    def restore(self) -> None:
        pass


@contextmanager
def program_order(order: Order) -> Iterator[list[int]]:
    """Runs the programs of one-dimensional grids in the order that `order(number of programs)` gives.

    Yields the indices that ran, in their order.
    """
    builder: Any = interpreter.interpreter_builder
    set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx
    ran: list[int] = []
    current: list[int] = []

    def note_dim(nx: int, ny: int, nz: int) -> None:
        current[:] = order(nx)
        assert sorted(current) == list(range(nx)) and ny == nz == 1
        set_dim(nx, ny, nz)

    def permute(x: int, y: int, z: int) -> None:
        ran.append(current[x])
        set_index(current[x], y, z)

    builder.set_grid_dim, builder.set_grid_idx = note_dim, permute
    try:
        yield ran
    finally:
        builder.set_grid_dim, builder.set_grid_idx = set_dim, set_index


@contextmanager
def products_in_order() -> Iterator[None]:
    """Matrix products add in the order of k for every element, as a GPU does.

    The interpreter's are NumPy's, which round the same sum differently from one place of a tile to another.
    """
    builder: Any = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        sums = d.data.copy()
        for column, row in zip(a.data.astype(sums.dtype).T, b.data.astype(sums.dtype), strict=True):
            sums += np.multiply.outer(column, row)
        return interpreter.TensorHandle(sums, d.dtype.scalar)

    builder.create_dot = create_dot
    try:
        yield
    finally:
        builder.create_dot = dot


def forget_plans() -> None:
    """After a change to what plans are made of."""
    launch.make_plan.cache_clear()
    calls.forget()


@contextmanager
def large_blocks() -> Iterator[None]:
    """Tiles and Coverage's blocks of 256: each is some forty NumPy calls here, however large it is."""
    choose, cover = config.choose, config.COVER_BLOCK
    config.choose = lambda *args, **more: choose(*args, **more)._replace(tile=config.Tile(256, 64, 1))
    config.COVER_BLOCK = (16, 512, 64)
    forget_plans()
    try:
        yield
    finally:
        config.choose, config.COVER_BLOCK = choose, cover
        forget_plans()

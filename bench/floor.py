"""The floor: the least time that a selection by the whole Gram and one dependent step per pick can take here.

Four measured terms make it up: an empty call, the rate of a copy, the rate of a matrix product, and one step, that is
an argmax followed by reading the row it points at. The call is of the clock that the floor stands beside: an eager call
that fills one element, or the replay of a graph of nothing else. The time of a shape is

    call + max(bytes / copy rate, flops / matrix rate) + k * step * ceil(B / width)

with bytes = B * N * D * size of an element (each feature read once), flops = B * N * N * D (half of the Gram, two
operations per multiply-add) and width = the multiprocessors or threads that work on different samples. An engine
that computes fewer similarities than the Gram has can be faster than this.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from .harness import Budget, graphed, interleave_graphs, time_one
from .workloads import Shape

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
STEP_TOKENS = (576, 2880)
STEPS = 200


class Terms(NamedTuple):
    """The floor of one shape in µs, term by term."""

    call_us: float
    gram_us: float
    steps_us: float

    @property
    def total_us(self) -> float:
        """Their sum."""
        return sum(self)


class Floor(NamedTuple):
    """What the device at hand does.

    Attributes:
        call_us: an empty eager call.
        replay_us: the replay of a graph of one; None without a GPU.
        copy_gb_per_s: bytes read plus bytes written per second of a large copy.
        matrix_tflop_per_s: rate of a large matrix product in the dtype of the features.
        step_us, step_us_per_token: time of one step = step_us + N * step_us_per_token.
        width: samples whose steps run at once.
        step_method: how the step was measured.
    """

    call_us: float
    copy_gb_per_s: float
    matrix_tflop_per_s: float
    step_us: float
    step_us_per_token: float
    width: int
    step_method: str
    replay_us: float | None = None

    def terms(self, shape: Shape, dtype: torch.dtype, clock: str = "eager") -> Terms:
        """The floor of a shape, of an eager call or of a "graph" replay."""
        call = self.call_us if clock == "eager" or self.replay_us is None else self.replay_us
        moved = gigabytes(shape, dtype) / self.copy_gb_per_s * 1e6
        multiplied = gram_tflop(shape) / self.matrix_tflop_per_s * 1e6
        step = self.step_us + shape.tokens * self.step_us_per_token
        return Terms(call, max(moved, multiplied), shape.k * step * math.ceil(shape.batch / self.width))


def gigabytes(shape: Shape, dtype: torch.dtype) -> float:
    """Features read once: B * N * D * size of an element, in 1e9 bytes."""
    return shape.batch * shape.tokens * shape.dim * torch.empty((), dtype=dtype).element_size() / 1e9


def gram_tflop(shape: Shape) -> float:
    """Half of the Gram: B * N * N * D operations, in 1e12. The same for engines that compute less or more of it."""
    return shape.batch * shape.tokens**2 * shape.dim / 1e12


def measure(device: torch.device, dtype: torch.dtype, budget: Budget) -> Floor:
    """Measures the four terms."""
    small, large = (_step_us(n, device, budget) for n in STEP_TOKENS)
    per_token = max(0.0, (large - small) / (STEP_TOKENS[1] - STEP_TOKENS[0]))
    return Floor(
        call_us=_call_us(device, budget),
        copy_gb_per_s=_copy_rate(device, budget),
        matrix_tflop_per_s=_matrix_rate(device, dtype, budget),
        step_us=max(0.0, small - STEP_TOKENS[0] * per_token),
        step_us_per_token=per_token,
        width=torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else torch.get_num_threads(),
        step_method=_step_method(device),
        replay_us=_replay_us(device, budget) if device.type == "cuda" else None,
    )


def _call_us(device: torch.device, budget: Budget) -> float:
    """The least that reaches the device and returns: filling one element."""
    one = torch.zeros(1, device=device)
    one.fill_(1.0)
    return time_one(lambda: one.fill_(1.0), device, budget._replace(repeats=max(100, budget.repeats))).median_us


def _replay_us(device: torch.device, budget: Budget) -> float:
    """By the clock of all other replays."""
    one = torch.zeros(1, device=device)
    return interleave_graphs({"": [lambda: one.fill_(1.0)]}, device, budget)[""].median_us


def _copy_rate(device: torch.device, budget: Budget) -> float:
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.zeros_like(source)
    microseconds = time_one(lambda: target.copy_(source), device, budget).median_us
    return 2 * COPY_BYTES[device.type] / microseconds / 1e3


def _matrix_rate(device: torch.device, dtype: torch.dtype, budget: Budget) -> float:
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    microseconds = time_one(lambda: left @ right, device, budget).median_us
    return 2 * side**3 / microseconds / 1e6


def _step_method(device: torch.device) -> str:
    if device.type == "cpu":
        return "argmax and minimum with the row it points at, by NumPy"
    return "one Triton program that loops" if _has_triton() else "torch operators in a CUDA graph"


def _step_us(tokens: int, device: torch.device, budget: Budget) -> float:
    """One step of a chain of STEPS, each of which needs the one before."""
    generator = torch.Generator().manual_seed(0)
    gram = torch.rand((tokens, tokens), generator=generator)
    chain = _numpy_chain(gram) if device.type == "cpu" else _cuda_chain(gram.to(device))
    return time_one(chain, device, budget).median_us / STEPS


def _numpy_chain(gram: torch.Tensor):
    rows, start = gram.numpy(), gram[0].numpy().copy()

    def chain() -> None:
        priority = start.copy()
        for _ in range(STEPS):
            np.minimum(priority, rows[priority.argmax()], out=priority)

    return chain


def _has_triton() -> bool:
    try:
        from . import floor_kernel  # noqa: F401
    except ImportError:
        return False
    return True


def _cuda_chain(gram: torch.Tensor):
    if _has_triton():
        from .floor_kernel import chain

        out = torch.empty(gram.shape[0], device=gram.device)
        return graphed(lambda: chain(gram, out, STEPS))

    def by_operators() -> None:
        priority = gram[0]
        for _ in range(STEPS):
            priority = torch.minimum(priority, gram.index_select(0, priority.argmax(0, keepdim=True))[0])

    return graphed(by_operators)

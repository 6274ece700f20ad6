"""Timing, the check before it, and memory: the only file that reads a clock.

Calls are timed by turns in one run, so that other load on the machine and its clock speed meet all of them alike. On a
GPU a time is that between two events around the call, and in a second column that of a replayed graph; on a CPU it
is `time.perf_counter` around the call. Inputs rotate through enough memory that caches hold none of them; before a
graph is replayed, whose addresses are fixed, the GPU's cache is overwritten.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

import idsel_kernels as idsel
from idsel_kernels import Rule
from idsel_kernels.testing import Case, check_selection

Call = Callable[[], object]

# Regret allowed, in units of the priorities: float32 arithmetic, as in idsel_kernels.testing, or four roundings of
# the type that a loop computes in (norm, quotient, dot product, priority).
FLOAT32_TOLERANCE = 1e-5
HALF_ROUNDINGS = 4
# Calls of each provider before its times count: lazy initialisation and autotuning are over after the first.
WARM_UP = 2
# Input sets of which a graph is captured: capturing a long loop takes longer than replaying it.
GRAPHS = 4
FLUSH_BYTES = 256 * 2**20


class Timing(NamedTuple):
    """Median, 20th and 80th percentile in µs, and how many times were taken."""

    median_us: float
    p20_us: float
    p80_us: float
    repeats: int


class Budget(NamedTuple):
    """How long to time: at least `repeats` turns, then more until `seconds` are over or `most` turns are taken."""

    repeats: int = 10
    seconds: float = 0.5
    most: int = 500


def summary(microseconds: Sequence[float]) -> Timing:
    """The percentiles that every row shows."""
    p20, median, p80 = np.percentile(microseconds, [20, 50, 80])
    return Timing(float(median), float(p20), float(p80), len(microseconds))


# --- Clocks -----------------------------------------------------------------------------------------------------------


def host_us(call: Call) -> float:
    """One call by the host's clock."""
    begin = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - begin)


def device_us(call: Call, device: torch.device, prepare: Call | None = None) -> float:
    """One call by the device's clock, host time until its last launch included."""
    if prepare is not None:
        prepare()
    if device.type != "cuda":
        return host_us(call)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- Timing -----------------------------------------------------------------------------------------------------------


def interleave(
    calls: dict[str, Sequence[Call]], device: torch.device, budget: Budget, prepare: Call | None = None
) -> dict[str, Timing]:
    """Times the calls by turns.

    Each entry holds one call per input set; turn i uses set i modulo their number. `prepare` runs untimed before
    every call.
    """
    for variants in calls.values():
        for call in variants[:WARM_UP]:
            call()
    synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin, turn = time.perf_counter(), 0
    while calls and turn < budget.most:
        if turn >= budget.repeats and time.perf_counter() - begin > budget.seconds:
            break
        for name, variants in calls.items():
            times[name].append(device_us(variants[turn % len(variants)], device, prepare))
        turn += 1
    return {name: summary(found) for name, found in times.items()}


def time_one(call: Call, device: torch.device, budget: Budget) -> Timing:
    """`interleave` of a single call."""
    return interleave({"": [call]}, device, budget)[""]


def graphed(call: Call) -> Call:
    """The replay of the call, captured as a CUDA graph; raises what capture raises."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up outside the capture, where workspaces and handles are made
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def interleave_graphs(calls: dict[str, Sequence[Call]], device: torch.device, budget: Budget) -> dict[str, Timing]:
    """Times a replay of those calls that can be captured, by turns."""
    captured: dict[str, list[Call]] = {}
    for name, variants in calls.items():
        try:
            captured[name] = [graphed(call) for call in variants[:GRAPHS]]
        except RuntimeError:  # the call synchronises, which a capture forbids
            torch.cuda.synchronize(device)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    return interleave(captured, device, budget, prepare=flush.zero_)


# --- The check --------------------------------------------------------------------------------------------------------


class Checker:
    """Judges picks by their regret against the float64 reference.

    The regret of a pick depends on the picks before it alone. So picks that begin as others do which were judged on the
    same input are not replayed again.
    """

    def __init__(self, cases: Sequence[Case], rule: Rule) -> None:
        self.cases, self.rule = cases, rule
        self.known: list[list[tuple[torch.Tensor, float]]] = [[] for _ in cases]

    def regret(self, which: int, indices: torch.Tensor) -> float:
        """The worst relative regret of indices (B, k) on input set `which`; inf where a pick is repeated or missing."""
        indices = indices.cpu().to(torch.int64)
        for judged, regret in self.known[which]:
            if judged.shape[1] >= indices.shape[1] and torch.equal(judged[:, : indices.shape[1]], indices):
                return regret
        regret = self._replay(self.cases[which], indices)
        self.known[which].append((indices, regret))
        return regret

    def _replay(self, case: Case, indices: torch.Tensor) -> float:
        counts = None if case.cu_seqlens is None else _counts(case.cu_seqlens, indices.shape[1])
        # Loops report no priorities; those of padding must be -inf.
        scores = torch.where(indices >= 0, 0.0, -math.inf)
        inputs = {name: value.cpu() for name, value in case.inputs().items()}
        sel = idsel.Selection(indices, scores)
        return check_selection(sel, **inputs, rule=self.rule, k=counts).relative_regret


def _counts(cu_seqlens: torch.Tensor, width: int) -> list[int]:
    return [min(width, int(n)) for n in cu_seqlens.diff()]


def tolerance(dtype: torch.dtype, half_arithmetic: bool) -> float:
    """The regret that rounding can cause."""
    if half_arithmetic and dtype in (torch.float16, torch.bfloat16):
        return HALF_ROUNDINGS * torch.finfo(dtype).eps
    return FLOAT32_TOLERANCE


# --- Memory -----------------------------------------------------------------------------------------------------------


def extra_memory(call: Call, device: torch.device) -> int | None:
    """Peak memory in bytes that one call takes beyond what was allocated before it; None where it cannot be read.

    On a GPU torch's allocator knows; on Linux it is the rise of the peak of resident memory.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return None
    _give_back_free_memory()
    before = _status_bytes("VmRSS:")
    try:
        with open("/proc/self/clear_refs", "w") as peaks:
            peaks.write("5")
    except OSError:
        return None
    call()
    return max(0, _status_bytes("VmHWM:") - before)


def _give_back_free_memory() -> None:
    """Else the call would be served from pages that earlier calls freed, and seem to take none."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

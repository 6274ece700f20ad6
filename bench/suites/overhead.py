"""The suite `overhead`: what a call costs the host, how much it launches, and whether it waits for the device."""

from __future__ import annotations

from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from idsel_kernels import IDSelection

from .. import harness, providers, workloads
from ..workloads import Shape
from . import session as common
from .session import Row, Session

# What the CUDA runtime and driver call a launch and a wait.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
SYNCS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
# A value read back to the host waits for the device that computes it, whatever the device.
READS = ("aten::_local_scalar_dense",)
SMALLEST = Shape(1, 16, 16, 1)


def overhead(session: Session) -> Iterator[Row]:
    """Operators, launches and waits of a call, and the host's time for a call on next to nothing."""
    for shape in session.shapes("overhead"):
        for provider in [*providers.engines(session.device), *providers.baselines(IDSelection())]:
            session.step(f"overhead {shape}: {provider.name}")
            yield _row(session, shape, provider)


def _row(session: Session, shape: Shape, provider: providers.Provider) -> Row:
    rule = IDSelection()
    case = workloads.make_sets("clustered", shape, session.dtype, session.device)[0]
    select = provider.make(rule, shape.k)
    row = common.base_row(session, "overhead", provider.name, shape, rule, "clustered")
    counted = count(lambda: select(case.features, case.importance), session.on_gpu)
    tiny = workloads.make_sets("clustered", SMALLEST, session.dtype, session.device)[0]
    smallest = provider.make(rule, SMALLEST.k)
    return row | counted | {"host_us": round(_host_us(session, lambda: smallest(tiny.features, tiny.importance)), 3)}


def count(call: harness.Call, on_gpu: bool) -> Row:
    """What the profiler sees of one call; launches are null on a CPU, which has none."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    call()
    with profile(activities=activities) as recorded:
        call()
    events = recorded.events() or []
    names = [event.name for event in events if event.device_type.name == "CPU"]
    syncs = sum(name in (*SYNCS, *READS) for name in names)
    if on_gpu:  # the profiler itself waits once at the end
        syncs = max(0, syncs - 1)
    launches = sum(name in LAUNCHES for name in names) if on_gpu else None
    return {"operators": sum(name.startswith("aten::") for name in names), "launches": launches, "syncs": syncs}


def _host_us(session: Session, call: harness.Call) -> float:
    """Host time until the call returns; the device's work, next to none, is not waited for."""
    budget = session.budget._replace(repeats=max(50, session.budget.repeats))
    for _ in range(budget.repeats):  # lazy initialisation is over, and branches are predicted
        call()
    times = []
    for _ in range(budget.repeats * 4):
        harness.synchronize(session.device)
        times.append(harness.host_us(call))
    return harness.summary(times).median_us

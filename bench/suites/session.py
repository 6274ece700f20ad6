"""What all suites of one run share, and the one way in which providers are checked and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from idsel_kernels import Rule
from idsel_kernels.testing import Case

from .. import harness, workloads
from ..floor import Floor, gigabytes, gram_tflop
from ..harness import Budget, Checker, Timing
from ..providers import Provider, Selector
from ..workloads import Shape

Row = dict[str, Any]


class Inputs(NamedTuple):
    """The different input sets, the slots to rotate through, and who judges picks on them."""

    sets: list[Case]
    slots: list[Case]
    checker: Checker


@dataclass
class Session:
    """One run on one device.

    Attributes:
        given: shapes from the command line, which replace the lists of every suite.
        compiled: whether loops also run under torch.compile, where workloads.COMPILED_SHAPES has the shape.
        say: prints a line to the reader.
        step: tells the progress bar what is being measured.
        deadline: of the suite under way, by `time.monotonic`; no shape is begun after it.
    """

    device: torch.device
    dtype: torch.dtype
    budget: Budget
    floor: Floor
    quick: bool = False
    given: list[Shape] | None = None
    compiled: bool = True
    say: Callable[[str], None] = print
    step: Callable[[str], None] = field(default=lambda label: None)
    deadline: float = math.inf
    _inputs: dict[Any, Inputs] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether graphs, launches and device memory exist."""
        return self.device.type == "cuda"

    def shapes(self, suite: str) -> Iterator[Shape]:
        """The suite's shapes here, as long as there is time: corners first; of those that differ in k the largest."""
        found = sorted(workloads.shapes(suite, self.device, self.quick, self.given), key=workloads.turn)
        for i, shape in enumerate(found):
            if self.is_over():
                self.say(f"{suite}, left out for want of time: {' '.join(map(str, found[i:]))}")
                return
            yield shape

    def is_over(self) -> bool:
        """Whether the suite under way has used its time."""
        return time.monotonic() > self.deadline

    def inputs(self, kind: str, shape: Shape, rule: Rule) -> Inputs:
        """What a shape is measured on; the same for every k, so that picks are checked once."""
        key = kind, shape[:3], rule
        if key not in self._inputs:
            self._inputs.clear()  # one at a time: they are large
            sets = workloads.make_sets(kind, shape, self.dtype, self.device)
            slots = workloads.make_slots(sets, workloads.slot_count(shape, self.dtype))
            self._inputs[key] = Inputs(sets, slots, Checker(sets, rule))
        return self._inputs[key]

    def is_compiled(self, shape: Shape) -> bool:
        """Whether the loop is also run under torch.compile."""
        return self.compiled and not self.quick and shape in workloads.COMPILED_SHAPES[self.device.type]


def base_row(session: Session, suite: str, provider: str, shape: Shape, rule: Rule | None, kind: str) -> Row:
    """The fields that identify a row."""
    row: Row = {"suite": suite, "provider": provider, "input": kind, "status": "ok"}
    row |= {"dtype": str(session.dtype).removeprefix("torch.")}
    row |= {"B": shape.batch, "N": shape.tokens, "D": shape.dim, "k": shape.k}
    return row if rule is None else {**row, "rule": type(rule).__name__}


def unavailable(suite: str, provider: str, why: str) -> Row:
    """A row that says why there is no time."""
    return {"suite": suite, "provider": provider, "status": "unavailable", "note": why}


def check(provider: Provider, select: Selector, sets: Sequence[Case], checker: Checker) -> tuple[str, float, str]:
    """Runs a provider on every input set: its status, worst regret and, if it did not run, why."""
    worst = 0.0
    for which, case in enumerate(sets):
        try:
            indices = select(case.features, case.importance)
        except Exception as error:  # whatever a compiler raises: one provider must not cost the others their record
            return "unavailable", math.nan, " ".join(str(error).split())[:200] or type(error).__name__
        if provider.exact:
            worst = max(worst, checker.regret(which, indices))
    limit = harness.tolerance(sets[0].features.dtype, provider.half_arithmetic)
    return ("ok" if worst <= limit else "wrong"), worst, ""


def measure(
    session: Session,
    suite: str,
    shape: Shape,
    rule: Rule,
    kind: str,
    providers: Sequence[Provider],
    memory: bool = False,
) -> Iterator[Row]:
    """Checks all providers on the same inputs, times by turns those that pass, and yields one row for each."""
    sets, slots, checker = session.inputs(kind, shape, rule)
    rows: dict[str, Row] = {}
    calls: dict[str, list[harness.Call]] = {}
    for provider in providers:
        session.step(f"{suite} {shape} {type(rule).__name__} {kind}: checking {provider.name}")
        select = provider.make(rule, shape.k)
        status, regret, note = check(provider, select, sets, checker)
        row = base_row(session, suite, provider.name, shape, rule, kind) | {"status": status}
        row["regret"] = regret if provider.exact and math.isfinite(regret) else None
        rows[provider.name] = row | ({"note": note} if note else {})
        if status == "ok":
            calls[provider.name] = [partial(select, slot.features, slot.importance) for slot in slots]
    session.step(f"{suite} {shape} {type(rule).__name__} {kind}: timing")
    add_times(session, shape, rows, calls)
    if memory:
        for name, variants in calls.items():
            rows[name]["extra_memory_bytes"] = harness.extra_memory(variants[0], session.device)
    yield from rows.values()


def add_times(
    session: Session, shape: Shape, rows: dict[str, Row], calls: dict[str, list[harness.Call]], graphs: bool = True
) -> None:
    """Times the calls by turns and puts what follows from the times into their rows."""
    eager = harness.interleave(calls, session.device, session.budget)
    replayed = harness.interleave_graphs(calls, session.device, session.budget) if session.on_gpu and graphs else {}
    for name, timing in eager.items():
        graph = replayed.get(name)
        clock, best = ("graph", graph) if graph and graph.median_us < timing.median_us else ("eager", timing)
        rows[name] |= {"eager": rounded(timing), "graph": rounded(graph) if graph else None}
        rows[name] |= rates(session, shape, best.median_us, clock)


def rates(session: Session, shape: Shape, microseconds: float, clock: str) -> Row:
    """What a time by a clock means for a shape; formulas in floor.py."""
    floor = session.floor.terms(shape, session.dtype, clock).total_us
    return {
        "us_per_pick": round(microseconds / (shape.k * shape.batch), 4),
        "gb_per_s": round(gigabytes(shape, session.dtype) / microseconds * 1e6, 4),
        "tflop_per_s": round(gram_tflop(shape) / microseconds * 1e6, 6),
        "clock": clock,
        "floor_us": round(floor, 3),
        "times_floor": round(microseconds / floor, 4),
    }


def rounded(timing: Timing) -> Row:
    """A timing as a record holds it, to the nanosecond."""
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in timing._asdict().items()}

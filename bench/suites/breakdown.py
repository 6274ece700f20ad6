"""The suite `breakdown`: where the time of a selection goes, and the parts of its floor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from idsel_kernels import IDSelection

from .. import harness, providers, workloads
from ..workloads import Shape
from . import session as common
from .session import Row, Session

PICKS = (16, 32, 64)


def breakdown(session: Session) -> Iterator[Row]:
    """The Gram by the library's matrix product, what each further pick adds, and the terms of the floor."""
    for shape in session.shapes("breakdown"):
        yield from _floor_rows(session, shape)
        yield from _gram_row(session, shape)
        yield from _pick_rows(session, shape)


def _value(session: Session, shape: Shape, name: str, value: float, unit: str, note: str) -> Row:
    row = common.base_row(session, "breakdown", name, shape, None, "clustered")
    return row | {"value": round(value, 4), "unit": unit, "note": note}


def _floor_rows(session: Session, shape: Shape) -> Iterator[Row]:
    terms = session.floor.terms(shape, session.dtype)
    yield _value(session, shape, "floor: call", terms.call_us, "us", "an empty call or launch")
    yield _value(session, shape, "floor: Gram", terms.gram_us, "us", "max(bytes / copy rate, flops / matrix rate)")
    yield _value(session, shape, "floor: steps", terms.steps_us, "us", "k dependent steps")


def _gram_row(session: Session, shape: Shape) -> Iterator[Row]:
    session.step(f"breakdown {shape}: Gram")
    cases = workloads.make_sets("clustered", shape, session.dtype, session.device)
    calls = [partial(torch.bmm, case.features, case.features.mT) for case in cases]
    timing = harness.interleave({"Gram": calls}, session.device, session.budget)["Gram"]
    row = common.base_row(session, "breakdown", "Gram by torch.bmm", shape, None, "clustered")
    yield row | {"eager": common.rounded(timing), "graph": None, "note": "the whole of it, norms not applied"}


def _pick_rows(session: Session, shape: Shape) -> Iterator[Row]:
    """What the first picks take, the Gram or the start included, and what each pick adds after them."""
    cases = workloads.make_sets("clustered", shape, session.dtype, session.device)
    picks = [k for k in PICKS if k < shape.k] + [shape.k]
    for provider in [*providers.engines(session.device), *providers.baselines(IDSelection())]:
        if not provider.exact:
            continue
        session.step(f"breakdown {shape}: {provider.name}")
        calls = {str(k): _calls(provider, k, cases) for k in picks}
        times = [timing.median_us for timing in harness.interleave(calls, session.device, session.budget).values()]
        first = f"{provider.name}: the first {picks[0]} picks"
        yield _value(session, shape, first, times[0], "us", "the Gram or the start included")
        for (k, before), (more, after) in itertools.pairwise(zip(picks, times, strict=True)):
            name = f"{provider.name}: each pick from {k} to {more}"
            yield _value(session, shape, name, (after - before) / (more - k), "us", "difference of medians")


def _calls(provider: providers.Provider, k: int, cases: list[workloads.Case]) -> list[harness.Call]:
    select = provider.make(IDSelection(), k)
    return [partial(select, case.features, case.importance) for case in cases]

"""Suites that time selections: latency, batch, scale, ragged, rules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import idsel_kernels as idsel
from idsel_kernels import IDSelection, MaxMin, Rule
from idsel_kernels.rules import RULES as CLASSES
from idsel_kernels.testing import Case

from .. import harness, providers, workloads
from ..harness import Checker
from ..workloads import Shape
from . import session as common
from .session import Row, Session

# The parameters that the published codes use; MaxMin also from a given start, which is what torch_cluster.fps does.
# Rules that decide on all picks at once have no replay: bench.tools.numpy_loops times them.
RULES: tuple[Rule, ...] = (*(rule() for rule in CLASSES.values() if rule.is_greedy), MaxMin(start=0))
KINDS = ("clustered", "picture", "ties", "flat")


def _all(session: Session, shape: Shape, rule: Rule) -> list[providers.Provider]:
    compiled = session.is_compiled(shape)
    return [*providers.engines(session.device), *providers.baselines(rule, compiled)]


def latency(session: Session) -> Iterator[Row]:
    """One sample: time against N, D and k, by ID-Selection."""
    for shape in session.shapes("latency"):
        found = _all(session, shape, IDSelection())
        yield from common.measure(session, "latency", shape, IDSelection(), "clustered", found)


def batch(session: Session) -> Iterator[Row]:
    """Time against B."""
    for shape in session.shapes("batch"):
        found = [p for p in _all(session, shape, IDSelection()) if p.name != providers.COMPILED]
        yield from common.measure(session, "batch", shape, IDSelection(), "clustered", found)


def scale(session: Session) -> Iterator[Row]:
    """Time and peak memory against N, keeping a tenth of the tokens."""
    for shape in session.shapes("scale"):
        found = [p for p in _all(session, shape, IDSelection()) if p.name != providers.COMPILED]
        yield from common.measure(session, "scale", shape, IDSelection(), "clustered", found, memory=True)


def rules(session: Session) -> Iterator[Row]:
    """Every rule on every kind of input."""
    for shape in session.shapes("rules"):
        for rule in RULES:
            if session.is_over():
                session.say(f"rules, left out for want of time: {rule_name(rule)}")
                continue
            found = [p for p in _all(session, shape, rule) if p.name != providers.COMPILED]
            for kind in KINDS:
                for row in common.measure(session, "rules", shape, rule, kind, found):
                    yield {**row, "rule": rule_name(rule)}


def rule_name(rule: Rule) -> str:
    """The class, and the start of MaxMin, which decides whether N * N similarities are needed."""
    started = isinstance(rule, MaxMin) and rule.start is not None
    return "MaxMin(start=0)" if started else type(rule).__name__


# --- Ragged -----------------------------------------------------------------------------------------------------------


def ragged_lengths(shape: Shape) -> list[int]:
    """Lengths from a quarter of N to N, as images of different size have."""
    steps = max(1, shape.batch - 1)
    return [max(shape.k, round(shape.tokens * (0.25 + 0.75 * i / steps))) for i in range(shape.batch)]


def ragged(session: Session) -> Iterator[Row]:
    """Samples of different length: one ragged call, a padded call with a mask, and one call per sample."""
    for shape in session.shapes("ragged"):
        yield from _ragged(session, shape, IDSelection())


def _ragged(session: Session, shape: Shape, rule: IDSelection) -> Iterator[Row]:
    lengths = ragged_lengths(shape)
    sets = [_ragged_case(shape, lengths, session, seed) for seed in range(workloads.MAX_SETS)]
    checker = Checker(sets, rule)
    rows: dict[str, Row] = {}
    calls: dict[str, list[harness.Call]] = {}
    for name, select in _ragged_selectors(session, shape.k, rule, lengths).items():
        session.step(f"ragged {shape}: checking {name}")
        regret = max(checker.regret(i, select(case)) for i, case in enumerate(sets))
        half = name.startswith(providers.LOOP)
        status = "ok" if regret <= harness.tolerance(session.dtype, half) else "wrong"
        rows[name] = common.base_row(session, "ragged", name, shape, rule, "clustered")
        rows[name] |= {"status": status, "regret": regret if regret < float("inf") else None}
        rows[name]["note"] = f"lengths {min(lengths)} to {max(lengths)}"
        if status == "ok":
            calls[name] = [partial(select, case) for case in sets]
    session.step(f"ragged {shape}: timing")
    for name, timing in harness.interleave(calls, session.device, session.budget).items():
        rows[name] |= {"eager": common.rounded(timing), "graph": None}
        rows[name]["us_per_pick"] = round(timing.median_us / (shape.k * shape.batch), 4)
    yield from rows.values()


def _ragged_case(shape: Shape, lengths: list[int], session: Session, seed: int) -> Case:
    case = idsel.testing.ragged(lengths, shape.dim, seed=seed, dtype=session.dtype)
    return workloads.to_device(case, session.device)


def _ragged_selectors(session: Session, k: int, rule: IDSelection, lengths: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for provider in providers.engines(session.device):
        found[provider.name] = partial(_one_call, k=k, rule=rule, backend=provider.name)
        found[f"{provider.name}, padded"] = partial(_padded, k=k, rule=rule, backend=provider.name, lengths=lengths)
    found[f"{providers.LOOP}, by sample"] = partial(_by_sample, k=k, rule=rule, lengths=lengths)
    return found


def _one_call(case: Case, k: int, rule: Rule, backend: str) -> torch.Tensor:
    return idsel.select(**case.inputs(), k=k, rule=rule, backend=backend).indices


def _padded(case: Case, k: int, rule: Rule, backend: str, lengths: list[int]) -> torch.Tensor:
    """Padding included: it is part of what a padded batch costs."""
    features = torch.nn.utils.rnn.pad_sequence(list(case.features.split(lengths)), batch_first=True)
    importance = torch.nn.utils.rnn.pad_sequence(list(case.importance.split(lengths)), batch_first=True)
    ends = torch.tensor(lengths, device=features.device)
    mask = torch.arange(features.shape[1], device=features.device) < ends[:, None]
    return idsel.select(features, k, rule, importance, mask=mask, backend=backend).indices


def _by_sample(case: Case, k: int, rule: Rule, lengths: list[int]) -> torch.Tensor:
    parts = zip(case.features.split(lengths), case.importance.split(lengths), strict=True)
    return torch.cat([providers.LOOPS[type(rule)](x[None], s[None], k, rule) for x, s in parts])

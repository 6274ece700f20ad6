"""The suites by name. Each takes a `Session` and yields rows of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import breakdown, overhead, prefill, selection
from .session import Row, Session

SUITES: dict[str, Callable[[Session], Iterator[Row]]] = {
    "latency": selection.latency,
    "batch": selection.batch,
    "scale": selection.scale,
    "overhead": overhead.overhead,
    "breakdown": breakdown.breakdown,
    "ragged": selection.ragged,
    "rules": selection.rules,
    "prefill": prefill.prefill,
}

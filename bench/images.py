"""Which pictures a record allows: their files and their words. `plots` draws them, `report` shows them."""

from __future__ import annotations

from typing import Any

from . import records, tables
from .providers import BOUND

Record = dict[str, Any]

# What the pictures show: their alternative text.
CAPTIONS = {
    "latency": "Time of one selection, by its size",
    "speedup": "Speed-up over the published loop, by rule and input",
    "floor": "The terms of the floor, and the time of one selection",
    "memory": "Peak extra memory against N",
}


def name(plot: str, stem: str) -> str:
    """File of a plot of the record named `stem`."""
    return f"bench-{plot}-{stem}.png"


def drawn(record: Record) -> list[str]:
    """The plots that there are rows for."""
    timed = records.rows_of(record, "latency", status="ok")
    found = {
        "latency": timed,
        "speedup": tables.speedups(record),
        "floor": timed and not tables.on_gpu(record),
        "memory": memory_rows(record),
    }
    return [plot for plot, rows in found.items() if rows]


def memory_rows(record: Record) -> list[Record]:
    """The rows of the suite `scale` whose memory was measured and says something."""
    rows = records.rows_of(record, "scale")
    return [row for row in rows if row.get("extra_memory_bytes") is not None and row["provider"] != BOUND]

"""A record as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from . import records
from .console import bytes_text, cell, time_text, times_text
from .providers import BOUND, COMPILED, ENGINES, FPS, LOOP

Row = dict[str, Any]

# What a time of ours is compared with, in the order of the columns.
BASELINES = (LOOP, COMPILED, FPS, "torch", BOUND)
HEADINGS = {"torch": "torch engine"}


def markdown(head: Sequence[str], body: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def ours(record: Row) -> list[str]:
    """The engines of a record except the reference, preferred first."""
    found = [name for name in ENGINES if name in record["engines"] and name != "torch"]
    return found or [name for name in ("torch",) if name in record["engines"]]


def groups(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Rows by the fields given, and there by provider."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in fields), {})[row["provider"]] = row
    return found


def best_us(row: Row | None) -> float | None:
    """The shorter of the two times of a row, in µs."""
    if row is None or row["status"] != "ok":
        return None
    times = [row[clock]["median_us"] for clock in ("eager", "graph") if row.get(clock)]
    return min(times, default=None)


def ratio(row: Row | None, base: float | None) -> str:
    """How many times as long as ours another provider takes; best time against best time."""
    if row is not None and row["status"] == "wrong":
        return "WRONG"
    other = best_us(row)
    return "" if other is None or base is None else times_text(other / base)


def _with_spread(row: Row, clock: str) -> str:
    text = cell(row, clock)
    timing = row.get(clock)
    if row["status"] != "ok" or not timing:
        return text
    low, high = (time_text(timing[name]) for name in ("p20_us", "p80_us"))
    return f"**{text}** ({low} – {high})"


def compared(
    record: Row, rows: list[Row], fields: Sequence[str], floor: bool = True, keep: Callable[..., bool] | None = None
) -> str:
    """Time of each engine with its spread, and how many times as long every other provider takes."""
    clocks = ["eager", "graph"] if any(row.get("graph") for row in rows) else ["eager"]
    present = {row["provider"] for row in rows}
    others = [name for name in BASELINES if name in present and name not in ours(record)]
    extra = ["floor", "× of the floor"] if floor else []
    head = [*fields, "engine", *(["time", "graph replay"][: len(clocks)])]
    head += [f"× {HEADINGS.get(name, name)}" for name in others] + extra
    body = []
    for key, found in groups(rows, *fields).items():
        if keep is not None and not keep(dict(zip(fields, key, strict=True))):
            continue
        for engine in ours(record):
            if engine in found:
                body.append(_compared_row(key, engine, found, clocks, others, floor))
    return markdown(head, body, left=len(fields) + 1)


def _compared_row(
    key: tuple[Any, ...],
    engine: str,
    found: dict[str, Row],
    clocks: list[str],
    others: list[str],
    floor: bool,
) -> list[str]:
    row = found[engine]
    base = best_us(row)
    cells = [*map(str, key), engine, *(_with_spread(row, clock) for clock in clocks)]
    cells += [ratio(found.get(name), base) for name in others]
    if floor:
        has = "floor_us" in row
        cells += [time_text(row["floor_us"]), times_text(row["times_floor"])] if has else ["", ""]
    return cells


# --- One table per suite ----------------------------------------------------------------------------------------------


def latency(record: Row) -> str:
    """Time, how many times as long every other provider takes, and times of the floor."""
    return compared(record, records.rows_of(record, "latency"), ("N", "D", "k"))


def summary(record: Row, picks: tuple[int, ...] = (16, 64)) -> str:
    """The latency rows that the README shows."""
    return compared(record, records.rows_of(record, "latency"), ("N", "D", "k"), keep=lambda at: at["k"] in picks)


def batch(record: Row) -> str:
    """Against B."""
    return compared(record, records.rows_of(record, "batch"), ("B", "N", "D", "k"))


def rules(record: Row) -> str:
    """By rule and input."""
    return compared(record, records.rows_of(record, "rules"), ("rule", "input"))


def extremes(record: Row) -> str:
    """A sentence on the least and the largest gain over the published loops, over rules and inputs."""
    engine, factors = (ours(record) or [""])[0], []
    for (rule, kind), found in groups(records.rows_of(record, "rules"), "rule", "input").items():
        base, loop = best_us(found.get(engine)), best_us(found.get(LOOP))
        if base and loop:
            factors.append((loop / base, f"{rule} on `{kind}` input"))
    if not factors:
        return ""
    (least, where), (most, there) = min(factors), max(factors)
    return (
        f"Over all rules and inputs, at one shape, the published loop takes from {times_text(least)} ({where}) "
        f"to {times_text(most)} ({there}) as long."
    )


def scale(record: Row) -> str:
    """Time and peak memory against N, of every provider."""
    head = ["N", "D", "k", "provider", "time", "extra memory"]
    body = []
    for row in records.rows_of(record, "scale"):
        memory = row.get("extra_memory_bytes")
        shape = [str(row[axis]) for axis in "NDk"]
        body.append([*shape, row["provider"], cell(row), "" if memory is None else bytes_text(memory)])
    return markdown(head, body, left=4)


def overhead(record: Row) -> str:
    """What a call costs the host."""
    rows = records.rows_of(record, "overhead")
    on_gpu = record["environment"]["device"]["type"] == "cuda"
    head = ["provider", "host time of the smallest call", "torch operators", "reads by the host"]
    head += ["launches"] if on_gpu else []
    body = []
    for row in rows:
        launches = [str(row["launches"])] if on_gpu else []
        body.append([row["provider"], time_text(row["host_us"]), str(row["operators"]), str(row["syncs"]), *launches])
    return markdown(head, body)


def breakdown(record: Row) -> str:
    """Where the time goes."""
    body = []
    for row in records.rows_of(record, "breakdown"):
        value = time_text(row["value"]) if "value" in row else cell(row)
        shape = [str(row[axis]) for axis in "NDk"]
        body.append([*shape, row["provider"], row["note"], value])
    return markdown(["N", "D", "k", "part", "how", "time"], body, left=5)


def ragged(record: Row) -> str:
    """Samples of different length."""
    rows = records.rows_of(record, "ragged")
    body = [
        [
            str(r["B"]),
            r["note"].removeprefix("lengths "),
            str(r["D"]),
            str(r["k"]),
            r["provider"],
            _with_spread(r, "eager"),
        ]
        for r in rows
    ]
    return markdown(["B", "N", "D", "k", "provider", "time"], body, left=5)


def prefill(record: Row) -> str:
    """Operations, and times where there was a GPU."""
    body = []
    for row in records.rows_of(record, "prefill"):
        if row["status"] == "unavailable":
            value = f"not run: {row['note']}"
        else:
            value = f"{row['value']:.4g} {row['unit']}" if "value" in row else _with_spread(row, "eager")
        body.append([row["provider"], value])
    return markdown(["prefill of Llama 7B", ""], body)


def floor(record: Row) -> str:
    """The measured terms."""
    f = record["floor"]
    step = f"{f['step_us']:.2f} µs + {1e3 * f['step_us_per_token']:.2f} ns per token"
    body = [
        [
            "empty call" if record["environment"]["device"]["type"] == "cpu" else "empty launch",
            f"{f['call_us']:.2f} µs",
        ],
        ["copy, bytes read plus bytes written", f"{f['copy_gb_per_s']:.1f} GB/s"],
        ["matrix product", f"{f['matrix_tflop_per_s']:.3g} TFLOP/s"],
        [f"a dependent step ({f['step_method']})", step],
    ]
    return markdown(["part of the floor", "measured"], body)


def about(record: Row) -> str:
    """Device, versions, when and from what."""
    environment, git = record["environment"], record["git"]
    device, versions = environment["device"], environment["versions"]
    shown = [f"{name} {version}" for name, version in versions.items() if version]
    driver = f", driver {device['driver']}" if device["driver"] else ""
    clocks = device["clocks_mhz"] or {}
    clock = "".join(f", {name} clock {mhz:.0f} MHz" for name, mhz in clocks.items())
    commit = (git["commit"] or "unknown")[:12] + (" with changes" if git["modified"] else "")
    return (
        f"{records.title(record)}{driver}{clock}; {environment['threads']} threads; {', '.join(shown)}; "
        f"taken {environment['taken'][:10]} at commit {commit}, sources {record['sources']['digest']}."
    )


TABLES: dict[str, tuple[str, Callable[[Row], str]]] = {
    "latency": ("Latency", latency),
    "rules": ("Rules and inputs", rules),
    "batch": ("Batch", batch),
    "scale": ("Scale", scale),
    "ragged": ("Ragged batch", ragged),
    "overhead": ("Overhead", overhead),
    "breakdown": ("Breakdown", breakdown),
    "prefill": ("Prefill", prefill),
}


def all_of(record: Row) -> Iterator[tuple[str, str, str]]:
    """(suite, title, table) of every suite in a record."""
    for suite, (title, table) in TABLES.items():
        if records.rows_of(record, suite):
            yield suite, title, table(record)

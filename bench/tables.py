"""A record as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from . import records, workloads
from .console import bytes_text, cell, range_text, time_text, times_text
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


def on_gpu(record: Row) -> bool:
    """Whether calls were also replayed as CUDA graphs, and the floor's call is a launch."""
    return bool(record["environment"]["device"]["type"] == "cuda")


def median_us(row: Row | None, clock: str = "eager") -> float | None:
    """The time of a row by one clock."""
    if row is None or row["status"] != "ok" or not row.get(clock):
        return None
    return float(row[clock]["median_us"])


def factor(row: Row | None, ours: Row | None, clock: str) -> float | None:
    """How many times as long as ours another provider takes by the same clock."""
    other, base = median_us(row, clock), median_us(ours, clock)
    return None if other is None or base is None else other / base


def ratio(row: Row | None, ours: Row | None, clocks: Sequence[str]) -> str:
    """`factor` by each clock; blank where there is no such provider."""
    if row is not None and row["status"] == "wrong":
        return "WRONG"
    found = [factor(row, ours, clock) for clock in clocks]
    return " / ".join("–" if f is None else times_text(f) for f in found) if any(found) else ""


def _with_spread(row: Row, clock: str) -> str:
    text = cell(row, clock)
    timing = row.get(clock)
    if row["status"] != "ok" or not timing:
        return text
    return f"**{text}** ({range_text(timing['p20_us'], timing['p80_us'])})"


def compared(
    record: Row, rows: list[Row], fields: Sequence[str], keep: Callable[[dict[str, Any]], bool] | None = None
) -> str:
    """Time of each engine with its spread, and how many times as long every other provider takes.

    On a GPU both clocks have a column, and every ratio is of times by the same clock. So is the floor, by the shorter
    of the two; records that do not say by which clock it is show it on a CPU only.
    """
    clocks = ["eager", "graph"] if on_gpu(record) else ["eager"]
    present = {row["provider"] for row in rows}
    others = [name for name in BASELINES if name in present and name not in ours(record)]
    extra = ["floor", "× of the floor"] if not on_gpu(record) or any("clock" in row for row in rows) else []
    head = [*fields, "engine", *(["time", "graph replay"][: len(clocks)])]
    head += [f"× {HEADINGS.get(name, name)}" for name in others] + extra
    body = []
    for key, found in groups(rows, *fields).items():
        if keep is not None and not keep(dict(zip(fields, key, strict=True))):
            continue
        for row in (found[engine] for engine in ours(record) if engine in found):
            cells = [*map(str, key), row["provider"], *(_with_spread(row, clock) for clock in clocks)]
            cells += [ratio(found.get(name), row, clocks) for name in others]
            body.append(cells + (_floor_cells(row) if extra else []))
    return markdown(head, body, left=len(fields) + 1)


def _floor_cells(row: Row) -> list[str]:
    return [time_text(row["floor_us"]), times_text(row["times_floor"])] if "floor_us" in row else ["", ""]


# --- One table per suite ----------------------------------------------------------------------------------------------


def latency(record: Row) -> str:
    """Time, how many times as long every other provider takes, and times of the floor."""
    return compared(record, records.rows_of(record, "latency"), ("N", "D", "k"))


def summary(record: Row, picks: tuple[int, ...] = (16, 64, 128, 192)) -> str:
    """The latency rows that the README shows."""
    return compared(record, records.rows_of(record, "latency"), ("N", "D", "k"), keep=lambda at: at["k"] in picks)


def batch(record: Row) -> str:
    """Against B."""
    return compared(record, records.rows_of(record, "batch"), ("B", "N", "D", "k"))


def rules(record: Row) -> str:
    """By rule and input."""
    return compared(record, records.rows_of(record, "rules"), ("rule", "input"))


def speedups(record: Row) -> dict[tuple[str, str], float]:
    """How many times as long the published loop takes, by rule and input; by graph replays where there are both."""
    engine, found = (ours(record) or [""])[0], {}
    for (rule, kind), by in groups(records.rows_of(record, "rules"), "rule", "input").items():
        factors = [factor(by.get(LOOP), by.get(engine), clock) for clock in ("graph", "eager")]
        if any(factors):
            found[rule, kind] = next(f for f in factors if f)
    return found


def extremes(record: Row) -> str:
    """A sentence on the least and the largest gain over the published loops, over rules and inputs."""
    factors = [(f, f"{rule} on `{kind}` input") for (rule, kind), f in speedups(record).items()]
    if not factors:
        return ""
    (least, where), (most, there) = min(factors), max(factors)
    return (
        f"Over all rules and inputs, at one shape, the published loop takes from {times_text(least)} ({where}) "
        f"to {times_text(most)} ({there}) as long."
    )


def scale(record: Row) -> str:
    """Time and peak memory against N, of every provider."""
    rows = records.rows_of(record, "scale")
    names = list(dict.fromkeys(row["provider"] for row in rows))
    body = []
    for key, found in groups(rows, "N", "D", "k").items():
        body.append([*map(str, key), *(_time_and_memory(found.get(name)) for name in names)])
    return markdown(["N", "D", "k", *names], body, left=3)


def _time_and_memory(row: Row | None) -> str:
    if row is None:
        return ""
    memory = row.get("extra_memory_bytes")
    return cell(row) + ("" if memory is None else f", {bytes_text(memory)}")


def overhead(record: Row) -> str:
    """What a call costs the host."""
    rows = records.rows_of(record, "overhead")
    head = ["provider", "host time of the smallest call", "torch operators", "reads by the host"]
    head += ["launches"] if on_gpu(record) else []
    body = []
    for row in rows:
        launches = [str(row["launches"])] if on_gpu(record) else []
        body.append([row["provider"], time_text(row["host_us"]), str(row["operators"]), str(row["syncs"]), *launches])
    return markdown(head, body)


def breakdown(record: Row) -> str:
    """Where the time goes: the floor and the matrix product, then first and further picks by provider."""
    products: dict[tuple[Any, ...], dict[str, str]] = {}
    picks: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in records.rows_of(record, "breakdown"):
        shape, (provider, _, part) = tuple(str(row[axis]) for axis in "NDk"), row["provider"].partition(": ")
        if part and provider != "floor":
            picks.setdefault((*shape, provider), {})[part] = time_text(row["value"])
        else:
            shown = time_text(row["value"]) if part else cell(row)
            products.setdefault(shape, {})[row["provider"]] = shown
    return "\n\n".join(
        _columns(head, table) for head, table in ((["N", "D", "k"], products), (["N", "D", "k", "provider"], picks))
    )


def _columns(head: list[str], table: dict[tuple[Any, ...], dict[str, str]]) -> str:
    names = list(dict.fromkeys(name for cells in table.values() for name in cells))
    body = [[*key, *(cells.get(name, "") for name in names)] for key, cells in table.items()]
    return markdown([*head, *names], body, left=len(head))


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
        ["eager call that fills one element" if on_gpu(record) else "empty call", f"{f['call_us']:.2f} µs"],
        *([["replay of a graph of it", f"{f['replay_us']:.2f} µs"]] if f.get("replay_us") else []),
        ["copy, bytes read plus bytes written", f"{f['copy_gb_per_s']:.1f} GB/s"],
        ["matrix product", f"{f['matrix_tflop_per_s']:.3g} TFLOP/s"],
        [f"a dependent step ({f['step_method']})", step],
    ]
    return markdown(["part of the floor", "measured"], body)


# --- What a record is of ----------------------------------------------------------------------------------------------


def about(record: Row) -> str:
    """Device, versions, when and from what."""
    environment = record["environment"]
    device, versions = environment["device"], environment["versions"]
    shown = [f"{name} {version}" for name, version in versions.items() if version]
    driver = f", driver {device['driver']}" if device["driver"] else ""
    clocks = ", ".join(f"{name} {mhz:.0f} MHz" for name, mhz in (device["clocks_mhz"] or {}).items())
    return (
        f"{records.title(record)}{driver}{f', clocks before the run: {clocks}' if clocks else ''}; "
        f"{environment['threads']} threads; {', '.join(shown)}; {taken(record)}."
    )


def taken(record: Row) -> str:
    """The date of a record, its commit, and the digest of its sources."""
    commit = (record["git"]["commit"] or "unknown")[:12] + (" with changes" if record["git"]["modified"] else "")
    date, digest = record["environment"]["taken"][:10], record["sources"]["digest"]
    return f"taken {date} at commit {commit}, sources {digest}"


def stale(record: Row, now: dict[str, str]) -> str:
    """A sentence where the sources of the engines in a record are no longer these; `now` by `source_hashes`."""
    if not records.changed_sources(record, now):
        return ""
    return (
        "**The kernel sources have changed since**: these are times of that commit, not of this one. "
        "`python -m bench verify` names the files."
    )


def missing(record: Row) -> str:
    """A sentence on what the suites have for such a device and the record does not."""
    lists = workloads.GPU_SHAPES if on_gpu(record) else workloads.CPU_SHAPES
    absent = [suite for suite in TABLES if not records.rows_of(record, suite)]
    parts = [f"the suites {', '.join(f'`{suite}`' for suite in absent)}"] if absent else []
    for suite in (suite for suite in lists if suite not in absent):
        there = {tuple(row.get(axis) for axis in "BNDk") for row in records.rows_of(record, suite)}
        gone = sum(shape not in there for shape in lists[suite])
        parts += [f"{gone} of the {len(lists[suite])} shapes of `{suite}`"] if gone else []
    if COMPILED not in {row["provider"] for row in record["rows"]}:
        parts.append("`torch.compile`")
    return f"Not in this record: {'; '.join(parts)}." if parts else ""


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

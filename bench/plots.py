"""The plots of a record: latency, speed-up, floor, memory. Times are medians, bands reach from p20 to p80."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import images, records, tables
from .floor import Floor
from .providers import BOUND, COMPILED, FPS, LOOP
from .workloads import Shape

Row = dict[str, Any]

# The colours of Okabe and Ito, which stay apart for colour-blind readers; one for each provider in every plot.
COLOURS = {
    "cuda": "#0072B2",
    "triton": "#56B4E9",
    "cpu": "#0072B2",
    "torch": "#009E73",
    LOOP: "#D55E00",
    COMPILED: "#E69F00",
    FPS: "#CC79A7",
    BOUND: "#999999",
}
MARKERS = {LOOP: "s", COMPILED: "D", "torch": "^", BOUND: "v"}
TERMS = {
    "call_us": ("floor: empty call", "black"),
    "gram_us": ("floor: Gram, the larger of bytes and operations", "#B0B0B0"),
    "steps_us": ("floor: k dependent steps", "#CC79A7"),
}
DPI = 110


def draw(record: Row, stem: str, folder: Path) -> Iterator[Path]:
    """Writes the plots of one record that its suites allow; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"latency": _latency, "speedup": _speedup, "floor": _floor, "memory": _memory}
    for name in images.drawn(record):
        figure = plots[name](record)
        figure.suptitle(records.title(record), fontsize=10, x=0.01, ha="left")
        path = folder / images.name(name, stem)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        plt.close(figure)
        yield path


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def longest(rows: list[Row], axis: str, fixed: tuple[str, ...]) -> tuple[dict[str, int], list[Row]]:
    """The rows along one axis, all others fixed, that have the most points; of equals the first."""
    found: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in fixed), []).append(row)
    key = max(found, key=lambda at: len({row[axis] for row in found[at]}))
    return dict(zip(fixed, key, strict=True)), sorted(found[key], key=lambda row: row[axis])


def _line(axes: Axes, rows: list[Row], axis: str, provider: str, clock: str = "eager") -> None:
    points = [row for row in rows if row["provider"] == provider and row["status"] == "ok" and row.get(clock)]
    if not points:
        return
    x = [row[axis] for row in points]
    low, median, high = ([row[clock][name] / 1e3 for row in points] for name in ("p20_us", "median_us", "p80_us"))
    style = {"color": COLOURS.get(provider, "#000000"), "marker": MARKERS.get(provider, "o"), "markersize": 5}
    axes.plot(x, median, label=_label(provider, clock), linestyle="--" if clock == "graph" else "-", **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _label(provider: str, clock: str) -> str:
    ours = f'backend="{provider}"' if provider in records.SOURCES else provider
    return f"{ours}, graph replay" if clock == "graph" else ours


def _latency(record: Row) -> Figure:
    rows = records.rows_of(record, "latency")
    # k = 64 is what both panels can share; a record of other shapes is shown as it is.
    shared = [row for row in rows if row["k"] == 64] or rows
    lines = {"k": longest(rows, "k", ("N", "D")), "N": longest(shared, "N", ("D", "k"))}
    # A record that a time limit cut short may have one N only, which makes no line.
    lines = {axis: line for axis, line in lines.items() if axis == "k" or len({row["N"] for row in line[1]}) > 1}
    size = (9, 4) if len(lines) > 1 else (7.5, 4)
    figure, panels = plt.subplots(1, len(lines), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (axis, (at, along)) in zip(panels[0], lines.items(), strict=True):
        for provider in dict.fromkeys(row["provider"] for row in along):
            for clock in ("eager", "graph"):
                _line(axes, along, axis, provider, clock)
        if not tables.on_gpu(record):
            _floor_line(axes, along, axis)
        _style(axes, axis, "time of one selection, ms" if axis == "k" else "")
        axes.set_title(", ".join(f"{name} = {value}" for name, value in at.items()), fontsize=10)
        axes.set_yscale("log")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _floor_line(axes: Axes, rows: list[Row], axis: str) -> None:
    points = {row[axis]: row["floor_us"] / 1e3 for row in rows if "floor_us" in row}
    axes.plot(points.keys(), points.values(), color="black", linewidth=1, linestyle=":", label="floor (whole Gram)")


def _speedup(record: Row) -> Figure:
    factors: dict[str, dict[str, float]] = {}
    for (rule, kind), factor in tables.speedups(record).items():
        factors.setdefault(kind, {})[rule] = factor
    names = list(dict.fromkeys(rule for by in factors.values() for rule in by))
    figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
    width = 0.8 / len(factors)
    for i, (kind, by) in enumerate(factors.items()):
        x = [names.index(rule) + (i - (len(factors) - 1) / 2) * width for rule in by]
        bars = axes.bar(
            x, list(by.values()), width, label=kind, color=("#0072B2", "#56B4E9", "#009E73", "#999999")[i % 4]
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    row = records.rows_of(record, "rules")[0]
    _style(axes, "", f"published loop / backend={tables.ours(record)[0]!r}")
    axes.set_title(f"N = {row['N']}, D = {row['D']}, k = {row['k']}", fontsize=10)
    axes.legend(title="input", frameon=False, fontsize=9)
    return figure


def _floor(record: Row) -> Figure:
    rows = records.rows_of(record, "latency", status="ok")
    # One N: floors grow with its square, and a stack has no logarithmic axis.
    smallest = min(row["N"] for row in rows)
    shapes = list(dict.fromkeys(Shape(*(row[a] for a in "BNDk")) for row in rows if row["N"] == smallest))
    floor = Floor(**record["floor"])
    terms = [floor.terms(shape, getattr(torch, rows[0]["dtype"])) for shape in shapes]
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(shapes) + 1.8), layout="constrained")
    left = [0.0] * len(shapes)
    for name, (label, colour) in TERMS.items():
        values = [getattr(term, name) / 1e3 for term in terms]
        axes.barh(range(len(shapes)), values, left=left, color=colour, label=label, height=0.6)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for engine in tables.ours(record):
        _points_on_bars(axes, [row for row in rows if row["provider"] == engine], shapes, engine)
    axes.set_yticks(range(len(shapes)), [f"D = {s.dim}, k = {s.k}" for s in shapes], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"N = {smallest}", fontsize=10)
    _style(axes, "ms", "")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _points_on_bars(axes: Axes, rows: list[Row], shapes: list[Shape], engine: str) -> None:
    at = {tuple(row[a] for a in "BNDk"): tables.median_us(row) for row in rows}
    y = [i for i, shape in enumerate(shapes) if at.get(shape)]
    x = [at[shapes[i]] / 1e3 for i in y]
    axes.plot(x, y, "o", color=COLOURS[engine], label=f'backend="{engine}", measured')


def _memory(record: Row) -> Figure:
    rows = images.memory_rows(record)
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for provider in dict.fromkeys(row["provider"] for row in rows):
        points = [(row["N"], row["extra_memory_bytes"] / 2**20) for row in rows if row["provider"] == provider]
        style = {"color": COLOURS.get(provider, "#000000"), "marker": MARKERS.get(provider, "o")}
        axes.plot(*zip(*points, strict=True), label=_label(provider, "eager"), **style)
    tokens = sorted({row["N"] for row in rows})
    axes.plot(tokens, [n * n * 4 / 2**20 for n in tokens], color="black", linestyle=":", label="N × N × 4 bytes")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=-0.1)
    _style(axes, "N", "peak extra memory, MiB")
    axes.set_title(f"D = {rows[0]['D']}, k = N / {round(rows[0]['N'] / rows[0]['k'])}", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure

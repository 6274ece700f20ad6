"""The picture demo: what six rules keep of the same picture, drawn and measured.

`idsel demo` runs it from the command line; `run_demo` is the same from Python.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import api
from ..env_report import cpu_model
from ..picture import PictureTokens, bundled_photograph, load_picture, picture_tokens
from ..rules import DPP, MMR, Coverage, IDSelection, MaxMin, Rule, TopK
from .measures import measure, shown

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["STEPS", "device_for", "result_table", "run_demo"]

DEMO_RULES: tuple[tuple[str, Rule], ...] = (
    ("TopK", TopK()),
    ("MaxMin", MaxMin()),
    ("MMR", MMR()),
    ("DPP", DPP()),
    ("Coverage", Coverage()),
    ("ID-Selection", IDSelection()),
)
"""The rules of the demo with the titles of their panels, each with its default parameters."""

GRID_LIMITS = (4, 64)
TIMED_RUNS = 5
STEPS = 3 + len(DEMO_RULES)
"""Calls of `progress` in one run."""


def run_demo(
    image: str | Path | None = None,
    keep: int = 16,
    output: str | Path | None = "idsel_demo.png",
    *,
    grid: int = 24,
    model: str | None = None,
    backend: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs six rules on the patches of a picture, measures what they keep, and draws it.

    Args:
        image: picture that Pillow reads; None is matplotlib's photograph of Grace Hopper.
        keep: patches to keep, 1 to grid * grid.
        output: PNG file to write; None draws nothing.
        grid: patches on a side, 4 to 64. 24 is LLaVA-1.5's. A model brings its own.
        model: folder, or hub name of a model already downloaded, of a CLIP vision tower whose tokens to use;
            None describes patches by their colours and gradients, without any weights.
        backend: engine to run the rules on; None lets the package choose.
        progress: called with a label before each of `STEPS` steps.

    Returns:
        A dict that `json.dumps` takes. `rules` holds per rule: `rule`, `title`, `indices` in pick order,
        `importance_kept` (percent of the sum of all importance; None where that sum is 0), `coverage` (mean over
        the dropped patches of the cosine to the most similar kept one; None where none is dropped),
        `smallest_distance` (smallest 1 - cosine between two kept patches; None with one patch) and
        `milliseconds` (median of 5 runs). All but the times is the same from run to run.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the picture, the model or a number is not usable; the message says why.

    Example:
        >>> result = run_demo(keep=4, output=None, grid=8)
        >>> [len(run["indices"]) for run in result["rules"]]
        [4, 4, 4, 4, 4, 4]
    """
    step = progress or (lambda label: None)
    _check_arguments(grid, output)
    step("reading the picture")
    picture = load_picture(bundled_photograph() if image is None else image)
    step("describing its patches")
    tokens = _tokens(picture, grid, model)
    count = tokens.grid**2
    if not 1 <= keep <= count:
        raise ValueError(f"keep must be 1 to {count}, the number of patches, got {keep}")
    result = _describe_run(image, tokens, keep, backend)
    for title, rule in DEMO_RULES:
        step(f"selecting by {title}")
        run = _run_rule(rule, tokens, keep, backend)
        result["rules"].append({"rule": type(rule).__name__, "title": title, **run})
    step("drawing")
    if output is not None:
        _draw(tokens, result, Path(output))
    return result


def result_table(result: dict[str, Any]) -> Table:
    """The result of `run_demo` as a rich table."""
    from rich.table import Table

    table = Table(
        title=f"{result['keep']} of {result['grid'] ** 2} patches of {result['image']}",
        caption="coverage: mean cosine of a dropped patch to the most similar kept one\n"
        f"tokens: {result['features']}\n"
        f"time: backend {result['backend']} on {result['device']}, median of {TIMED_RUNS} runs",
    )
    table.add_column("rule")
    for heading in ("importance kept", "coverage", "smallest distance", "time"):
        table.add_column(heading, justify="right")
    for run in result["rules"]:
        table.add_row(
            run["title"],
            shown(run["importance_kept"], ".1f", " %"),
            shown(run["coverage"], ".3f"),
            shown(run["smallest_distance"], ".3f"),
            shown(run["milliseconds"], ".2f", " ms"),
            style="bold" if run["rule"] == "IDSelection" else None,
        )
    return table


def device_for(backend: str | None) -> torch.device:
    """Where inputs must lie for a backend asked for by name; without a name they stay on the CPU."""
    gpu = backend in ("cuda", "triton") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _check_arguments(grid: int, output: str | Path | None) -> None:
    low, high = GRID_LIMITS
    if not low <= grid <= high:
        raise ValueError(f"grid must be {low} to {high} patches on a side, got {grid}")
    if output is None:
        return
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise ValueError(f"output must be a .png file, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "no such folder to write to", str(path.parent))


def _tokens(picture: Any, grid: int, model: str | None) -> PictureTokens:
    if model is None:
        return picture_tokens(picture, grid)
    from .model import clip_tokens

    return clip_tokens(picture, model)


def _describe_run(image: str | Path | None, tokens: PictureTokens, keep: int, backend: str | None) -> dict[str, Any]:
    """What the numbers of a run were made from, with an empty list of rules."""
    device = device_for(backend)
    inputs = tokens.features.to(device)
    chosen = api.explain(inputs, keep, rule=MaxMin(), backend=backend).backend
    return {
        "image": "Grace Hopper (matplotlib)" if image is None else Path(image).name,
        "size": list(tokens.picture.size),
        "grid": tokens.grid,
        "keep": keep,
        "features": tokens.source,
        "backend": chosen,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "rules": [],
    }


def _run_rule(rule: Rule, tokens: PictureTokens, keep: int, backend: str | None) -> dict[str, Any]:
    device = device_for(backend)
    features, importance = tokens.features.to(device), tokens.importance.to(device)
    times = []
    for _ in range(1 + TIMED_RUNS):
        start = time.perf_counter()
        selection = api.select(features, keep, rule=rule, importance=importance, backend=backend)
        indices = selection.indices[0].tolist()  # waits for a GPU
        times.append(1000 * (time.perf_counter() - start))
    # The first run loads and warms what the others only use.
    return {
        "indices": indices,
        **measure(tokens.features, tokens.importance, indices),
        "milliseconds": statistics.median(times[1:]),
    }


def _draw(tokens: PictureTokens, result: dict[str, Any], output: Path) -> None:
    from .figure import draw_sheet

    draw_sheet(
        tokens.picture,
        tokens.importance.numpy(),
        result["rules"],
        grid=tokens.grid,
        subtitle="importance: share of the whole that is kept  ·  "
        "coverage: mean cosine of a dropped patch to the most similar kept one",
        output=output,
    )
    result["output"] = str(output)

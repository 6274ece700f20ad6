"""The picture that `idsel demo` writes: one sheet of eight panels, made for the width of a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from .measures import shown

__all__ = ["draw_sheet"]

# Inches, at DOTS_PER_INCH pixels each: 1400 px in all, sharp on a page about 1000 px wide, and a palette PNG of it
# stays well under 700 kB.
SHEET_WIDTH = 10.0
DOTS_PER_INCH = 140
COLUMNS, ROWS = 4, 2
MARGIN, GAP = 0.25, 0.2
HEADER, CAPTION, FOOTER = 0.72, 0.52, 0.42
TALLEST = 1.5
"""Largest height of a panel over its greatest width: a taller picture is drawn narrower."""

INK, FAINT_INK, ACCENT = "#1b1f24", "#59636e", "#0b6bcb"
PALETTE_COLOURS = 256


def draw_sheet(
    picture: Image.Image,
    importance: NDArray[np.float32],
    runs: Sequence[dict[str, Any]],
    *,
    grid: int,
    subtitle: str,
    output: str | Path,
) -> None:
    """Draws the picture, its importance and the patches each rule kept, and writes a PNG.

    Args:
        picture: RGB picture, drawn in its own shape under a grid x grid mesh of patches.
        importance: (grid * grid,) importance in [0, 1], row by row.
        runs: six results of `run_demo`, with `rule`, `indices`, `importance_kept` and `coverage`.
        grid: patches on a side.
        subtitle: what the numbers below the panels were made from.
        output: file to write.
    """
    # The reader's matplotlibrc must not change the sheet.
    with matplotlib.style.context("default"):
        sheet = _Sheet(picture, grid)
        sheet.header(len(runs[0]["indices"]), subtitle)
        sheet.panel(0, "Picture", f"{grid} \N{MULTIPLICATION SIGN} {grid} = {grid * grid} patches", sheet.pixels)
        sheet.panel(1, "Importance", "what the rules are told", sheet.heat_map(importance))
        for slot, run in enumerate(runs, start=2):
            sheet.rule_panel(slot, run)
        sheet.footer()
        _save_small(sheet.figure, Path(output))


class _Sheet:
    """The figure under construction, with the sizes that every panel shares."""

    def __init__(self, picture: Image.Image, grid: int) -> None:
        self.grid = grid
        self.slot_width = (SHEET_WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
        shape = picture.height / picture.width
        self.panel_height = self.slot_width * min(shape, TALLEST)
        self.panel_width = self.panel_height / shape
        self.height = HEADER + ROWS * (self.panel_height + CAPTION) + FOOTER
        self.figure = Figure(figsize=(SHEET_WIDTH, self.height), dpi=DOTS_PER_INCH, facecolor="white")
        self.pixels = self._fit(picture)

    def _fit(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Resizes to exactly the pixels of a panel, so that matplotlib does not resample again."""
        size = (round(self.panel_width * DOTS_PER_INCH), max(1, round(self.panel_height * DOTS_PER_INCH)))
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Repeats one value per patch over the pixels of that patch."""
        height, width = self.pixels.shape[:2]
        rows, columns = (np.arange(size) * self.grid // size for size in (height, width))
        return np.asarray(values.reshape(self.grid, self.grid)[rows[:, None], columns])

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place given in inches from the top left corner of the sheet."""
        bottom = self.height - top - height
        place = (left / SHEET_WIDTH, bottom / self.height, width / SHEET_WIDTH, height / self.height)
        return self.figure.add_axes(place)

    def _text(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(left / SHEET_WIDTH, 1 - top / self.height, text, va="baseline", **style)

    def header(self, keep: int, subtitle: str) -> None:
        title = f"{keep} of {self.grid**2} patches, kept by six rules"
        self._text(MARGIN, 0.34, title, fontsize=14, fontweight="bold", color=INK)
        self._text(MARGIN, 0.57, subtitle, fontsize=8.5, color=FAINT_INK)

    def panel(self, slot: int, title: str, caption: str, pixels: NDArray[Any], colour: str = INK) -> Axes:
        """Draws one panel with its two lines of text above; panel coordinates are patches."""
        row, column = divmod(slot, COLUMNS)
        left = MARGIN + column * (self.slot_width + GAP)
        top = HEADER + row * (self.panel_height + CAPTION) + CAPTION
        self._text(left, top - 0.25, title, fontsize=10.5, fontweight="bold", color=colour)
        self._text(left, top - 0.08, caption, fontsize=8, color=FAINT_INK)
        axes = self._axes(left, top, self.panel_width, self.panel_height)
        axes.imshow(pixels, extent=(0, self.grid, self.grid, 0), aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        return axes

    def heat_map(self, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The importance in colour over a grey picture."""
        heat = matplotlib.colormaps["inferno"](self._spread(importance))[..., :3] * 255
        blend: NDArray[np.uint8] = (0.3 * _grey(self.pixels) + 0.7 * heat).astype(np.uint8)
        return blend

    def rule_panel(self, slot: int, run: dict[str, Any]) -> None:
        """The kept patches in colour and outlined, the dropped ones grey and dim."""
        kept = np.zeros(self.grid**2, dtype=bool)
        kept[run["indices"]] = True
        # Middle greys only: against them both the darkest and the brightest kept patch stand out.
        dropped = 60 + 0.42 * _grey(self.pixels)
        pixels = np.where(self._spread(kept)[..., None], self.pixels, dropped).astype(np.uint8)
        caption = f"importance {shown(run['importance_kept'], '.1f', ' %')}    coverage {shown(run['coverage'], '.2f')}"
        accent = ACCENT if run["rule"] == "IDSelection" else INK
        axes = self.panel(slot, run["title"], caption, pixels, accent)
        colours = _pick_colours(len(run["indices"]))
        for patch, colour in zip(run["indices"], colours, strict=True):
            row, column = divmod(patch, self.grid)
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, linewidth=1.1))

    def footer(self) -> None:
        """The key to the outlines: their colour is the order of the picks."""
        top = self.height - 0.2
        self._text(MARGIN, top, "outline:  first pick", fontsize=8, color=FAINT_INK)
        ramp = self._axes(MARGIN + 1.18, top - 0.1, 1.4, 0.11)
        ramp.imshow(_pick_colours(64)[None], aspect="auto")
        ramp.set_axis_off()
        self._text(MARGIN + 2.66, top, "last pick", fontsize=8, color=FAINT_INK)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W, 1) lightness of (H, W, 3) pixels."""
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114])[:, None])


def _pick_colours(count: int) -> NDArray[np.float64]:
    """(count, 4) colours from the first pick to the last, all of them clear on grey."""
    return np.asarray(matplotlib.colormaps["plasma"](np.linspace(1.0, 0.45, count)))


def _save_small(figure: Figure, output: Path) -> None:
    """Writes a PNG with a palette of 256 dithered colours: half the bytes of full colour, and looks the same."""
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its drawing calls without types
    canvas.draw()
    full = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    palette = full.quantize(PALETTE_COLOURS, method=Image.Quantize.FASTOCTREE)
    small = full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(output, format="PNG", optimize=True)

"""A picture as tokens, without a model: patches, descriptors and a saliency map.

A pruner sees only rows of features and one importance per row. This module makes both from pixels alone, so
that the demo runs offline and gives the same result everywhere: no weights, no random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool2d

from .importance import minmax

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "PictureTokens",
    "bundled_patches",
    "bundled_photograph",
    "describe_patches",
    "load_picture",
    "picture_tokens",
    "saliency",
    "to_square",
]

PATCH_PIXELS = 14
"""Side of a patch in the resized picture: CLIP ViT-L/14's patch, 24 x 24 of which LLaVA-1.5 sees."""

ORIENTATIONS = 8
"""Bins of the gradient histograms, over half a turn: an edge and its negative are the same edge."""


@dataclass(frozen=True)
class PictureTokens:
    """A picture as a pruner sees it.

    Attributes:
        picture: RGB picture under the grid, cropped where the encoder crops.
        features: (grid * grid, D) float32, row by row from the top left patch.
        importance: (grid * grid,) float32 in [0, 1].
        grid: patches on a side.
        source: where features and importance come from, in words.
    """

    picture: Image
    features: torch.Tensor
    importance: torch.Tensor
    grid: int
    source: str


def picture_tokens(picture: Image, grid: int) -> PictureTokens:
    """Cuts a picture into grid x grid patches and describe them without a model."""
    square = to_square(picture, grid)
    features, importance = describe_patches(square, grid), saliency(square, grid)
    return PictureTokens(picture, features, importance, grid, "colour and gradient descriptors, saliency")


def bundled_patches(grid: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) and importance (N,) of `bundled_photograph`, N = grid * grid: real, and always the same."""
    tokens = picture_tokens(load_picture(bundled_photograph()), grid)
    return tokens.features, tokens.importance


def bundled_photograph() -> Path:
    """The portrait of Grace Hopper (public domain, US Navy) that matplotlib installs with its sample data."""
    from matplotlib import cbook

    return Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def load_picture(path: str | Path) -> Image:
    """Reads a picture as upright RGB; transparent areas become white.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a picture that Pillow can read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    # A damaged PNG raises SyntaxError from within Pillow's decoder.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {str(path)!r} as a picture: {error}") from error
    canvas = Image.new("RGBA", upright.size, "white")
    canvas.alpha_composite(upright)
    return canvas.convert("RGB")


def to_square(picture: Image, grid: int) -> torch.Tensor:
    """Squashes a picture to (3, S, S) float32 in [0, 1] with S = 14 * grid.

    Nothing is cropped away: a patch is then a cell of the picture's own shape, which is how SigLIP-style
    encoders see it and how the demo draws it.
    """
    import numpy as np
    from PIL import Image

    side = grid * PATCH_PIXELS
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


def describe_patches(square: torch.Tensor, grid: int) -> torch.Tensor:
    """Describes each patch of a (3, S, S) picture by a row of (grid * grid, D) float32 features.

    A row holds the mean and the deviation of three opponent colours, histograms of gradient orientation over
    2 x 2 cells, and both again averaged over the 3 x 3 and 7 x 7 patches around. Every column is centred and
    scaled to unit variance over the picture, so that cosines between patches spread from below 0 to nearly 1.
    """
    colour = _standardise(_colour_moments(square, grid))
    edges = _standardise(_orientation_histograms(square, grid))
    blocks = [colour, edges]
    for width in (3, 7):
        blocks += [_standardise(_neighbourhood(block, grid, width)) for block in (colour, edges)]
    # Each block weighs the same whatever its number of columns.
    return torch.cat([block / block.shape[1] ** 0.5 for block in blocks], dim=1)


def saliency(square: torch.Tensor, grid: int) -> torch.Tensor:
    """Gives each patch of a (3, S, S) picture an importance: (grid * grid,) float32 in [0, 1].

    It is gradient energy plus colour rarity (mean distance to the colours of all patches), weighted by a
    mild preference for the centre and smoothed over 3 x 3 patches. In a picture of one colour only the centre
    counts.
    """
    energy = _cell_means(torch.stack(_gradients(square)).norm(dim=0)[None], grid).flatten()
    colours = _cell_means(_opponent_colours(square), grid).flatten(1).T
    rarity = torch.cdist(colours, colours).mean(dim=1)
    axis = torch.linspace(-1, 1, grid)
    centre = torch.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / 2).flatten()
    combined = (minmax(energy) + minmax(rarity)) * (0.5 + 0.5 * centre)
    return minmax(_neighbourhood(combined[:, None], grid, 3).flatten())


def _opponent_colours(square: torch.Tensor) -> torch.Tensor:
    """(3, S, S) lightness, red against green, yellow against blue: nearly uncorrelated in photographs."""
    red, green, blue = square
    return torch.stack([0.299 * red + 0.587 * green + 0.114 * blue, red - green, (red + green) / 2 - blue])


def _cell_means(channels: torch.Tensor, cells: int) -> torch.Tensor:
    """Averages (C, S, S) over cells x cells equal squares: (C, cells, cells)."""
    return avg_pool2d(channels, channels.shape[-1] // cells)


def _colour_moments(square: torch.Tensor, grid: int) -> torch.Tensor:
    colours = _opponent_colours(square)
    mean = _cell_means(colours, grid)
    variance = _cell_means(colours**2, grid) - mean**2
    return torch.cat([mean, variance.clamp(min=0).sqrt()]).flatten(1).T


def _gradients(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertical and horizontal derivative of the lightness, (S, S) each."""
    down, right = torch.gradient(_opponent_colours(square)[0])
    return down, right


def _orientation_histograms(square: torch.Tensor, grid: int) -> torch.Tensor:
    down, right = _gradients(square)
    position = torch.atan2(down, right) / torch.pi * ORIENTATIONS
    bins = torch.arange(ORIENTATIONS)[:, None, None]
    # Linear interpolation between the two nearest bins, round the circle: a small turn is a small change.
    away = (position - bins).remainder(ORIENTATIONS)
    share = (1 - torch.minimum(away, ORIENTATIONS - away)).clamp(min=0)
    histograms = _cell_means(share * torch.hypot(down, right), 2 * grid)
    cells = histograms.reshape(ORIENTATIONS, grid, 2, grid, 2).permute(1, 3, 0, 2, 4)
    # The square root keeps one strong edge from drowning the texture around it.
    return cells.reshape(grid * grid, -1).sqrt()


def _neighbourhood(rows: torch.Tensor, grid: int, width: int) -> torch.Tensor:
    """Averages (grid * grid, C) rows over the width x width patches around each, fewer at the border."""
    maps = rows.T.reshape(1, -1, grid, grid)
    mean = avg_pool2d(maps, width, stride=1, padding=width // 2, count_include_pad=False)
    return mean.flatten(2)[0].T


def _standardise(rows: torch.Tensor) -> torch.Tensor:
    """Centres each column and divides it by its deviation; a column that does not vary becomes 0."""
    centred = rows - rows.mean(dim=0)
    deviation = centred.square().mean(dim=0).sqrt()
    return torch.where(deviation > 1e-6, centred / deviation.clamp(min=1e-6), torch.zeros_like(centred))

"""Inputs that are worth checking a selection on: like real tokens, full of ties, or exact in any order of arithmetic.

Every maker is seeded and makes its tensors on the CPU, so that a case is the same on every machine and device.
`idsel_kernels.testing` has the checks to make on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

__all__ = ["Case", "clustered", "exact", "near_duplicates", "picture", "ragged"]


class Case(NamedTuple):
    """Tensors for `select`: features, importance and, for a ragged batch, cu_seqlens."""

    features: torch.Tensor
    importance: torch.Tensor
    cu_seqlens: torch.Tensor | None = None

    def inputs(self) -> dict[str, torch.Tensor]:
        """As keyword arguments of `select` and `check_selection`."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def clustered(
    batch: int = 1,
    tokens: int = 576,
    dim: int = 64,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    importance: str = "skewed",
) -> Case:
    """Tight and loose clusters around a shared offset, with varying norms: the cosines of real visual tokens.

    Args:
        batch, tokens, dim: shape of the features (B, N, D).
        seed: of the generator; equal seeds give equal cases.
        dtype: of the features.
        importance: "skewed" (a softmax with few high values, scaled to [0, 1]), "uniform", "flat" (all ones) or
            "ties" (four levels).

    Example:
        >>> clustered(2, 10, 4).features.shape
        torch.Size([2, 10, 4])
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cpu")

    clusters = max(1, tokens // 12)
    centres = normal(batch, clusters, dim) + 0.6 * normal(batch, 1, dim)
    member = torch.randint(clusters, (batch, tokens), generator=generator, device="cpu")
    spread = torch.rand((batch, clusters), generator=generator, device="cpu") ** 2
    features = torch.gather(centres, 1, member[..., None].expand(-1, -1, dim))
    features = features + spread.gather(1, member)[..., None] * normal(batch, tokens, dim)
    features = features * torch.exp(0.5 * normal(batch, tokens, 1))
    return Case(features.to(dtype), _importance(importance, normal(batch, tokens)))


def _importance(kind: str, noise: torch.Tensor) -> torch.Tensor:
    if kind == "skewed":
        weights = torch.softmax(2 * noise, 1)
        return weights.div(weights.amax(1, keepdim=True))
    if kind == "uniform":
        return _uniform(noise)
    if kind == "flat":
        return torch.ones_like(noise)
    if kind == "ties":
        return _uniform(noise).mul(4).ceil().div(4)
    raise ValueError(f"importance must be 'skewed', 'uniform', 'flat' or 'ties', got {kind!r}")


def _uniform(noise: torch.Tensor) -> torch.Tensor:
    """Uniform in (0, 1), from normal noise."""
    return (1 + torch.erf(noise / math.sqrt(2))) / 2


def near_duplicates(
    batch: int = 1,
    tokens: int = 196,
    dim: int = 64,
    *,
    copies: int = 4,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    importance: str = "skewed",
) -> Case:
    """Every token `copies` times, shuffled; `noise` 0.0 makes the copies bitwise equal.

    Args:
        batch, tokens, dim, seed, dtype, importance: as for `clustered`.
        copies: how often each distinct token occurs.
        noise: standard deviation added to each copy, relative to unit-variance features.

    Example:
        >>> near_duplicates(1, 8, 4, copies=4).features[0].unique(dim=0).shape
        torch.Size([2, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn((batch, -(-tokens // copies), dim), generator=generator, device="cpu")
    order = torch.stack([torch.randperm(tokens, generator=generator, device="cpu") for _ in range(batch)]) // copies
    features = torch.gather(distinct, 1, order[..., None].expand(-1, -1, dim))
    features = features + noise * torch.randn(features.shape, generator=generator, device="cpu")
    scores = _importance(importance, torch.randn((batch, tokens), generator=generator, device="cpu"))
    return Case(features.to(dtype), scores)


def exact(
    batch: int = 1, tokens: int = 64, dim: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Case:
    """Features of +1 and -1 with D a power of four: norms and dot products are exact in any order of summation.

    `TopK`, `MMR` with a dyadic `lam`, `MaxMin`, `HardSuppress` and `Coverage` then have exact priorities, so that
    engines must agree on every index, ties included. Importance has few levels, which makes many ties.

    Raises:
        ValueError: `dim` is not a power of four.

    Example:
        >>> exact(tokens=3, dim=4).features.abs().unique()
        tensor([1.])
    """
    if dim < 1 or math.log(dim, 4) % 1:
        raise ValueError(f"dim must be a power of four, got {dim}")
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(2, (batch, tokens, dim), generator=generator, device="cpu") * 2.0 - 1.0
    scores = torch.randint(9, (batch, tokens), generator=generator, device="cpu") / 8.0
    return Case(features.to(dtype), scores)


def ragged(lengths: Sequence[int] = (7, 0, 33, 1), dim: int = 16, *, seed: int = 0, **options: object) -> Case:
    """A `clustered` case cut into samples of the given lengths: features (T, D) with cu_seqlens.

    Args:
        lengths: tokens of each sample, 0 allowed.
        dim, seed, options: as for `clustered`.

    Example:
        >>> ragged((2, 3), 4).cu_seqlens
        tensor([0, 2, 5], dtype=torch.int32)
    """
    features, importance, _ = clustered(1, max(sum(lengths), 1), dim, seed=seed, **options)  # type: ignore[arg-type]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    total = int(offsets[-1])
    return Case(features[0, :total], importance[0, :total], offsets)


def picture(grid: int = 24, dtype: torch.dtype = torch.float32) -> Case:
    """Patch descriptors and saliency of the photograph that comes with matplotlib, as in `idsel demo`.

    Args:
        grid: patches per side, N = grid**2.
        dtype: of the features.

    Raises:
        ImportError: matplotlib or Pillow is not installed (`pip install 'idsel_kernels[demo]'`).

    Example:
        >>> picture(12).features.shape[:2]
        torch.Size([1, 144])
    """
    from .picture import bundled_patches

    features, importance = bundled_patches(grid)
    return Case(features[None].to(dtype), importance[None])

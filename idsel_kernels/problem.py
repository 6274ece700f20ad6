"""What a call asks for, without its tensors: all that choosing an engine may depend on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .rules import Rule

__all__ = ["Inputs", "Problem"]


class Inputs(NamedTuple):
    """The tensors of a call, checked and in the one layout engines see.

    Dense: features (B, N, D), importance (B, N), mask (B, N). Ragged: features (T, D), importance (T,), mask (T,)
    and cu_seqlens (B+1,) int32 or int64, sample b being the rows cu_seqlens[b] to cu_seqlens[b+1]. Where the problem
    says `similarity`, the similarities of the tokens lie in the place of features: (B, N, N). `counts` (B,) int32
    or int64 is a k that lies on the device; `grids` (B, 2) int32 or int64 has height and width of each sample's grid;
    `given` (B, M) int32 or int64 are the tokens to begin with, negative where there are fewer.
    """

    features: torch.Tensor
    importance: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    grids: torch.Tensor | None = None
    given: torch.Tensor | None = None


class Problem(NamedTuple):
    """Frozen description of one call; a tuple, because a frozen dataclass takes 2 µs longer to make.

    `tokens` is N of a dense batch and the total T of a ragged one. `similarity` says that the caller gives similarities
    in place of features, so that `dim` is N and `dtype` float32. `k` holds one count for all samples, or one per
    sample; where the counts lie on the device, their upper bound. `given` is how many tokens a sample may begin with.
    Outputs are as wide as the largest count, or `width`.
    """

    rule: Rule
    k: tuple[int, ...]
    batch: int
    tokens: int
    dim: int
    dtype: torch.dtype
    device: torch.device
    ragged: bool = False
    has_importance: bool = False
    has_mask: bool = False
    has_counts: bool = False
    has_grids: bool = False
    given: int = 0
    sort: bool = False
    similarity: bool = False
    width: int | None = None

    @classmethod
    def of(cls, inputs: Inputs, rule: Rule, k: list[int], sort: bool, similarity: bool = False) -> Problem:
        features, importance, mask, cu_seqlens, counts, grids, given = inputs
        ragged = cu_seqlens is not None
        return cls(
            rule=rule,
            k=tuple(k),
            batch=cu_seqlens.shape[0] - 1 if cu_seqlens is not None else features.shape[0],
            tokens=features.shape[-2],
            dim=features.shape[-1],
            dtype=features.dtype,
            device=features.device,
            ragged=ragged,
            has_importance=importance is not None,
            has_mask=mask is not None,
            has_counts=counts is not None,
            has_grids=grids is not None,
            given=0 if given is None else given.shape[1],
            sort=sort,
            similarity=similarity,
        )

    @property
    def k_max(self) -> int:
        """Width of the outputs."""
        return max(self.k) if self.width is None else self.width

    @property
    def k_per_sample(self) -> list[int]:
        """One count per sample."""
        return list(self.k) * self.batch if len(self.k) == 1 else list(self.k)

"""`Selection`, the result of `select`, and what is done with it next: rows, masks, order."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import checks
from .counts import check_count
from .tracing import exportable, is_read_freely

__all__ = ["Selection", "compacted", "gather_rows"]


@exportable
class Selection(NamedTuple):
    """The picks of every sample; a tuple of two tensors.

    Its methods know of the padding: -1 is no token, and never stands for the last one. They trace in `torch.compile`
    with dynamic shapes and wait for no device, but for `flat` without `total`. On a CPU they check what they are given.

    Attributes:
        indices: (B, k) int64, positions within the sample in pick order (ascending with `sort=True`); -1 pads
            where fewer than k tokens exist.
        scores: (B, k) float32, the priority at which each token was picked; -inf where a token was picked for
            want of others (see `select`) and where padded.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> sel = idsel.topk_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5]))
        >>> sel.counts, sel.keep_mask(3)
        (tensor([2]), tensor([[False,  True,  True]]))
        >>> sel.gather(torch.tensor([[10.0, 11.0, 12.0]]))
        tensor([[11., 12.]])
    """

    indices: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def of(cls, indices: torch.Tensor) -> Selection:
        """Tokens that somebody else has chosen: indices (B, k) int64, -1 for none; with scores of 0.

        Example:
            >>> Selection.of(torch.tensor([[2, 0]])).scores
            tensor([[0., 0.]])
        """
        return cls(indices, torch.zeros(indices.shape, dtype=torch.float32, device=indices.device))

    @property
    def counts(self) -> torch.Tensor:
        """How many tokens each sample has picked: (B,) int64."""
        return (self.indices >= 0).sum(1)

    def keep_mask(self, tokens: int, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """Which tokens are picked.

        Args:
            tokens: N; of a ragged batch T.
            cu_seqlens: (B+1,) the offsets of a ragged batch, as they were given to `select`.

        Returns:
            (B, N) bool, or (T,) with `cu_seqlens`.

        Raises:
            ValueError: on a CPU, where a pick is none of so many tokens.

        Example:
            >>> Selection.of(torch.tensor([[2, 0], [1, -1]])).keep_mask(3)
            tensor([[ True, False,  True],
                    [False,  True, False]])
        """
        at = self.indices
        if cu_seqlens is not None:
            at = self._rows(cu_seqlens).flatten()
        _check_on_cpu("tokens", at, tokens)
        # Padding goes to one place more than there are, which is then cut off.
        at = torch.where(at < 0, tokens, at)
        mask = torch.zeros((*at.shape[:-1], tokens + 1), dtype=torch.bool, device=at.device)
        return mask.scatter_(-1, at, 1)[..., :tokens]

    def gather(self, x: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """The rows of the picked tokens.

        Args:
            x: (B, N, ...), any dtype and strides; (T, ...) with `cu_seqlens`.
            cu_seqlens: (B+1,) the offsets of a ragged batch, as they were given to `select`.

        Returns:
            (B, k, ...), in the order of `indices`, zeros where that is -1. Gradients flow to `x`.

        Raises:
            ValueError: x does not have B samples, or on a CPU not a row for every pick.

        Example:
            >>> sel = Selection.of(torch.tensor([[2, -1]]))
            >>> sel.gather(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))
            tensor([[[5., 6.],
                     [0., 0.]]])
        """
        checks.check_tensor("x", x)
        if cu_seqlens is not None:
            rows = self._rows(cu_seqlens)
            _check_on_cpu("x", rows, x.shape[0])
            return gather_rows(x[None], rows.flatten()[None]).view(*rows.shape, *x.shape[1:])
        if x.dim() < 2 or x.shape[0] != self.indices.shape[0]:
            raise ValueError(f"x must be (B, N, ...) with B = {self.indices.shape[0]}, got shape {tuple(x.shape)}")
        _check_on_cpu("x", self.indices, x.shape[1])
        return gather_rows(x, self.indices)

    def flat(self, cu_seqlens: torch.Tensor, total: int | None = None) -> torch.Tensor:
        """The picks of a ragged batch as rows of its (T, ...) tensors, sample after sample, without padding.

        Args:
            cu_seqlens: (B+1,) the offsets, as they were given to `select`.
            total: how many rows to return: nothing then waits for the device. More than there are picks: -1 fills up.
                None counts them, for which a GPU is waited for.

        Returns:
            (total,) int64.

        Example:
            >>> sel = Selection.of(torch.tensor([[2, 0], [1, -1]]))
            >>> sel.flat(torch.tensor([0, 3, 5]))
            tensor([2, 0, 4])
        """
        rows = self._rows(cu_seqlens).flatten()
        return rows[rows >= 0] if total is None else compacted(rows, rows >= 0, check_count("total", total))

    def sorted(self) -> Selection:
        """The same picks in ascending order of their indices, the padding still last.

        Example:
            >>> Selection(torch.tensor([[2, 0, -1]]), torch.tensor([[0.5, 0.25, -torch.inf]])).sorted()
            Selection(indices=tensor([[ 0,  2, -1]]), scores=tensor([[0.2500, 0.5000,   -inf]]))
        """
        order = self.ascending()
        return Selection(self.indices.gather(1, order), self.scores.gather(1, order))

    def ascending(self) -> torch.Tensor:
        """Which pick comes first, second, ... in the order of tokens, padding last: (B, k) int64."""
        last = torch.iinfo(self.indices.dtype).max
        return torch.where(self.indices < 0, last, self.indices).argsort(stable=True, dim=1)

    def _rows(self, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """The picks of a ragged batch as rows of its tensors, -1 still padding."""
        checks.check_tensor("cu_seqlens", cu_seqlens)
        if cu_seqlens.shape != (batch := self.indices.shape[0] + 1,):
            raise ValueError(f"cu_seqlens must be (B+1,) = ({batch},), got shape {tuple(cu_seqlens.shape)}")
        return torch.where(self.indices < 0, -1, self.indices + cu_seqlens[:-1, None])


def compacted(values: torch.Tensor, wanted: torch.Tensor, total: int) -> torch.Tensor:
    """The wanted ones of (n,) values, in their order: (total,), with -1 behind them. Waits for no device."""
    # Each goes to the place that it has among them; what is not wanted, and what is too much, behind the end.
    place = torch.where(wanted, wanted.cumsum(0) - 1, total).clamp(max=total)
    return values.new_full((total + 1,), -1).scatter_(0, place, values)[:total]


def gather_rows(x: torch.Tensor, indices: torch.Tensor, padded: bool = True) -> torch.Tensor:
    """Rows (B, k, ...) of x (B, N, ...): zeros where an index is -1, which `padded=False` promises not to occur."""
    eager_cpu = is_read_freely(x) and is_read_freely(indices)
    if padded and eager_cpu:
        padded = bool((indices < 0).any())  # which costs nothing here
    if x.shape[1] == 0:
        return x.new_zeros((*indices.shape, *x.shape[2:]))
    at = indices.clamp(min=0) if padded else indices
    rows = _copied_rows(x, at) if eager_cpu else _gathered(x, at)
    return _without_padding(rows, indices) if padded else rows


def _gathered(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """One launch on a GPU."""
    return x.gather(1, at.view(*at.shape, *[1] * (x.dim() - 2)).expand(*at.shape, *x.shape[2:]))


def _copied_rows(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """On a CPU whole rows are copied several times faster than elements are gathered (docs/decisions.md)."""
    batch, tokens = x.shape[:2]
    first = torch.arange(0, batch * tokens, tokens)[:, None]
    return x.flatten(0, 1).index_select(0, (at + first).flatten()).view(*at.shape, *x.shape[2:])


def _without_padding(rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    padding = (indices < 0).view(*indices.shape, *[1] * (rows.dim() - 2))
    return rows.masked_fill(padding, 0)


def _check_on_cpu(name: str, rows: torch.Tensor, tokens: int) -> None:
    """Whether all rows are among so many tokens."""
    if is_read_freely(rows) and rows.numel() and (last := int(rows.max())) >= tokens:
        raise ValueError(f"{name} must have a token for every pick, got {tokens} and a pick of token {last}")

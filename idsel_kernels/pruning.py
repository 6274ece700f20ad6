"""`prune`: from hidden states to hidden states."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch

from . import api, checks, merging
from .counts import Count, check_count, on_device
from .merging import HOW, How, Merged
from .problem import Inputs
from .rules import IDSelection, Rule
from .selection import Selection, compacted, gather_rows
from .tracing import exportable, is_read_freely, must_trace, sym_min

__all__ = ["Pruned", "prune"]

_ORDERS = ("raster", "pick")


@exportable
class Pruned(NamedTuple):
    """Kept tokens, and where they come from.

    Attributes:
        hidden: (B, k, C), zeros where a sample has fewer tokens; of a ragged batch (rows, C), sample after sample,
            zeros behind the last (see `prune`).
        selection: the kept tokens as a `Selection`, in the order of `hidden`. With `protect`, protected tokens have a
            score of +inf.
        position_ids: gathered as `hidden` is, (..., B, k) or (..., rows), 0 where padded; None unless given.
        cu_seqlens: (B+1,) the offsets of the kept rows of a ragged batch, in the dtype given; None of a dense one.
        sizes: (B, k) float32, or (rows,): how many tokens each row is made of; None without `merge`.
    """

    hidden: torch.Tensor
    selection: Selection
    position_ids: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    @property
    def indices(self) -> torch.Tensor:
        """(B, k) int64, positions within the sample, -1 where padded."""
        return self.selection.indices

    @property
    def counts(self) -> torch.Tensor:
        """How many tokens each sample keeps: (B,) int64."""
        return self.selection.counts

    @property
    def mask(self) -> torch.Tensor:
        """Which rows of `hidden` are tokens, and not padding: (B, k) bool, or (rows,)."""
        if self.cu_seqlens is None:
            return self.indices >= 0
        return torch.arange(self.hidden.shape[0], device=self.hidden.device) < self.cu_seqlens[-1]

    def keep_mask(self, tokens: int, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """Which of the tokens given are kept, as `Selection.keep_mask`.

        Args:
            tokens: N; of a ragged batch T.
            cu_seqlens: the offsets of a ragged batch that `prune` was given, not those that it returned.

        Returns:
            (B, N) bool, or (T,) with `cu_seqlens`.
        """
        return self.selection.keep_mask(tokens, cu_seqlens)

    def trimmed(self) -> Pruned:
        """Without the padding that all samples have; reads one number, for which a GPU is waited for.

        Of a ragged batch the rows behind the last token are cut off, of a dense one the columns behind the longest
        sample, those of `selection` too.
        """
        if self.cu_seqlens is not None:
            rows = int(self.cu_seqlens[-1])
            cut = [None if t is None else t[..., :rows] for t in (self.position_ids, self.sizes)]
            return Pruned(self.hidden[:rows], self.selection, cut[0], self.cu_seqlens, cut[1])
        longest = int(self.counts.max()) if len(self.hidden) else 0
        selection = Selection(*(t[:, :longest] for t in self.selection))
        cut = [None if t is None else t[..., :longest] for t in (self.position_ids, self.sizes)]
        return Pruned(self.hidden[:, :longest], selection, cut[0], None, cut[1])


def prune(
    hidden: torch.Tensor,
    k: Count | None = None,
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    *,
    keep_ratio: float | None = None,
    k_max: int | None = None,
    features: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    order: Literal["raster", "pick"] = "raster",
    position_ids: torch.Tensor | None = None,
    protect: torch.Tensor | None = None,
    merge: How | None = None,
    beta: float = 0.3,
    sizes: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    total: int | None = None,
    backend: str | None = None,
    validate: bool = False,
) -> Pruned:
    """Keeps k tokens of each sample: selects them, cuts hidden states and positions, merges the rest if asked to.

    Args:
        hidden: (B, N, C) or (N, C), or (T, C) with `cu_seqlens`; any dtype and strides: what is cut. Gradients flow
            to it.
        k, keep_ratio, k_max, rule, importance, mask, cu_seqlens, grids, given, backend, validate: as for `select`.
        features: (B, N, D) or (N, D) or (T, D): what is compared, `hidden` unless given. Tokens may so be chosen by
            their CLIP features and cut from the projected ones.
        similarity: (B, N, N) or (N, N), as for `select`, in place of features. What `merge` compares is then `hidden`.
        order: of the kept tokens, "raster" as they stood, "pick" as they were picked.
        position_ids: gathered like the tokens: (N,) for all samples, or (..., B, N), so that the (3, B, N) of mrope
            work; with `cu_seqlens` (..., T). (3, N) are the positions of three samples.
        protect: bool, (B, N) or (N,) or (T,): tokens that are kept whatever their priority, if the mask leaves them,
            such as newline, CLS or text tokens. They count towards k, so the rule picks k less their number among the
            others. If they are more than k, the first k stay and the others are dropped. They take no other part: the
            rule does not compare anything with them, so it does not hold back what is like them, and nothing is merged
            into them. In the order of picks they come first.
        merge: "mean", "add_mean" or "weighted": what the dropped tokens held goes to the kept ones, see `merge`.
        beta, sizes, max_seqlen: as for `merge`.
        total: how many rows a ragged batch returns, if the caller knows how many tokens are kept; see below. Tokens
            beyond it are lost; on a CPU that raises.

    Returns:
        `Pruned(hidden, selection, position_ids, cu_seqlens, sizes)`, always batched: (N, C) gives (1, k, C).

    On a GPU a dense batch takes one launch more than `select`, and one or two per tensor of positions, if the host
    knows that no sample is padded: without mask, protected tokens and merging, with k on the host and at most N.

    Nothing waits for the device, except `validate`, merging a ragged batch without `max_seqlen`, and the `torch`
    backend on a ragged batch. For that the rows of a ragged batch are as many as the host knows to be enough: the sum
    of k; B times `k_max`, or of `keep_ratio` its share of T and B more; at most T. Zeros follow behind
    `cu_seqlens[-1]`: give `total`, or cut them off with `Pruned.trimmed`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it, what was wanted and what came.
        UnsupportedProblem: the backend asked for by name cannot run this.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> hidden = torch.tensor([[0.0, 1.0], [1.0, 0.1], [1.0, 0.0]])
        >>> out = idsel.prune(hidden, 2, importance=torch.tensor([0.5, 0.9, 1.0]), position_ids=torch.arange(3))
        >>> out.hidden, out.position_ids
        (tensor([[[0., 1.],
                 [1., 0.]]]), tensor([[0, 2]]))
    """
    checks.check_hidden(hidden, cu_seqlens)
    checks.check_choice("order", order, _ORDERS)
    if merge is not None:
        checks.check_choice("merge", merge, HOW)
    elif sizes is not None:
        raise ValueError("sizes goes with merge=, got merge=None")
    if total is not None and cu_seqlens is None:
        raise ValueError("total goes with cu_seqlens=, got cu_seqlens=None")
    if similarity is not None:
        checks.check_either(features, similarity)
    is_similarity = similarity is not None
    compared = features if similarity is None else similarity
    checks.check_compared(hidden, compared, "similarity" if is_similarity else "features")
    # What is merged must not depend on the order in which it is returned, so then the picks are sorted last.
    sort_first = order == "raster" and merge is None and protect is None
    inputs, counts, rule = api.prepare(
        hidden if compared is None else compared,
        *(k, rule, importance, mask, cu_seqlens, sort_first, backend),
        keep_ratio=keep_ratio,
        k_max=k_max,
        grids=grids,
        given=given,
        similarity=is_similarity,
    )
    if hidden.dim() == 2 and cu_seqlens is None:
        hidden = hidden[None]
        protect, position_ids, sizes = (_with_batch_axis(t) for t in (protect, position_ids, sizes))
    elif isinstance(protect, torch.Tensor) and protect.dim() == 1 and cu_seqlens is None:
        protect = protect.expand(hidden.shape[0], -1)
    checks.check_after_picks(hidden, protect, position_ids, cu_seqlens)
    if protect is None:
        selection = api.run(inputs, counts, rule, sort_first, backend, validate, similarity=is_similarity)
    else:
        selection = _around(protect, inputs, counts, rule, backend, validate, is_similarity)
    merged = None
    if merge is not None:
        receivers = None if protect is None else ~protect
        merged = merging.merge(
            hidden, selection, hidden if is_similarity else inputs.features, merge,
            beta=beta, mask=inputs.mask, receivers=receivers, sizes=sizes, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen,
        )  # fmt: skip
    if order == "raster" and not sort_first:
        selection, merged = _in_raster_order(selection, merged)
    if cu_seqlens is None:
        return _cut(hidden, selection, position_ids, merged, protect is not None or _may_pad(inputs, counts))
    total = _most_rows(inputs, counts, keep_ratio) if total is None else check_count("total", total)
    return _cut_ragged(hidden, selection, position_ids, merged, cu_seqlens, selection.flat(cu_seqlens, total))


def _in_raster_order(selection: Selection, merged: Merged | None) -> tuple[Selection, Merged | None]:
    """Both as the tokens stood before."""
    order = selection.ascending()
    ordered = Selection(*(t.gather(1, order) for t in selection))
    if merged is None:
        return ordered, None
    hidden, sizes = (gather_rows(t, order, padded=False) for t in (merged.hidden, merged.sizes))
    return ordered, merged._replace(hidden=hidden, sizes=sizes)


def _with_batch_axis(value: torch.Tensor | None) -> torch.Tensor | None:
    """Of a tensor with one value per token of a single sample; (1, N) has one already."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    return value if value.dim() > 1 and value.shape[-2] == 1 else value.unsqueeze(-2)


def _cut(
    hidden: torch.Tensor,
    selection: Selection,
    position_ids: torch.Tensor | None,
    merged: Merged | None,
    padded: bool,
) -> Pruned:
    indices = selection.indices
    kept = gather_rows(hidden, indices, padded) if merged is None else merged.hidden
    if position_ids is not None:
        tokens = position_ids.expand(*position_ids.shape[:-2], *hidden.shape[:2])
        position_ids = _along_last(tokens, indices.expand(*tokens.shape[:-1], -1), padded)
    return Pruned(kept, selection, position_ids, None, None if merged is None else merged.sizes)


def _cut_ragged(
    hidden: torch.Tensor,
    selection: Selection,
    position_ids: torch.Tensor | None,
    merged: Merged | None,
    cu_seqlens: torch.Tensor,
    rows: torch.Tensor,
) -> Pruned:
    offsets = torch.nn.functional.pad(selection.counts.cumsum(0), (1, 0))
    if is_read_freely(offsets) and int(offsets[-1]) > rows.shape[0]:
        raise ValueError(f"total must be at least {int(offsets[-1])}, the tokens kept, got {rows.shape[0]}")
    kept_per_sample = offsets.clamp(max=rows.shape[0]).to(cu_seqlens.dtype)
    if position_ids is not None:
        position_ids = _along_last(position_ids, rows.expand(*position_ids.shape[:-1], -1))
    if merged is None:
        return Pruned(gather_rows(hidden[None], rows[None])[0], selection, position_ids, kept_per_sample)
    picked = selection.indices.flatten() >= 0
    slots = compacted(torch.arange(picked.shape[0], device=picked.device), picked, rows.shape[0])
    kept, sizes = (gather_rows(t.flatten(0, 1)[None], slots[None])[0] for t in (merged.hidden, merged.sizes))
    return Pruned(kept, selection, position_ids, kept_per_sample, sizes)


def _along_last(values: torch.Tensor, at: torch.Tensor, padded: bool = True) -> torch.Tensor:
    """Values (..., N) at (..., k), 0 at -1."""
    leading = math.prod(at.shape[:-1])
    rows = gather_rows(values.reshape(leading, values.shape[-1]), at.reshape(leading, at.shape[-1]), padded)
    return rows.view(at.shape)


def _may_pad(inputs: Inputs, counts: list[int]) -> bool:
    """Whether a sample of a dense batch may have fewer tokens than the output is wide, for all that the host knows."""
    if must_trace(*inputs) or inputs.mask is not None or inputs.counts is not None:
        return True
    return min(counts) < max(counts) or max(counts) > inputs.features.shape[1]


def _most_rows(inputs: Inputs, counts: list[int], keep_ratio: float | None) -> int:
    """The most rows that a ragged batch keeps, as far as the host knows."""
    assert inputs.cu_seqlens is not None
    batch, tokens = inputs.cu_seqlens.shape[0] - 1, inputs.features.shape[0]
    asked: Any = sum(counts) if len(counts) > 1 else batch * counts[0]
    if keep_ratio is not None:
        asked = sym_min(asked, int(keep_ratio * tokens) + batch)  # a share is rounded up by less than one
    most: int = sym_min(asked, tokens)
    return most


def _around(
    protect: torch.Tensor,
    inputs: Inputs,
    counts: list[int],
    rule: Rule,
    backend: str | None,
    validate: bool,
    similarity: bool,
) -> Selection:
    """The protected tokens, then what the rule picks among the others until there are k."""
    features, _importance, mask, cu_seqlens, device_counts, *_ = inputs
    width, device = max(counts), features.device
    protected = protect if mask is None else protect & mask
    if cu_seqlens is None:
        cu_seqlens = torch.arange(features.shape[0] + 1, device=device) * features.shape[1]
    batch, total = cu_seqlens.shape[0] - 1, protected.numel()
    if device_counts is not None:
        if is_read_freely(device_counts):
            checks.check_counts(device_counts, width)
        wanted = device_counts.clamp(0, width)
    else:
        wanted = on_device(counts, device) if len(counts) > 1 else torch.full((batch,), counts[0], device=device)

    # Of each token: its sample, its position there, and its place among the protected ones of the sample.
    token = torch.arange(total, device=device)
    sample = (torch.searchsorted(cu_seqlens, token, right=True) - 1).clamp(0, max(batch - 1, 0))
    so_far = protected.flatten().cumsum(0)
    before = torch.nn.functional.pad(so_far, (1, 0))[cu_seqlens.clamp(0, total)]
    present = torch.minimum(before.diff(), wanted)
    place = so_far - 1 - before[sample]

    others = ~protect if mask is None else ~protect & mask
    free = inputs._replace(mask=others, counts=wanted - present)
    picks = api.run(free, [width], rule, False, backend, validate, similarity=similarity)

    # One slot more than there are takes what is nowhere.
    nowhere = batch * width
    first = torch.arange(batch, device=device) * width
    at_protected = torch.where(protected.flatten() & (place < present[sample]), first[sample] + place, nowhere)
    slot = (first + present)[:, None] + torch.arange(width, device=device)
    at_picks = torch.where(picks.indices >= 0, slot, nowhere).flatten()
    position = token - cu_seqlens[sample]
    indices = torch.full((nowhere + 1,), -1, device=device)
    indices = indices.scatter_(0, at_protected, position).scatter_(0, at_picks, picks.indices.flatten())
    scores = torch.full((nowhere + 1,), -torch.inf, dtype=torch.float32, device=device)
    scores = scores.index_fill_(0, at_protected, torch.inf).scatter_(0, at_picks, picks.scores.flatten())
    return Selection(indices[:nowhere].view(batch, width), scores[:nowhere].view(batch, width))

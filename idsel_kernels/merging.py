"""`merge`: what the dropped tokens held goes to the kept ones."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from . import checks, ops
from .arithmetic import ieee_arithmetic
from .combine import combine, nearest
from .counts import check_count
from .selection import Selection
from .tracing import exportable, is_read_freely, is_transformed, must_trace, resolved

__all__ = ["HOW", "How", "Merged", "bipartite_pairing", "merge"]

How: TypeAlias = Literal["mean", "add_mean", "weighted"]
HOW: tuple[str, ...] = get_args(How)


@exportable
class Merged(NamedTuple):
    """Kept tokens with what was merged into them.

    Attributes:
        hidden: (B, k, C), dtype of the hidden states given; row s belongs to pick s, zeros where that is padding.
        sizes: (B, k) float32, of how many tokens each row is made (with `sizes=`: the sum of theirs); 0 where padded.
        assignment: (B, N) int64, or (T,) of a ragged batch: the pick s that has got the token, a kept token its own;
            -1 where no pick has.
    """

    hidden: torch.Tensor
    sizes: torch.Tensor
    assignment: torch.Tensor


def merge(
    hidden: torch.Tensor,
    sel: Selection,
    features: torch.Tensor | None = None,
    how: How = "mean",
    *,
    beta: float = 0.3,
    mask: torch.Tensor | None = None,
    receivers: torch.Tensor | None = None,
    sizes: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
) -> Merged:
    """Gives every dropped token to the kept token most similar to it, and combines each with what it was given.

    With x_s the hidden state of a kept token, x_j those given to it and c_js their cosine similarities:

    | how | result | source |
    |---|---|---|
    | `"mean"` | the mean of x_s and all x_j | ToMe (ICLR 2023), AngelSlim's VisionZip |
    | `"add_mean"` | x_s + mean of x_j | VisionZip (CVPR 2025) |
    | `"weighted"` | beta * x_s + (1 - beta) * sum c_js * x_j / sum c_js | VLM-Pruner |

    Formulas and defaults are those of the official codes: github.com/dvlab-research/VisionZip, of
    github.com/Tencent/AngelSlim its version of VisionZip, github.com/Casey-bit/VLMPruner.

    A kept token that is given none, or whose similarities sum to nothing positive, stays as it is. Everything is
    computed in float32 (float64 for float64), added in the order of the tokens, so the result is the same from run to
    run. Gradients flow back to `hidden`, not to `features`: who goes to whom, and the weights, count as constants.
    Forward mode and transforms of `torch.func` are refused.

    Args:
        hidden: (B, N, C) or (N, C) floating point; (T, C) with `cu_seqlens`. What is combined.
        sel: a selection among these tokens, in any order. Result s belongs to pick s.
        features: (B, N, D) or (N, D) or (T, D): what is compared; `hidden` unless given.
        how: see above.
        beta: weight of the kept token in `"weighted"`, in [0, 1]. 0.3 is VLM-Pruner's.
        mask: bool, (B, N) or (N,) or (T,). False: the token is not there, and is given to none.
        receivers: bool, shaped like `mask`. Only kept tokens for which it is True are given others: VisionZip's
            contextual ones, ToMe's second half. All, unless given.
        sizes: of the tokens, shaped like `mask`, from an earlier merge: the weights of tokens in a mean or sum, so that
            `"mean"` repeated is the mean over all (ToMe's `merge_wavg`). 1 each, unless given.
        cu_seqlens: (B+1,) int32 or int64, the offsets of a ragged batch.
        max_seqlen: at least the length of the longest sample of a ragged batch, if the host knows it: nothing then
            waits for a GPU, and nobody checks it there; tokens beyond it would be lost.

    Returns:
        `Merged(hidden, sizes, assignment)`, always batched.

    A token without a direction (zeros) is similar to none, so it goes to the first pick that receives. Ties go to the
    pick that comes first in `sel`. A token whose features are not finite, or so long that their squares overflow, is
    given to none, and is given none. Where no kept token receives, the dropped ones are lost.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it, what was wanted and what came.
        NotImplementedError: `hidden` has a forward-mode tangent, or a transform of `torch.func` is at work.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> sel = idsel.topk_select(hidden, 2, torch.tensor([0.9, 0.5, 0.1]))
        >>> merged = idsel.merge(hidden, sel)
        >>> merged.hidden, merged.sizes
        (tensor([[[1., 0.],
                 [0., 2.]]]), tensor([[1., 2.]]))
    """
    checks.check_hidden(hidden, cu_seqlens)
    if not isinstance(sel, tuple) or len(sel) != 2:
        hint = "; pass its .selection" if hasattr(sel, "selection") else ""
        raise TypeError(f"sel must be a Selection, got {type(sel).__name__}{hint}")
    max_seqlen = None if max_seqlen is None else check_count("max_seqlen", max_seqlen)
    if hidden.dim() == 2 and cu_seqlens is None:
        hidden = hidden[None]
        features, mask, receivers, sizes = (
            t[None] if isinstance(t, torch.Tensor) else t for t in (features, mask, receivers, sizes)
        )
    features = hidden if features is None else features
    checks.check_merge(hidden, features, sel[0], how, HOW, beta, mask, receivers, sizes, cu_seqlens)
    tensors = (hidden, features, sel[0], mask, receivers, sizes, cu_seqlens)
    if is_read_freely(sel[0]):
        _check_values(hidden, sel[0], cu_seqlens, max_seqlen)
    if is_transformed(hidden):
        raise NotImplementedError(
            "merge has a gradient for backward(), and none for forward mode or transforms of torch.func"
        )
    needs_grad = hidden.requires_grad and torch.is_grad_enabled()
    call = ops.merge if needs_grad or must_trace(*tensors) else combine
    merged, total, assignment, _weights = call(*tensors, how, float(beta), max_seqlen)
    return Merged(merged, total, assignment)


def _check_values(
    hidden: torch.Tensor, indices: torch.Tensor, cu_seqlens: torch.Tensor | None, max_seqlen: int | None
) -> None:
    """Values whose reading waits for nothing."""
    longest = torch.tensor(hidden.shape[-2])
    if cu_seqlens is not None:
        checks.check_offsets(resolved(cu_seqlens).tolist(), hidden.shape[0])
        longest = cu_seqlens.diff()[:, None]
        if max_seqlen is not None and len(longest) and int(longest.max()) > max_seqlen:
            raise ValueError(f"max_seqlen must be at least {int(longest.max())}, the longest sample, got {max_seqlen}")
    if bool((indices >= longest).any()):
        raise ValueError(f"sel.indices must be positions in their sample, got {int(indices.max())} in one too short")


def bipartite_pairing(features: torch.Tensor, r: int, class_token: bool = False) -> tuple[Selection, torch.Tensor]:
    """ToMe's choice of the r tokens to merge: those at even positions most similar to one at an odd position.

    ToMe (ICLR 2023, github.com/facebookresearch/ToMe/tome/merge.py) drops them and merges each into its partner, which
    `merge` does with what this returns. One round of it merges at most half of the tokens.

    Args:
        features: (B, N, D) or (N, D), float32, float16 or bfloat16: what is compared, in ToMe the keys of attention.
        r: tokens to drop per sample, >= 0. More than half of those after the class token counts as half, as in the
            official code.
        class_token: token 0 is one, and is never dropped; the kept tokens at even positions are then sorted by
            position, else by falling similarity.

    Returns:
        `(kept, receivers)`: the kept tokens (B, N - r), first the even positions, then all odd ones (`kept.sorted()`
        has them as they stood), with the similarity to the partner as scores, 0 at odd positions; and (B, N) bool, True
        at odd positions.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0]])
        >>> kept, receivers = idsel.bipartite_pairing(x, r=1)
        >>> kept.indices
        tensor([[0, 1, 3]])
        >>> idsel.merge(x, kept, how="mean", receivers=receivers[0]).hidden[0, 1]
        tensor([0.0500, 1.0000])
    """
    checks.check_pairing(features, class_token)
    features = (features[None] if features.dim() == 2 else features).detach()
    batch, tokens, _ = features.shape
    r = max(0, min(check_count("r", r), (tokens - class_token) // 2))
    positions = torch.arange(tokens, device=features.device)
    even_positions, odd_positions = positions[0::2], positions[1::2]
    receivers = (positions % 2 == 1).expand(batch, tokens)
    best = torch.zeros((batch, even_positions.shape[0]), dtype=torch.float32, device=features.device)
    if tokens > 1:
        # A compiler computes as its caller has set.
        precision = nullcontext() if torch.compiler.is_compiling() else ieee_arithmetic(features.device)
        with precision:
            best, _ = nearest(features[:, 0::2].float(), features[:, 1::2].float())
    if class_token:
        best = torch.where(even_positions == 0, -torch.inf, best)
    order = best.argsort(stable=True, dim=1, descending=True)[:, r:]
    order = order.sort(1).values if class_token else order
    indices = torch.cat([even_positions[order], odd_positions.expand(batch, -1)], 1)
    scores = torch.cat([best.gather(1, order), best.new_zeros((batch, odd_positions.shape[0]))], 1)
    return Selection(indices, scores), receivers

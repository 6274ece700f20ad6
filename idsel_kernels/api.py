"""The public functions: they check and normalise what the caller gives, and hand it on."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from typing_extensions import Unpack

from . import calls, checks, dispatch, ops
from .counts import Count, resolve
from .given import as_tokens
from .problem import Inputs, Problem
from .rules import (
    DART,
    DPP,
    MMR,
    Combine,
    Coverage,
    Elimination,
    HardSuppress,
    IDSelection,
    MatrixCoverage,
    MaxMin,
    ResidualOrder,
    Rule,
    Ties,
    TopK,
    by_name,
)
from .selection import Selection
from .tracing import lie_in_memory, must_trace, resolved

__all__ = [
    "coverage_select",
    "dart_select",
    "dpp_select",
    "eliminate_select",
    "explain",
    "id_select",
    "matrix_select",
    "maxmin_select",
    "mmr_select",
    "nms_select",
    "prepare",
    "run",
    "select",
    "topk_select",
]


class Options(TypedDict, total=False):
    """The keyword arguments that the shorthands hand on to `select`, with its meanings and defaults."""

    keep_ratio: float | None
    k_max: int | None
    mask: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    grids: torch.Tensor | None
    given: torch.Tensor | None
    similarity: torch.Tensor | None
    sort: bool
    backend: str | None
    validate: bool


def select(
    features: torch.Tensor | None = None,
    k: Count | None = None,
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    *,
    keep_ratio: float | None = None,
    k_max: int | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    sort: bool = False,
    backend: str | None = None,
    validate: bool = False,
) -> Selection:
    """Selects k tokens per sample greedily: pick the best, lower the priority of tokens like it, repeat.

    Two rules, `Elimination` and `DART`, decide on all picks at once instead, on a GPU in the `torch` engine.

    Args:
        features: (B, N, D) or (N, D), float32, float16 or bfloat16, any strides. With `cu_seqlens`: (T, D). Only
            directions matter: similarities are cosines, accumulated in float32. A row of zeros has similarity 0. None
            where `similarity` is given.
        k: tokens to keep, from 0 to 2**31 - 1: an int, or a sequence of B ints. Or an integer tensor on the device of
            features, (B,) or of one number, together with `k_max`: nothing reads it on the host, so a captured graph or
            a compiled program can be given other budgets. Where fewer tokens exist the output is padded.
        rule: how priorities start and change, or its name as on the command line ("id", "mmr", "maxmin", "nms", "dpp",
            "coverage", "topk", "matrix", "elimination", "dart") for the published parameters; `IDSelection()` unless
            given.
        importance: (B, N), or (N,) with (N, D) features, or (T,); any floating dtype, higher is better. Required by
            every rule but `MaxMin` (unless weighted), `Coverage` and `MatrixCoverage`. +inf counts as the largest
            float32 (`DPP`: as 2**63, a weighted `MaxMin`: as 2**100, and for `Coverage` importance**alpha as within
            ±2**100, so that priorities stay finite).
        keep_ratio: in (0, 1], in place of k (None): that share of each sample's tokens (those that exist: inside the
            sample and not masked), rounded half to even, at least 1.
        k_max: width of the outputs where k is a tensor, its upper bound. On a CPU and with `validate` a k outside of
            [0, k_max] raises, else below counts as 0 and above as `k_max`. With `keep_ratio` it may be given too, and
            larger shares are cut to it; else the outputs are as wide as the share of N, of a ragged batch the share
            of all T: give it there.
        mask: bool, shaped like importance. False takes the token out of the problem altogether.
        cu_seqlens: (B+1,) int32 or int64 on the device of features, for a ragged batch: sample b is the rows
            cu_seqlens[b] to cu_seqlens[b+1]. Indices count from the start of the sample. int32 saves a conversion.
        grids: (B, 2) int32 or int64 on the device of features, (1, 2) with (N, D) features, for `HardSuppress`: height
            and width of the grid on which the tokens of each sample lie, row by row, in place of the rule's `grid`. On
            a CPU and with `validate` a grid whose cells are not as many as the sample's tokens raises, else a width
            below 1 is no grid. int32 saves a conversion.
        given: tokens that are picked already, in this order: they are the first picks, and what follows is as if the
            rule had picked them. (B, M) int32 or int64 on the device of features, (M,) with (N, D) features; indices
            count from the start of the sample, and -1 says that there are fewer. Or a bool mask shaped like
            importance: its tokens in index order. k counts them, so of more than k the first k are returned. The
            score of such a pick is the priority that it had by then. One that does not take part (masked, unusable)
            is no first pick; on a CPU and with `validate` one that is masked, beyond the sample or named twice raises.
            Not for `Elimination` and `DART`.
        similarity: (B, N, N) or (N, N), float32, any strides, in place of features, of which exactly one has to be
            given: the similarities c_ij of the tokens, taken as symmetric. Where c_ij and c_ji differ, one of them
            counts, in `IDSelection`, `MMR`, `HardSuppress`, `DPP` and `MaxMin` with a start the one in the row of the
            pick. Values are clamped to [-1, 1], and a NaN counts as -1. The diagonal says what a token is, as the
            squares of norms would: NaN or infinite, it does not take part; zero or negative, it has no direction;
            else it counts as 1. Not with `cu_seqlens`, and not for `MatrixCoverage`.
        sort: return each sample's picks in ascending index order.
        backend: "cuda", "triton", "cpu" or "torch"; None chooses (see `explain`). Named, it never falls back.
        validate: read the values too, which on a GPU waits for the device: NaN or infinite features, similarity or
            importance, negative importance for `Coverage`, `cu_seqlens`, `grids` and a k on the device (on a CPU
            these three always) raise instead of following the policy below.

    Returns:
        `Selection(indices, scores)`, always batched: an (N, D) input gives (1, k). Neither requires grad.

    Ties go to the lowest index.

    Unusable tokens: one whose importance is NaN or -inf, or whose features hold a NaN or infinity or are so long
    that their squares overflow float32, does not take part. It neither competes nor counts as a neighbour, and is
    picked after all others, in index order, with a score of -inf.

    When a rule runs dry (`HardSuppress` has suppressed, `DPP` has spanned every token left), the rest follow by
    importance, also with a score of -inf.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it, what was wanted and what came.
        UnsupportedProblem: the backend asked for by name cannot run this.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> idsel.select(features, 2, importance=torch.tensor([1.0, 0.9, 0.5])).indices
        tensor([[0, 2]])
        >>> idsel.select(features, 2, importance=torch.tensor([1.0, 0.9, 0.5]), given=torch.tensor([2])).indices
        tensor([[2, 0]])
        >>> similarity = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> idsel.select(None, 2, importance=torch.tensor([1.0, 0.9, 0.5]), similarity=similarity).indices
        tensor([[0, 2]])
    """
    compared, is_similarity = features, similarity is not None
    if is_similarity or compared is None:
        compared = checks.check_either(features, similarity)
    key = None
    is_plain = keep_ratio is None and k_max is None and validate is False and type(sort) is bool
    tensors = compared, importance, mask, cu_seqlens, grids, given
    if is_plain and (plain_k := _plain(k)) is not None and lie_in_memory(*tensors) and not _is_mask(given):
        raw = Inputs(compared, importance, mask, cu_seqlens, None, grids, given)
        key, call = calls.find(raw, rule, plain_k, sort, backend, is_similarity)
        if call is not None:
            return Selection(*call.run(raw))
    inputs, counts, rule = prepare(
        *(compared, k, rule, importance, mask, cu_seqlens, sort, backend),
        keep_ratio=keep_ratio,
        k_max=k_max,
        grids=grids,
        given=given,
        similarity=is_similarity,
    )
    return run(inputs, counts, rule, sort, backend, validate, key, is_similarity)


def _plain(k: Any) -> int | tuple[int, ...] | None:
    """`k` as part of a key, where it is an int or a list of ints; a bool would be equal to an int."""
    if type(k) is int:
        return k
    return tuple(k) if type(k) in (list, tuple) and set(map(type, k)) == {int} else None


def run(
    inputs: Inputs,
    counts: list[int],
    rule: Rule,
    sort: bool,
    backend: str | None,
    validate: bool,
    key: Any = None,
    similarity: bool = False,
) -> Selection:
    """`select` on what `prepare` returns, through the operator where something is watching operators.

    `key` is one more under which `calls` will find the call. `similarity` says that similarities lie in the place of
    features.
    """
    checks.check_flag("validate", validate)
    if must_trace(*inputs):
        features, *companions, device_counts, grids, given = inputs
        rule_id, params = rule.encode()
        options = sort, backend, validate
        more = device_counts, grids, given, similarity
        return Selection(*ops.select(features, counts, rule_id, params, *companions, *options, *more))
    return Selection(*calls.run(inputs, rule, counts, sort, backend, validate, key, similarity))


def explain(
    features: torch.Tensor | None = None,
    k: Count | None = None,
    rule: Rule | str = IDSelection(),
    importance: torch.Tensor | None = None,
    *,
    keep_ratio: float | None = None,
    k_max: int | None = None,
    mask: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    sort: bool = False,
    backend: str | None = None,
) -> dispatch.Explanation:
    """Says which engine and algorithm `select` would use for the same arguments, and why; runs nothing.

    Args:
        features, k, rule, importance, keep_ratio, k_max, mask, cu_seqlens, grids, given, similarity, sort, backend: as
            for `select`; no values are read.

    Returns:
        An `Explanation`; print it.

    Raises:
        TypeError, ValueError: as `select`. A backend that refuses is not an error here: it is explained.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.explain(torch.eye(3), 2, rule=idsel.MaxMin(), backend="torch").backend
        'torch'
    """
    is_similarity = similarity is not None
    inputs, counts, rule = prepare(
        *(checks.check_either(features, similarity), k, rule, importance, mask, cu_seqlens, sort, backend),
        keep_ratio=keep_ratio,
        k_max=k_max,
        grids=grids,
        given=given,
        similarity=is_similarity,
    )
    return dispatch.explain_problem(Problem.of(inputs, rule, counts, sort, is_similarity), backend)


def prepare(
    features: torch.Tensor,
    k: Count | None,
    rule: Rule | str,
    importance: torch.Tensor | None,
    mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    sort: bool,
    backend: str | None,
    *,
    keep_ratio: float | None = None,
    k_max: int | None = None,
    grids: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
    similarity: bool = False,
) -> tuple[Inputs, list[int], Rule]:
    """Everything checked that needs no values, a single sample given a batch axis, and a rule for its name.

    Values of plain tensors are then where their addresses say. `similarity` says that `features` are similarities.
    """
    rule = by_name(rule)() if isinstance(rule, str) else rule
    checks.check_rule(rule)
    checks.check_flag("sort", sort)
    if backend is not None:
        checks.check_backend(backend, dispatch.BACKENDS)
    batched = cu_seqlens is not None or not checks.is_dense(features) or features.dim() != 2
    inputs = Inputs(features, importance, mask, cu_seqlens, grids=grids, given=given)
    if not batched:
        importance, mask, given = (_with_batch_axis(t) for t in (importance, mask, given))
        inputs = Inputs(features.unsqueeze(0), importance, mask, grids=grids, given=given)
    checks.check_inputs(inputs, rule, batched, similarity)
    inputs = Inputs(*(None if tensor is None else resolved(tensor) for tensor in inputs))  # type: ignore[arg-type]
    batch = inputs.features.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    counts, device_counts = resolve(k, keep_ratio, k_max, inputs, batch, rule.rows_aside)
    inputs = as_tokens(inputs, max(counts))
    return inputs if device_counts is None else inputs._replace(counts=device_counts), counts, rule


def _is_mask(given: Any) -> bool:
    return isinstance(given, torch.Tensor) and given.dtype is torch.bool


def _with_batch_axis(value: torch.Tensor | None) -> torch.Tensor | None:
    return value.unsqueeze(0) if checks.is_dense(value) and value is not None else value


def id_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor,
    *,
    gamma: float = 20.0,
    floor: float | None = 0.0,
    ties: Ties = "index",
    **options: Unpack[Options],
) -> Selection:
    """ID-Selection (arXiv 2604.05601): `select` with `IDSelection(gamma, floor, ties)`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.id_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5])).indices
        tensor([[1, 2]])
    """
    return select(features, k, IDSelection(gamma, floor, ties), importance, **options)


def mmr_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor,
    *,
    lam: float = 0.5,
    parallel_k: int = 1,
    **options: Unpack[Options],
) -> Selection:
    """IDPruner (arXiv 2602.13315): `select` with `MMR(lam, parallel_k)`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.mmr_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5])).indices
        tensor([[1, 2]])
    """
    return select(features, k, MMR(lam, parallel_k), importance, **options)


def maxmin_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor | None = None,
    *,
    start: int | None = None,
    weighted: bool = False,
    **options: Unpack[Options],
) -> Selection:
    """DivPrune (CVPR 2025), weighted FlashVID (ICLR 2026): `select` with `MaxMin(start, weighted)`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.maxmin_select(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]), 2, start=0).indices
        tensor([[0, 2]])
    """
    return select(features, k, MaxMin(start, weighted), importance, **options)


def nms_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor,
    *,
    threshold: float = 0.8,
    grid: tuple[int, int] | None = None,
    radius: int = 0,
    **options: Unpack[Options],
) -> Selection:
    """Greedy non-maximum suppression (D2Pruner, TRIO): `select` with `HardSuppress(threshold, grid, radius)`.

    Of pictures that differ in size, `grids` says how each lies, in place of `grid`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> idsel.nms_select(features, 2, torch.tensor([1.0, 0.9, 0.5])).indices
        tensor([[0, 2]])
    """
    return select(features, k, HardSuppress(threshold, grid, radius), importance, **options)


def dpp_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor,
    *,
    eps: float = 1e-6,
    **options: Unpack[Options],
) -> Selection:
    """CDPruner (NeurIPS 2025): `select` with `DPP(eps)`; importance is the relevance q.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.dpp_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5])).indices
        tensor([[1, 2]])
    """
    return select(features, k, DPP(eps), importance, **options)


def coverage_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    combine: Combine = "mul",
    **options: Unpack[Options],
) -> Selection:
    """SCOPE: `select` with `Coverage(alpha, combine)`; importance is the saliency, 1 everywhere unless given.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.coverage_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5])).indices
        tensor([[1, 2]])
    """
    return select(features, k, Coverage(alpha, combine), importance, **options)


def matrix_select(matrix: torch.Tensor, k: Count | None, **options: Unpack[Options]) -> Selection:
    """MMTok (ICLR 2026, arXiv 2508.18264): greedy coverage of a given matrix, `select` with `MatrixCoverage()`.

    Args:
        matrix: (B, R, N) or (R, N), how well each of N tokens covers each of R rows, >= 0; with `cu_seqlens` (R, T).
            float32, float16 or bfloat16, any strides. `compat.mmtok.matrix` makes MMTok's own.
        k: as for `select`, of the N tokens.
        options: as for `select`; a mask is (B, N), (N,) or (T,).

    Returns:
        A `Selection`; scores are gains, (B, k) float32.

    Raises:
        TypeError, ValueError: `matrix` is not as above; or as `select`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.matrix_select(torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 0.5]]), 2).indices
        tensor([[0, 2]])
    """
    checks.check_matrix(matrix)
    return select(matrix.mT, k, MatrixCoverage(), **options)


def topk_select(
    features: torch.Tensor | None, k: Count | None, importance: torch.Tensor, **options: Unpack[Options]
) -> Selection:
    """The k most important tokens (FastV, FasterVLM): `select` with `TopK()`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.topk_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5])).indices
        tensor([[1, 2]])
    """
    return select(features, k, TopK(), importance, **options)


def eliminate_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor,
    *,
    important: float = 0.5,
    order: ResidualOrder = "score",
    **options: Unpack[Options],
) -> Selection:
    """VisPruner (ICCV 2025): `select` with `Elimination(important, order)`; importance is the attention of CLS.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> idsel.eliminate_select(features, 3, torch.tensor([0.4, 0.3, 0.2, 0.1])).indices
        tensor([[0, 3, 2]])
    """
    return select(features, k, Elimination(important, order), importance, **options)


def dart_select(
    features: torch.Tensor | None,
    k: Count | None,
    importance: torch.Tensor,
    *,
    pivots: int = 4,
    text: torch.Tensor | None = None,
    text_importance: torch.Tensor | None = None,
    text_pivots: int = 4,
    **options: Unpack[Options],
) -> Selection:
    """DART (EMNLP 2025): `select` with `DART`, which takes its text pivots from states of the text.

    Args:
        features: (B, N, D) or (N, D), the states of the image tokens; with `cu_seqlens` (T, D), and no `text` then.
        k: as for `select`; of image tokens.
        importance: of the image tokens, as for `select`: the norms of their keys.
        pivots: image tokens kept as pivots; 4 is the official default.
        text: (B, M, D) or (M, D), the states of the text, from which pivots are taken. None: from the image alone.
            Not with `similarity`.
        text_importance: (B, M) or (M,), the norms of the keys of the text; with `text`.
        text_pivots: how many of the M are pivots, those of the largest importance; 4 is the official default. Without
            `text` there are none.
        options: as for `select`.

    Returns:
        A `Selection` of image tokens.

    Raises:
        TypeError, ValueError: as `select` and `DART`; `text` is not like `features`, comes without its importance, or
            with `cu_seqlens` or `similarity`.

    Example:
        >>> import torch, idsel_kernels as idsel
        >>> idsel.dart_select(torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5]), pivots=1).indices
        tensor([[1, 0]])
        >>> text, norms = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([1.0])
        >>> idsel.dart_select(
        ...     torch.eye(3), 2, torch.tensor([0.1, 0.9, 0.5]), pivots=0, text=text, text_importance=norms
        ... ).indices
        tensor([[1, 2]])
    """
    checks.check_text(features, importance, text, text_importance, options.get("cu_seqlens"))
    if features is None or text is None or text_importance is None:
        return select(features, k, DART(pivots), importance, **options)
    rule = DART(pivots, min(text_pivots, text.shape[-2]))
    # A NaN would count as the largest.
    ranked = torch.where(text_importance.isnan(), -torch.inf, text_importance)
    chosen = ranked.sort(dim=-1, descending=True, stable=True).indices[..., : rule.text_pivots]
    rows = text.gather(-2, chosen[..., None].expand(*chosen.shape, text.shape[-1])).to(features.dtype)
    if (mask := options.get("mask")) is not None:
        checks.check_tensor("mask", mask)
        options["mask"] = torch.cat([mask, mask.new_ones(chosen.shape)], -1)
    importance = torch.cat([importance, text_importance.gather(-1, chosen)], -1)
    return select(torch.cat([features, rows], -2), k, rule, importance, **options)

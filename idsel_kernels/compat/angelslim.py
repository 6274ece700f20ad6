"""IDPruner, DivPrune, SCOPE and VisionZip as token compression strategies of github.com/Tencent/AngelSlim.

Signatures and results are those of the folder angelslim/compressor/token_compressor there, at commit 67394ce55f6b. A
strategy takes a context, which holds the sequence and what was captured of the vision tower, and parameters. `register`
puts these in place of AngelSlim's, in the tables from which it takes a strategy by name.

What is not selection stays AngelSlim's, and is imported from it when a strategy is called: which tokens are vision
tokens, attention from queries and keys, the scores of a learned selector, segments of a dialogue. Its package on PyPI
does not contain that folder (0.5.0), a checkout does.

The context has `input_ids` (1, L), `inputs_embeds` (1, L, C), `model_config`, and for `scope_pruning` and `visionzip`
queries and keys of the vision tower, `vit_q` and `vit_k`, by layer. Parameters that are not listed are ignored.
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..api import select
from ..importance import minmax
from ..merging import merge
from ..rules import MMR, Coverage, MaxMin, Rule
from ..selection import Selection
from ..tracing import is_read_freely
from ._common import at_positions, check_tokens
from .scope import combined, select_scope
from .visionzip import dominant_and_targets

__all__ = ["SCOPE", "divprune", "idpruner", "register", "scope_pruning", "visionzip"]

Strategy = Callable[..., Any]
Zipped = tuple[list[Tensor], Tensor, Tensor, Tensor]


def divprune(context: Any, **kwargs: Any) -> Tensor:
    """Keeps the vision tokens that are farthest apart.

    AngelSlim computes distances in the dtype of the embeddings, here they are float32: in half precision many distances
    tie or swap there, and one other pick changes all later ones. Here nothing is read from the device.

    Args:
        context: see the module.
        kwargs: `ratio`, in [0, 1], the share of the vision tokens to drop; of those kept there is at least one, unless
            it is 1.

    Returns:
        (1, L) bool, True for the tokens kept and for all that are no vision tokens.

    Raises:
        TypeError, ValueError: the context or a parameter is not as above, or is missing.
        ImportError: there is no AngelSlim with token compression.
    """
    (ratio,) = _required("divprune", kwargs, "ratio")
    share = _share(ratio)
    return _keep_mask(context, _vision_mask(context), share, MaxMin(), None)


def idpruner(context: Any, **kwargs: Any) -> Tensor:
    """Keeps vision tokens that a learned selector finds important and that are unlike those kept already.

    AngelSlim rescales the scores in the dtype of the selector and computes the rest in float32, here all is float32: in
    half precision scores that differ little may tie there.

    Args:
        context: see the module.
        kwargs: `ratio` as for `divprune`; `selector_path`, where AngelSlim finds the selector; `mmr_lambda` (0.5), the
            weight of importance against similarity; `parallel_k` (1), tokens per step; `importance_func` (None), from
            raw scores (N,) to importance (N,), in place of rescaling to [0, 1]. A `similarity_func`, and a function
            given as a string of code, have no counterpart: they raise.

    Returns:
        (1, L) bool, True for the tokens kept and for all that are no vision tokens.

    Raises:
        TypeError, ValueError: the context or a parameter is not as above, or is missing.
        ImportError: there is no AngelSlim with token compression.
    """
    ratio, selector_path = _required("idpruner", kwargs, "ratio", "selector_path")
    if kwargs.get("similarity_func") is not None:
        got = kwargs["similarity_func"]
        raise ValueError(f"similarity_func must be None: the similarity is the cosine; got {got!r}")
    importance_func = kwargs.get("importance_func")
    if importance_func is None:
        importance_func = functools.partial(minmax, eps=1e-6)
    elif not callable(importance_func):
        raise TypeError(f"importance_func must be callable or None, got {importance_func!r}")
    rule, share = MMR(kwargs.get("mmr_lambda", 0.5), kwargs.get("parallel_k", 1)), _share(ratio)
    vision = _vision_mask(context)
    tokens = context.inputs_embeds[vision]  # for the selector, and the one thing that is read from the device
    if len(tokens) == 0:
        return torch.ones_like(vision)
    selector = _theirs("algorithm.utils.vision_selector_utils").get_universal_selector_scores
    scores = selector(selector_path=selector_path, vision_hidden=tokens[None], text_hidden=None, mode="raw")
    return _keep_mask(context, vision, share, rule, importance_func(scores.squeeze(0)))


def scope_pruning(context: Any, **kwargs: Any) -> Tensor:
    """Keeps the vision tokens that cover the others best, weighted by the attention in the vision tower.

    Similarities, gains and attention are in the dtype of the embeddings there, here in float32: in half precision some
    picks differ. The environment variable COMBINED is read as in `SCOPE`.

    Args:
        context: see the module.
        kwargs: `ratio` as for `divprune`; `layer_idx`, whose attention; `alpha` (1.0), the exponent of it.

    Returns:
        (1, L) bool, True for the tokens kept and for all that are no vision tokens.

    Raises:
        TypeError, ValueError: the context or a parameter is not as above, or is missing.
        ImportError: there is no AngelSlim with token compression.
    """
    ratio, layer = _required("scope_pruning", kwargs, "ratio", "layer_idx")
    rule, share, vision = Coverage(kwargs.get("alpha", 1.0), combined()), _share(ratio), _vision_mask(context)
    if context.vit_q.get(layer) is None and not vision.any():  # a prompt without an image
        return torch.ones_like(vision)
    scores, _keys = _attention("scope_pruning", context, layer)
    return _keep_mask(context, vision, share, rule, torch.cat([score.flatten() for score in scores]))


def SCOPE(
    visual_feature_vectors: Tensor,
    num_selected_token: int,
    cls_attn: Tensor | None = None,
    alpha: float = 1.0,
    *,
    with_matrix: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The same as `idsel_kernels.compat.scope.SCOPE`, but for the exponent, which is an argument here.

    Args:
        visual_feature_vectors, num_selected_token, cls_attn, with_matrix: as there.
        alpha: the exponent of the attention.

    Returns:
        As there. So is the environment variable COMBINED read, and so does half precision differ.

    Example:
        >>> import torch
        >>> from idsel_kernels.compat.angelslim import SCOPE
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> SCOPE(features, 2, torch.tensor([[0.5, 0.4, 0.1]]), alpha=2.0)[0]
        tensor([[0, 1]])
    """
    return select_scope(visual_feature_vectors, num_selected_token, cls_attn, alpha, with_matrix)


def visionzip(context: Any, **kwargs: Any) -> Zipped:
    """Keeps the vision tokens of most attention, and averages the others into evenly spaced ones.

    AngelSlim, too, compares keys in float32; the averages are rounded to the dtype of the embeddings once here, and in
    half precision after each step there.

    Args:
        context: see the module.
        kwargs: `ratio`, in [0, 1], the share of the tokens of each image to drop; `layer_idx`, whose attention and
            keys; `zip_ratio` (10/64), the share of averaged tokens among those kept, of which there is at least one.

    Returns:
        `(weights, sizes, is_vision, mask)`: a list with a matrix (M, N) for each segment of vision tokens, whose rows
        average N tokens to M, in the dtype of the embeddings; the lengths of all segments, int64; which of them are
        vision tokens, bool; and (L,) bool, True for the tokens kept and for all that are no vision tokens.

    Raises:
        TypeError, ValueError: the context or a parameter is not as above, or is missing.
        ImportError: there is no AngelSlim with token compression.
    """
    ratio, layer = _required("visionzip", kwargs, "ratio", "layer_idx")
    share, zip_ratio = _share(ratio), kwargs.get("zip_ratio", 10.0 / 64.0)
    check_tokens("context.inputs_embeds", context.inputs_embeds, 1, "L", "C")
    dtype, device = context.inputs_embeds.dtype, context.inputs_embeds.device
    scores, keys = _attention("visionzip", context, layer)
    *_, sizes, is_vision = _theirs("algorithm.utils.merging_utils").get_dialogue_masks(context)
    weights, masks, images = [], [], zip(scores, keys, strict=True)
    for size, is_image in zip(sizes, is_vision, strict=True):
        if not is_image:
            masks.append(torch.ones(size, dtype=torch.bool, device=device))
            continue
        score, key = next(images, (None, None))
        if score is None or key is None or score.shape[1] != size:
            got = "none" if score is None else f"{score.shape[1]}"
            raise ValueError(f"context must have queries and keys of each of the {size} tokens of an image, got {got}")
        matrix, mask = _averages(score, key, _keep_count(size, share), zip_ratio)
        weights.append(matrix.to(dtype))
        masks.append(mask)
    lengths, kinds = torch.tensor(sizes, device=device), torch.tensor(is_vision, device=device)
    return weights, lengths, kinds, torch.cat(masks)


def _averages(score: Tensor, keys: Tensor, keep: int, zip_ratio: float) -> tuple[Tensor, Tensor]:
    """From scores (1, N) and keys (1, N, d) of an image: the matrix (M, N), and which tokens it keeps, (N,) bool."""
    tokens = score.shape[1]
    if keep >= tokens:
        return torch.eye(tokens, device=score.device), torch.ones(tokens, dtype=torch.bool, device=score.device)
    averaged = max(1, round(keep * zip_ratio))
    dominant, targets = dominant_and_targets(score, max(0, keep - averaged), averaged)
    kept = torch.cat([dominant, targets], 1).sort(dim=1).values
    # Who goes to whom is all that is wanted of it; keys are narrower than hidden states.
    row = merge(keys, Selection.of(kept), receivers=at_positions(targets, tokens)).assignment
    ones = (row == torch.arange(kept.shape[1], device=row.device)[:, None]).float()
    return ones / (ones.sum(1, keepdim=True) + 1e-8), at_positions(kept, tokens)[0]


def register(strategies: Mapping[str, Strategy] | None = None) -> dict[str, Strategy]:
    """Puts strategies in place of those that AngelSlim has under these names.

    AngelSlim looks them up when it wraps a model, so call it before.

    Args:
        strategies: by name; unless given "divprune", "idpruner", "scope" and "visionzip", those of this module.

    Returns:
        What it had under these names. `register` of that puts them back.

    Raises:
        ImportError: there is no AngelSlim with token compression.
        ValueError: it has no strategy of such a name.
    """
    if strategies is None:
        strategies = {"divprune": divprune, "idpruner": idpruner, "scope": scope_pruning, "visionzip": visionzip}
    factory = _theirs("factory")
    tables: list[dict[str, Strategy]] = [factory.PRUNING_STRATEGIES, factory.MERGING_STRATEGIES]
    known = [name for table in tables for name in table]
    for name in strategies:
        if name not in known:
            raise ValueError(f"strategies must have names among {', '.join(map(repr, known))}, got {name!r}")
    replaced = {}
    for table in tables:
        for name in table.keys() & strategies.keys():
            replaced[name], table[name] = table[name], strategies[name]
    return replaced


def _theirs(module: str) -> Any:
    try:
        return importlib.import_module(f"angelslim.compressor.token_compressor.{module}")
    except ImportError as error:
        raise ImportError(
            f"idsel_kernels.compat.angelslim needs the token compression of AngelSlim: {error}. Its package on PyPI "
            "does not contain it (0.5.0); a checkout of github.com/Tencent/AngelSlim does"
        ) from error


def _required(strategy: str, kwargs: Mapping[str, Any], *names: str) -> list[Any]:
    for name in names:
        if name not in kwargs:
            raise ValueError(f"{strategy} needs the parameter {name}, got {sorted(kwargs)}")
    return [kwargs[name] for name in names]


def _share(ratio: Any) -> float:
    """The share of vision tokens to keep, from that to drop."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f"ratio must be a number in [0, 1], got {ratio!r}")
    if math.isnan(ratio) or not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
    return 1.0 - ratio


def _keep_count(tokens: int, share: float) -> int:
    """Half to even, and at least one of a share."""
    return max(round(tokens * share), 1 if share > 0.0 else 0)


def _vision_mask(context: Any) -> Tensor:
    """Which tokens of the sequence are vision tokens, (1, L) bool."""
    check_tokens("context.inputs_embeds", context.inputs_embeds, 1, "L", "C")
    ids = context.input_ids
    if not isinstance(ids, Tensor) or ids.shape != context.inputs_embeds.shape[:2]:
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"context.input_ids must be (1, {context.inputs_embeds.shape[1]}), got {got}")
    wanted = _theirs("algorithm.utils.utils").get_model_specific_vision_token_ids(context)
    mask: Tensor = functools.reduce(operator.or_, [ids == token_id for token_id in wanted])
    return mask.to(context.inputs_embeds.device)


def _attention(strategy: str, context: Any, layer: int) -> tuple[list[Tensor], list[Tensor]]:
    """Scores (1, N) and keys (1, N, d) of each image, from a layer of the vision tower."""
    q, k = context.vit_q.get(layer), context.vit_k.get(layer)
    if q is None or k is None:
        raise ValueError(f"{strategy} needs queries and keys of layer_idx={layer} of the vision tower, got none")
    scores, keys = _theirs("algorithm.utils.utils")._recompute_attention_maps_for_all_images(q, k, context)
    return list(scores), list(keys)


def _keep_mask(context: Any, vision: Tensor, share: float, rule: Rule, importance: Tensor | None) -> Tensor:
    """The share of the vision tokens that the rule picks, and all other tokens; importance is of vision tokens (N,)."""
    if share == 0.0:
        return ~vision
    if importance is not None:
        importance = _among(importance.to(vision.device, torch.float32), vision)
    # Masked, text takes no part, and how many vision tokens there are need not be read.
    kept = select(context.inputs_embeds, keep_ratio=share, rule=rule, importance=importance, mask=vision)
    return kept.keep_mask(vision.shape[1]) | ~vision


def _among(values: Tensor, vision: Tensor) -> Tensor:
    """Values of vision tokens (N,) as values of all tokens (1, L), 0 elsewhere."""
    if is_read_freely(vision) and len(values) != (tokens := int(vision.sum())):
        raise ValueError(f"importance must have one value for each of the {tokens} vision tokens, got {len(values)}")
    return torch.zeros(vision.shape, device=vision.device).masked_scatter_(vision, values)

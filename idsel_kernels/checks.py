"""Every check of user input, with the words of its error. Shapes need no values; values are read only here."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from .problem import Inputs, Problem
from .rules import DART, Coverage, HardSuppress, MatrixCoverage, MaxMin, Rule

__all__ = [
    "check_after_picks",
    "check_as_planned",
    "check_backend",
    "check_choice",
    "check_compared",
    "check_counts",
    "check_either",
    "check_flag",
    "check_hidden",
    "check_inputs",
    "check_is_plain",
    "check_matrix",
    "check_merge",
    "check_offsets",
    "check_out",
    "check_pairing",
    "check_planned_k",
    "check_rule",
    "check_tensor",
    "check_text",
    "check_values",
    "form_of",
    "is_dense",
]

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Shape, dtype and device.
Form = tuple[tuple[int, ...], torch.dtype, torch.device]

IMPORTANCE_DTYPES = (*FEATURE_DTYPES, torch.float64)


def check_either(features: Any, similarity: Any) -> Any:
    """Features or similarities: what was given, of which there has to be one."""
    if (features is None) == (similarity is None):
        got = "neither" if features is None else "both"
        raise TypeError(f"either features or similarity must be given, got {got}")
    return features if similarity is None else similarity


def check_inputs(inputs: Inputs, rule: Rule, batched: bool = True, similarity: bool = False) -> None:
    """Types, dtypes, shapes and devices of the tensors, against each other and the rule.

    `batched` False words the messages for features given as (N, D). `similarity` says that they are similarities.
    """
    features, importance, mask, cu_seqlens, _counts, grids, given = inputs
    whose = "similarity" if similarity else "features"
    if similarity:
        _check_similarity(features, rule, cu_seqlens, batched)
    else:
        _check_features(features, cu_seqlens, batched)
    if importance is not None:
        _check_companion("importance", importance, features, cu_seqlens, batched, whose)
        if importance.dtype not in IMPORTANCE_DTYPES:
            raise TypeError(f"importance must be float16, bfloat16, float32 or float64, got {importance.dtype}")
    elif rule.needs_importance:
        name = "a weighted MaxMin" if isinstance(rule, MaxMin) else type(rule).__name__
        raise ValueError(
            f"importance is required by {name}, got None (MaxMin, Coverage and MatrixCoverage run without)"
        )
    if mask is not None:
        _check_companion("mask", mask, features, cu_seqlens, batched, whose)
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask must be torch.bool (False = not selectable), got {mask.dtype}")
    if cu_seqlens is None:
        _check_rule_fits(rule, features.shape[-2])
    _check_has_grid(rule, grids)
    batch = features.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if grids is not None:
        _check_grids(grids, features, batch, whose)
    if given is not None:
        _check_given(given, rule, inputs, batch, batched, whose)


def _check_features(features: torch.Tensor, cu_seqlens: torch.Tensor | None, batched: bool) -> None:
    check_tensor("features", features)
    if features.dtype not in FEATURE_DTYPES:
        hint = "; pass .float()" if features.dtype is torch.float64 else ""
        raise TypeError(f"features must be float32, float16 or bfloat16, got {features.dtype}{hint}")
    if cu_seqlens is None:
        if features.dim() not in (2, 3):
            raise ValueError(f"features must be (B, N, D) or (N, D), got shape {_shape(features)}")
    else:
        _check_cu_seqlens(cu_seqlens, features)
    if features.shape[-1] == 0:
        got = _shape(features) if batched else _shape(features)[1:]
        raise ValueError(f"features must have D >= 1, got shape {got}")


def _check_similarity(similarity: Any, rule: Rule, cu_seqlens: torch.Tensor | None, batched: bool) -> None:
    if cu_seqlens is not None:
        raise ValueError(
            "similarity must be a dense batch, (B, N, N), got it with cu_seqlens; pad the matrices and pass mask="
        )
    if isinstance(rule, MatrixCoverage):
        raise ValueError(
            "similarity goes with rules that compare tokens, got it with MatrixCoverage, which has matrix="
        )
    check_tensor("similarity", similarity)
    if similarity.dtype is not torch.float32:
        raise TypeError(f"similarity must be torch.float32, got {similarity.dtype}; pass .float()")
    if similarity.dim() not in (2, 3) or similarity.shape[-1] != similarity.shape[-2]:
        got = _shape(similarity) if batched else _shape(similarity)[1:]
        raise ValueError(f"similarity must be (B, N, N) or (N, N), got shape {got}")


def _check_cu_seqlens(cu_seqlens: torch.Tensor, features: torch.Tensor) -> None:
    check_tensor("cu_seqlens", cu_seqlens)
    if features.dim() != 2:
        raise ValueError(f"features must be (T, D) with cu_seqlens, got shape {_shape(features)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be torch.int32 or torch.int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be (B+1,), got shape {_shape(cu_seqlens)}")
    _check_device("cu_seqlens", cu_seqlens, features)


def _check_companion(
    name: str,
    value: Any,
    features: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    batched: bool,
    whose: str = "features",
) -> None:
    check_tensor(name, value)
    wanted = features.shape[:-1]
    if value.shape != wanted:
        axes = "(T,)" if cu_seqlens is not None else "(B, N)" if batched else "(N,)"
        size, got = (tuple(wanted), _shape(value)) if batched else (tuple(wanted[1:]), _shape(value)[1:])
        raise ValueError(f"{name} must be {axes} = {size} to match {whose}, got {got}")
    _check_device(name, value, features, whose)


def check_matrix(matrix: Any) -> None:
    """What `MatrixCoverage` covers, with tokens as its last axis."""
    check_tensor("matrix", matrix)
    if matrix.dtype not in FEATURE_DTYPES or matrix.dim() not in (2, 3) or matrix.shape[-2] == 0:
        got = f"{_shape(matrix)} {matrix.dtype}"
        raise ValueError(f"matrix must be (B, R, N) or (R, N) in float32, float16 or bfloat16, R >= 1, got {got}")


def check_hidden(hidden: Any, cu_seqlens: torch.Tensor | None) -> None:
    """Hidden states of any dtype: (B, N, C) or (N, C), or (T, C) with `cu_seqlens`."""
    check_tensor("hidden", hidden)
    if cu_seqlens is not None:
        check_tensor("cu_seqlens", cu_seqlens)
    wanted, axes = ((2,), "(T, C) with cu_seqlens") if cu_seqlens is not None else ((2, 3), "(B, N, C) or (N, C)")
    if hidden.dim() not in wanted:
        raise ValueError(f"hidden must be {axes}, got shape {_shape(hidden)}")


def check_merge(
    hidden: torch.Tensor,
    features: torch.Tensor,
    indices: torch.Tensor,
    how: Any,
    hows: Sequence[str],
    beta: Any,
    mask: torch.Tensor | None,
    receivers: torch.Tensor | None,
    sizes: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> None:
    """The arguments of `merge`, given a batch axis, against each other."""
    if isinstance(features, str):
        raise TypeError(f"features must be a torch.Tensor, got {features!r}; did you mean how=?")
    check_choice("how", how, hows)
    if isinstance(beta, bool) or not isinstance(beta, (int, float, numbers.Real)) or not 0 <= float(beta) <= 1:
        raise ValueError(f"beta must be a number in [0, 1], got {beta!r}")
    check_tensor("features", features)
    for name, value in (("hidden", hidden), ("features", features)):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point to be merged, got {value.dtype}")
    if features.shape[:-1] != hidden.shape[:-1] or features.shape[-1] == 0:
        wanted = f"({', '.join(str(size) for size in hidden.shape[:-1])}, D) with D >= 1"
        raise ValueError(f"features must be {wanted} to match hidden, got {_shape(features)}")
    _check_device("features", features, hidden, "hidden")
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, hidden)
    batch = hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    check_tensor("sel.indices", indices)
    if indices.dim() != 2 or indices.shape[0] != batch or indices.dtype is not torch.int64:
        got = f"{_shape(indices)} {indices.dtype}"
        raise ValueError(f"sel.indices must be (B, k) int64 with B = {batch} to match hidden, got {got}")
    _check_device("sel.indices", indices, hidden, "hidden")
    for companion, values, is_bool in (("mask", mask, True), ("receivers", receivers, True), ("sizes", sizes, False)):
        if values is not None:
            _check_companion(companion, values, hidden, cu_seqlens, True, "hidden")
            if is_bool and values.dtype is not torch.bool:
                raise TypeError(f"{companion} must be torch.bool, got {values.dtype}")
            if values.is_complex():
                raise TypeError(f"{companion} must be real, got {values.dtype}")


def check_text(
    features: Any, importance: Any, text: Any, text_importance: Any, cu_seqlens: torch.Tensor | None
) -> None:
    """The states of text that `dart_select` puts behind the tokens, and their importance."""
    if text is None or text_importance is None:
        if text is not text_importance:
            given = "text" if text_importance is None else "text_importance"
            raise TypeError(f"text and text_importance go together, got {given} alone")
        return
    if cu_seqlens is not None:
        raise ValueError(
            "text must be None with cu_seqlens; put the text pivots of each sample behind its other rows, "
            "in features and importance, and select with rule=DART(pivots, text_pivots)"
        )
    if features is None:
        raise ValueError(
            "text must be None without features; put the text pivots of each sample behind its tokens, "
            "in similarity and importance, and select with rule=DART(pivots, text_pivots)"
        )
    for name, value in (("features", features), ("importance", importance)):
        check_tensor(name, value)
    for name, value, like in (("text", text, features), ("text_importance", text_importance, importance)):
        check_tensor(name, value)
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
        _check_device(name, value, like)
    if text.dim() != features.dim() or (*text.shape[:-2], text.shape[-1]) != (*features.shape[:-2], features.shape[-1]):
        axes = ("(B, M, D)", "(M, D)")[features.dim() == 2]
        raise ValueError(f"text must be {axes} to match features {_shape(features)}, got {_shape(text)}")
    if text_importance.shape != text.shape[:-1]:
        wanted = tuple(text.shape[:-1])
        raise ValueError(f"text_importance must be {wanted} to match text, got {_shape(text_importance)}")


def check_pairing(features: Any, class_token: Any) -> None:
    """The arguments of `bipartite_pairing`."""
    check_tensor("features", features)
    if features.dtype not in FEATURE_DTYPES or features.dim() not in (2, 3) or features.shape[-1] == 0:
        got = f"{_shape(features)} {features.dtype}"
        raise ValueError(f"features must be (B, N, D) or (N, D) in float32, float16 or bfloat16, D >= 1, got {got}")
    check_flag("class_token", class_token)


def check_compared(hidden: torch.Tensor, features: Any, name: str) -> None:
    """What `prune` compares: features or similarities of the tokens of `hidden`, or that itself."""
    if features is None:
        if hidden.dtype not in FEATURE_DTYPES:
            wanted = "float32, float16 or bfloat16 where no features are given"
            raise TypeError(f"hidden must be {wanted}, got {hidden.dtype}; pass features=")
        return
    check_tensor(name, features)
    if features.shape[:-1] != hidden.shape[:-1]:
        tokens = tuple(hidden.shape[:-1])
        raise ValueError(f"{name} must have the tokens of hidden, {tokens}, got {tuple(features.shape[:-1])}")
    _check_device(name, features, hidden, "hidden")


def check_after_picks(hidden: torch.Tensor, protect: Any, position_ids: Any, cu_seqlens: torch.Tensor | None) -> None:
    """What goes with the tokens of `prune`, given a batch axis."""
    if protect is not None:
        _check_companion("protect", protect, hidden, cu_seqlens, True, "hidden")
        if protect.dtype is not torch.bool:
            raise TypeError(f"protect must be torch.bool (True = always kept), got {protect.dtype}")
    if position_ids is not None:
        _check_position_ids(position_ids, hidden, cu_seqlens)


def _check_position_ids(position_ids: Any, hidden: torch.Tensor, cu_seqlens: torch.Tensor | None) -> None:
    """Positions whose last axes are those of the tokens."""
    check_tensor("position_ids", position_ids)
    _check_device("position_ids", position_ids, hidden, "hidden")
    shape, tokens = _shape(position_ids), hidden.shape[-2]
    if not shape or shape[-1] != tokens:
        name = "N" if cu_seqlens is None else "T"
        raise ValueError(f"position_ids must have {name} = {tokens} as its last axis, got shape {shape}")
    if cu_seqlens is None and len(shape) > 1 and shape[-2] not in (1, hidden.shape[0]):
        raise ValueError(
            f"position_ids must be (N,) or (..., B, N) with B = {hidden.shape[0]}, or 1 for all samples, got {shape}"
        )


def check_tensor(name: str, value: Any) -> None:
    """A dense tensor that is all of one rank's."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if any(kind.__name__ == "DTensor" for kind in type(value).__mro__):
        raise TypeError(f"{name} must not be a DTensor; pass the tensors of this rank, {name}.to_local()")
    if value.is_nested:
        raise TypeError(f"{name} must not be a nested tensor; pass its values with cu_seqlens")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if isinstance(value, UninitializedTensorMixin):
        raise TypeError(f"{name} must have values, got an {type(value).__name__}; run its lazy module once before")


def is_dense(value: Any) -> bool:
    """Whether `check_tensor` takes it, but for a DTensor: strided, of one shape, and initialised."""
    is_strided = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_nested
    return is_strided and not isinstance(value, UninitializedTensorMixin)


def _check_device(name: str, value: torch.Tensor, features: torch.Tensor, whose: str = "features") -> None:
    if value.device != features.device:
        raise ValueError(f"{name} must be on the device of {whose} ({features.device}), got {value.device}")


def _shape(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _check_rule_fits(rule: Rule, tokens: int) -> None:
    """Rule parameters that name positions must exist among N tokens."""
    if isinstance(rule, MaxMin) and rule.start is not None and rule.start >= max(tokens, 1):
        raise ValueError(f"MaxMin: start must be < N = {tokens}, got {rule.start}")
    _check_rows_of_rule(rule, tokens)


def _check_rows_of_rule(rule: Rule, tokens: int) -> None:
    """What a rule says of the rows of every sample, also of a ragged batch."""
    if isinstance(rule, DART) and rule.text_pivots > tokens:
        raise ValueError(f"DART: text_pivots must be <= N = {tokens}, got {rule.text_pivots}")
    if tokens and isinstance(rule, HardSuppress) and rule.grid is not None and math.prod(rule.grid) != tokens:
        height, width = rule.grid
        raise ValueError(f"HardSuppress: grid must have N = {tokens} cells, got {height} x {width}")


def _check_has_grid(rule: Rule, grids: Any) -> None:
    """A rule that asks where tokens lie is told by itself or by the call."""
    if not isinstance(rule, HardSuppress):
        if grids is not None:
            raise ValueError(f"grids goes with HardSuppress, got it with {type(rule).__name__}")
    elif rule.grid is not None and grids is not None:
        raise ValueError(f"HardSuppress: either grid= or grids= may be given, got grid={rule.grid!r} and grids=")
    elif rule.grid is None and grids is None and rule.radius > 0:
        raise ValueError(f"HardSuppress: radius={rule.radius} needs grid=(height, width) or grids=, got neither")


def _check_grids(grids: Any, features: torch.Tensor, batch: int, whose: str) -> None:
    check_tensor("grids", grids)
    if grids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"grids must be torch.int32 or torch.int64, got {grids.dtype}")
    if grids.shape != (batch, 2):
        raise ValueError(f"grids must be (B, 2) = ({batch}, 2), got shape {_shape(grids)}")
    _check_device("grids", grids, features, whose)


def check_rule(rule: Any) -> None:
    """A rule instance, not its class or its name."""
    if isinstance(rule, Rule) and rule.is_complete:
        return
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"rule must be an instance, got the class {rule.__name__}; write {rule.__name__}(...)")
    if isinstance(rule, torch.Tensor):
        raise TypeError("rule must be a rule such as IDSelection(), got a tensor; did you mean importance=?")
    raise TypeError(f"rule must be a rule such as IDSelection() or the name of one, got {rule!r}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        got = repr(value) if isinstance(value, (str, int, type(None))) else type(value).__name__
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {got}")


def check_flag(name: str, value: Any) -> None:
    """A real bool: a tensor or string in its place is a slip that truthiness would hide."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_backend(name: Any, known: Sequence[str], source: str = "backend") -> None:
    """A known backend's name; whether it can run is the dispatcher's business."""
    if not isinstance(name, str):
        raise TypeError(f"{source} must be a string, one of {', '.join(known)}, got {name!r}")
    if name not in known:
        raise ValueError(f"{source} must be one of {', '.join(known)}, got {name!r}")


def check_values(problem: Problem, inputs: Inputs, validate: bool) -> None:
    """Checks that read values: all with `validate`, else those of samples where that costs no device sync."""
    if validate or problem.device.type == "cpu":
        _check_values_of_samples(problem, inputs)
    if not validate:
        return
    # Masked tokens are no part of the problem, so they may hold anything.
    ignored = torch.zeros((), dtype=torch.bool) if inputs.mask is None else ~inputs.mask
    finite = torch.isfinite(inputs.features)
    if problem.similarity:
        columns = finite if inputs.mask is None else finite | ignored[:, None, :]
        _check_finite("similarity", "row", columns.all(-1) | ignored)
    else:
        _check_finite("features", "row", finite.all(-1) | ignored)
    if inputs.importance is not None:
        _check_finite("importance", "token", torch.isfinite(inputs.importance) | ignored)
        if isinstance(problem.rule, Coverage) and bool(((inputs.importance < 0) & ~ignored).any()):
            raise ValueError("importance must be >= 0 for Coverage, got a negative one")


def _check_values_of_samples(problem: Problem, inputs: Inputs) -> None:
    """Values of `cu_seqlens`, `k`, `grids` and `given`."""
    lengths = [problem.tokens] * problem.batch
    if inputs.cu_seqlens is not None:
        offsets = inputs.cu_seqlens.tolist()
        check_offsets(offsets, problem.tokens)
        lengths = [end - begin for begin, end in itertools.pairwise(offsets)]
        for length in lengths:
            _check_rows_of_rule(problem.rule, length)
    if inputs.counts is not None:
        check_counts(inputs.counts, problem.k_max)
    if inputs.grids is not None:
        _check_sides(inputs.grids, lengths)
    if inputs.given is not None:
        _check_tokens_given(inputs, lengths)


def _check_sides(grids: torch.Tensor, lengths: list[int]) -> None:
    """Values of `grids`: as many cells as the sample has tokens; of none, any grid will do."""
    for sample, ((height, width), tokens) in enumerate(zip(grids.tolist(), lengths, strict=True)):
        if min(height, width) < 0:
            raise ValueError(f"grids[{sample}] must be >= 0, got {height} x {width}")
        if tokens and height * width != tokens:
            raise ValueError(f"grids[{sample}] must have N = {tokens} cells, got {height} x {width}")


def _check_given(given: Any, rule: Rule, inputs: Inputs, batch: int, batched: bool, whose: str) -> None:
    if not rule.is_greedy:
        raise ValueError(f"given goes with rules that pick one by one, got it with {type(rule).__name__}")
    check_tensor("given", given)
    if given.dtype is torch.bool:
        _check_companion("given", given, inputs.features, inputs.cu_seqlens, batched, whose)
        return
    if given.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"given must be torch.int32 or torch.int64, or a mask in torch.bool, got {given.dtype}")
    if given.dim() != 2 or given.shape[0] != batch:
        axes, got = (f"(B, M) with B = {batch}", _shape(given)) if batched else ("(M,)", _shape(given)[1:])
        raise ValueError(f"given must be {axes}, or a mask in torch.bool, got shape {got}")
    _check_device("given", given, inputs.features, whose)


def _check_tokens_given(inputs: Inputs, lengths: list[int]) -> None:
    """Values of `given`: tokens of the sample, each once."""
    assert inputs.given is not None
    mask = None if inputs.mask is None else inputs.mask.flatten()
    first = 0
    for sample, (tokens, length) in enumerate(zip(inputs.given.view(len(lengths), -1).tolist(), lengths, strict=True)):
        seen = set()
        for token in tokens:
            if token < 0:
                continue
            if token >= length:
                raise ValueError(f"given[{sample}] must be < N = {length}, got {token}")
            if token in seen:
                raise ValueError(f"given[{sample}] must name a token once, got {token} twice")
            if mask is not None and not mask[first + token]:
                raise ValueError(f"given[{sample}] must not be masked, got {token}, which is")
            seen.add(token)
        first += length


def form_of(tensor: torch.Tensor | None) -> Form | None:
    """What a plan asks of a tensor."""
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)


def check_as_planned(name: str, planned: Form | None, tensor: Any) -> None:
    """A tensor of a run against the one that was planned."""
    if tensor is not None:
        check_tensor(name, tensor)
    got = form_of(tensor)
    if got != planned:
        raise ValueError(f"{name} must be {_in_words(planned)}, as planned, got {_in_words(got)}")


def _in_words(form: Form | None) -> str:
    return "None" if form is None else "{} {} on {}".format(*form)


def check_planned_k(k: Any, is_planned: bool) -> torch.Tensor:
    """A k for a run."""
    if not is_planned:
        raise TypeError(f"k must be None in a run of a plan that was made without a tensor k, got {k!r}")
    check_tensor("k", k)
    tensor: torch.Tensor = k
    return tensor


def check_out(out: Any, like: Sequence[torch.Tensor]) -> None:
    """Outputs of the caller, of the shape, dtype and device of others."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out must be a pair of tensors, indices and scores, got {type(out).__name__}")
    for name, tensor, wanted in zip(("out.indices", "out.scores"), out, like, strict=True):
        check_tensor(name, tensor)
        if form_of(tensor) != form_of(wanted):
            raise ValueError(f"{name} must be {_in_words(form_of(wanted))}, got {_in_words(form_of(tensor))}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        if tensor.is_neg() or (tensor.numel() and not tensor.data_ptr()):
            kind = "a pending negation" if tensor.is_neg() else "no memory of its own"
            raise ValueError(f"{name} must be memory that can be written, got a tensor with {kind}; pass its .clone()")
        if tensor.requires_grad:
            raise ValueError(f"{name} must not require grad, for a selection has no gradient; pass its .detach()")


def check_is_plain(what: str, is_traced: bool) -> None:
    """For what is done once, before anything is traced or captured."""
    if is_traced:
        raise RuntimeError(f"{what} must be called eagerly and on plain tensors, got a call that torch traces")


def check_counts(counts: torch.Tensor, k_max: int) -> None:
    """Values of a k that is a tensor."""
    for sample, count in enumerate(counts.tolist()):
        if not 0 <= count <= k_max:
            raise ValueError(f"k[{sample}] must be in [0, k_max = {k_max}], got {count}")


def check_offsets(offsets: list[int], tokens: int) -> None:
    """Values of `cu_seqlens`: from 0 to T without a step back."""
    if offsets[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {offsets[0]}")
    if offsets[-1] != tokens:
        raise ValueError(f"cu_seqlens must end at T = {tokens}, got {offsets[-1]}")
    for sample, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if end < begin:
            raise ValueError(
                f"cu_seqlens must not decrease, got {begin} then {end} at positions {sample} and {sample + 1}"
            )


def _check_finite(name: str, unit: str, finite: torch.Tensor) -> None:
    if bool(finite.all()):
        return
    *sample, token = (~finite).nonzero()[0].tolist()
    where = f"{unit} {token}" + (f" of sample {sample[0]}" if sample else "")
    raise ValueError(f"{name} must be finite, got a NaN or infinity in {where}")

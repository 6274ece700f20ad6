"""Tensors whose memory is not their values: every kind of them, as every argument, is taken for its values or refused.

A kind makes of a tensor another one. What it is taken for is said by the plain tensor of the same values, on the same
backend: the same picks, or the same words of refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from backends import Backend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import idsel_kernels as idsel

N, D = 12, 8
_RANDOM = torch.Generator().manual_seed(3)
X = torch.randn((2, N, D), generator=_RANDOM)
S = torch.randn((2, N), generator=_RANDOM)
MASK = torch.rand((2, N), generator=_RANDOM) < 0.8

CALLS: dict[str, dict[str, Any]] = {
    "features": {"features": X, "importance": S, "k": 4, "rule": idsel.MMR()},
    "importance": {"features": X, "importance": S, "k": 4, "rule": idsel.TopK()},
    "mask": {"features": X, "importance": S, "mask": MASK, "k": 4, "rule": idsel.MMR()},
    "cu_seqlens": {
        "features": X[0],
        "importance": S[0],
        "cu_seqlens": torch.tensor([0, 5, 12], dtype=torch.int32),
        "k": 3,
        "rule": idsel.IDSelection(),
    },
    "k": {"features": X, "importance": S, "k": torch.tensor([2, 4]), "k_max": 4, "rule": idsel.MMR()},
    "grids": {
        "features": X,
        "importance": S,
        "grids": torch.tensor([[3, 4], [2, 6]], dtype=torch.int32),
        "k": 3,
        "rule": idsel.HardSuppress(threshold=0.9, radius=1),
    },
    "given": {
        "features": X,
        "importance": S,
        "given": torch.tensor([[3, 1, -1], [8, 0, 4]]),
        "k": 5,
        "rule": idsel.DPP(),
    },
    # All rules but these need importance, which is also what makes a token unselectable.
    "importance-not-needed": {"features": X, "importance": S, "k": 4, "rule": idsel.Coverage()},
    "importance-half": {"features": X, "importance": S.half(), "k": 4, "rule": idsel.MMR()},
    "importance-double": {"features": X, "importance": S.double(), "k": 4, "rule": idsel.MMR()},
    "features-half": {"features": X.half(), "importance": S, "k": 4, "rule": idsel.MMR()},
    "one-sample-features": {"features": X[0], "importance": S[0], "k": 4, "rule": idsel.MMR()},
    "one-sample-importance": {"features": X[0], "importance": S[0], "k": 4, "rule": idsel.MMR()},
    "cu_seqlens-int64": {
        "features": X[0],
        "importance": S[0],
        "cu_seqlens": torch.tensor([0, 5, 12]),
        "k": 3,
        "rule": idsel.IDSelection(),
    },
}


_ARGUMENTS = (
    "cu_seqlens", "text_importance", "importance", "features", "hidden", "mask", "protect", "position_ids", "sizes",
    "grids", "given", "matrix", "text", "k",
)  # fmt: skip


def _argument(call: str) -> str:
    """Which argument of a call is the one that varies: the call is named by it."""
    return next(name for name in _ARGUMENTS if name in call)


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class WithoutFunctions(torch.Tensor):
    """A subclass that torch's functions take for a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Wrapper(torch.Tensor):
    """A subclass whose values lie in another tensor, which operators are given in its place."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), dtype=inner.dtype, device=inner.device
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrap(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapper) else value

        return func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))


def _in_inference_mode(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tensor.clone()


def _conjugated(tensor: torch.Tensor) -> torch.Tensor:
    return torch.complex(torch.ones_like(tensor), -tensor).conj().imag


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].expand(tensor.shape)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """Every third element of other numbers, from the second on."""
    other = torch.ones_like(tensor) if tensor.dtype is torch.bool else 7 - tensor
    return torch.stack([other, tensor, other], -1)[..., 1]


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    axes = tuple(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


class Kind(NamedTuple):
    """How to make it, and of which dtypes it can be made."""

    make: Callable[[torch.Tensor], torch.Tensor]
    fits: Callable[[torch.Tensor], bool] = lambda tensor: True


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.dtype is not torch.bool


def _is_wide(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64)


TAKEN = {
    "negated": Kind(lambda t: torch._neg_view(-t), _is_number),
    "negated-apart": Kind(lambda t: torch._neg_view(_apart(-t)), _is_number),
    "negated-parameter": Kind(lambda t: torch.nn.Parameter(torch._neg_view(-t)), torch.is_floating_point),
    "negated-subclass": Kind(lambda t: torch._neg_view(-t).as_subclass(Plain), _is_number),
    "conjugated": Kind(_conjugated, _is_wide),
    "zeros": Kind(lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype, device=t.device)),
    "parameter": Kind(lambda t: torch.nn.Parameter(t, requires_grad=t.is_floating_point())),
    "buffer": Kind(lambda t: torch.nn.Buffer(t) if hasattr(torch.nn, "Buffer") else t),
    "subclass": Kind(lambda t: t.clone().as_subclass(Plain)),
    "subclass-without-functions": Kind(lambda t: t.clone().as_subclass(WithoutFunctions)),
    "wrapper": Kind(Wrapper),
    "expanded": Kind(_expanded),
    "apart": Kind(_apart),
    "transposed": Kind(_transposed),
    "with-an-offset": Kind(lambda t: torch.cat([t[:1], t])[1:]),
    "requires-grad": Kind(lambda t: t.clone().requires_grad_() * 1, torch.is_floating_point),
    "leaf-that-requires-grad": Kind(lambda t: t.clone().requires_grad_(), torch.is_floating_point),
    "inference": Kind(_in_inference_mode),
}


def _nested(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(tensor))


def _jagged(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(tensor), layout=torch.jagged)


def _uninitialised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.UninitializedParameter(requires_grad=False, device=tensor.device, dtype=tensor.dtype)


# Each with the words that follow the name of the argument.
REFUSED: dict[str, tuple[Kind, str]] = {
    "sparse": (Kind(torch.Tensor.to_sparse), "must be a dense (strided) tensor, got layout torch.sparse_coo"),
    "sparse-rows": (
        Kind(torch.Tensor.to_sparse_csr, lambda t: t.dim() == 2),
        "must be a dense (strided) tensor, got layout torch.sparse_csr",
    ),
    "mkldnn": (
        Kind(torch.Tensor.to_mkldnn, lambda t: t.dtype is torch.float32 and t.device.type == "cpu"),
        "must be a dense (strided) tensor, got layout torch._mkldnn",
    ),
    "nested": (Kind(_nested, lambda t: t.dim() > 1), "must not be a nested tensor; pass its values with cu_seqlens"),
    "jagged": (Kind(_jagged, lambda t: t.dim() > 1), "must not be a nested tensor; pass its values with cu_seqlens"),
    "uninitialised": (
        Kind(_uninitialised),
        "must have values, got an UninitializedParameter; run its lazy module once before",
    ),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


def _cells(kinds: dict[str, Any], calls: dict[str, dict[str, Any]] = CALLS) -> list[Any]:
    """A call and a kind that its argument can be of."""
    return [
        pytest.param(call, kind, id=f"{call}-{kind}")
        for call, given in calls.items()
        for kind, made in kinds.items()
        if (made if isinstance(made, Kind) else made[0]).fits(given[_argument(call)])
    ]


Outcome = tuple[list[Any], list[Any]] | tuple[str, str]


def _outcome(run: Callable[..., Any], **given: Any) -> Outcome:
    """Indices and scores, or the error and its words."""
    try:
        found = run(**given)
    except Exception as error:
        return type(error).__name__, str(error)
    indices, scores = (t.inner if isinstance(t, Wrapper) else t.as_subclass(torch.Tensor) for t in found)
    return indices.tolist(), scores.tolist()


def _given(backend: Backend, call: str) -> dict[str, Any]:
    return {**backend.inputs(CALLS[call]), "backend": backend.name}


def _values_of(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor of the same values."""
    if isinstance(tensor, Wrapper):
        return tensor.inner.clone()
    tensor = tensor.detach().as_subclass(torch.Tensor)
    return torch.zeros_like(tensor) if tensor._is_zerotensor() else torch.empty_like(tensor).copy_(tensor)


def _pair(given: dict[str, Any], argument: str, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments with a tensor of the kind, and with a plain one of its values."""
    made = kind.make(given[argument])
    return {**given, argument: made}, {**given, argument: _values_of(made)}


def _is_selection(outcome: Outcome, kind: str) -> bool:
    """Whether there are picks, unless the values of the kind are others than those of the call."""
    return isinstance(outcome[0], list) or kind in ("zeros", "expanded")


def _select_by_operator(
    features: torch.Tensor, k: Any, rule: idsel.Rule, backend: str, k_max: int | None = None, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    counts, on_host = (k, [k_max]) if isinstance(k, torch.Tensor) else (None, [k])
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.idsel.select(
        features, on_host, *rule.encode(), backend=backend, counts=counts, **more
    )
    return found


@pytest.mark.parametrize(("call", "kind"), _cells(TAKEN))
def test_a_tensor_is_taken_for_its_values(backend: Backend, call: str, kind: str) -> None:
    given = _given(backend, call)
    of_kind, plain = _pair(given, _argument(call), TAKEN[kind])
    expected = _outcome(idsel.select, **plain)
    assert _is_selection(expected, kind)
    assert _outcome(idsel.select, **of_kind) == expected
    assert _outcome(idsel.select, **plain) == expected, "a call with such a tensor is not taken for one without"
    assert _outcome(idsel.select, **of_kind) == expected, "nor the other way round"


@pytest.mark.parametrize(("call", "kind"), _cells(REFUSED))
def test_a_tensor_without_values_of_its_own_is_refused(backend: Backend, call: str, kind: str) -> None:
    given, argument = _given(backend, call), _argument(call)
    made, words = REFUSED[kind]
    # The same strides as a sparse or an MKL-DNN tensor has, so that a call may be known that has its key.
    idsel.select(**{**given, argument: given[argument].clone()})
    value = made.make(given[argument])
    assert _outcome(idsel.select, **{**given, argument: value}) == ("TypeError", f"{argument} {words}")


@pytest.mark.parametrize("strides", [(0, 0), (1, 0)], ids=str)
@pytest.mark.parametrize("layout", ["sparse", "mkldnn"])
def test_no_known_call_hides_that_a_tensor_has_no_strides(layout: str, strides: tuple[int, int]) -> None:
    """Sparse and MKL-DNN tensors name strides, which a dense one may have too."""
    importance = torch.ones(64).as_strided((2, N), strides)
    idsel.select(X, 3, "topk", importance)
    made, words = REFUSED[layout]
    with pytest.raises(TypeError) as caught:
        idsel.select(X, 3, "topk", made.make(importance.contiguous()))
    assert str(caught.value) == f"importance {words}"


# The operator takes a batch.
@pytest.mark.parametrize(
    ("call", "kind"), [cell for cell in _cells(TAKEN) if not str(cell.values[0]).startswith("one-sample")]
)
def test_the_operator_takes_it_too(backend: Backend, call: str, kind: str) -> None:
    of_kind, plain = _pair(_given(backend, call), _argument(call), TAKEN[kind])
    expected = _outcome(_select_by_operator, **plain)
    assert _is_selection(expected, kind)
    assert _outcome(_select_by_operator, **of_kind) == expected


@pytest.mark.parametrize(("call", "kind"), _cells(TAKEN))
def test_a_plan_takes_it_too(backend: Backend, call: str, kind: str) -> None:
    argument = _argument(call)
    given = _given(backend, call)
    of_kind, plain = _pair(given, argument, TAKEN[kind])

    def run(plan: idsel.Plan, given: dict[str, Any]) -> Outcome:
        left = {name: value for name, value in given.items() if name not in ("rule", "backend", "k_max", "k")}
        return _outcome(plan.run, **left, k=given["k"] if isinstance(given["k"], torch.Tensor) else None)

    plan = idsel.plan(**given)
    expected = run(plan, plain)
    assert _is_selection(expected, kind)
    assert expected == _outcome(idsel.select, **plain)
    assert run(plan, of_kind) == expected
    assert run(plan, plain) == expected
    if type(of_kind[argument]) in (torch.Tensor, torch.nn.Parameter) and isinstance(expected[0], list):
        assert run(idsel.plan(**of_kind), plain) == expected, "made with it"


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_refuses_what_a_call_refuses(backend: Backend, kind: str) -> None:
    made, words = REFUSED[kind]
    given = backend.inputs({"features": X, "importance": S})
    plan = idsel.plan(given["features"], 3, "topk", given["importance"], backend=backend.name)
    for argument, value in given.items():
        if made.fits(value):
            error = _outcome(plan.run, **{**given, argument: made.make(value)})
            assert error == ("TypeError", f"{argument} {words}")


@pytest.mark.parametrize("kind", ["negated", "zeros", "requires-grad", "expanded"])
def test_outputs_have_to_be_memory_that_can_be_written(backend: Backend, kind: str) -> None:
    given = backend.inputs({"features": X, "importance": S})
    plan = idsel.plan(given["features"], 3, "topk", given["importance"], backend=backend.name)
    indices, scores = (t.clone() for t in plan.out)
    words = {
        "negated": "must be memory that can be written, got a tensor with a pending negation; pass its .clone()",
        "zeros": "must be memory that can be written, got a tensor with no memory of its own; pass its .clone()",
        "requires-grad": "must not require grad, for a selection has no gradient; pass its .detach()",
        "expanded": f"must be contiguous, got strides {_expanded(scores).stride()}",
    }[kind]
    with pytest.raises(ValueError) as caught:
        plan.run(**given, out=(indices, TAKEN[kind].make(scores)))
    assert str(caught.value) == f"out.scores {words}"


def _pruned(backend: Backend, **given: Any) -> list[Any]:
    out = idsel.prune(**given, backend=backend.name)
    tensors = (out.hidden, *out.selection, out.position_ids, out.cu_seqlens, out.sizes)
    plain = (t.inner if isinstance(t, Wrapper) else t for t in tensors)
    return [None if t is None else t.detach().as_subclass(torch.Tensor).tolist() for t in plain]


PRUNED: dict[str, dict[str, Any]] = {
    "hidden": {"hidden": X, "importance": S, "k": 4},
    "hidden-half": {"hidden": X.half(), "features": X, "importance": S, "k": 4},
    "hidden-merged": {"hidden": X, "importance": S, "k": 4, "merge": "mean"},
    "features": {"hidden": X, "features": X * 2 + 1, "importance": S, "k": 4},
    "importance": {"hidden": X, "importance": S, "k": 4},
    "mask": {"hidden": X, "importance": S, "k": 4, "mask": MASK},
    "protect": {"hidden": X, "importance": S, "k": 4, "protect": ~MASK},
    "position_ids": {"hidden": X, "importance": S, "k": 4, "position_ids": torch.arange(N).expand(2, N)},
    "sizes": {"hidden": X, "importance": S, "k": 4, "merge": "mean", "sizes": S.abs() + 1},
    "k": {"hidden": X, "importance": S, "k": torch.tensor([2, 4]), "k_max": 4},
    "cu_seqlens": {
        "hidden": X[0],
        "importance": S[0],
        "k": 3,
        "cu_seqlens": torch.tensor([0, 5, 12]),
        "protect": ~MASK[0],
        "merge": "mean",
        "max_seqlen": 7,
    },
}
# A wrapper knows nothing of the operations around `select`, which take two tensors of different kinds.
_AROUND = {name: kind for name, kind in TAKEN.items() if name != "wrapper"}


@pytest.mark.parametrize(("call", "kind"), _cells(_AROUND, PRUNED))
def test_prune_takes_it_too(backend: Backend, call: str, kind: str) -> None:
    of_kind, plain = _pair(backend.inputs(PRUNED[call]), _argument(call), TAKEN[kind])

    def outcome(given: dict[str, Any]) -> Any:
        try:
            return _pruned(backend, **given)
        except ValueError as error:
            return str(error)

    expected = outcome(plain)
    assert _is_selection((expected, []) if isinstance(expected, list) else ("ValueError", expected), kind)
    assert outcome(of_kind) == expected


SHORTHANDS: dict[str, dict[str, Any]] = {
    name: {
        "features": X, "k": 5, "importance": S, "text": X[:, :5] - 1, "text_importance": S[:, 2:7], "pivots": 1,
        "text_pivots": 3,
    }
    for name in ("text", "text_importance")
}  # fmt: skip
MATRIX: dict[str, dict[str, Any]] = {"matrix": {"matrix": X.abs(), "k": 4}}


@pytest.mark.parametrize(("call", "kind"), _cells(_AROUND, SHORTHANDS))
def test_dart_select_takes_it_too(call: str, kind: str) -> None:
    for name in ("torch", "cpu"):
        of_kind, plain = _pair({**SHORTHANDS[call], "backend": name}, call, TAKEN[kind])
        expected = _outcome(idsel.dart_select, **plain)
        assert _is_selection(expected, kind)
        assert _outcome(idsel.dart_select, **of_kind) == expected


@pytest.mark.parametrize(("call", "kind"), _cells(_AROUND, MATRIX))
def test_matrix_select_takes_it_too(backend: Backend, call: str, kind: str) -> None:
    given = {**backend.inputs(MATRIX[call]), "backend": backend.name}
    of_kind, plain = _pair(given, "matrix", TAKEN[kind])
    expected = _outcome(idsel.matrix_select, **plain)
    assert _is_selection(expected, kind)
    assert _outcome(idsel.matrix_select, **of_kind) == expected


def test_the_scores_of_the_negated_are_not_those_of_its_memory() -> None:
    """So that the table above compares different numbers."""
    negated = TAKEN["negated"].make(S)
    assert negated.is_neg() and torch.equal(negated, S)
    memory = torch._neg_view(negated)
    assert not memory.is_neg() and memory.data_ptr() == negated.data_ptr() and torch.equal(memory, -S)
    assert idsel.select(X, 4, "topk", memory).indices.tolist() != idsel.select(X, 4, "topk", S).indices.tolist()


@pytest.mark.parametrize("call", CALLS)
def test_meta_and_fake_tensors_give_the_form_of_the_result(call: str) -> None:
    given = CALLS[call]
    shape = (2 if given["features"].dim() == 3 or "cu_seqlens" in given else 1, given.get("k_max", given["k"]))
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for name, t in given.items()}
    meta = {name: t.to("meta") if isinstance(t, torch.Tensor) else t for name, t in given.items()}
    for inputs, device in ((fake, "cpu"), (meta, "meta")):
        found = idsel.select(**inputs)
        assert tuple(found.indices.shape) == shape and found.indices.device.type == device
        assert (found.indices.dtype, found.scores.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("argument", ["importance", "mask", "k", "grids", "cu_seqlens"])
def test_a_meta_tensor_beside_others_is_refused(backend: Backend, argument: str) -> None:
    given = _given(backend, argument)
    for _ in range(2):  # whatever is known by then
        error = _outcome(idsel.select, **{**given, argument: given[argument].to("meta")})
        assert error == ("ValueError", f"{argument} must be on the device of features ({backend.device}), got meta")


@pytest.mark.parametrize("argument", ["features", "importance", "mask", "k", "grids", "cu_seqlens"])
def test_one_number_in_place_of_a_tensor_is_refused_or_counts_for_all(backend: Backend, argument: str) -> None:
    given = _given(backend, argument)
    value = given[argument].reshape(-1)[0].clone()
    found = _outcome(idsel.select, **{**given, argument: value})
    if argument == "k":
        assert found == _outcome(idsel.select, **{**given, "k": value.expand(2)}) and _is_selection(found, argument)
    else:
        assert found[0] == "ValueError" and found[1].startswith(f"{argument} must be (")

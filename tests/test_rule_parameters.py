"""Edge values of every parameter of every rule: refused when the rule is made, or the same picks on every engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from backends import Backend, same

import idsel_kernels as idsel
from idsel_kernels.rules import RULES, decode

_RANDOM = torch.Generator().manual_seed(11)
N, D = 12, 8
X = torch.randn((2, N, D), generator=_RANDOM)
X[:, 5] = X[:, 2]  # a copy of another token
S = torch.rand((2, N), generator=_RANDOM)
OFFSETS = torch.tensor([0, 5, 12, 12], dtype=torch.int32)

LARGEST = float(np.finfo(np.float32).max)
LEAST = float(np.finfo(np.float32).tiny)

# Of a parameter that is a number: which of them are in range is said by its rule.
NUMBERS: list[Any] = [
    0, 0.0, -0.0, 1, 1.0, -1, -1.0, 0.5, 7, 2**24 + 1, 1 - 2**-30, 1 + 2**-30, 1e-6,
    LEAST, -LEAST, 1e30, -1e30, LARGEST, -LARGEST,
    np.float16(0.3), np.float32(0.3), np.float64(0.3), np.int64(1), np.uint8(1), Fraction(1, 3),
]  # fmt: skip
# None is in range: beyond float32 at either end, or no number at all.
NO_NUMBERS: list[Any] = [
    math.nextafter(LARGEST, math.inf), 3.4028235e38, 1e39, -1e39, 1e308, 10**400, -(10**400),
    math.nextafter(LEAST, 0.0), 1e-40, 1e-45, -1e-45, 1e-46, 1e-50, 5e-324, Fraction(1, 10**50),
    math.nan, math.inf, -math.inf, np.float32(math.nan), np.float64(1e300),
    True, False, np.bool_(True), "0.5", b"1", 0.5j, np.complex64(0.5), Decimal("0.5"), [0.5], torch.tensor(0.5),
]  # fmt: skip
INTEGERS: list[Any] = [
    0, 1, 2, 3, N - 1, N, N + 1, 1000, 2**24 + 1, 2**29 + 1, 2**30 + 1, 2**31 - 1,
    np.int8(1), np.int32(2), np.int64(2**31 - 1), np.uint64(2),
]  # fmt: skip
NO_INTEGERS: list[Any] = [
    -1, -(2**31), -(2**63), 2**31, 2**32, 2**32 + 1, 2**40, 2**53 + 1, 2**63, 2**64, 10**400,
    np.int64(2**40), np.uint64(2**63), True, False, np.bool_(True), 1.0, 1.5, np.float32(1), math.nan, math.inf,
    "1", Fraction(2, 1), Decimal(1), [1], torch.tensor(1),
]  # fmt: skip

# What else a rule needs for this parameter to matter, and the least and the largest number.
MAKERS: dict[tuple[str, str], tuple[Callable[[Any], idsel.Rule], float, float]] = {
    ("IDSelection", "gamma"): (lambda v: idsel.IDSelection(gamma=v), 0.0, math.inf),
    ("IDSelection", "floor"): (lambda v: idsel.IDSelection(floor=v), -math.inf, math.inf),
    ("MMR", "lam"): (lambda v: idsel.MMR(lam=v), 0.0, 1.0),
    ("MMR", "parallel_k"): (lambda v: idsel.MMR(parallel_k=v), 1, math.inf),
    ("MaxMin", "start"): (lambda v: idsel.MaxMin(start=v), 0, math.inf),
    ("HardSuppress", "threshold"): (lambda v: idsel.HardSuppress(threshold=v), -1.0, 1.0),
    ("HardSuppress", "radius"): (lambda v: idsel.HardSuppress(0.9, (3, 4), radius=v), 0, math.inf),
    ("DPP", "eps"): (lambda v: idsel.DPP(eps=v), 1e-6, 1.0),
    ("Coverage", "alpha"): (lambda v: idsel.Coverage(alpha=v), 0.0, math.inf),
    ("Elimination", "important"): (lambda v: idsel.Elimination(important=v), 0.0, 1.0),
    ("DART", "pivots"): (lambda v: idsel.DART(pivots=v, text_pivots=1), 0, math.inf),
    ("DART", "text_pivots"): (lambda v: idsel.DART(pivots=1, text_pivots=v), 0, math.inf),
}
OF_INTEGERS = {("MMR", "parallel_k"), ("MaxMin", "start"), ("HardSuppress", "radius"), ("DART", "pivots"),
               ("DART", "text_pivots")}  # fmt: skip
# Those of words, flags and shapes, which have tests of their own.
OTHERS = {("IDSelection", "ties"), ("MaxMin", "weighted"), ("HardSuppress", "grid"), ("Coverage", "combine"),
          ("Elimination", "order")}  # fmt: skip


def test_the_table_has_every_parameter() -> None:
    every = {(name, field.name) for name, rule in RULES.items() for field in dataclasses.fields(rule)}
    assert every == set(MAKERS) | OTHERS


def _cells(numbers: list[Any], integers: list[Any]) -> list[Any]:
    return [
        pytest.param(parameter, value, id=f"{'-'.join(parameter)}-{type(value).__name__}-{str(value)[:24]}")
        for parameter in MAKERS
        for value in (integers if parameter in OF_INTEGERS else numbers)
    ]


def _is_in_range(parameter: tuple[str, str], value: Any) -> bool:
    _make, low, high = MAKERS[parameter]
    return bool(low <= value <= high)


Outcome = tuple[Any, Any]


def _outcome(run: Callable[..., Any], *args: Any, **more: Any) -> Outcome:
    try:
        return tuple(run(*args, **more))
    except Exception as error:
        return type(error).__name__, str(error)


def _agree(found: Outcome, expected: Outcome) -> None:
    if isinstance(expected[0], str):
        assert found == expected
    else:
        assert found[0].tolist() == expected[0].tolist()
        # Of gains and similarities, of which none is large.
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("parameter", "value"), _cells(NUMBERS, INTEGERS))
def test_a_value_in_range_gives_the_same_picks_everywhere(
    backend: Backend, parameter: tuple[str, str], value: Any
) -> None:
    make, _low, _high = MAKERS[parameter]
    if not _is_in_range(parameter, value):
        with pytest.raises(ValueError, match=f"^{parameter[0]}: {parameter[1]} must be "):
            make(value)
        return
    made = make(value)
    kept = getattr(made, parameter[1])
    assert type(kept) is (int if parameter in OF_INTEGERS else float) and kept == float(value)
    assert math.copysign(1.0, kept) == 1.0 or kept != 0
    assert decode(*made.encode()) == made
    dense: dict[str, Any] = {"features": X, "importance": S, "k": 7}
    ragged = {"features": X[0], "importance": S[0], "k": 4, "cu_seqlens": OFFSETS, "validate": True}
    # Its grid is one of the whole batch.
    for call in (dense,) if parameter == ("HardSuppress", "radius") else (dense, ragged):
        found = _outcome(backend.select, **call, rule=made)
        if found[0] == "UnsupportedProblem":
            assert not made.is_greedy and backend.name not in ("torch", "cpu")
            continue
        _agree(found, _outcome(idsel.select, **call, rule=made, backend="torch"))


@pytest.mark.parametrize(("parameter", "value"), _cells(NO_NUMBERS, NO_INTEGERS))
def test_what_no_engine_computes_with_is_refused_when_the_rule_is_made(parameter: tuple[str, str], value: Any) -> None:
    make, _low, _high = MAKERS[parameter]
    with pytest.raises((TypeError, ValueError)) as caught:
        make(value)
    assert type(caught.value) in (TypeError, ValueError)
    assert str(caught.value).startswith(f"{parameter[0]}: {parameter[1]} must be ")
    assert str(caught.value).endswith((f"got {value!r}", f"got {value}"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e39, "must be 0 or 1.17549435e-38 to 3.40282347e+38 in size, as float32 holds it, got 1e+39"),
        (1e-45, "must be 0 or 1.17549435e-38 to 3.40282347e+38 in size, as float32 holds it, got 1e-45"),
        (10**400, f"must be finite and >= 0, got {10**400}"),
    ],
)
def test_a_number_beyond_float32_is_refused_in_these_words(value: Any, words: str) -> None:
    for make, name in ((idsel.IDSelection, "IDSelection: gamma"), (idsel.Coverage, "Coverage: alpha")):
        with pytest.raises(ValueError) as caught:
            make(value)
        assert str(caught.value) == f"{name} {words}"


@pytest.mark.parametrize("make", [lambda: idsel.MaxMin(2**31), lambda: idsel.MaxMin(np.int64(2**31))])
def test_an_integer_beyond_int32_is_refused_in_these_words(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == "MaxMin: start must be <= 2147483647, the largest int32, got 2147483648"


GRIDS: dict[str, tuple[Any, str | None]] = {
    "fits": ((3, 4), None),
    "numpy": ((np.int64(3), np.uint8(4)), None),
    "size": (torch.Size((3, 4)), None),
    "long": ((2**31 - 1, 1), "HardSuppress: grid must have N = 12 cells, got 2147483647 x 1"),
    "large": ((46340, 46340), "HardSuppress: grid must have N = 12 cells, got 46340 x 46340"),
    "too-large": ((65536, 32768), "HardSuppress: grid must have at most 2147483647 cells, got 65536 x 32768"),
    # Products that are 12, and 0, in 32 bits.
    "wraps": ((2**30 + 3, 4), "HardSuppress: grid must have at most 2147483647 cells, got 1073741827 x 4"),
    "wraps-to-nothing": ((2**16, 2**16), "HardSuppress: grid must have at most 2147483647 cells, got 65536 x 65536"),
    "side": ((1, 2**31), "HardSuppress: grid must be <= 2147483647, the largest int32, got 2147483648"),
    "side-wraps": ((3, 2**32 + 4), "HardSuppress: grid must be <= 2147483647, the largest int32, got 4294967300"),
    "no-side": ((3, 0), "HardSuppress: grid must be >= 1, got 0"),
    "half": ((3, 4.0), "HardSuppress: grid must be an integer, got 4.0"),
    "flag": ((True, 12), "HardSuppress: grid must be an integer, got True"),
    "list": ([3, 4], "HardSuppress: grid must be a tuple (height, width) or None, got [3, 4]"),
    "three": ((3, 2, 2), "HardSuppress: grid must be a tuple (height, width) or None, got (3, 2, 2)"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_one_for_every_engine(backend: Backend, name: str) -> None:
    grid, words = GRIDS[name]

    def select(run: Callable[..., Any], **more: Any) -> Outcome:
        return _outcome(lambda: run(X, 7, idsel.HardSuppress(0.9, grid, 1), S, **more))

    found = select(backend.select)
    _agree(found, select(idsel.select, backend="torch"))
    assert (found[1] if isinstance(found[0], str) else None) == words
    if words is None:
        made = idsel.HardSuppress(0.9, grid, 1)
        assert type(made.grid) is tuple and {type(side) for side in made.grid} == {int}
        assert decode(*made.encode()) == made == idsel.HardSuppress(0.9, (3, 4), 1)


@pytest.mark.parametrize("value", [1, 0, "True", None, np.bool_(True), 1.0], ids=repr)
def test_a_flag_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        idsel.MaxMin(weighted=value)
    assert str(caught.value) == f"MaxMin: weighted must be True or False, got {value!r}"


def test_a_parameter_of_numpy_computes_as_that_of_python() -> None:
    """A number of NumPy brings its own precision into a formula, and a fraction is no factor of a tensor."""
    for value in (np.float32(0.3), Fraction(1, 3)):
        made, plain = idsel.MMR(value), idsel.MMR(float(value))
        assert made == plain and type(1 - made.lam) is float
        one, other = (idsel.select(X, 9, rule, S, backend="torch") for rule in (made, plain))
        assert same(one, other)


@pytest.mark.parametrize("alpha", [0, LEAST, 0.5, 1 - 2**-30, 2, 3, 2**24 + 1, 2.0**31 + 1, 1e30, LARGEST], ids=str)
def test_a_power_of_any_importance_is_the_same_everywhere(backend: Backend, alpha: float) -> None:
    importance = torch.tensor([[0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, math.inf, -math.inf, math.nan, 1e-30]])
    for combine in ("mul", "add"):
        call = (X[:1], N, idsel.Coverage(alpha, combine), importance)
        _agree(_outcome(backend.select, *call), _outcome(idsel.select, *call, backend="torch"))


TOO_MANY = [2**31, 2**32, 2**32 + 3, 2**40, 2**63, 2**64 + 1, 10**30, np.int64(2**40), np.uint64(2**63)]


@pytest.mark.parametrize("k", TOO_MANY, ids=str)
@pytest.mark.parametrize("rule", [idsel.TopK(), idsel.MMR(), idsel.DPP()], ids=lambda rule: type(rule).__name__)
def test_more_picks_than_int32_counts_are_refused_everywhere(backend: Backend, rule: idsel.Rule, k: Any) -> None:
    limit = f"must be <= 2147483647, the largest int32, got {k}"
    assert _outcome(backend.select, X, k, rule, S) == ("ValueError", f"k {limit}")
    assert _outcome(backend.select, X, [1, k], rule, S) == ("ValueError", f"k[1] {limit}")
    counts = backend.put(torch.tensor([1, 2]))
    assert _outcome(backend.select, X, counts, rule, S, k_max=k) == ("ValueError", f"k_max {limit}")
    share = _outcome(backend.select, X, None, rule, S, keep_ratio=0.5, k_max=k)
    assert share == ("ValueError", f"k_max {limit}")
    for make in (idsel.plan, idsel.prune, idsel.explain):
        given = backend.inputs({"features": X, "importance": S})
        found = _outcome(make, given["features"], k, rule, given["importance"], backend=backend.name)
        assert found == ("ValueError", f"k {limit}")


@pytest.mark.parametrize("value", [-1, 5, 2**31, 2**32, 2**32 + 2, 2**40, -(2**32) + 2, 2**63 - 1], ids=str)
def test_a_count_on_the_device_is_the_same_for_every_engine(backend: Backend, value: int) -> None:
    """On a CPU, where values are read. Elsewhere it is cut to what there may be, see `in_int32`."""
    counts = backend.put(torch.tensor([2, value]))
    if backend.device.type == "cpu":
        error = ("ValueError", f"k[1] must be in [0, k_max = 4], got {value}")
        assert _outcome(backend.select, X, counts, idsel.TopK(), S, k_max=4) == error
    else:
        kept = backend.select(X, counts, idsel.TopK(), S, k_max=4).counts.tolist()
        assert kept == [2, min(max(value, 0), 4)]


@pytest.mark.parametrize("side", [2**32 + 4, -(2**32) + 4, 2**63 - 1], ids=str)
def test_a_side_of_a_grid_is_not_cut_to_32_bits(backend: Backend, side: int) -> None:
    grids = torch.tensor([[3, 4], [3, side]])
    words = f"must have N = 12 cells, got 3 x {side}" if side > 0 else f"must be >= 0, got 3 x {side}"
    found = _outcome(backend.select, X, 5, idsel.HardSuppress(radius=1), S, grids=grids, validate=True)
    assert found == ("ValueError", f"grids[1] {words}")

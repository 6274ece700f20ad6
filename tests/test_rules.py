"""Rules validate their parameters and survive encoding."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from cases import RULE_CASES

from idsel_kernels import DART, DPP, MMR, Coverage, Elimination, HardSuppress, IDSelection, MaxMin, Rule
from idsel_kernels.rules import RULES, State, by_name, decode

MORE = [
    HardSuppress(0.5, (3, 4), 2),
    HardSuppress(radius=1),
    MaxMin(weighted=True),
    IDSelection(0.5, 0.25, "importance"),
    MaxMin(start=7),
    Coverage(alpha=0.0, combine="add"),
    DPP(eps=0.5),
    Elimination(),
    Elimination(0.25, "position"),
    DART(),
    DART(0, 3),
]


@pytest.mark.parametrize("rule", [*RULE_CASES.values(), *MORE], ids=repr)
def test_decode_inverts_encode(rule: Rule) -> None:
    rule_id, params = rule.encode()
    assert all(type(param) is float for param in params)
    assert decode(rule_id, params) == rule


def test_rule_ids_are_distinct_and_dense() -> None:
    assert [rule.rule_id for rule in RULES.values()] == list(range(len(RULES)))


def test_rules_are_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IDSelection().gamma = 3.0  # type: ignore[misc]
    assert len({IDSelection(), IDSelection(20), MMR()}) == 2


def test_declared_state_matches_what_the_formulas_carry() -> None:
    assert {name: rule.state for name, rule in RULES.items() if rule.state is not State.TOKEN} == {
        "DPP": State.HISTORY,
        "Coverage": State.COVERAGE,
        "MatrixCoverage": State.CHANNELS,
        "Elimination": State.ALL,
        "DART": State.ALL,
    }


BAD = {
    "important": (lambda: Elimination(important=1.5), "Elimination: important must be in [0, 1], got 1.5"),
    "order": (lambda: Elimination(order="index"), "Elimination: order must be 'score' or 'position', got 'index'"),
    "pivots-negative": (lambda: DART(pivots=-1), "DART: pivots must be >= 0, got -1"),
    "pivots-float": (lambda: DART(pivots=4.0), "DART: pivots must be an integer, got 4.0"),
    "text-pivots": (lambda: DART(text_pivots=-2), "DART: text_pivots must be >= 0, got -2"),
    "no-pivots": (lambda: DART(0), "DART: pivots + text_pivots must be >= 1, got 0 and 0"),
    "gamma-negative": (lambda: IDSelection(gamma=-1.0), "IDSelection: gamma must be finite and >= 0, got -1.0"),
    "gamma-nan": (lambda: IDSelection(gamma=float("nan")), "IDSelection: gamma must be finite and >= 0, got nan"),
    "gamma-inf": (lambda: IDSelection(gamma=float("inf")), "IDSelection: gamma must be finite and >= 0, got inf"),
    "gamma-str": (lambda: IDSelection(gamma="20"), "IDSelection: gamma must be a number, got '20'"),
    "gamma-bool": (lambda: IDSelection(gamma=True), "IDSelection: gamma must be a number, got True"),
    "floor-inf": (
        lambda: IDSelection(floor=float("-inf")),
        "IDSelection: floor must be finite (None means no floor), got -inf",
    ),
    "floor-str": (
        lambda: IDSelection(floor="none"),
        "IDSelection: floor must be a number (None means no floor), got 'none'",
    ),
    "ties": (lambda: IDSelection(ties="none"), "IDSelection: ties must be 'index' or 'importance', got 'none'"),
    "ties-no-floor": (
        lambda: IDSelection(floor=None, ties="importance"),
        "IDSelection: ties='importance' needs a floor >= 0, got floor=None",
    ),
    "ties-low-floor": (
        lambda: IDSelection(floor=-0.5, ties="importance"),
        "IDSelection: ties='importance' needs a floor >= 0, got floor=-0.5",
    ),
    "weighted": (lambda: MaxMin(weighted=1), "MaxMin: weighted must be True or False, got 1"),
    "lam": (lambda: MMR(lam=1.5), "MMR: lam must be in [0, 1], got 1.5"),
    "parallel_k": (lambda: MMR(parallel_k=0), "MMR: parallel_k must be >= 1, got 0"),
    "parallel_k-float": (lambda: MMR(parallel_k=2.0), "MMR: parallel_k must be an integer, got 2.0"),
    "start": (lambda: MaxMin(start=-1), "MaxMin: start must be >= 0, got -1"),
    "start-bool": (lambda: MaxMin(start=True), "MaxMin: start must be an integer, got True"),
    "threshold": (lambda: HardSuppress(threshold=80), "HardSuppress: threshold must be in [-1, 1], got 80"),
    "radius": (lambda: HardSuppress(grid=(2, 2), radius=-1), "HardSuppress: radius must be >= 0, got -1"),
    "grid": (lambda: HardSuppress(grid=24), "HardSuppress: grid must be a tuple (height, width) or None, got 24"),
    "grid-side": (lambda: HardSuppress(grid=(0, 4)), "HardSuppress: grid must be >= 1, got 0"),
    "eps": (lambda: DPP(eps=-1e-6), "DPP: eps must be in [1e-06, 1], got -1e-06"),
    "alpha": (lambda: Coverage(alpha=-0.5), "Coverage: alpha must be finite and >= 0, got -0.5"),
    "alpha-huge": (lambda: Coverage(alpha=10**400), f"Coverage: alpha must be finite and >= 0, got {10**400}"),
    "combine": (lambda: Coverage(combine="max"), "Coverage: combine must be 'mul' or 'add', got 'max'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parameter_is_named_with_what_is_allowed(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert str(caught.value) == message


def test_numpy_numbers_are_parameters_too() -> None:
    assert IDSelection(gamma=np.float32(5)).encode() == IDSelection(gamma=5.0).encode()
    assert MaxMin(start=np.int64(3)).encode() == MaxMin(start=3).encode()


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.__name__)
def test_a_rule_has_two_names_in_any_case(rule: type[Rule]) -> None:
    for name in (rule.short_name, rule.__name__):
        assert by_name(name) is by_name(name.upper()) is by_name(name.lower()) is rule


@pytest.mark.parametrize("name", ["x", "", "rule", "id "])
def test_another_name_is_refused_with_those_that_there_are(name: str) -> None:
    choices = ", ".join(rule.short_name for rule in RULES.values())
    with pytest.raises(ValueError) as caught:
        by_name(name)
    assert str(caught.value) == f"rule must be one of {choices} or a class name, got {name!r}"


def test_decode_refuses_what_no_rule_encodes() -> None:
    known = sorted(rule.rule_id for rule in RULES.values())
    with pytest.raises(ValueError, match=re.escape(f"rule_id must be one of {known}, got 99")):
        decode(99, [])
    with pytest.raises(ValueError, match="params do not fit MMR"):
        decode(MMR.rule_id, [0.5])
    with pytest.raises(ValueError, match=r"params do not fit MMR: got \[2.0, 1.0\]"):
        decode(MMR.rule_id, [2.0, 1.0])

"""The rule table of the C++ library against the Python rules."""

from __future__ import annotations

import dataclasses

import pytest

from idsel_kernels import _native
from idsel_kernels.rules import RULES

pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))

# One field that crosses as two numbers.
_SPLIT = {"grid": ["height", "width"]}


def test_the_library_has_every_rule_under_its_id() -> None:
    table = {name: number for number, name, _, _ in _native.library().rules()}
    assert table == {name: rule.rule_id for name, rule in RULES.items()}


@pytest.mark.parametrize("name", RULES)
def test_parameters_and_state_agree(name: str) -> None:
    (params, state) = next(row[2:] for row in _native.library().rules() if row[1] == name)
    fields = [part for field in dataclasses.fields(RULES[name]) for part in _SPLIT.get(field.name, [field.name])]
    assert params == fields
    assert state == RULES[name].state.name.lower()

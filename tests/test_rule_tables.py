"""What every language says of rules, tiers and limits for itself, against the Python one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from idsel_kernels import _native
from idsel_kernels.engines.base import GRAM_BUDGET_BYTES
from idsel_kernels.rules import RULES, Tier

ROOT = Path(__file__).parents[1]

needs_library = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))

# The others decide on all picks at once, which no kernel does.
GREEDY = {name: rule for name, rule in RULES.items() if rule.is_greedy}

# One field that crosses as two numbers.
_SPLIT = {"grid": ["height", "width"]}


@needs_library
def test_the_library_has_every_rule_under_its_id() -> None:
    table = {name: number for number, name, *_ in _native.library().rules()}
    assert table == {name: rule.rule_id for name, rule in RULES.items()}


@needs_library
@pytest.mark.parametrize("name", sorted(RULES))
def test_parameters_and_traits_agree(name: str) -> None:
    params, state, needs_similarities = next(row[2:] for row in _native.library().rules() if row[1] == name)
    rule = RULES[name]
    fields = [part for field in dataclasses.fields(rule) for part in _SPLIT.get(field.name, [field.name])]
    assert params == fields
    assert state == rule.state.name.lower()
    assert needs_similarities == rule.needs_similarities


@needs_library
def test_the_gram_budget_is_one() -> None:
    assert _native.library().GRAM_BUDGET_BYTES == GRAM_BUDGET_BYTES


def test_tiers_of_the_library_have_the_same_names_and_numbers() -> None:
    text = (ROOT / "csrc" / "rules" / "tier.h").read_text()
    tiers = {name: int(number) for name, number in re.findall(r"\bk(\w+) = (-?\d+),", text)}
    assert tiers == {tier.name.title().replace("_", ""): tier.value for tier in Tier}


def test_triton_runs_every_greedy_rule() -> None:
    pytest.importorskip("triton", reason="triton is not installed (pip install 'idsel_kernels[triton]')")
    from idsel_kernels.triton_impl import rules

    assert {rule.rule_id for rule in GREEDY.values()} == rules.RULE_IDS
    assert max(len(rule().encode()[1]) for rule in GREEDY.values()) <= rules.PARAMS

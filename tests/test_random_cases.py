"""Five hundred small random calls per rule against the literal float64 version: duplicates, zero rows, ties, masks,
negative importance, more picks than tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from backends import EMULATED, INTERPRETED, Backend
from cases import EXACT_RULES, RULE_CASES
from naive import naive_select
from tolerances import REGRET

import idsel_kernels as idsel

RULES = ("idselection-ties", "maxmin-weighted", "maxmin-weighted-start0", "matrixcoverage")


def random_call(seed: int, exact: bool = True) -> dict[str, torch.Tensor]:
    """Of one sample; exact, where all arithmetic of `EXACT_RULES` on it is."""
    rng = np.random.default_rng(seed)
    tokens, dim = int(rng.integers(1, 25)), int(rng.choice([1, 4, 16]))
    features = rng.choice([-1.0, 1.0], (tokens, dim)) if exact else rng.normal(size=(tokens, dim)).astype(np.float32)
    features = features[rng.integers(0, tokens, tokens)] if seed % 3 == 0 else features  # some twice
    if seed % 4 == 0:
        features[rng.random(tokens) < 0.2] = 0.0
    importance = rng.integers(-2 if seed % 5 == 0 else 0, 9, tokens) / 8
    mask = rng.random(tokens) < (0.7 if seed % 2 else 1.1)
    arrays = {"features": features, "importance": importance}
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()} | {"mask": torch.from_numpy(mask)}


def random_suppression(seed: int, tokens: int) -> tuple[idsel.HardSuppress, tuple[int, int]]:
    """A rule, and height and width of the picture. Similarities of `random_call` hit most thresholds exactly."""
    rng = np.random.default_rng([seed, 1])
    height = int(rng.choice([side for side in range(1, tokens + 1) if tokens % side == 0]))
    rule = idsel.HardSuppress(float(rng.choice([-0.5, 0.0, 0.25, 0.5, 1.0])), radius=int(rng.integers(0, 4)))
    return rule, (height, tokens // height)


def seeds(backend: Backend, part: int) -> range:
    """A tenth of all; device code on the CPU takes the first of each."""
    return range(part * 50, part * 50 + (5 if backend in (EMULATED, INTERPRETED) else 50))


@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("name", RULES)
def test_picks_are_those_of_the_literal_version(name: str, part: int, backend: Backend) -> None:
    rule = RULE_CASES[name]
    for seed in seeds(backend, part):
        call = random_call(seed, exact=name in EXACT_RULES or seed % 2 == 0)
        features, importance, mask = call.values()
        k = 1 + seed % (len(features) + 2)
        sel = backend.select(features, k, rule=rule, importance=importance, mask=mask)
        expected, scores = naive_select(features.numpy(), k, rule, importance.numpy(), mask.numpy())
        telling = k
        if name not in EXACT_RULES:
            report = idsel.testing.check_selection(sel, **call, rule=rule)
            report.assert_ok(REGRET)
            (telling,) = report.clear_prefix()
            assert idsel.testing.oracle(**call, k=k, rule=rule).indices[0].tolist() == expected, seed
        assert sel.indices[0, :telling].tolist() == expected[:telling], seed
        np.testing.assert_allclose(sel.scores[0, :telling], scores[:telling], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", range(10))
def test_suppression_on_a_grid_is_that_of_the_literal_version(part: int, backend: Backend) -> None:
    for seed in seeds(backend, part):
        features, importance, mask = random_call(seed).values()
        k = 1 + seed % (len(features) + 2)
        rule, sides = random_suppression(seed, len(features))
        sel = backend.select(features, k, rule=rule, importance=importance, mask=mask, grids=torch.tensor([sides]))
        literal = dataclasses.replace(rule, grid=sides)
        expected, scores = naive_select(features.numpy(), k, literal, importance.numpy(), mask.numpy())
        assert sel.indices[0].tolist() == expected, seed
        assert sel.scores[0].tolist() == scores, seed

"""Every rule on every backend over the shared grid, by regret and by indices where the margin is clear."""

from __future__ import annotations

import pytest
import torch
from backends import Backend, same
from cases import EXACT_CASES, EXACT_RULES, INPUT_CASES, RULE_CASES
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels.testing import assert_parity, check_selection, clustered, exact


@pytest.mark.parametrize("case", INPUT_CASES)
@pytest.mark.parametrize("rule", RULE_CASES)
def test_backend_selects_what_the_rule_says(rule: str, case: str, backend: Backend) -> None:
    call = INPUT_CASES[case]
    k = backend.fewer(call.k, case)
    sel = backend.select(**call.inputs(), k=k, rule=RULE_CASES[rule])
    check_selection(sel, **call.inputs(), rule=RULE_CASES[rule], k=k).assert_ok(REGRET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", EXACT_CASES)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_exact_input_gives_the_same_indices_bit_for_bit(
    rule: str, case: str, dtype: torch.dtype, backend: Backend
) -> None:
    batch, tokens, dim = EXACT_CASES[case]
    inputs, k = exact(batch, tokens, dim, seed=tokens, dtype=dtype).inputs(), backend.fewer(tokens, case)
    expected = idsel.testing.oracle(**inputs, k=k, rule=RULE_CASES[rule])
    sel = backend.select(**inputs, k=k, rule=RULE_CASES[rule])
    assert torch.equal(sel.indices, expected.indices)
    assert torch.equal(sel.scores, expected.scores.float())


def test_every_pair_of_backends_agrees_on_exact_input(backend: Backend) -> None:
    case = exact(2, 50, 16, seed=1)
    for rule in EXACT_RULES:
        inputs, k = backend.inputs(case.inputs()), backend.fewer(20)
        assert_parity("torch", backend.name, **inputs, k=k, rule=RULE_CASES[rule], exact=True)


def test_checks_take_tensors_on_any_device(backend: Backend) -> None:
    case, rule = exact(2, 20, 16, seed=2), idsel.MMR()
    assert_parity("torch", backend.name, **case.inputs(), k=5, rule=rule, exact=True)
    inputs = backend.inputs(case.inputs())
    sel = idsel.select(**inputs, k=5, rule=rule, backend=backend.name)
    check_selection(sel, **inputs, rule=rule).assert_ok(REGRET)
    assert torch.equal(idsel.testing.oracle(**inputs, k=5, rule=rule).indices.cpu(), sel.indices.cpu())


@pytest.mark.parametrize("rule", RULE_CASES)
def test_real_picture_features(rule: str, backend: Backend) -> None:
    pytest.importorskip("matplotlib", reason="the photograph comes with matplotlib")
    case = idsel.testing.picture(16)
    sel = backend.select(**case.inputs(), k=backend.fewer(40), rule=RULE_CASES[rule])
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)


# --- Parameters that inputs have to fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 9, 39])
def test_maxmin_starts_where_told(start: int, backend: Backend) -> None:
    case = clustered(1, 40, 8)
    rule = idsel.MaxMin(start=start)
    sel = backend.select(case.features, 10, rule)
    expected = idsel.testing.oracle(case.features, 10, rule)
    assert sel.indices[0, 0] == start and sel.scores[0, 0] == torch.inf
    check_selection(sel, case.features, rule).assert_ok(REGRET)
    assert torch.equal(sel.indices, expected.indices)


@pytest.mark.parametrize("radius", [0, 1, 3, 10**9])
def test_hard_suppress_on_a_grid(radius: int, backend: Backend) -> None:
    case = clustered(2, 48, 16, seed=8)
    rule = idsel.HardSuppress(threshold=0.9, grid=(6, 8), radius=radius)
    sel = backend.select(**case.inputs(), k=48, rule=rule)
    check_selection(sel, **case.inputs(), rule=rule).assert_ok(REGRET)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0, 300.0])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_coverage_exponents(alpha: float, combine: str, backend: Backend) -> None:
    features, importance, _ = clustered(1, 30, 8, seed=9)
    importance[0, 3], importance[0, 4] = 0.0, 1e-30
    rule = idsel.Coverage(alpha=alpha, combine=combine)
    sel = backend.select(features, 8, rule, importance)
    check_selection(sel, features, rule, importance).assert_ok(REGRET)


def test_coverage_of_negative_importance(backend: Backend) -> None:
    features, importance, _ = clustered(1, 20, 8, seed=10)
    importance[0, ::3] *= -1
    for alpha in (0.5, 1.0, 2.0, 3.0):
        rule = idsel.Coverage(alpha=alpha)
        sel = backend.select(features, 20, rule, importance)
        check_selection(sel, features, rule, importance).assert_ok(REGRET)


# --- What every language has a home of its own for --------------------------------------------------------------------


def test_importance_is_clamped_alike(backend: Backend) -> None:
    largest = torch.finfo(torch.float32).max
    importance = torch.tensor(
        [0.0, float("inf"), largest, -largest, float("-inf"), float("nan"), -0.0, 1e-45, -1e-45, 3e38, 1.0]
    )
    n = len(importance)
    for rule in (idsel.TopK(), idsel.MMR(lam=1.0), idsel.HardSuppress(threshold=1.0)):
        sel = backend.select(torch.eye(n), n, rule, importance)
        expected = idsel.testing.oracle(torch.eye(n), n, rule, importance)
        assert torch.equal(sel.indices, expected.indices)
        assert torch.equal(sel.scores, expected.scores.float())


def test_similarities_of_very_long_and_short_tokens_are_computed_alike(backend: Backend) -> None:
    """Powers of two change no bit of a cosine, whatever the order in which norms are applied."""
    case = exact(1, 24, 16, seed=5)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    lengths = 2.0 ** torch.linspace(-60, 60, 24).round()[order]
    for rule in (idsel.MMR(lam=0.0), idsel.MaxMin(), idsel.MaxMin(start=3), idsel.Coverage()):
        plain = backend.select(case.features, 24, rule, case.importance)
        scaled = backend.select(case.features * lengths[:, None], 24, rule, case.importance)
        expected = idsel.testing.oracle(case.features, 24, rule, case.importance)
        assert same(plain, scaled)
        assert torch.equal(plain.indices, expected.indices)
        assert torch.equal(plain.scores, expected.scores.float())

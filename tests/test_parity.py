"""Every rule on every backend over the shared grid, by regret and by indices where the margin is clear."""

from __future__ import annotations

import pytest
import torch
from cases import EXACT_RULES, INPUT_CASES, RULE_CASES
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels.testing import assert_parity, check_selection, exact


@pytest.mark.parametrize("case", INPUT_CASES)
@pytest.mark.parametrize("rule", RULE_CASES)
def test_backend_selects_what_the_rule_says(rule: str, case: str, backend: str) -> None:
    call = INPUT_CASES[case]
    sel = idsel.select(**call.inputs(), k=call.k, rule=RULE_CASES[rule], backend=backend)
    check_selection(sel, **call.inputs(), rule=RULE_CASES[rule], k=call.k).assert_ok(REGRET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 33, 16), (1, 100, 64), (1, 65, 256), (3, 17, 4), (1, 70, 1)], ids=str)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_exact_input_gives_the_same_indices_bit_for_bit(
    rule: str, shape: tuple[int, int, int], dtype: torch.dtype, backend: str
) -> None:
    batch, tokens, dim = shape
    case = exact(batch, tokens, dim, seed=tokens, dtype=dtype)
    expected = idsel.testing.oracle(**case.inputs(), k=tokens, rule=RULE_CASES[rule])
    sel = idsel.select(**case.inputs(), k=tokens, rule=RULE_CASES[rule], backend=backend)
    assert torch.equal(sel.indices, expected.indices)
    assert torch.equal(sel.scores, expected.scores.float())


def test_every_pair_of_backends_agrees_on_exact_input(backend: str) -> None:
    case = exact(2, 50, 16, seed=1)
    for rule in EXACT_RULES:
        assert_parity("torch", backend, **case.inputs(), k=20, rule=RULE_CASES[rule], exact=True)


@pytest.mark.parametrize("rule", RULE_CASES)
def test_real_picture_features(rule: str, backend: str) -> None:
    pytest.importorskip("matplotlib", reason="the photograph comes with matplotlib")
    case = idsel.testing.picture(16)
    sel = idsel.select(**case.inputs(), k=40, rule=RULE_CASES[rule], backend=backend)
    check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)

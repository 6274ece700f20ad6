"""The reference engine against a second, literal implementation of the formulas."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import Backend
from cases import INPUT_CASES, RULE_CASES, Call
from naive import naive_select
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels.testing import clustered

# The literal version has no stand-in for +inf, and takes long on many tokens.
SMALL = [
    name
    for name, call in INPUT_CASES.items()
    if call.tensors["features"].shape[-2] <= 100 and name != "infinite-importance"
]


def _samples(call: Call) -> list[tuple[dict[str, np.ndarray], int]]:
    """Each sample's arrays and k."""
    tensors = call.inputs()
    offsets = tensors.pop("cu_seqlens", None)
    if offsets is None:
        batch = len(tensors["features"])
        parts = {name: list(value) for name, value in tensors.items()}
    else:
        batch = len(offsets) - 1
        parts = {name: value.split(offsets.diff().tolist()) for name, value in tensors.items()}
    counts = call.k if isinstance(call.k, list) else [call.k] * batch
    return [({n: _array(p[b]) for n, p in parts.items()}, counts[b]) for b in range(batch)]


def _array(value: torch.Tensor) -> np.ndarray:
    return value.numpy() if value.dtype is torch.bool else value.double().numpy()


@pytest.mark.parametrize("rule", RULE_CASES)
@pytest.mark.parametrize("case", SMALL)
def test_reference_agrees_with_the_literal_formulas(rule: str, case: str) -> None:
    call = INPUT_CASES[case]
    literal = [naive_select(k=k, rule=RULE_CASES[rule], **arrays) for arrays, k in _samples(call)]
    for gram in ("full", "rows"):
        sel = idsel.testing.oracle(**call.inputs(), k=call.k, rule=RULE_CASES[rule], gram=gram)
        report = idsel.testing.check_selection(sel, **call.inputs(), rule=RULE_CASES[rule], k=call.k)
        report.assert_ok(1e-12)
        clear = report.clear_prefix(1e-9)
        for b, (picks, scores) in enumerate(literal):
            shown = min(len(picks), clear[b])
            assert sel.indices[b, :shown].tolist() == picks[:shown], gram
            np.testing.assert_allclose(sel.scores[b, :shown], scores[:shown], rtol=1e-9, atol=1e-9, err_msg=gram)
            padded = [pick == -1 for pick in picks]
            assert (sel.indices[b, : len(picks)] == -1).tolist() == padded, gram


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_hard_suppress_grid_suppresses_the_neighbourhood(radius: int, backend: Backend) -> None:
    features, importance, _ = clustered(1, 35, 16, seed=1)
    rule = idsel.HardSuppress(threshold=0.9, grid=(5, 7), radius=radius)
    sel = backend.select(features, 35, rule=rule, importance=importance)
    picks, scores = naive_select(features[0].numpy(), 35, rule, importance[0].numpy())
    assert sel.indices[0].tolist() == picks
    np.testing.assert_allclose(sel.scores[0], scores, rtol=1e-6)


@pytest.mark.parametrize("rule", ["idselection", "mmr", "maxmin", "dpp", "hardsuppress"])
def test_float32_rows_and_full_gram_are_both_right(rule: str) -> None:
    case = clustered(2, 150, 96, seed=9)
    for gram in ("full", "rows"):
        sel = idsel.testing.oracle(**case.inputs(), k=40, rule=RULE_CASES[rule], dtype=torch.float32, gram=gram)
        assert sel.scores.dtype is torch.float32
        idsel.testing.check_selection(sel, **case.inputs(), rule=RULE_CASES[rule]).assert_ok(REGRET)


def test_gram_larger_than_the_budget_runs_in_chunks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.engines import reference

    case = clustered(5, 60, 16, seed=2)
    whole = idsel.select(**case.inputs(), k=20, rule=idsel.Coverage(), backend="torch")
    monkeypatch.setattr(reference, "GRAM_BYTES", 2 * 60 * 60 * 4)
    chunked = idsel.select(**case.inputs(), k=20, rule=idsel.Coverage(), backend="torch")
    assert torch.equal(whole.indices, chunked.indices)
    assert torch.equal(whole.scores, chunked.scores)


def _legacy_flag(value: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = value


def _new_setting(value: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = value


SETTINGS = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "allow_tf32": lambda: _legacy_flag(True),
    "not allow_tf32": lambda: _legacy_flag(False),
    "fp32_precision": lambda: _new_setting("tf32"),
}


def _precision() -> list[str]:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    if not hasattr(backends[0], "fp32_precision"):
        return [torch.get_float32_matmul_precision()]
    return [backend.fp32_precision for backend in backends]


@pytest.mark.parametrize("setting", SETTINGS)
def test_caller_precision_has_no_influence_and_is_kept(setting: str) -> None:
    """In a process of its own: torch refuses to mix its two ways of setting the precision."""
    script = (
        "import torch, idsel_kernels as idsel, test_reference as t\n"
        "case = idsel.testing.clustered(1, 200, 64, seed=8)\n"
        "plain = idsel.select(**case.inputs(), k=50, backend='torch')\n"
        f"t.SETTINGS[{setting!r}]()\n"
        "before = t._precision()\n"
        "inside = idsel.select(**case.inputs(), k=50, backend='torch')\n"
        "assert t._precision() == before\n"
        f"t.SETTINGS[{setting!r}]()\n"
        "assert torch.equal(plain.indices, inside.indices) and torch.equal(plain.scores, inside.scores)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)


def test_threads_leave_the_precision_alone_and_compute_in_full() -> None:
    case = clustered(1, 100, 32)
    expected = idsel.select(**case.inputs(), k=20, backend="torch")
    before = _precision()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: idsel.select(**case.inputs(), k=20, backend="torch"), range(60)))
    assert all(torch.equal(expected.scores, sel.scores) for sel in results)
    assert _precision() == before


def test_autocast_has_no_influence(backend: Backend) -> None:
    if backend.device.type not in ("cpu", "cuda"):
        pytest.skip(f"no autocast on {backend.device}")
    case = clustered(1, 200, 64, seed=8)
    features = backend.put(case.features[0])
    plain = backend.select(**case.inputs(), k=50)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        assert (features @ features.T).dtype is torch.bfloat16
        inside = backend.select(**case.inputs(), k=50)
    assert torch.equal(plain.indices, inside.indices)
    assert torch.equal(plain.scores, inside.scores)

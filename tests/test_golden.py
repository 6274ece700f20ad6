"""Every backend picks what the published code picks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from backends import Backend
from golden import GoldenRun, assert_agrees
from tolerances import GOLDEN_REGRET

import idsel_kernels as idsel

CARRIED = Path(__file__).parent / "data" / "golden"


def test_golden_run_same_picks_on_clear_prefix_and_small_regret(golden_run: GoldenRun, backend: Backend) -> None:
    k = backend.fewer(golden_run.k, "golden")
    sel = backend.select(**golden_run.inputs(), k=k, rule=golden_run.rule)
    assert_agrees(golden_run, sel, GOLDEN_REGRET)


@pytest.mark.parametrize("gram", ["full", "rows"])
def test_golden_run_in_float64_and_both_gram_choices(golden_run: GoldenRun, gram: str) -> None:
    sel = idsel.testing.oracle(**golden_run.inputs(), k=golden_run.k, rule=golden_run.rule, gram=gram)
    assert_agrees(golden_run, sel, 1e-12)


def test_carried_golden_files_are_unchanged_and_small() -> None:
    index = json.loads((CARRIED / "index.json").read_text())
    for name, entry in index["files"].items():
        assert hashlib.sha256((CARRIED / name).read_bytes()).hexdigest() == entry["sha256"], name
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) <= 3_000_000


def test_carried_golden_files_cover_every_source_and_family() -> None:
    cases = json.loads((CARRIED / "index.json").read_text())["cases"]
    assert {case["source"] for case in cases} == {
        "angelslim-idpruner", "angelslim-divprune", "angelslim-scope", "divprune", "cdpruner", "scope",
        "float64-oracle",
    }  # fmt: skip
    assert {case["family"] for case in cases} == {
        "clustered", "tiny", "image-astronaut", "image-rocket", "duplicates", "full", "gaussian", "uniform", "constant",
        "ties", "batch", "parallel", "lowrank",
    }  # fmt: skip

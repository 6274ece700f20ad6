"""Coverage where the Gram exceeds the budget: the picks of the Gram, without its memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from backends import same, set_gram_budget
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels import Coverage, _native, calls
from idsel_kernels.engines import coverage_gains, reference
from idsel_kernels.testing import check_selection, clustered, exact, oracle

CPU = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))

RULES = {
    "mul": Coverage(),
    "add": Coverage(combine="add"),
    "alpha": Coverage(alpha=0.5),
    "alpha-add": Coverage(alpha=2.0, combine="add"),
}


def _inputs(kind: str) -> dict[str, Any]:
    features, importance, _ = clustered(2, 300, 24, seed=len(kind))
    features, importance = features.clone(), importance.clone()
    if kind == "unusable":
        features[0, 3, 1], importance[0, 7], importance[1, 250] = float("nan"), float("-inf"), float("nan")
        features[1, 8] = 0.0
    if kind == "duplicates":
        features, importance = features[:, torch.arange(300) // 3], importance.mul(3).round()
    if kind == "negative":
        importance = importance - importance.mean()
    if kind == "long rows":
        features = clustered(2, 300, 1100, seed=1).features
    if kind == "bfloat16":
        features = features.bfloat16()
    inputs = {"features": features, "importance": importance}
    if kind == "masked":
        inputs["mask"] = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) < 0.7
    if kind == "ragged":
        inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}
        inputs["cu_seqlens"] = torch.tensor([0, 0, 5, 290, 600], dtype=torch.int32)
    return inputs


KINDS = ["plain", "unusable", "duplicates", "negative", "long rows", "bfloat16", "masked", "ragged"]
# Room for one row, for some of them, and for most.
BUDGETS = [1, 40 * 300 * 4, 250 * 300 * 4]


# --- The cpu engine ---------------------------------------------------------------------------------------------------


def _with_budget(monkeypatch: pytest.MonkeyPatch, budget: int, *args: Any, **more: Any) -> tuple[idsel.Selection, Any]:
    from idsel_kernels.engines import cpu

    with monkeypatch.context() as patch, cpu.record_stats() as stats:
        set_gram_budget(patch, "cpu", budget)
        sel = idsel.select(*args, **more, backend="cpu")
    calls.forget()
    return sel, stats[0]


@CPU
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rows_give_the_bits_of_the_gram(rule: Coverage, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(kind)
    for k in (1, 60, 300):
        whole, _ = _with_budget(monkeypatch, 0, **inputs, rule=rule, k=k)
        for budget in BUDGETS:
            few, _ = _with_budget(monkeypatch, budget, **inputs, rule=rule, k=k)
            assert same(whole, few), (k, budget)


@CPU
def test_rows_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, before = _inputs("plain"), torch.get_num_threads()
    inputs = {name: value[:1] for name, value in inputs.items()}  # so that threads share out one sample
    try:
        runs = []
        for threads, budget in itertools.product((1, 2, 5), BUDGETS):
            torch.set_num_threads(threads)
            runs.append(_with_budget(monkeypatch, budget, **inputs, rule=Coverage(), k=60)[0])
    finally:
        torch.set_num_threads(before)
    assert all(same(runs[0], run) for run in runs)


@CPU
def test_what_a_budget_saves_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.engines.cpu import Path

    inputs = {name: value[:1] for name, value in _inputs("plain").items()}
    similarities = []
    for budget in (*BUDGETS, 0):
        _, (stats,) = _with_budget(monkeypatch, budget, **inputs, rule=Coverage(), k=60)
        assert (stats.path is Path.LAZY) == (budget > 0)
        similarities.append(stats.similarities)
    # With room for most rows, more are computed at a time, some of them in vain.
    assert similarities[0] > max(similarities[1:3]) and min(similarities[1:3]) > similarities[3]
    # Where a smaller gain may mean more, every pick reads all rows.
    unwanted = {**inputs, "importance": -inputs["importance"]}
    _, (stats,) = _with_budget(monkeypatch, 1, **unwanted, rule=Coverage(), k=3)
    assert stats.path is Path.LAZY_ROWS
    assert stats.similarities == (300 + 299 + 298 + 3) * 299  # and those of the picks


# --- The torch engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 10**5, 10**9], ids="kept {}".format)
@pytest.mark.parametrize("kind", KINDS)
def test_bands_are_right(kind: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_KEPT_BANDS_BYTES", kept)
    monkeypatch.setattr(coverage_gains, "BAND_BYTES", 30_000)  # 25 rows, the last band shorter
    inputs = _inputs(kind)
    for rule in RULES.values():
        sel = oracle(**inputs, rule=rule, k=60, dtype=torch.float32, gram="rows")
        check_selection(sel, **inputs, rule=rule).assert_ok(REGRET)


def test_bands_give_the_picks_of_the_gram_on_exact_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_gains, "BAND_BYTES", 30_000)
    case = exact(2, 200, 64, seed=3)
    runs = [oracle(**case.inputs(), rule=Coverage(), k=80, dtype=torch.float32, gram=gram) for gram in ("full", "rows")]
    assert same(*runs)


def test_what_bands_are_kept_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, runs = _inputs("plain"), []
    monkeypatch.setattr(coverage_gains, "BAND_BYTES", 30_000)
    for kept in (0, 10**5, 10**9):
        monkeypatch.setattr(reference, "_KEPT_BANDS_BYTES", kept)
        runs.append(oracle(**inputs, rule=Coverage(), k=60, dtype=torch.float32, gram="rows"))
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def test_copies_of_picks_gain_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_gains, "BAND_BYTES", 30_000)
    inputs = _inputs("duplicates")
    scores = oracle(features=inputs["features"], k=300, rule=Coverage(), dtype=torch.float32, gram="rows").scores
    assert bool((scores[:, :30] > 0).all()) and bool((scores[:, 100:] == 0).all())


def test_a_large_sample_takes_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "GRAM_BYTES", 200**2 * 4)
    explain = lambda n: idsel.explain(torch.zeros(n, 4), k=5, rule=Coverage(), backend="torch").algorithm  # noqa: E731
    assert explain(200) == "the whole Gram by matrix product, then 5 greedy steps"
    assert explain(201) == "5 greedy steps, each over all similarities in bands of rows by matrix product"
    assert reference._wants_gram(Coverage(), 200, 5) and not reference._wants_gram(Coverage(), 201, 5)


# --- Memory -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch, idsel_kernels as idsel
from idsel_kernels.engines import reference
from idsel_kernels import dispatch

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

backend, tokens, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
reference.GRAM_BYTES, reference._KEPT_BANDS_BYTES = budget // 4, budget // 4 * 3
dispatch._load("cpu").gram_budget_bytes = budget
torch.set_num_threads(1)
features = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(0))
idsel.select(features[:5000], 3, idsel.Coverage(), backend=backend)  # loads the libraries that the same path needs
before = kib("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
idsel.select(features, 3, idsel.Coverage(), backend=backend)
print((kib("VmHWM:") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(
    ("engine", "tokens", "budget", "beyond"),
    [
        ("torch", 8192, 2**26, 2**25),
        pytest.param("cpu", 8192, 2**26, 0, marks=CPU),
        pytest.param("cpu", 8400, 0, 0, marks=CPU, id="cpu's own"),
    ],
)
def test_peak_memory_is_the_budget_and_a_little(engine: str, tokens: int, budget: int, beyond: int) -> None:
    """The Gram takes 256 MiB and more, rows keep to 64 MiB. Beyond those come in `torch` a few bands of 4 MiB each,
    copies of the features and some numbers per token: less than 32 MiB together.
    """
    # Without it glibc keeps bands that are freed, as many as it happens to.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    arguments = [engine, str(tokens), str(budget)]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], check=True, capture_output=True, text=True, env=env
    )
    assert 2**25 < int(run.stdout) < 2**26 + beyond

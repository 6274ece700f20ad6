"""The benchmark's published loops select what the rules say, and one that does not is shown as WRONG."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from golden import GoldenRun

pytest.importorskip("rich", reason="the bench prints with rich")

import idsel_kernels as idsel
from bench import console, harness, providers, tables, workloads
from bench.floor import Floor
from bench.providers import numpy_rules, peers
from bench.suites import overhead, prefill
from bench.suites import session as common
from bench.suites.selection import RULES as SUITE_RULES
from bench.suites.selection import ragged
from bench.tools import cpu_loops, cpu_peers
from bench.workloads import Shape
from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MaxMin, Rule
from idsel_kernels.engines import reference
from idsel_kernels.testing import check_selection, clustered, near_duplicates

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FLOOR = Floor(1.0, 10.0, 0.1, 1.0, 0.001, 2, "given")
RULES: list[Rule] = [
    IDSelection(),
    IDSelection(gamma=5.0, floor=None),
    MMR(),
    MMR(lam=0.2, parallel_k=3),
    MaxMin(),
    MaxMin(start=5),
    HardSuppress(),
    HardSuppress(threshold=0.1),
    DPP(),
    Coverage(),
    Coverage(alpha=0.5, combine="add"),
]


def _session(**options: Any) -> common.Session:
    budget = harness.Budget(repeats=2, seconds=0.0)
    return common.Session(CPU, torch.float32, budget, FLOOR, say=lambda text: None, **options)


# --- Parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_loop_selects_what_the_rule_says(rule: Rule) -> None:
    features, importance, _ = clustered(2, 90, 32, seed=3)
    # Once the picks span nearly everything, CDPruner's loop goes on with what rounding left, DPP by importance.
    k = 10 if isinstance(rule, DPP) else 30
    indices = providers.LOOPS[type(rule)](features, importance, k, rule)
    sel = idsel.Selection(indices, torch.zeros(indices.shape))
    report = check_selection(sel, features, rule, importance)
    assert report.relative_regret <= harness.FLOAT32_TOLERANCE
    for first, clear in zip(report.first_difference, report.clear_prefix(), strict=True):
        assert first is None or first >= clear


def test_loop_picks_as_the_official_code_did(golden_run: GoldenRun) -> None:
    loop, k = providers.LOOPS.get(type(golden_run.rule)), golden_run.k
    inputs = golden_run.inputs()
    features = inputs["features"].reshape(-1, *inputs["features"].shape[-2:])
    importance = inputs.get("importance", torch.ones(features.shape[:2])).reshape(features.shape[:2]).float()
    # One token has no nearest other; the loop of DivPrune needs two.
    if loop is None or features.shape[1] < 2:
        pytest.skip("no loop for this rule or size")
    picks = loop(features, importance, k, golden_run.rule)
    for ours, theirs, clear in zip(picks, golden_run.picks(), golden_run.clear_prefix(), strict=True):
        assert ours[:clear].tolist() == theirs[:clear].tolist()


@dataclass(frozen=True)
class MadeUp(Rule):
    """Top-k under another name: a rule that no file of the benchmark knows."""

    rule_id: ClassVar[int] = 10**6


def test_a_rule_needs_no_published_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference._STATES, MadeUp, reference.RuleState)
    rows: list[dict[str, Any]] = []
    for rule in (MadeUp(), IDSelection()):
        found = [providers.engine("torch"), *providers.baselines(rule)]
        rows += common.measure(_session(), "rules", Shape(1, 20, 8, 3), rule, "clustered", found)
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["provider"] for row in rows if row["rule"] == "MadeUp"] == ["torch", providers.BOUND]
    record = {"engines": ["torch"], "rows": rows, "environment": {"device": {"type": "cpu"}}}
    head, _, made_up, known = ([c.strip() for c in line.split("|")] for line in tables.rules(record).splitlines())
    loop = head.index(f"× {providers.LOOP}")
    assert made_up[loop] == "" and known[loop].endswith(" ×")
    assert list(tables.speedups(record)) == [("IDSelection", "clustered")]


def test_the_rules_suite_has_every_greedy_rule() -> None:
    assert {type(rule) for rule in SUITE_RULES} == {rule for rule in idsel.rules.RULES.values() if rule.is_greedy}


@pytest.mark.parametrize("kind", ["clustered", "picture", "ties", "flat"])
def test_inputs_have_their_shape_and_differ_between_sets(kind: str) -> None:
    shape = Shape(2, 40, 16, 4)
    sets = workloads.make_sets(kind, shape, torch.float32, CPU)
    assert len(sets) == workloads.MAX_SETS
    assert all(case.features.shape == (2, 40, 16) and case.importance.shape == (2, 40) for case in sets)
    assert not torch.equal(sets[0].features, sets[1].features)
    slots = workloads.make_slots(sets, 7)
    assert len({case.features.data_ptr() for case in slots}) == 7
    assert torch.equal(slots[3].features, sets[0].features)


# --- WRONG ------------------------------------------------------------------------------------------------------------


def _liar(rule: Rule, k: int) -> providers.Selector:
    """Picks as told, but for the last pick of the last sample."""
    honest = providers.engine("torch").make(rule, k)

    def select(features: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        indices = honest(features, importance).clone()
        unpicked = next(i for i in range(features.shape[1] - 1, -1, -1) if i not in indices[-1])
        indices[-1, -1] = unpicked
        return indices

    return select


def test_a_provider_that_lies_is_wrong_and_not_timed() -> None:
    shape, rule = Shape(2, 40, 16, 8), MaxMin(start=0)
    found = [providers.engine("torch"), providers.Provider("liar", _liar)]
    honest, liar = common.measure(_session(), "rules", shape, rule, "clustered", found)
    assert (honest["status"], liar["status"]) == ("ok", "wrong")
    assert honest["eager"]["repeats"] == 2 and "eager" not in liar
    assert liar["regret"] > harness.FLOAT32_TOLERANCE
    assert console.cell(liar) == "WRONG" and console.cell(honest) != "WRONG"


def test_a_provider_that_repeats_tokens_is_wrong() -> None:
    # As published, DivPrune's loop takes tokens again once only copies of its picks are left.
    case = near_duplicates(1, 12, 8, copies=4)
    picks = providers.LOOPS[MaxMin](case.features, case.importance, 6, MaxMin())
    assert harness.Checker([case], MaxMin()).regret(0, picks) == math.inf


def test_a_provider_that_fails_is_unavailable_with_its_reason() -> None:
    def make(rule: Rule, k: int) -> providers.Selector:
        def select(features: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler")

        return select

    broken = providers.Provider("broken", make)
    (row,) = common.measure(_session(), "rules", Shape(1, 20, 8, 3), IDSelection(), "clustered", [broken])
    assert (row["status"], row["note"]) == ("unavailable", "no compiler")


def test_the_lower_bound_is_not_checked() -> None:
    (bound,) = [p for p in providers.baselines(IDSelection()) if p.name == providers.BOUND]
    (row,) = common.measure(_session(), "rules", Shape(1, 40, 16, 8), IDSelection(), "clustered", [bound])
    assert row["status"] == "ok" and row["regret"] is None


def test_half_precision_loops_may_err_by_roundings_and_engines_may_not() -> None:
    assert harness.tolerance(torch.bfloat16, True) == 4 * 2**-7
    assert harness.tolerance(torch.bfloat16, False) == harness.tolerance(torch.float32, True) == 1e-5


def test_checker_judges_a_beginning_of_known_picks_without_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(1, 40, 16)
    checker = harness.Checker([case], IDSelection())
    picks = idsel.select(case.features, 10, IDSelection(), case.importance).indices
    assert checker.regret(0, picks) <= 1e-5
    monkeypatch.setattr(checker, "_replay", lambda *arguments: pytest.fail("replayed"))
    assert checker.regret(0, picks[:, :4]) <= 1e-5
    with pytest.raises(pytest.fail.Exception, match="replayed"):
        checker.regret(0, picks.flip(1))


# --- Timing -----------------------------------------------------------------------------------------------------------


def test_calls_are_timed_by_turns_over_all_inputs() -> None:
    seen: list[str] = []
    calls = {name: [lambda text=f"{name}{i}": seen.append(text) for i in range(3)] for name in "ab"}
    timings = harness.interleave(calls, CPU, harness.Budget(repeats=4, seconds=0.0))
    warm = 2 * harness.WARM_UP
    assert seen[warm:] == ["a0", "b0", "a1", "b1", "a2", "b2", "a0", "b0"]
    assert timings["a"].repeats == 4


def test_summary_is_median_and_percentiles() -> None:
    assert harness.summary([5, 1, 3, 2, 4]) == (3, 1.8, 4.2, 5)


def test_extra_memory_sees_what_a_call_takes() -> None:
    found = harness.extra_memory(lambda: torch.ones(2**24), CPU)
    if found is None:
        pytest.skip("peaks of memory are read on Linux")
    assert 0.9 * 2**26 < found < 1.5 * 2**26


def test_overhead_counts_reads_of_results_by_the_host() -> None:
    x = torch.ones(3)
    assert overhead.count(lambda: (x + 1).sum().item(), on_gpu=False)["syncs"] == 1
    assert overhead.count(lambda: (x + 1).sum(), on_gpu=False)["syncs"] == 0


def test_shapes_parse_and_refuse() -> None:
    assert Shape.parse("2x576x1024x64") == (2, 576, 1024, 64)
    for text in ("576x1024x64", "1x8x8x9", "1x8x8x0", "1xax8x1"):
        with pytest.raises(ValueError, match="a shape"):
            Shape.parse(text)


def test_no_shape_begins_after_the_deadline() -> None:
    said: list[str] = []
    session = _session(given=[Shape(1, 20, 8, 3)], deadline=-math.inf)
    session.say = said.append
    assert list(session.shapes("latency")) == []
    assert said == ["latency, left out for want of time: 1x20x8x3"]


def test_ragged_and_padded_calls_are_right() -> None:
    rows = list(ragged(_session(given=[Shape(3, 40, 16, 5)])))
    assert {row["status"] for row in rows} == {"ok"} and len(rows) >= 3


def test_floor_adds_its_terms() -> None:
    terms = FLOOR.terms(Shape(3, 100, 50, 7), torch.float32)
    # Bytes: 3 * 100 * 50 * 4 at 10 GB/s; operations: 3 * 100 * 100 * 50 at 0.1 TFLOP/s; steps of 1.1 µs in two rounds.
    assert terms == pytest.approx((1.0, max(6.0, 15.0), 7 * 1.1 * 2))


FLOOR_KERNEL = """
import torch
from bench.floor_kernel import chain
gram, out = torch.rand(70, 70), torch.empty(70)
chain(gram, out, 9)
priority = gram[0]
for _ in range(9):
    priority = torch.minimum(priority, gram[priority.argmax()])
assert torch.equal(priority, out)
"""


def test_the_step_of_the_floor_on_a_gpu_is_the_one_on_a_cpu() -> None:
    pytest.importorskip("triton", reason="the step on a GPU is a Triton kernel")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", FLOOR_KERNEL]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter cannot run a loop with this NumPy")
    assert done.returncode == 0, done.stderr


# --- Prefill ----------------------------------------------------------------------------------------------------------


def test_counted_operations_are_those_of_the_formula() -> None:
    pytest.importorskip("transformers", reason="the prefill is that of a transformers model")
    sizes = {**prefill.LLAMA_7B, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    model, tokens = prefill.build(sizes, torch.device("meta"), torch.float32), 10
    weights = 4 * 64 * 64 + 3 * 64 * 96
    layers = 2 * 2 * tokens * weights + 2 * 4 * tokens**2 * 64 + 2 * 64 * 128
    angles = 2 * tokens * 64 // 4 // 2  # of the rotary embedding, a matrix product in some versions
    assert prefill.flops(model, tokens) - layers in (0, angles)


def test_timed_prefill_selects_and_runs() -> None:
    pytest.importorskip("transformers", reason="the prefill is that of a transformers model")
    sizes = {**prefill.LLAMA_7B, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
    model = prefill.build(sizes, CPU, torch.float32)
    rows = list(prefill.timed(_session(), model, visual=24, kept=(3,)))
    assert len(rows) == 5 and all(row["eager"]["median_us"] > 0 for row in rows)


# --- NumPy and packages, beside the cpu engine ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "way"),
    [
        (rule, way)
        for rule in (*RULES, MaxMin(), IDSelection(floor=None))
        for way in numpy_rules.ways(rule)
        if not isinstance(rule, MMR) or rule.parallel_k == 1  # else NumPy would be no shorter
    ],
    ids=str,
)
def test_numpy_selects_what_the_rule_says(rule: Rule, way: str) -> None:
    features, importance, _ = clustered(1, 90, 32, seed=3)
    k = 10 if isinstance(rule, DPP) else 90 if isinstance(rule, HardSuppress) else 30
    picks = numpy_rules.selectors(rule)[way](features[0].numpy(), importance[0].numpy(), k)
    sel = idsel.Selection(torch.from_numpy(picks)[None], torch.zeros(1, k))
    assert check_selection(sel, features, rule, importance).relative_regret <= harness.FLOAT32_TOLERANCE


@pytest.mark.parametrize("package", peers.PACKAGES)
def test_packages_select_what_the_rule_says(package: str) -> None:
    pytest.importorskip(package)
    features, importance, _ = clustered(1, 90, 6, seed=3)
    x = torch.nn.functional.normalize(features[0], dim=-1).numpy()
    found = 0
    for rule in (MaxMin(start=0), Coverage(), DPP()):
        weight = torch.ones_like(importance) if isinstance(rule, Coverage) else importance
        for name, select in peers.selectors(rule).items():
            if name.startswith(package.replace("_", "-")):
                picks = torch.from_numpy(np.array(select(x, weight[0].numpy(), 5), np.int64))[None]
                sel = idsel.Selection(picks, torch.zeros(1, 5))
                assert check_selection(sel, features, rule, weight).relative_regret <= 1e-4, name
                found += 1
    assert found


def test_the_cpu_engine_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "times.json"
    page.write_text(f"before\n{cpu_peers.BEGIN}\nold\n{cpu_peers.END}\nafter\n")
    monkeypatch.setattr(cpu_peers, "PAGE", page)
    monkeypatch.setattr(cpu_peers, "TURNS", 2)
    before = torch.get_num_threads()
    try:
        arguments = ["--kinds", "flat", "--tokens", "48", "--dims", "3", "40", "--threads", "1"]
        assert cpu_peers.main([*arguments, "--rules", "MMR", "Coverage", "--docs", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(before)
    cells = [cpu_peers.Cell(**cell) for cell in json.loads(out.read_text())]
    assert [(cell.rule, cell.dim, cell.k) for cell in cells] == [
        (rule, dim, k) for rule in ("MMR", "Coverage") for dim in (3, 40) for k in (4, 16, 48)
    ]
    assert all(cell.ratio() > 0 and cell.times["NumPy, Gram"] > 0 for cell in cells)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `Coverage` | D > 8 | 3 |" in text and "`MMR`" in capsys.readouterr().out


def test_a_call_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cpu_peers.Problem("MMR", "flat", 48, 40, 4)
    process = cpu_peers.Process(1)
    with monkeypatch.context() as patch:
        patch.setattr(cpu_peers, "PATIENCE_SECONDS", 0)
        assert process.turn(problem, cpu_peers.OURS) == [0.0]
    with process.pool:  # another one
        assert len(process.turn(problem, cpu_peers.OURS)) == cpu_peers.CALLS


def test_whether_loops_are_chosen_well(capsys: pytest.CaptureFixture) -> None:
    arguments = ["--rules", "MMR", "DPP", "--kinds", "flat", "--tokens", "48", "--dims", "3", "--threads", "1"]
    assert cpu_loops.main([*arguments, "--repeats", "1", "--worst", "2"]) == 0
    by_rule, worst = capsys.readouterr().out.split("\n\n")
    assert [line.split(" | ")[:2] for line in by_rule.splitlines()[2:]] == [["| `MMR`", "3"], ["| `DPP`", "3"]]
    assert len(worst.splitlines()) == 4

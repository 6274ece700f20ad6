"""What only the emulator (tests/emulator) shows of the CUDA engine: any order of blocks, clusters, mutations.

Every test that takes a backend runs on it too, as `cuda-emulated`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import emulated
import pytest
import torch
from backends import EMULATED, registered, same, set_gram_budget
from cases import INPUT_CASES, RULE_CASES, Call
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels.testing import check_selection, clustered, ragged

ROOT = Path(__file__).parents[1]
pytestmark = list(EMULATED.marks)


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[emulated.EmulatedEngine]:
    with registered(emulated.engine()):
        yield emulated.engine()


def _runs(call: Call, rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch) -> list[idsel.Selection]:
    """In clusters of CTAs and by single ones, one at a time or several, in several orders."""
    found = []
    for multiprocessors, blocks, seed in ((1000, 1, 0), (1000, 3, 1), (1, 1, 0), (1, 3, 2)):
        monkeypatch.setenv("IDSEL_EMULATOR_MULTIPROCESSORS", str(multiprocessors))
        found.append(_select(call, rule, monkeypatch, blocks, seed))
    monkeypatch.delenv("IDSEL_EMULATOR_MULTIPROCESSORS")
    return found


@pytest.mark.parametrize("rule", RULE_CASES)
def test_clusters_order_and_batch_change_no_bit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(3, 70, 600, dtype=torch.bfloat16)  # D has two groups
    alone = Call({name: tensor[1:2] for name, tensor in case.inputs().items()}, 20)
    together = {name: tensor.flatten(0, 1) for name, tensor in case.inputs().items()}
    together["cu_seqlens"] = torch.tensor([0, 70, 140, 210], dtype=torch.int32)
    runs = _runs(Call(case.inputs(), 20), RULE_CASES[rule], monkeypatch)
    runs.append(_select(Call(together, 20), RULE_CASES[rule], monkeypatch, 3, 3))
    assert all(same(runs[0], other) for other in runs[1:])
    for sel in _runs(alone, RULE_CASES[rule], monkeypatch):
        assert torch.equal(runs[0].indices[1:2], sel.indices) and torch.equal(runs[0].scores[1:2], sel.scores)


@pytest.mark.parametrize("tokens", [256, 257, 1025, 3073])  # a thread has 1, 4 or 12; or all are in the workspace
@pytest.mark.parametrize("rule", [idsel.MMR(), idsel.TopK()], ids=lambda rule: type(rule).__name__)
def test_tokens_of_a_thread(rule: idsel.Rule, tokens: int) -> None:
    case = clustered(1, tokens, 2)
    sel = idsel.select(**case.inputs(), k=5, rule=rule, backend=emulated.NAME)
    check_selection(sel, **case.inputs(), rule=rule, k=5).assert_ok(REGRET)
    by_index = idsel.select(**case.inputs(), k=5, rule=rule, sort=True, backend=emulated.NAME)
    assert torch.equal(by_index.indices, sel.indices.sort().values)


@pytest.mark.parametrize("tokens", [576, 3080])
def test_coverage_reads_few_similarities(
    tokens: int, engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows of tokens whose gain could win are read, and the picks are those of summing all."""
    case = clustered(1, tokens, 16 if tokens < 1000 else 2)
    k = 64 if tokens < 1000 else 4
    read = torch.zeros(1, dtype=torch.int64)
    monkeypatch.setattr(engine, "similarities_read", read)
    sel = idsel.select(**case.inputs(), k=k, rule=idsel.Coverage(), backend=emulated.NAME)
    check_selection(sel, **case.inputs(), rule=idsel.Coverage(), k=k).assert_ok(REGRET)
    assert 0 < int(read) <= (0.1 if k == 64 else 0.5) * k * tokens**2


# --- Several CTAs for a sample ---------------------------------------------------------------------------------------

# CTAs under way at a time, and the order in which they come. With one at a time none may wait for another.
ORDERS = ((1, 0), (3, 1), (3, 2))
ROW_RULES = [name for name, rule in RULE_CASES.items() if not isinstance(rule, (idsel.Coverage, idsel.TopK))]


def _hurting(dtype: torch.dtype = torch.float32) -> Call:
    """Masked and unusable tokens, zero rows, odd sizes, strides."""
    features, importance, _ = clustered(2, 139, 46, seed=8, dtype=dtype)
    features, importance = features[..., 1::2], importance.clone()
    features[0, 3, 2], features[1, 100] = float("nan"), 0.0
    importance[0, 130], importance[1, 9], importance[1, 70] = float("nan"), float("-inf"), float("inf")
    mask = torch.rand((2, 139), generator=torch.Generator().manual_seed(9)) < 0.8
    return Call({"features": features, "importance": importance, "mask": mask}, [139, 70])


PANEL_CASES = {name: INPUT_CASES[name] for name in ("N65-D127-k13", "N257-D40-k40", "fp16", "ties")} | {
    "split": Call(clustered(2, 70, 600, dtype=torch.bfloat16).inputs(), 20),
    "hurting": _hurting(),
    "hurting-bf16": _hurting(torch.bfloat16),
    "ragged": Call(ragged((70, 0, 5, 130)).inputs(), [30, 3, 5, 20]),
}


def _select(call: Call, rule: idsel.Rule, monkeypatch: pytest.MonkeyPatch, blocks: int, seed: int) -> idsel.Selection:
    monkeypatch.setenv("IDSEL_EMULATOR_BLOCKS", str(blocks))
    monkeypatch.setenv("IDSEL_EMULATOR_SEED", str(seed))
    return idsel.select(**call.inputs(), k=call.k, rule=rule, backend=emulated.NAME)


@pytest.mark.parametrize("case", PANEL_CASES)
@pytest.mark.parametrize("rule", ROW_RULES)
def test_panels_give_the_bits_of_the_whole_gram(rule: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = PANEL_CASES[case]
    whole = _select(call, RULE_CASES[rule], monkeypatch, 3, 0)
    check_selection(whole, **call.inputs(), rule=RULE_CASES[rule], k=call.k).assert_ok(REGRET)
    # Of the ragged batch, the sample of 70 tokens has room for its Gram now and then.
    for (blocks, seed), row in zip(ORDERS, (1, 100, 1), strict=True):
        set_gram_budget(monkeypatch, emulated.NAME, 4 * row * 205)
        assert same(whole, _select(call, RULE_CASES[rule], monkeypatch, blocks, seed))


def test_more_tiles_than_work_tiles_and_more_tokens_than_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(clustered(1, 2880, 2).inputs(), 4)  # 1035 tiles; a thread has 12 tokens
    whole = _select(call, idsel.MaxMin(), monkeypatch, 3, 0)
    set_gram_budget(monkeypatch, emulated.NAME, 1)
    assert same(whole, _select(call, idsel.MaxMin(), monkeypatch, 3, 1))


def test_a_group_of_any_size_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(130, 66, 4)  # one CTA for each sample of the batch, several for one alone
    set_gram_budget(monkeypatch, emulated.NAME, 1)
    batch = _select(Call(case.inputs(), 6), idsel.DPP(), monkeypatch, 3, 0)
    alone = Call({name: tensor[129:] for name, tensor in case.inputs().items()}, 6)
    sel = _select(alone, idsel.DPP(), monkeypatch, 3, 1)
    assert torch.equal(batch.indices[129:], sel.indices) and torch.equal(batch.scores[129:], sel.scores)


def test_blocks_that_wait_for_one_that_cannot_start_end_the_launch(tmp_path: Path) -> None:
    """What the emulator reports where blocks under way wait for another: the tests above would show it."""
    source = tmp_path / "waits.cpp"
    source.write_text("""
#include <cstdio>
#include "emulator.h"
int main() {
    bool here[2] = {};
    const char* failure = idsel::emulator::launch([&here] {
        here[idsel::emulator::block()] = true;
        while (!here[0] || !here[1]) idsel::emulator::rest();
    }, 2, 32, 0);
    std::puts(failure == nullptr ? "ended" : failure);
}
""")
    folder = ROOT / "tests" / "emulator"
    command = ["c++", "-std=c++17", f"-I{folder}", str(source), *map(str, sorted(folder.glob("[ef]*.cpp")))]
    emulated.run(*command, "-o", str(tmp_path / "waits"))
    for blocks, words in ((2, "ended"), (1, "every block under way waits for other blocks")):
        environment = {**os.environ, "IDSEL_EMULATOR_BLOCKS": str(blocks)}
        done = subprocess.run([tmp_path / "waits"], capture_output=True, text=True, check=True, env=environment)
        assert words in done.stdout


def test_more_samples_than_one_launch_takes() -> None:
    case = clustered(300, 3, 4)
    counts = [b % 4 for b in range(300)]
    sel = idsel.select(**case.inputs(), k=counts, rule=idsel.MMR(), backend=emulated.NAME)
    check_selection(sel, **case.inputs(), rule=idsel.MMR(), k=counts).assert_ok(REGRET)


@pytest.mark.parametrize("budget", [0, 1])
@pytest.mark.parametrize("rule", [idsel.Coverage(), idsel.MaxMin(), idsel.DPP()], ids=lambda rule: type(rule).__name__)
def test_offsets_that_nobody_checked_stay_inside_the_tensors(
    rule: idsel.Rule, budget: int, engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if budget and isinstance(rule, idsel.Coverage):
        pytest.skip("needs the whole Gram")
    features = clustered(1, 200, 4).features[0]
    set_gram_budget(monkeypatch, emulated.NAME, budget)
    for offsets in ([0, 999, 200], [100, 40, 200], [-7, 80, 200], [0, 150, 20, 200]):
        inputs = idsel.problem.Inputs(features, None, None, torch.tensor(offsets, dtype=torch.int32))
        problem = idsel.problem.Problem.of(inputs, rule, [3], False)
        indices, _ = engine.run(problem, inputs)
        assert (indices < 200).all()


def _explained(tokens: int, k: int, rule: idsel.Rule, **more: torch.Tensor) -> idsel.Explanation:
    features = torch.zeros(tokens, 1, dtype=torch.bfloat16)
    if not more:
        features = features[None]
    return idsel.explain(
        features, k, rule=rule, importance=torch.ones(features.shape[:-1]), backend=emulated.NAME, **more
    )


def test_too_many_tokens_are_a_reason() -> None:
    reasons = _explained(17_000, 2, idsel.Coverage()).reasons[emulated.NAME]
    assert "those of 17000 tokens exceed 1024 MiB" in reasons[0]


def test_explain_tells_the_plan() -> None:
    assert "one launch: norms, then one CTA per sample picks" in _explained(17_000, 2, idsel.TopK()).algorithm
    assert "one launch: the Gram by tensor cores" in _explained(64, 2, idsel.MMR()).algorithm
    assert "one CTA per sample reads one row of it per pick" in _explained(64, 2, idsel.MMR()).algorithm
    assert "reads rows of it, those whose gain could win, per pick" in _explained(300, 2, idsel.Coverage()).algorithm
    panels = _explained(17_000, 130, idsel.MMR()).algorithm
    assert "panels of 64 rows of the Gram by tensor cores and several CTAs" in panels
    assert "(3 to 129, 0.00872 GFLOP to 0.283 GFLOP); 4.6 MiB of workspace" in panels
    offsets = torch.tensor([0, 17_000], dtype=torch.int32)
    ragged = _explained(17_000, 130, idsel.MMR(), cu_seqlens=offsets).algorithm
    assert "2 launches" in ragged and "of the samples whose Gram is too large" in ragged


def test_an_installed_package_does_not_know_the_emulator() -> None:
    assert emulated.NAME not in (ROOT / "idsel_kernels" / "dispatch.py").read_text()


# --- Builds of their own ----------------------------------------------------------------------------------------------


# What is changed, and into what, in which file: each is a mistake that only executing the code can show.
_KEYS = "= ranked(key, index);"
_ENDED = "    arch::cta_sync();\n    return"
MUTATIONS = {
    "a removed barrier": ("cta_reduce.cuh", {f"{_KEYS}\n    arch::cta_sync();": _KEYS}),
    "a barrier for some threads only": (
        "arrival.cuh",
        {_ENDED: f"    if (arch::thread() != 7) {_ENDED.lstrip()}"},
    ),
    "a wrong arrival count": ("arrival.cuh", {"expected - 1": "expected - 2"}),
    "a phase that ends too early": ("cta_group.cuh", {"tile().count, &buffers_": "tile().count - 1, &buffers_"}),
    "a dropped tie-break": (
        "order_key.cuh",
        {
            "| ~static_cast<uint32_t>(index)": "| static_cast<uint32_t>(index)",
            "static_cast<int>(~static_cast<uint32_t>(ranked))": "static_cast<int>(static_cast<uint32_t>(ranked))",
        },
    ),
    "a lost tie": ("cta_reduce.cuh", {"& lower_lanes;": "& ~lower_lanes & ~(lower_lanes + 1);"}),
    "wrong parts of D in a cluster": (
        "gram_tile.cuh",
        {"const int of_group = group * kSlices + ": "const int of_group = group * (cluster.shares ? 1 : kSlices) + "},
    ),
    "a cluster that does not wait": (
        "gram_tile.cuh",
        {"arch::cluster_arrive();\n        arch::cluster_wait();": "arch::cluster_arrive();"},
    ),
    "a hot loop that ignores the cold tier": ("pick_loop.cuh", {"if (key_of(best) == 0) return false;": ""}),
    "a stale Coverage gain accepted": ("coverage_state.cuh", {"(is_fresh ? kFresh : 0u)": "kFresh"}),
}


def _run_native(sources: Path, build: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The native test program of the device code in `sources`, built in `build` and run."""
    options = [f"-DIDSEL_EMULATOR_SOURCES={sources}", "-DIDSEL_EMULATOR=ON", "-DIDSEL_EMULATOR_UNITY=ON"]
    emulated.run("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *options)
    emulated.run("cmake", "--build", str(build), "--target", "test_emulated")
    program = build / "tests" / "emulator" / "test_emulated"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


# One build folder for all that follow: only the device code is built again.
def test_native_program_passes(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = _run_native(ROOT / "csrc", tmp_path_factory.getbasetemp() / "mutations" / "build")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_caught(mutation: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutations"
    sources = folder / "csrc"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / "csrc" / "cuda", sources / "cuda")
    name, changes = MUTATIONS[mutation]
    text = (sources / "cuda" / name).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{name} has changed: {old!r}"
        text = text.replace(old, new)
    (sources / "cuda" / name).write_text(text)
    done = _run_native(sources, folder / "build", "quick")
    assert done.returncode == 1, f"{mutation} went unnoticed"
    assert "test_emulated.cpp" in done.stderr or "calls.h" in done.stderr

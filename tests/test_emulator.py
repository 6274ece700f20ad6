"""The CUDA engine, executed on the CPU (tests/emulator): parity, a sanitizer, and mutations that must be caught.

`pytest --emulator` runs every test that takes a backend on it; this file is part of `make kernels`.
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
from cases import EXACT_RULES, INPUT_CASES, RULE_CASES
from golden import GoldenRun, assert_agrees
from tolerances import GOLDEN_REGRET, REGRET

import idsel_kernels as idsel
from idsel_kernels import dispatch
from idsel_kernels.testing import check_selection, clustered, exact

ROOT = Path(__file__).parents[1]
MISSING = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES)
GOLDEN_TOKENS = 200  # larger runs take seconds each


@pytest.fixture(scope="module", autouse=True)
def _emulator(request: pytest.FixtureRequest) -> Iterator[None]:
    pytest.importorskip("pybind11", reason="the emulator is a module made with pybind11")
    if request.config.getoption("--emulator"):
        yield  # it is there already
        return
    emulated.build()
    emulated.register()
    yield
    emulated.unregister()


@pytest.mark.parametrize("case", INPUT_CASES)
@ALL_RULES
def test_device_code_selects_what_the_rule_says(rule: str, case: str) -> None:
    call = INPUT_CASES[case]
    sel = idsel.select(**call.inputs(), k=call.k, rule=RULE_CASES[rule], backend=emulated.NAME)
    check_selection(sel, **call.inputs(), rule=RULE_CASES[rule], k=call.k).assert_ok(REGRET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 33, 16), (1, 130, 64), (1, 20, 1024), (1, 70, 1)], ids=str)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_exact_input_gives_the_same_indices_bit_for_bit(
    rule: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    batch, tokens, dim = shape
    case = exact(batch, tokens, dim, seed=tokens, dtype=dtype)
    expected = idsel.testing.oracle(**case.inputs(), k=tokens, rule=RULE_CASES[rule])
    sel = idsel.select(**case.inputs(), k=tokens, rule=RULE_CASES[rule], backend=emulated.NAME)
    assert torch.equal(sel.indices, expected.indices)
    assert torch.equal(sel.scores, expected.scores.float())


def test_golden_run(golden_run: GoldenRun) -> None:
    if golden_run.inputs()["features"].shape[-2] > GOLDEN_TOKENS:
        pytest.skip("large; pytest --emulator runs it")
    sel = idsel.select(**golden_run.inputs(), k=golden_run.k, rule=golden_run.rule, backend=emulated.NAME)
    assert_agrees(golden_run, sel, GOLDEN_REGRET)


@ALL_RULES
def test_block_order_and_batch_change_no_bit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(3, 70, 600, dtype=torch.bfloat16)  # D is split
    runs = []
    for seed in range(3):
        monkeypatch.setenv("IDSEL_EMULATOR_SEED", str(seed))
        runs.append(idsel.select(**case.inputs(), k=20, rule=RULE_CASES[rule], backend=emulated.NAME))
    alone = idsel.select(
        case.features[1], 20, rule=RULE_CASES[rule], importance=case.importance[1], backend=emulated.NAME
    )
    ragged = idsel.select(
        case.features.flatten(0, 1),
        20,
        rule=RULE_CASES[rule],
        importance=case.importance.flatten(),
        cu_seqlens=torch.tensor([0, 70, 140, 210], dtype=torch.int32),
        backend=emulated.NAME,
    )
    for other in (*runs[1:], ragged):
        assert torch.equal(runs[0].indices, other.indices) and torch.equal(runs[0].scores, other.scores)
    assert torch.equal(runs[0].indices[1], alone.indices[0]) and torch.equal(runs[0].scores[1], alone.scores[0])


@pytest.mark.parametrize("tokens", [1755, 1756])  # of which the loop's state just fits shared memory, and just not
def test_tokens_in_and_out_of_shared_memory(tokens: int) -> None:
    case = clustered(1, tokens, 8)
    sel = idsel.select(**case.inputs(), k=5, backend=emulated.NAME)
    check_selection(sel, **case.inputs()).assert_ok(REGRET)


def test_more_samples_than_one_launch_takes() -> None:
    case = clustered(300, 3, 4)
    counts = [b % 4 for b in range(300)]
    sel = idsel.select(**case.inputs(), k=counts, rule=idsel.MMR(), backend=emulated.NAME)
    check_selection(sel, **case.inputs(), rule=idsel.MMR(), k=counts).assert_ok(REGRET)


def test_offsets_that_nobody_checked_stay_inside_the_tensors() -> None:
    features = torch.ones(10, 4)
    engine = dispatch._load(emulated.NAME)
    assert not isinstance(engine, str)
    for offsets in ([0, 99, 10], [5, 2, 10], [-7, 4, 10]):
        inputs = idsel.problem.Inputs(features, None, None, torch.tensor(offsets, dtype=torch.int32))
        problem = idsel.problem.Problem.of(inputs, idsel.Coverage(), [3], False)
        indices, _ = engine.run(problem, inputs)
        assert (indices < 10).all()


def test_too_many_tokens_are_a_reason() -> None:
    features = torch.zeros(1, 17_000, 1)
    reasons = idsel.explain(features, 2, rule=idsel.Coverage(), backend=emulated.NAME).reasons[emulated.NAME]
    assert "exceed 1024 MiB" in reasons[0]
    assert "17000 tokens" in reasons[0]
    assert (
        "one launch: norms"
        in idsel.explain(
            features, 2, rule=idsel.TopK(), importance=torch.ones(1, 17_000), backend=emulated.NAME
        ).algorithm
    )


def test_an_installed_package_does_not_know_the_emulator() -> None:
    assert emulated.NAME not in (ROOT / "idsel_kernels" / "dispatch.py").read_text()


# --- Builds of their own ----------------------------------------------------------------------------------------------


def _native_build(build: Path, *options: str) -> Path:
    """The native test program, built in `build` as `options` say."""
    emulated.run("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DIDSEL_EMULATOR=ON", *options)
    emulated.run("cmake", "--build", str(build), "--target", "test_emulated")
    return build / "tests" / "emulator" / "test_emulated"


def test_no_access_outside_memory_under_a_sanitizer(tmp_path: Path) -> None:
    program = _native_build(tmp_path, "-DIDSEL_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# What is changed, and into what, in which file: each is a mistake that only executing the code can show.
_KEYS = "->keys[turn][port::thread() / 32] = key;"
_ENDED = "    port::barrier();\n    return"
MUTATIONS = {
    "a removed barrier": ("argmax.cuh", {f"{_KEYS}\n    port::barrier();": _KEYS}),
    "a barrier for some threads only": ("ticket.cuh", {_ENDED: f"    if (port::thread() != 7) {_ENDED.lstrip()}"}),
    "a wrong ticket count": ("ticket.cuh", {"expected - 1": "expected - 2"}),
    "a dropped tie-break": (
        "argmax.cuh",
        {
            "rank | (kIndexMask - static_cast<uint64_t>(index))": "rank | static_cast<uint64_t>(index)",
            "(kIndexMask - (key & kIndexMask))": "(key & kIndexMask)",
        },
    ),
}


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
    # One folder for all: only the device code is built again.
    program = _native_build(folder / "build", f"-DIDSEL_EMULATOR_SOURCES={sources}", "-DCMAKE_CXX_FLAGS_RELEASE=-O0")
    done = subprocess.run([program, "quick"], capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 1, f"{mutation} went unnoticed"
    assert "test_emulated.cpp" in done.stderr or "calls.h" in done.stderr

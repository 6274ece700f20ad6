"""The suite itself: a backend gets tensors of its own device, here one that is neither the CPU nor a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import STAND_IN, Backend, for_gpu_tests, reason_against
from torch.utils import backend_registration

from idsel_kernels import dispatch
from idsel_kernels.testing import clustered

TESTS = Path(__file__).parent
needs_stand_in = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices written in Python",
)


def _pytest(*arguments: object, folder: Path = TESTS) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def _counted(done: subprocess.CompletedProcess[str], what: str) -> int:
    found = re.search(rf"(\d+) {what}", done.stdout)
    return int(found[1]) if found else 0


_TAKES_A_BACKEND = r"^def (test_\w+)\([^)]*\bbackend: Backend"
_TAKES_A_GPU = r"^def (test_\w+)\([^)]*\bgpu: Backend"


@pytest.fixture
def two_golden_runs(tmp_path: Path) -> Path:
    carried = TESTS / "data" / "golden"
    cases = json.loads((carried / "index.json").read_text())["cases"][:2]
    for case in cases:
        shutil.copy(carried / case["file"], tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"cases": cases}))
    return tmp_path


@needs_stand_in
def test_every_test_that_takes_a_backend_passes_on_another_device(two_golden_runs: Path) -> None:
    functions = {
        path.name: re.findall(_TAKES_A_BACKEND, path.read_text(), re.MULTILINE) for path in TESTS.glob("test_*.py")
    }
    del functions["test_tensor_kinds.py"]  # which is about memory: tensors of the stand-in have none of their own
    files = [name for name, found in functions.items() if found]
    done = _pytest("--backend", STAND_IN, "--golden", two_golden_runs, *files)
    print(done.stdout[-4000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert _counted(done, "passed") >= sum(map(len, functions.values())) > 40


CARELESS = """
import idsel_kernels as idsel
from cases import INPUT_CASES


def test_with_tensors_on_the_cpu(backend):
    call = INPUT_CASES["ties"]
    idsel.select(**call.inputs(), k=call.k, rule=idsel.MMR(), backend=backend.name)


def test_with_a_mask_on_the_cpu(backend):
    call = INPUT_CASES["masked"]
    mask = call.tensors["mask"]
    idsel.select(**{**backend.inputs(call.inputs()), "mask": mask}, k=call.k, rule=idsel.MMR(), backend=backend.name)


def test_with_the_helper(backend):
    call = INPUT_CASES["masked"]
    backend.select(**call.inputs(), k=call.k, rule=idsel.MMR())
"""


@needs_stand_in
def test_a_test_that_hands_over_tensors_of_the_cpu_fails(tmp_path: Path) -> None:
    (tmp_path / "test_careless.py").write_text(CARELESS)
    shutil.copy(TESTS / "conftest.py", tmp_path)
    done = _pytest("--backend", STAND_IN, "test_careless.py", folder=tmp_path)
    assert (_counted(done, "failed"), _counted(done, "passed")) == (2, 1), done.stdout
    assert "it runs on standin tensors, got a tensor on cpu" in done.stdout
    assert "mask must be on the device of features (standin:0), got cpu" in done.stdout


def test_the_gpu_file_has_its_tests_for_every_engine_of_gpus() -> None:
    engines = [name for name in dispatch.BACKENDS if "cuda" in dispatch.device_types(name)]
    assert {"cuda", "triton"} <= set(engines)
    assert [gpu.id for gpu in for_gpu_tests(None)] == engines


@needs_stand_in
def test_the_gpu_file_has_its_tests_for_an_engine_on_another_device() -> None:
    tests = re.findall(_TAKES_A_GPU, (TESTS / "test_gpu.py").read_text(), re.MULTILINE)
    done = _pytest("--collect-only", "--backend", STAND_IN, "test_gpu.py")
    assert list(dict.fromkeys(re.findall(rf"::(test_\w+)\[{STAND_IN}", done.stdout))) == tests


@pytest.mark.parametrize(("name", "reason"), [("abacus", "--backend must be one of "), ("absent", "absent: not built")])
def test_a_backend_that_cannot_run_is_no_choice(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = {**dispatch.backend_status(), "absent": ["not built"]}
    monkeypatch.setattr(dispatch, "backend_status", lambda: status)
    assert (reason_against(name) or "").startswith(reason)
    assert reason_against("torch") is None


def test_putting_a_tensor_elsewhere_keeps_its_strides_offset_and_gradient() -> None:
    elsewhere = Backend("meta", "torch", torch.device("meta"))
    features = clustered(2, 30, 8).features
    for view in (features, features[:, ::2, 1::3], features.transpose(1, 2), features[1], features[:, :0]):
        moved = elsewhere.put(view.requires_grad_())
        assert moved.device.type == "meta" and moved.requires_grad
        assert (moved.shape, moved.stride(), moved.storage_offset()) == (
            view.shape,
            view.stride(),
            view.storage_offset(),
        )
    assert Backend("cpu", "cpu", torch.device("cpu")).put(features) is features


def test_every_engine_says_on_which_devices_it_runs() -> None:
    assert {name: dispatch.device_types(name) for name in dispatch.BACKENDS if name != "triton"} == {
        "cuda": ("cuda",),
        "cpu": ("cpu",),
        "torch": (),
    }
    assert dispatch.device_types("triton")[-1] == "cuda"

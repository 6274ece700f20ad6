"""The environment report: complete where all is well, and still there where something is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import idsel_kernels
from idsel_kernels import _copies, _native, dispatch, env_report

ROOT = Path(idsel_kernels.__file__).parents[1]


def run_module(*arguments: str, python_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs this package's modules in a fresh interpreter that looks into `python_path` first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(python_path), str(ROOT)])}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def make_tool(folder: Path, name: str, script: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.fixture
def broken_torch(tmp_path: Path) -> Path:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: simulated damage')\n")
    return tmp_path


def test_collect_states_the_facts_of_this_machine():
    report = json.loads(json.dumps(env_report.collect()))
    assert report["idsel_kernels"] == {
        "version": idsel_kernels.__version__,
        "location": str(ROOT / "idsel_kernels"),
        "library": None if _native.failure() else _native.library().__file__,
        "build": _native.failure() or _native.build_notes() or "complete",
    }
    assert report["torch"]["version"] == torch.__version__
    assert report["packages"]["torch"] == importlib.metadata.version("torch")
    assert report["cpu"]["count"] == os.cpu_count()
    assert report["backends"] == dispatch.backend_status()


def test_what_the_installation_left_out_is_reported(tmp_path, monkeypatch):
    built = SimpleNamespace(__file__=str(tmp_path / "_core.so"))
    monkeypatch.setattr(_copies, "PACKAGE", tmp_path)
    monkeypatch.setattr(_native, "_load", lambda: built)
    assert env_report.collect()["idsel_kernels"]["build"] == "complete"
    (tmp_path / "_core.txt").write_text("without the CUDA engine: a reason\nwithout the C++ library: another\n")
    reasons = "without the CUDA engine: a reason; without the C++ library: another"
    assert env_report.collect()["idsel_kernels"]["build"] == reasons
    assert env_report.installation().endswith(f", library {tmp_path / '_core.so'}: {reasons}")


def test_a_copy_without_a_library_is_not_called_complete(monkeypatch):
    monkeypatch.setattr(_native, "_load", lambda: "a reason")
    facts = env_report.collect()["idsel_kernels"]
    assert (facts["library"], facts["build"]) == (None, "a reason")
    assert env_report.installation().endswith(", no compiled library: a reason")


def test_format_report_shows_every_backend_with_its_reason(monkeypatch):
    status = {"cuda": ["no CUDA device", "not built"], "torch": []}
    monkeypatch.setattr(dispatch, "backend_status", lambda: status)
    lines = env_report.format_report(env_report.collect()).splitlines()
    assert "  cuda: no CUDA device; not built" in lines
    assert "  torch: available" in lines


def test_collect_lists_only_our_environment_variables(monkeypatch):
    monkeypatch.setenv("IDSEL_SOMETHING", "1")
    monkeypatch.setenv("NOT_IDSEL_SOMETHING", "secret")
    environment = env_report.collect()["environment"]
    assert environment["IDSEL_SOMETHING"] == "1"
    assert all(name.startswith("IDSEL_") for name in environment)


def test_one_broken_probe_leaves_the_others(monkeypatch):
    def broken() -> dict[str, list[str]]:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(dispatch, "backend_status", broken)
    report = env_report.collect()
    assert report["backends"] == "error: RuntimeError: first line second line"
    assert report["torch"]["version"] == torch.__version__


@pytest.mark.skipif(os.name != "posix", reason="stands shell scripts in for the tools")
def test_tools_are_read_from_the_path(monkeypatch, tmp_path):
    make_tool(tmp_path, "nvcc", "echo 'nvcc: NVIDIA (R) Cuda compiler driver'; echo 'release 13.0, V13.0.88'")
    make_tool(tmp_path, "cmake", "exit 3")
    make_tool(tmp_path, "nvidia-smi", "echo '570.1, NVIDIA H200, 9.0'; echo '570.1, NVIDIA L4, 8.9'")
    monkeypatch.setenv("PATH", str(tmp_path))
    report = env_report.collect()
    assert report["tools"]["nvcc"] == f"release 13.0, V13.0.88 ({tmp_path / 'nvcc'})"
    assert report["tools"]["cmake"].startswith("error: CalledProcessError")
    assert report["tools"]["ninja"] is None
    assert report["gpu"] == {
        "driver": "570.1",
        "gpu 0": "NVIDIA H200, compute capability 9.0",
        "gpu 1": "NVIDIA L4, compute capability 8.9",
    }


def test_cuda_devices_are_listed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert env_report.collect()["torch"]["device 0"] == "NVIDIA H200, compute capability 9.0"


def test_cpu_model_falls_back_where_the_system_does_not_say(monkeypatch):
    def unreadable(self: Path, **options: str) -> str:
        raise PermissionError(self)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", unreadable)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert env_report.cpu_model() == "riscv64"


def test_cpu_model_asks_sysctl_on_macos(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(env_report, "_output_of", lambda command: f"Apple M3, by {command[0]}")
    assert env_report.cpu_model() == "Apple M3, by sysctl"


def test_report_is_printed_with_torch_broken(broken_torch):
    done = run_module("idsel_kernels.env_report", python_path=broken_torch)
    assert done.returncode == 0, done.stderr
    assert "torch: error: OSError: libtorch_cpu.so: simulated damage" in done.stdout
    assert f"version: {sys.version.split()[0]}" in done.stdout
    assert "Traceback" not in done.stderr


def test_info_command_works_and_select_explains_with_torch_broken(broken_torch):
    info = run_module("idsel_kernels", "info", "--json", python_path=broken_torch)
    assert info.returncode == 0, info.stderr
    assert "simulated damage" in json.loads(info.stdout)["torch"]
    select = run_module("idsel_kernels", "select", "x.npy", "--k", "1", python_path=broken_torch)
    assert select.returncode == 2
    assert select.stderr.startswith("idsel: error: ")
    assert "simulated damage" in select.stderr
    assert len(select.stderr.splitlines()) == 1


def test_main_prints_the_report(capsys):
    assert env_report.main() == 0
    assert f"location: {ROOT / 'idsel_kernels'}" in capsys.readouterr().out

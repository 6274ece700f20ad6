"""Options and fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from golden import GoldenRun

import idsel_kernels as idsel

sys.path.insert(0, str(Path(__file__).parent / "emulator"))
import emulated


def pytest_configure(config: pytest.Config) -> None:
    # Workers that each start a thread per core wait for one another most of the time.
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))
    if config.getoption("--emulator"):
        emulated.build()
        emulated.register()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "data" / "golden",
        metavar="DIR",
        help="folder of golden runs to check against (default: %(default)s)",
    )
    parser.addoption(
        "--emulator",
        action="store_true",
        help="run the tests that take a backend on the CUDA engine in emulation, and no others",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--emulator"):
        items[:] = [item for item in items if f"[{emulated.NAME}" in item.nodeid or f"-{emulated.NAME}" in item.nodeid]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_run" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        runs = [GoldenRun(folder, case) for case in json.loads((folder / "index.json").read_text())["cases"]]
        metafunc.parametrize("golden_run", runs, ids=lambda run: run.case["id"])
    if "backend" in metafunc.fixturenames:
        emulator = metafunc.config.getoption("--emulator")
        metafunc.parametrize("backend", [emulated.NAME] if emulator else idsel.available_backends())


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests choose backends themselves; a variable in the developer's shell must not."""
    monkeypatch.delenv("IDSEL_BACKEND", raising=False)

"""Options and fixtures shared by all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import backends
import pytest
import torch
from backends import Backend
from cases import RULE_CASES
from golden import GoldenRun

from idsel_kernels import calls


def pytest_configure(config: pytest.Config) -> None:
    # Workers that each start a thread per core wait for one another most of the time.
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))
    for name in config.getoption("--backend") or []:
        if reason := backends.reason_against(name):
            raise pytest.UsageError(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "data" / "golden",
        metavar="DIR",
        help="folder of golden runs to check against (default: %(default)s)",
    )
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="run the tests that take a backend on this one, and no others; may be given several times",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_run" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        runs = [GoldenRun(folder, case) for case in json.loads((folder / "index.json").read_text())["cases"]]
        metafunc.parametrize("golden_run", runs, ids=lambda run: run.case["id"])
    for fixture, found in (("backend", backends.for_shared_tests), ("gpu", backends.for_gpu_tests)):
        if fixture in metafunc.fixturenames:
            listed = found(metafunc.config.getoption("--backend"))
            params = [pytest.param(backend, id=backend.id, marks=backend.marks) for backend in listed]
            metafunc.parametrize(fixture, params, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = config.getoption("--backend")
    kept, left_out = [], []
    for item in items:
        (left_out if _is_left_out(item, named) else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _is_left_out(item: pytest.Item, named: list[str] | None) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    backend = next((param for param in params.values() if isinstance(param, Backend)), None)
    if backend is None or (named is not None and backend.id not in named):
        return named is not None
    names = {rule: name for name, rule in RULE_CASES.items()}
    rule = params.get("rule")
    return not backend.takes(names.get(rule, rule), params.get("case"))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn; tests hand it tensors on the CPU."""
    with request.param.running(request):
        yield request.param


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that runs on a GPU and nowhere else; skipped with its reasons where it cannot run."""
    with request.param.running(request):
        yield request.param


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests choose backends themselves; a variable in the developer's shell must not. Some change engines."""
    monkeypatch.delenv("IDSEL_BACKEND", raising=False)
    calls.forget()

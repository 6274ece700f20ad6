"""A backend that is listed runs: the smallest call is tried, once, where that disturbs nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import idsel_kernels as idsel
from idsel_kernels import calls, dispatch
from idsel_kernels.engines import cpu, probe, reference
from idsel_kernels.engines import triton as triton_engine
from idsel_kernels.engines.base import Launcher
from idsel_kernels.problem import Inputs, Problem

X, S = torch.eye(5), torch.arange(5.0)


class _Engine:
    """Runs on the torch engine, or fails, and counts how often it was asked and run."""

    def __init__(self, name: str, kind: str = "cpu", error: Exception | None = None) -> None:
        self.name, self.device_types, self.error = name, (kind,), error
        self.asked, self.problems = 0, []

    def unavailable_reasons(self) -> list[str]:
        self.asked += 1
        return []

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        return [] if problem.device.type in self.device_types else ["it runs elsewhere"]

    def algorithm(self, problem: Problem) -> str:
        return ""

    def launcher(self, problem: Problem, inputs: Inputs) -> Launcher:
        self.problems.append(problem)
        if self.error is not None:
            raise self.error
        return reference.ENGINE.launcher(problem, inputs)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[_Engine], _Engine]]:
    """Puts an engine in the place of the one of its name."""
    real = {name: dispatch._load(name) for name in dispatch.BACKENDS}
    monkeypatch.setattr(dispatch, "_load", lambda name: real[name])
    monkeypatch.setattr(probe, "_tried", {})
    calls.forget()

    def put_in(engine: _Engine) -> _Engine:
        real[engine.name] = engine  # type: ignore[assignment]
        return engine

    yield put_in
    calls.forget()


def test_an_engine_that_fails_is_not_listed_and_says_why(put: Callable[[_Engine], _Engine]) -> None:
    put(_Engine("cpu", error=TypeError("only 0-dimensional arrays\n can be converted")))
    reason = "it fails at the smallest call, one token: TypeError: only 0-dimensional arrays can be converted"
    assert dispatch.backend_status()["cpu"] == [reason]
    assert "cpu" not in idsel.available_backends()
    with pytest.raises(idsel.UnsupportedProblem, match="cannot run this: it fails at the smallest call, one token"):
        idsel.select(X, 2, importance=S, backend="cpu")
    assert idsel.explain(X, 2, importance=S).reasons["cpu"] == (reason,)
    assert idsel.explain(X, 2, importance=S).backend == "torch"
    assert idsel.select(X, 2, "topk", S).indices.tolist() == [[4, 3]]


def test_a_pick_that_is_not_there_is_a_failure_too(
    put: Callable[[_Engine], _Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = put(_Engine("cpu"))
    monkeypatch.setattr(engine, "launcher", lambda *_: lambda *_: (torch.tensor([[-1]]), torch.zeros(1, 1)))
    assert dispatch.backend_status()["cpu"] == ["it fails at the smallest call: of one token it picks index -1"]


@pytest.mark.parametrize("error", [None, RuntimeError("no compiler")])
def test_it_is_tried_once(put: Callable[[_Engine], _Engine], error: Exception | None) -> None:
    engine = put(_Engine("cpu", error=error))
    for _ in range(3):
        idsel.available_backends()
        dispatch.choose(Problem.of(Inputs(X[None], S[None]), idsel.MMR(), [2], sort=False))
    (problem,) = engine.problems
    assert (problem.rule, problem.batch, problem.tokens, problem.dim) == (idsel.TopK(), 1, 1, 1)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("out of memory")])
def test_a_lack_of_memory_passes(put: Callable[[_Engine], _Engine], error: Exception) -> None:
    engine = put(_Engine("cpu", error=error))
    assert "cpu" in idsel.available_backends()
    engine.error = None
    assert "cpu" in idsel.available_backends()
    assert len(engine.problems) == 2


def test_a_call_on_the_cpu_asks_no_engine_for_gpus(put: Callable[[_Engine], _Engine]) -> None:
    for_gpus = [put(_Engine(name, "cuda")) for name in ("cuda", "triton")]
    idsel.select(X, 2, "topk", S)
    assert [engine.asked for engine in for_gpus] == [0, 0]
    assert idsel.explain(X, 2, "topk", S).backend in ("cpu", "torch")


def test_a_gpu_is_tried_only_in_a_process_that_uses_it(
    put: Callable[[_Engine], _Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = put(_Engine("cuda", "cuda"))
    tried: list[torch.device] = []
    monkeypatch.setattr(probe, "_try", lambda engine, device: tried.append(device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    initialized, capturing = False, False
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert (probe.failure(engine), tried) == (None, [])
    initialized = capturing = True
    assert (probe.failure(engine), tried) == (None, [])
    capturing = False
    probe.failure(engine)
    probe.failure(engine, torch.device("cuda", 0))
    probe.failure(engine, torch.device("cuda", 1))
    assert tried == [torch.device("cuda", 1), torch.device("cuda", 0)]


def test_what_the_caller_records_or_chose_is_left_alone(put: Callable[[_Engine], _Engine]) -> None:
    if cpu.ENGINE.unavailable_reasons():
        pytest.skip("the cpu engine is not built")
    with cpu.record_stats() as recorded, cpu.use_isa(cpu.Isa.NEON if cpu._native.library().resolve_isa(0) != 4 else 2):
        assert "cpu" in idsel.available_backends()
    assert recorded == []
    assert (cpu.ENGINE, torch.device("cpu")) in probe._tried


def test_nothing_is_tried_while_operators_are_watched(put: Callable[[_Engine], _Engine]) -> None:
    engine = put(_Engine("cpu"))
    with FakeTensorMode():
        assert "cpu" in idsel.available_backends()
    assert engine.problems == []
    assert "cpu" in idsel.available_backends()
    assert len(engine.problems) == 1


# --- What it is for: in new processes, since Triton decides when it is imported whether to interpret ------------------

WHAT_IS_LISTED_RUNS = """
import torch, idsel_kernels as idsel
from idsel_kernels import dispatch
status = dispatch.backend_status()
for name, reasons in status.items():
    device = "cpu" if "cpu" in (dispatch.device_types(name) or ("cpu",)) else "cuda"
    if reasons:
        try:
            idsel.select(torch.eye(1), 1, "topk", torch.ones(1), backend=name)
        except idsel.UnsupportedProblem as error:
            assert reasons[0] in str(error), error
        else:
            raise AssertionError(f"{name} runs, in spite of {reasons}")
    else:
        sel = idsel.select(torch.eye(5, device=device), 2, "topk", torch.arange(5.0, device=device), backend=name)
        assert sel.indices.tolist() == [[4, 3]], name
print(*(name for name in status if not status[name]))
"""


def _run(code: str, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "IDSEL_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_what_is_listed_runs_and_what_is_not_says_why(interpret: str) -> None:
    assert "torch" in _run(WHAT_IS_LISTED_RUNS, TRITON_INTERPRET=interpret)


def test_an_interpreter_that_fails_is_not_listed() -> None:
    pytest.importorskip("triton", reason="triton is not installed (pip install 'idsel_kernels[triton]')")
    broken = (
        "from idsel_kernels.engines import triton\n"
        "def fail(self, *_): raise TypeError('only 0-dimensional arrays')\n"
        "triton._numpy_too_new = lambda: None\n"
        "triton._library().Launches.__call__ = fail\n"
    )
    assert "triton" not in _run(broken + WHAT_IS_LISTED_RUNS, TRITON_INTERPRET="1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("asked_before", [False, True])
def test_a_child_after_a_fork_may_ask(asked_before: bool) -> None:
    code = (
        "import os, torch, idsel_kernels as idsel\n"
        f"asked = idsel.available_backends() if {asked_before} else None\n"
        "child = os.fork()\n"
        "sel = idsel.select(torch.eye(5), 2, 'topk', torch.arange(5.0))\n"
        "assert sel.indices.tolist() == [[4, 3]] and asked in (None, idsel.available_backends())\n"
        "os._exit(0) if child == 0 else None\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.cuda.is_initialized())\n"
    )
    assert _run(code) == ["0", "False"]


# --- Versions known not to fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("triton", "numpy", "fits"),
    [
        ("3.2.0", "2.3.5", True), ("3.2.0", "2.4.0", False), ("3.6.0", "2.4.6", False), ("3.6.0", "3.0.0", False),
        ("3.7.0", "2.4.6", True), ("git", "2.4.6", True), ("3.6.0", "dev", True),
    ],
)  # fmt: skip
def test_an_interpreter_and_a_numpy_that_do_not_fit_are_named(
    triton: str, numpy: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(triton_engine.importlib.metadata, "version", versions.__getitem__)
    reason = triton_engine._numpy_too_new.__wrapped__()
    assert (reason is None) == fits
    if reason is not None:
        short = [".".join(version.split(".")[:2]) for version in (triton, numpy)]
        assert reason == (
            f"the interpreter of triton {short[0]} does not run with numpy {short[1]}: "
            "it needs numpy before 2.4, or triton 3.7 or later"
        )
    # Compiled kernels do not run on NumPy.
    monkeypatch.setattr(triton_engine, "_installation", lambda: None)
    monkeypatch.setattr(triton_engine, "_numpy_too_new", lambda: "these do not fit")
    monkeypatch.setattr(triton_engine, "_has_gpu", lambda: False)
    for interpreted, expected in ((True, "these do not fit"), (False, "no CUDA or HIP device")):
        monkeypatch.setattr(triton_engine, "_interpreted", lambda interpreted=interpreted: interpreted)
        assert triton_engine.ENGINE.unavailable_reasons()[0].startswith(expected)

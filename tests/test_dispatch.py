"""Which engine runs, and what the package says about it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading

import pytest
import torch

import idsel_kernels as idsel
from idsel_kernels import calls, dispatch
from idsel_kernels.engines import reference
from idsel_kernels.engines.base import Launcher
from idsel_kernels.problem import Inputs, Problem

X, S = torch.randn(1, 6, 4), torch.rand(1, 6)


class _Recorder:
    """An engine that notes what it was asked to do and lets the torch engine do it."""

    device_types = ()

    def __init__(self, name: str, unavailable: list[str] | None = None, unsupported: list[str] | None = None) -> None:
        self.name, self.unavailable, self.unsupported = name, unavailable or [], unsupported or []
        self.problems: list[Problem] = []

    def unavailable_reasons(self) -> list[str]:
        return self.unavailable

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        return self.unsupported

    def algorithm(self, problem: Problem) -> str:
        return f"the {self.name} way"

    def launcher(self, problem: Problem, inputs: Inputs) -> Launcher:
        self.problems.append(problem)
        return reference.ENGINE.launcher(problem, inputs)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, _Recorder]:
    """All four backends, as recorders, which may change from call to call: no call is kept."""
    recorders = {name: _Recorder(name) for name in dispatch.BACKENDS}
    monkeypatch.setattr(dispatch, "_load", lambda name: recorders[name])
    monkeypatch.setattr(calls, "_keep", lambda key, call: None)
    return recorders


def _ran(engines: dict[str, _Recorder]) -> list[str]:
    return [name for name, engine in engines.items() for _ in engine.problems]


def test_the_first_engine_without_objections_runs(engines: dict[str, _Recorder]) -> None:
    idsel.select(X, 2, importance=S)
    engines["cuda"].unavailable = ["no NVIDIA GPU"]
    idsel.select(X, 2, importance=S)
    engines["triton"].unsupported = ["features are on the CPU"]
    idsel.select(X, 2, importance=S)
    assert _ran(engines) == ["cuda", "triton", "cpu"]


def test_the_engine_sees_the_problem_as_it_is(engines: dict[str, _Recorder]) -> None:
    offsets = torch.tensor([0, 2, 6], dtype=torch.int32)
    rule = idsel.MMR(0.25)
    idsel.select(X[0].half(), [1, 3], rule, S[0], mask=S[0] > 0.5, cu_seqlens=offsets, sort=True, backend="cpu")
    assert engines["cpu"].problems == [
        Problem(
            rule=rule,
            k=(1, 3),
            batch=2,
            tokens=6,
            dim=4,
            dtype=torch.float16,
            device=torch.device("cpu"),
            ragged=True,
            has_importance=True,
            has_mask=True,
            sort=True,
        )
    ]


def test_argument_beats_context_beats_environment(
    engines: dict[str, _Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDSEL_BACKEND", "torch")
    idsel.select(X, 2, importance=S)
    with idsel.use_backend("cpu"):
        idsel.select(X, 2, importance=S)
        idsel.select(X, 2, importance=S, backend="triton")
    idsel.select(X, 2, importance=S)
    assert sorted(_ran(engines)) == ["cpu", "torch", "torch", "triton"]


def test_use_backend_nests_restores_on_error_and_stays_in_its_thread(engines: dict[str, _Recorder]) -> None:
    with pytest.raises(RuntimeError), idsel.use_backend("cpu"), idsel.use_backend("torch"):
        raise RuntimeError
    with idsel.use_backend("cpu"):
        thread = threading.Thread(target=lambda: idsel.select(X, 2, importance=S))
        thread.start()
        thread.join()
    assert _ran(engines) == ["cuda"]


def test_unknown_names_are_refused_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = pytest.raises(ValueError, match="backend must be one of cuda, triton, cpu, torch, got 'gpu'")
    with unknown, idsel.use_backend("gpu"):
        pass
    monkeypatch.setenv("IDSEL_BACKEND", "gpu")
    with pytest.raises(ValueError, match="IDSEL_BACKEND must be one of cuda, triton, cpu, torch, got 'gpu'"):
        idsel.select(X, 2, importance=S)
    monkeypatch.setenv("IDSEL_BACKEND", "")
    idsel.select(X, 2, importance=S)


def test_a_named_backend_never_falls_back(engines: dict[str, _Recorder]) -> None:
    engines["triton"].unsupported = ["features are on the CPU", "N = 6 is too small"]
    with (
        idsel.use_backend("triton"),
        pytest.raises(
            idsel.UnsupportedProblem,
            match=r"backend 'triton' \(by use_backend\) cannot run this: features are on the CPU; N = 6 is too small",
        ),
    ):
        idsel.select(X, 2, importance=S)
    assert not _ran(engines)


def test_a_problem_that_no_engine_takes_is_an_error(engines: dict[str, _Recorder]) -> None:
    for engine in engines.values():
        engine.unsupported = ["no"]
    with pytest.raises(idsel.UnsupportedProblem, match="no backend can run this"):
        idsel.select(X, 2, importance=S)
    explanation = idsel.explain(X, 2, importance=S)
    assert explanation.backend is None and str(explanation).startswith("backend: none (chosen by: automatic)")


def test_explain_says_what_would_run_and_runs_nothing(engines: dict[str, _Recorder]) -> None:
    engines["cuda"].unavailable = ["no NVIDIA GPU"]
    explanation = idsel.explain(X, 2, importance=S)
    assert (explanation.backend, explanation.chosen_by, explanation.algorithm) == (
        "triton",
        "automatic",
        "the triton way",
    )
    assert str(explanation).splitlines() == [
        "backend: triton (chosen by: automatic)",
        "algorithm: the triton way",
        "  cuda: no NVIDIA GPU",
        "  triton: can run this",
        "  cpu: can run this",
        "  torch: can run this",
    ]
    with idsel.use_backend("cuda"):
        refused = idsel.explain(X, 2, importance=S)
    assert (refused.backend, refused.chosen_by, refused.algorithm) == (None, "use_backend", "")
    assert not _ran(engines)


def test_explanation_of_the_torch_engine_names_its_algorithm() -> None:
    def algorithm(tokens: int, k: int, rule: idsel.Rule, **more: torch.Tensor) -> str:
        features = torch.zeros(tokens, 4)
        return idsel.explain(features, k, rule, torch.zeros(tokens), backend="torch", **more).algorithm

    assert algorithm(576, 64, idsel.MMR()) == "the whole Gram by matrix product, then 64 greedy steps"
    assert algorithm(2880, 16, idsel.MMR()).endswith("one row of similarities by matrix-vector product")
    assert algorithm(16384, 8000, idsel.MMR()).endswith("one row of similarities by matrix-vector product")
    assert algorithm(576, 4, idsel.MaxMin()).startswith("the whole Gram")
    assert algorithm(576, 4, idsel.MaxMin(start=0)).startswith("4 greedy steps")
    assert algorithm(2880, 4, idsel.Coverage()).startswith("the whole Gram")
    assert algorithm(576, 4, idsel.TopK()) == "4 greedy steps on the importance"
    offsets = torch.tensor([0, 6], dtype=torch.int32)
    assert algorithm(6, 4, idsel.MMR(), cu_seqlens=offsets).startswith("by each sample's N and k, the whole Gram")


def test_engines_that_this_build_lacks_are_reasons_not_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._MODULES, "cuda", "idsel_kernels.engines.absent")
    dispatch._load.cache_clear()
    try:
        assert dispatch.backend_status()["cuda"] == ["this build of idsel_kernels has no cuda engine"]
        assert "cuda" not in idsel.available_backends()
        assert idsel.explain(X, 2, importance=S).reasons["cuda"] == ("this build of idsel_kernels has no cuda engine",)
    finally:
        dispatch._load.cache_clear()


def test_torch_is_always_available_and_last() -> None:
    assert idsel.available_backends()[-1] == "torch"
    assert dispatch.BACKENDS == ("cuda", "triton", "cpu", "torch")


def test_explanation_is_frozen() -> None:
    explanation = idsel.explain(X, 2, importance=S)
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.backend = "cuda"  # type: ignore[misc]


def test_import_loads_neither_triton_nor_an_extension() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import idsel_kernels;"
        "new = set(sys.modules) - before;"
        "bad = [m for m in new if m.split('.')[0] in ('triton', 'matplotlib', 'rich', 'PIL', 'transformers')"
        " or m.startswith(('idsel_kernels._core', 'idsel_kernels.triton_impl', 'idsel_kernels.engines.cuda'))];"
        "sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

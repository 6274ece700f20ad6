"""The backends that tests run on, and how a call reaches one: its tensors on the backend's device, the picks back."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from cases import EXACT_CASES, FEW_INPUTS, SAME_BRANCH, TELLING_PICKS

import idsel_kernels as idsel
from idsel_kernels import calls, dispatch
from idsel_kernels.engines.base import Engine

sys.path.insert(0, str(Path(__file__).parent / "emulator"))
import emulated

Count = TypeVar("Count", int, list[int])
DEFAULT_RULE = idsel.IDSelection()


@dataclass(frozen=True)
class Backend:
    """A backend as tests use it. They hold tensors on the CPU and get their results there.

    Attributes:
        id: in the ids of tests, and for `--backend`.
        name: what `select` knows it by.
        device: where its tensors have to be.
        marks: of every test on it.
        running: what it needs around a test.
        takes: whether it runs the tests of a rule and an input of `cases`, given by their names (None: a test without).
            `takes` and `most_picks` are the only differences in how slow backends are tested.
        most_picks: to compare, where an input needs no more to show what it is for.
    """

    id: str
    name: str
    device: torch.device
    marks: tuple[pytest.MarkDecorator, ...] = ()
    running: Callable[[pytest.FixtureRequest], AbstractContextManager[Any]] = nullcontext
    takes: Callable[[str | None, str | None], bool] = lambda rule, case: True
    most_picks: int | None = None

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the backend's device, with the strides and offset it has: `Tensor.to` would pack it."""
        if tensor.device.type == self.device.type:
            return tensor
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        storage = tensor.detach().as_strided((elements,), (1,), 0).to(self.device)
        moved = storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return moved.requires_grad_(tensor.requires_grad)

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `select`, their tensors on the backend's device."""
        return {name: self.put(value) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}

    def select(
        self,
        features: torch.Tensor,
        k: int | list[int],
        rule: idsel.Rule = DEFAULT_RULE,
        importance: torch.Tensor | None = None,
        **more: Any,
    ) -> idsel.Selection:
        """`idsel.select` on this backend."""
        inputs = self.inputs({"features": features, "importance": importance, **more})
        return self.fetch(idsel.select(**inputs, k=k, rule=rule, backend=self.name))

    def fetch(self, sel: tuple[torch.Tensor, torch.Tensor]) -> idsel.Selection:
        """A selection made on the backend's device, on the CPU."""
        assert {tensor.device.type for tensor in sel} == {self.device.type}
        return idsel.Selection(*(tensor.cpu() for tensor in sel))

    def fewer(self, k: Count, case: str = "") -> Count:
        """The picks to compare of an input: the first ones, which do not depend on those that follow."""
        if self.most_picks is None:
            return k
        most = max(self.most_picks, TELLING_PICKS.get(case, 0))
        return [min(count, most) for count in k] if isinstance(k, list) else min(k, most)


def same(a: idsel.Selection, b: idsel.Selection) -> bool:
    """Bit for bit."""
    return torch.equal(a.indices, b.indices) and torch.equal(a.scores, b.scores)


def set_gram_budget(monkeypatch: pytest.MonkeyPatch, name: str, budget_bytes: int) -> None:
    """What a backend of that name may keep of similarities, before it goes on in panels."""
    monkeypatch.setattr(dispatch._load(name), "gram_budget_bytes", budget_bytes)
    calls.forget()


@contextmanager
def registered(engine: Engine) -> Iterator[None]:
    """Makes an engine of the tests the last backend: only its name chooses it."""
    module = ModuleType(f"idsel_test_engine_{engine.name}")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.ENGINE = engine  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    dispatch._MODULES[engine.name] = module.__name__
    dispatch.BACKENDS = tuple(dispatch._MODULES)
    try:
        yield
    finally:
        del dispatch._MODULES[engine.name]
        dispatch.BACKENDS = tuple(dispatch._MODULES)
        dispatch._load.cache_clear()
        calls.forget()


# --- Device code on the CPU -------------------------------------------------------------------------------------------


def _skip_if(reasons: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


def _not_installed() -> list[str]:
    """What the emulator is built with."""
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
    missing += [] if importlib.util.find_spec("pybind11") else ["pybind11"]
    return [f"not installed: {', '.join(missing)}"] if missing else []


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN and the largest integers, so that what device code reads without having written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which comes with it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _emulated(test: pytest.FixtureRequest) -> Iterator[None]:
    with registered(emulated.engine()), poisoned_memory():
        yield


def _emulator_takes(rule: str | None, case: str | None) -> bool:
    if rule is None:  # all rules at once
        return case in (None, *FEW_INPUTS)
    return case is not None or rule not in SAME_BRANCH


# The cuda engine with its device code built for the CPU.
EMULATED = Backend(
    emulated.NAME,
    emulated.NAME,
    torch.device("cpu"),
    (pytest.mark.kernels, _skip_if(_not_installed())),
    running=_emulated,
    takes=_emulator_takes,
)

# Triton decides when it is imported, so once for a process.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _not_interpreted() -> list[str]:
    if importlib.util.find_spec("triton") is None:
        return ["triton is not installed (pip install 'idsel_kernels[triton]')"]
    return [] if IS_INTERPRETED else ["needs a pytest started with TRITON_INTERPRET=1: make kernels"]


@contextmanager
def _with_fast_interpreter(test: pytest.FixtureRequest) -> Iterator[None]:
    from triton_interpreter import large_blocks, speed_up

    speed_up()
    blocks = large_blocks() if "golden_run" in test.fixturenames else nullcontext()  # which have many tokens and picks
    with blocks, poisoned_memory():
        yield


def _interpreter_takes(rule: str | None, case: str | None) -> bool:
    if rule is None:  # all rules at once
        return case in (None, "ragged")
    return case in FEW_INPUTS or (rule not in SAME_BRANCH and case not in EXACT_CASES)


# The triton engine under Triton's interpreter.
INTERPRETED = Backend(
    "triton-interpreted",
    "triton",
    torch.device("cpu"),
    (
        pytest.mark.kernels,
        pytest.mark.interpreter,
        _skip_if(_not_interpreted()),
        pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, of NaN and infinities
    ),
    running=_with_fast_interpreter,
    takes=_interpreter_takes,
    most_picks=6,
)


# --- Which there are --------------------------------------------------------------------------------------------------

STAND_IN = "stand-in"


def for_shared_tests(ids: list[str] | None) -> list[Backend]:
    """What the `backend` fixture goes through: those that run on this machine, and device code run on the CPU."""
    here = [_described(name) for name in idsel.available_backends() if not (IS_INTERPRETED and name == "triton")]
    return _named([*here, EMULATED, INTERPRETED], ids)


def for_gpu_tests(ids: list[str] | None) -> list[Backend]:
    """What the `gpu` fixture goes through: every engine that the CPU is no device of, available or not."""
    status = dispatch.backend_status()
    engines = [name for name in status if "cpu" not in (dispatch.device_types(name) or ("cpu",))]
    return _named([_described(name, _skip_if(status[name])) for name in engines], ids)


def reason_against(id_: str) -> str | None:
    """Why no test can run on a backend of that id here; None where nothing is known."""
    known = [*(backend.id for backend in for_shared_tests(None)), STAND_IN]
    if id_ in known:
        return None
    reasons = dispatch.backend_status().get(id_)
    return f"{id_}: {'; '.join(reasons)}" if reasons else f"--backend must be one of {', '.join(known)}, got {id_!r}"


def _named(known: list[Backend], ids: list[str] | None) -> list[Backend]:
    if ids is None:
        return known
    known = [*known, _stand_in()] if STAND_IN in ids else known
    return [backend for backend in known if backend.id in ids]


def _described(name: str, *marks: pytest.MarkDecorator) -> Backend:
    device, *_ = dispatch.device_types(name) or ("cpu",)
    return Backend(name, name, torch.device(device), marks)


def _stand_in() -> Backend:
    """The torch engine on a device of its own: for tests of the suite, of which each needs to run once there."""
    import stand_in

    return Backend(
        STAND_IN,
        stand_in.ENGINE.name,
        stand_in.DEVICE,
        running=lambda test: registered(stand_in.ENGINE),
        takes=lambda rule, case: rule in (None, "mmr") and case in (None, "strided", "ragged-masked", "exact-N70-D1"),
        most_picks=3,
    )

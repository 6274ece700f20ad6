"""The cuda engine on the emulator, as the backend "cuda-emulated" of the tests."""

from __future__ import annotations

import fcntl
import functools
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

from idsel_kernels.engines.cuda import CudaEngine

NAME = "cuda-emulated"
ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "emulator"


def build() -> None:
    """Builds the module; one process at a time, the others then find it done."""
    import pybind11

    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        options += ["-DIDSEL_EMULATOR=ON", "-DIDSEL_PYTHON=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O2"]
        run("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options)
        run("cmake", "--build", str(BUILD), "--target", "_emulated")


def load() -> ModuleType:
    """The module `_core` with the emulated engine inside."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    path = BUILD / "tests" / "emulator" / f"_core{suffix}"
    spec = importlib.util.spec_from_file_location("idsel_emulated._core", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EmulatedEngine(CudaEngine):
    name = NAME
    device_types = ("cpu",)

    def __init__(self) -> None:
        super().__init__()
        self.module = load()

    def _library(self) -> ModuleType:
        return self.module

    def _library_failure(self) -> str | None:
        return None

    def _rule_ids(self) -> frozenset[int]:
        return frozenset(rule_id for rule_id, *_ in self.module.rules())

    def _device_failure(self, index: int) -> str | None:
        failure: str | None = self.module.cuda_failure(index)
        return failure

    def _device_count(self) -> int:
        return 1

    def _is_capturing(self) -> bool:
        return False

    def _current_device(self) -> None:
        return None

    def _stream(self, device: torch.device) -> int:
        return 0


@functools.cache
def engine() -> EmulatedEngine:
    """Built first, once in a process."""
    build()
    return EmulatedEngine()


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"

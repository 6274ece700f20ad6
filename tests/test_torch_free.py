"""The C++ sources and the compiled library know nothing of torch, nor of each other's business."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from idsel_kernels import _native

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = [path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cuh", ".cu"}]


def _includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE)


def test_there_are_sources() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_no_source_includes_torch(path: Path) -> None:
    assert not [name for name in _includes(path) if re.match(r"(torch|ATen|c10|THC)\b", name)]


# Each folder of csrc includes itself and those before it.
LAYERS = ("include", "common", "rules", "cpu", "cuda", "core", "bindings")
ASIDE = {("cuda", "cpu")}  # two engines, which know nothing of each other


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_no_source_includes_what_lies_above_it(path: Path) -> None:
    layer = path.relative_to(CSRC).parts[0]
    for name in _includes(path):
        folder = "include" if name.startswith("idsel/") else name.split("/")[0]
        if "/" in name and folder in LAYERS:
            assert LAYERS.index(folder) <= LAYERS.index(layer) and (layer, folder) not in ASIDE, name


def test_only_the_binding_includes_pybind11() -> None:
    users = {path.relative_to(CSRC).as_posix() for path in SOURCES if any("pybind11" in n for n in _includes(path))}
    assert users == {"bindings/module.cpp"}


def test_the_public_header_needs_only_fixed_width_integers() -> None:
    assert _includes(CSRC / "include/idsel/select.h") == ["stdint.h"]


@pytest.mark.parametrize(
    "compiler", [["cc", "-x", "c", "-std=c99"], ["c++", "-x", "c++", "-std=c++17"]], ids=["c", "c++"]
)
def test_the_public_header_compiles_as(compiler: list[str]) -> None:
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}")
    header = CSRC / "include/idsel/select.h"
    subprocess.run([*compiler, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", header], check=True)


def test_the_library_links_no_torch() -> None:
    if _native.failure() is not None:
        pytest.skip(str(_native.failure()))
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    module = _native.library().__file__
    dynamic = subprocess.run(["readelf", "-d", module], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert needed
    assert not [name for name in needed if re.search(r"torch|c10|cuda|gomp|omp", name)]


def test_the_library_exports_its_init_and_nothing_else() -> None:
    if _native.failure() is not None:
        pytest.skip(str(_native.failure()))
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    module = _native.library().__file__
    listing = subprocess.run(["nm", "-D", "--defined-only", module], check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in listing.splitlines()}
    assert names - {"_init", "_fini"} == {"PyInit__core"}

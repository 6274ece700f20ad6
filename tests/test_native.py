"""The native test programs under CTest, plain and with sanitizers, and the library as a CMake package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import emulated
import pytest
import torch

import idsel_kernels as idsel

ROOT = Path(__file__).parents[1]
TOOLS = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}")

SANITIZERS = ("address,undefined", "thread")


def _run(*command: object, cwd: Path | None = None, **more: str) -> str:
    words, environment = [str(part) for part in command], {**os.environ, **more}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _runtime_missing(sanitizer: str, folder: Path) -> bool:
    source = folder / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    built = subprocess.run(
        ["c++", f"-fsanitize={sanitizer}", source, "-o", folder / "probe"], capture_output=True, check=False
    )
    return built.returncode != 0 or subprocess.run([folder / "probe"], capture_output=True, check=False).returncode != 0


def _configure(build: Path, *options: str) -> None:
    _run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DIDSEL_TESTS=ON", *options)


def _test(build: Path) -> None:
    _run("cmake", "--build", build)
    _run("ctest", "--test-dir", build, "--output-on-failure", TSAN_OPTIONS="halt_on_error=1")


@pytest.mark.kernels
@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_native_programs_are_clean(sanitizers: str, tmp_path: Path) -> None:
    if _runtime_missing(sanitizers, tmp_path):
        pytest.skip(f"this compiler has no {sanitizers} sanitizer that runs here")
    # Sanitizers want to see the code rather than what an optimiser left of it; it also builds much faster.
    options = [f"-DIDSEL_SANITIZE={sanitizers}", "-DCMAKE_CXX_FLAGS_RELEASE=-Og"]
    if "address" in sanitizers:  # fibers change stacks, which the other does not follow
        options += ["-DIDSEL_EMULATOR=ON", "-DIDSEL_EMULATOR_UNITY=ON"]
    _configure(tmp_path / "build", *options)
    _test(tmp_path / "build")


def test_native_programs_pass_and_the_example_finds_the_installed_library(tmp_path: Path) -> None:
    build, prefix, example = tmp_path / "build", tmp_path / "prefix", tmp_path / "example"
    _configure(build, "-DCMAKE_CXX_FLAGS_RELEASE=-O2")
    _test(build)
    _run("cmake", "--install", build, "--prefix", prefix)
    assert _run_example(prefix, example) == f"CPU: {_kept_by_the_example()}\n"


# Host memory behind the names of the CUDA runtime.
RUNTIME = """
#include <cstdlib>
#include <cstring>
extern "C" {
int cudaMalloc(void** to, size_t bytes) { return (*to = std::malloc(bytes)) == nullptr; }
int cudaFree(void* of) { return std::free(of), 0; }
int cudaMemset(void* to, int value, size_t bytes) { return std::memset(to, value, bytes), 0; }
int cudaMemcpy(void* to, const void* from, size_t bytes, int) { return std::memcpy(to, from, bytes), 0; }
}
"""


@pytest.mark.kernels
def test_the_example_hands_over_cuda_pointers_as_the_engine_wants_them(tmp_path: Path) -> None:
    """On the emulator: what a GPU would be given."""
    if shutil.which("nvcc") is None:
        pytest.skip("the headers of CUDA come with nvcc")
    pytest.importorskip("pybind11", reason="the emulator is a module made with pybind11")
    emulated.build()
    (tmp_path / "runtime.cpp").write_text(RUNTIME)
    example = ROOT / "examples/cpp"
    code = (example / "main.cpp", example / "cuda.cpp", tmp_path / "runtime.cpp")
    library = emulated.BUILD / "tests" / "emulator" / "libidsel_emulated.a"
    options = ("-std=c++17", "-DWITH_CUDA", "-cudart", "none", "-I", ROOT / "csrc/include", "-o", tmp_path / "example")
    _run("nvcc", *options, *code, library)
    assert _run(tmp_path / "example") == "".join(f"{name}: {_kept_by_the_example()}\n" for name in ("CPU", "GPU"))


def _run_example(prefix: Path, build: Path) -> str:
    flags = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"
    options = ("-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_CXX_FLAGS={flags}")
    _run("cmake", "-S", ROOT / "examples/cpp", "-B", build, *options)
    _run("cmake", "--build", build)
    return _run(build / "example")


def _kept_by_the_example() -> str:
    """What `idsel.select` keeps of the numbers in examples/cpp/main.cpp."""
    tokens, dim = torch.arange(48)[:, None], torch.arange(16)
    features = ((tokens // 3 + 1) * (dim + 2) * 31 % 17 - 8).float()
    importance = (tokens[:, 0] ** 2 % 53).float() / 53
    sel = idsel.select(features, 6, rule=idsel.MMR(), importance=importance, backend="torch")
    return " ".join(map(str, sel.indices[0].tolist()))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What an installation needs, in a folder of its own."""
    pytest.importorskip("pybind11", reason="pybind11 is a build requirement")
    source = tmp_path / "source"
    wanted = [
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CMakeLists.txt",
        "cmake",
        "csrc",
        "idsel_kernels",
        "triton_impl",
    ]
    source.mkdir()
    for name in wanted:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("*.so", "_core.txt", "__pycache__"))
        elif origin.exists():
            shutil.copy(origin, source / name)
    return source


def test_sdist_has_all_that_compiling_takes(sources: Path) -> None:
    _run(sys.executable, "setup.py", "-q", "sdist", "--formats=tar", "--dist-dir", sources.parent, cwd=sources)
    (archive,) = sources.parent.glob("idsel_kernels-*.tar")
    with tarfile.open(archive) as files:
        names = {Path(*Path(name).parts[1:]) for name in files.getnames()}
    wanted = [sources / "CMakeLists.txt", *(sources / "cmake").rglob("*"), *(sources / "csrc").rglob("*")]
    assert {path.relative_to(sources) for path in wanted} <= names


def _install(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", str(sources.parent / "lib")]
    # No compiler, so that it ends soon whatever it decides.
    environment = {**os.environ, "CXX": "/nonexistent/c++", **environment}
    return subprocess.run(build, cwd=sources, env=environment, capture_output=True, text=True, check=False)


def _notes(sources: Path) -> str:
    """What `idsel info` then reads, because pip does not show what a build prints."""
    return (sources.parent / "lib" / "idsel_kernels" / "_core.txt").read_text()


def test_install_without_a_compiler_says_so_and_works(sources: Path) -> None:
    """The package installs without the library unless IDSEL_CPU=1 demands it."""
    done = _install(sources)
    assert done.returncode == 0, done.stderr
    assert "going on without the C++ library: `cmake -S " in done.stderr
    assert "without the C++ library: `cmake -S " in _notes(sources)
    # What an earlier build left behind points into the environment that pip made for it, and removed.
    (cache,) = sources.glob("build/temp*/cpu/CMakeCache.txt")
    cache.write_text(re.sub(r"(?<=CMAKE_MAKE_PROGRAM:FILEPATH=).*", "/gone/ninja", cache.read_text()))
    assert "/gone/ninja" in cache.read_text()
    done = _install(sources, IDSEL_CPU="1")
    assert "/gone/ninja" not in done.stdout + done.stderr
    assert done.returncode != 0
    assert "IDSEL_CPU=1, but the C++ library does not build" in done.stderr


OLD_NVCC = """#!/bin/sh
echo 'nvcc: NVIDIA (R) Cuda compiler driver'
echo 'Cuda compilation tools, release 11.8, V11.8.89'
"""


def test_install_says_what_becomes_of_the_cuda_engine(sources: Path, tmp_path: Path) -> None:
    old = tmp_path / "nvcc"
    old.write_text(OLD_NVCC)
    old.chmod(0o755)
    broken = shutil.which("false")
    assert broken is not None
    for nvcc, reason, error in (
        ("/nonexistent/nvcc", "there is no nvcc: ", "there is no nvcc: "),
        (str(old), f"{old} is too old: it is of CUDA 11.8, and 12 or later", f"{old} is too old: it is of CUDA 11.8"),
        (broken, "`cmake -S ", "the CUDA engine does not build"),
    ):
        done = _install(sources, CUDACXX=nvcc)
        assert done.returncode == 0, done.stderr
        assert (f"building the CUDA engine with {nvcc}" in done.stderr) == (nvcc == broken)
        assert f"going on without the CUDA engine: {reason}" in done.stderr
        assert f"without the CUDA engine: {reason}" in _notes(sources)
        done = _install(sources, CUDACXX=nvcc, IDSEL_CUDA="1")
        assert done.returncode != 0
        assert f"IDSEL_CUDA=1, but {error}" in done.stderr
    done = _install(sources, CUDACXX=broken, IDSEL_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert _notes(sources).startswith("without the CUDA engine: IDSEL_CUDA=0\n")

"""The native test programs under CTest, plain and with sanitizers, and the library as a CMake package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}")

SANITIZERS = ("address,undefined", "thread")


def _run(*command: object, **more: str) -> None:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **more}, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"


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
    # Sanitizers want to see the code rather than what an optimiser left of it; it also builds faster.
    _configure(tmp_path / "build", f"-DIDSEL_SANITIZE={sanitizers}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    _test(tmp_path / "build")


CONSUMER = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES CXX)
find_package(idsel REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE idsel::idsel)
"""

PROGRAM = """
#include <idsel/select.h>
int main() {
  const float features[] = {1, 0, 1, 0.1f, 0, 1};
  const float importance[] = {1, 0.9f, 0.5f};
  const int64_t k[] = {2};
  const double params[] = {20, 0};
  int64_t indices[2];
  float scores[2];
  idsel::Args args{};
  args.abi = IDSEL_ABI;
  args.features = features;
  args.batch = 1, args.tokens = 3, args.dim = 2;
  args.features_batch_stride = 6, args.features_token_stride = 2, args.features_dim_stride = 1;
  args.importance = importance;
  args.importance_batch_stride = 3, args.importance_token_stride = 1;
  args.k = k, args.k_count = 1, args.k_max = 2;
  args.params = params, args.param_count = 2;
  args.indices = indices, args.scores = scores;
  args.threads = 1;
  return idsel::select(args) == IDSEL_OK && indices[0] == 0 && indices[1] == 2 ? 0 : 1;
}
"""


def test_native_programs_pass_and_the_library_is_usable_through_find_package(tmp_path: Path) -> None:
    build, prefix, consumer = tmp_path / "build", tmp_path / "prefix", tmp_path / "consumer"
    _configure(build, "-DCMAKE_CXX_FLAGS_RELEASE=-O2")
    _test(build)
    _run("cmake", "--install", build, "--prefix", prefix)
    consumer.mkdir()
    (consumer / "CMakeLists.txt").write_text(CONSUMER)
    (consumer / "main.cpp").write_text(PROGRAM)
    _run("cmake", "-S", consumer, "-B", consumer / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    _run("cmake", "--build", consumer / "build")
    _run(consumer / "build" / "consumer")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What an installation needs, in a folder of its own."""
    pytest.importorskip("pybind11", reason="pybind11 is a build requirement")
    source = tmp_path / "source"
    wanted = [
        "setup.py",
        "pyproject.toml",
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
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif origin.exists():
            shutil.copy(origin, source / name)
    return source


def _install(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", str(sources.parent / "lib")]
    # No compiler, so that it ends soon whatever it decides.
    environment = {**os.environ, "CXX": "/nonexistent/c++", **environment}
    return subprocess.run(build, cwd=sources, env=environment, capture_output=True, text=True, check=False)


def test_install_without_a_compiler_says_so_and_works(sources: Path) -> None:
    """The package installs without the library unless IDSEL_CPU=1 demands it."""
    done = _install(sources)
    assert done.returncode == 0, done.stderr
    assert "installing without the C++ library" in done.stderr
    done = _install(sources, IDSEL_CPU="1")
    assert done.returncode != 0
    assert "IDSEL_CPU=1, but the C++ library does not build" in done.stderr


def test_install_says_what_becomes_of_the_cuda_engine(sources: Path) -> None:
    missing = "/nonexistent/nvcc"
    assert "CUDA engine" not in _install(sources, CUDACXX=missing).stderr
    done = _install(sources, CUDACXX=missing, IDSEL_CUDA="1")
    assert done.returncode != 0
    assert "IDSEL_CUDA=1, but there is no nvcc" in done.stderr
    broken = shutil.which("false")
    assert broken is not None
    done = _install(sources, CUDACXX=broken)
    assert done.returncode == 0, done.stderr
    assert f"building the CUDA engine with {broken}" in done.stderr
    assert "going on without the CUDA engine" in done.stderr
    done = _install(sources, CUDACXX=broken, IDSEL_CUDA="1")
    assert done.returncode != 0
    assert "IDSEL_CUDA=1, but the CUDA engine does not build" in done.stderr
    assert "CUDA engine" not in _install(sources, CUDACXX=broken, IDSEL_CUDA="0").stderr

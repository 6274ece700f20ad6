"""Packages, and the compiled library by CMake and Ninja; metadata is in pyproject.toml.

Environment: IDSEL_CPU=1 makes a failing C++ build fail the installation (otherwise the package installs without the
compiled library and says so), IDSEL_CPU=0 skips it. The CUDA engine is built where nvcc is found, and left out with a
word where that fails; IDSEL_CUDA=1 makes either an error, IDSEL_CUDA=0 leaves it out. IDSEL_CUDA_ARCHS is a list of
compute capabilities ("80,90") or "all". CMAKE_ARGS is handed to CMake.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeExtension(Extension):
    """The whole of CMakeLists.txt; setuptools only has to know where the module goes."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], optional=False)


class CMakeBuild(build_ext):
    """Configures and builds `_core`, and copies nothing by hand: CMake writes it where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds `ext`; without a compiler the package goes without, unless IDSEL_CPU=1."""
        demanded = os.environ.get("IDSEL_CPU")
        if demanded == "0":
            self._without("IDSEL_CPU=0")
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        if self._with_cuda(target):
            return
        try:
            self._cmake(target, cuda=False)
        except (OSError, subprocess.CalledProcessError) as error:
            if demanded == "1":
                raise RuntimeError(f"IDSEL_CPU=1, but the C++ library does not build: {error}") from error
            self._without(f"{error}; the output above says why")

    def _with_cuda(self, target: Path) -> bool:
        """Builds with the CUDA engine where that is possible and not forbidden; whether it did."""
        demanded = os.environ.get("IDSEL_CUDA")
        if demanded == "0":
            return False
        nvcc = _find_nvcc()
        if nvcc is None:
            if demanded == "1":
                raise RuntimeError("IDSEL_CUDA=1, but there is no nvcc: not on PATH, nor in CUDA_HOME, nor as CUDACXX")
            return False
        say(f"building the CUDA engine with {nvcc}; IDSEL_CUDA=0 leaves it out, IDSEL_CUDA_ARCHS says for which GPUs")
        try:
            self._cmake(target, cuda=True, nvcc=nvcc)
        except (OSError, subprocess.CalledProcessError) as error:
            if demanded == "1":
                raise RuntimeError(f"IDSEL_CUDA=1, but the CUDA engine does not build: {error}") from error
            say(f"going on without the CUDA engine: {error}; the output above says why. IDSEL_CUDA=1 makes it an error")
            return False
        return True

    def _cmake(self, target: Path, cuda: bool, nvcc: str = "") -> None:
        import pybind11

        # A folder of its own: what CMake remembers of a build that failed does not get in the way.
        build = Path(self.build_temp).resolve() / ("cuda" if cuda else "cpu")
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DIDSEL_PYTHON=ON",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DIDSEL_CUDA={'ON' if cuda else 'OFF'}",
            *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if cuda else []),
            f"-DIDSEL_CUDA_ARCHS={os.environ.get('IDSEL_CUDA_ARCHS', '')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_core"], check=True)

    def _without(self, reason: str) -> None:
        say(
            f"installing without the C++ library, so without the cpu backend: {reason}\n"
            "The torch backend works. IDSEL_CPU=1 turns this into an error."
        )

    def get_outputs(self) -> list[str]:
        """The module, if it was built."""
        return [path for path in super().get_outputs() if os.path.exists(path)]

    def copy_extensions_to_source(self) -> None:
        """An editable install has the module beside the sources."""
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))
            if built.exists():
                inplace, regular = self._get_inplace_equivalent(self.get_finalized_command("build_py"), ext)
                self.copy_file(regular, inplace)


def say(text: str) -> None:
    """To standard error, because pip hides the rest of a build that succeeds."""
    print(f"\nidsel_kernels: {text}\n", file=sys.stderr)


def _find_nvcc() -> str | None:
    """As CMake looks for it: CUDACXX, CUDA_HOME, PATH, the usual place."""
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named)
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    search = [*folders, *os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(map(str, search)))


setup(
    packages=["idsel_kernels", "idsel_kernels.engines", "idsel_kernels.triton_impl"],
    package_dir={"idsel_kernels": "idsel_kernels", "idsel_kernels.triton_impl": "triton_impl"},
    ext_modules=[CMakeExtension("idsel_kernels._core")],
    cmdclass={"build_ext": CMakeBuild},
)

"""Packages, and the compiled library by CMake and Ninja; metadata is in pyproject.toml.

Environment: IDSEL_CPU=1 makes a failing C++ build fail the installation (otherwise the package installs without the
compiled library and says so), IDSEL_CPU=0 skips it. The CUDA engine is built where an nvcc is found that is new enough,
and left out with a word where that fails; IDSEL_CUDA=1 makes either an error, IDSEL_CUDA=0 leaves it out.
IDSEL_CUDA_ARCHS is a list of compute capabilities ("80,90") or "all". CMAKE_ARGS is handed to CMake.

pip shows nothing of a build that succeeds. So what was left out is also written beside the library, for `idsel info`.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# The package itself needs torch, which is no build requirement.
COPIES = runpy.run_path(str(ROOT / "idsel_kernels" / "_copies.py"))
BESIDE = (COPIES["NOTES"], COPIES["DIGEST"])  # the library, for idsel_kernels/_copies.py
OLDEST_CUDA = 12


class CMakeExtension(Extension):
    """The whole of CMakeLists.txt; setuptools only has to know where the module goes."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], optional=False)


class CMakeBuild(build_ext):
    """Configures and builds `_core`, and copies nothing by hand: CMake writes it where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds `ext`; without a compiler the package goes without, unless IDSEL_CPU=1."""
        demanded = os.environ.get("IDSEL_CPU")
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        target = module.parent
        self.notes = target / COPIES["NOTES"]
        for path in (module, *(target / name for name in BESIDE)):  # of an earlier build in this checkout
            path.unlink(missing_ok=True)
        if demanded == "0":
            self._without("the C++ library", "IDSEL_CPU=0")
            return
        if self._with_cuda(target):
            return
        try:
            self._cmake(target, cuda=False)
        except (OSError, subprocess.CalledProcessError) as error:
            if demanded == "1":
                raise RuntimeError(f"IDSEL_CPU=1, but the C++ library does not build: {_why(error)}") from None
            self._without("the C++ library", f"{_why(error)}; IDSEL_CPU=1 makes it an error that pip shows")

    def _with_cuda(self, target: Path) -> bool:
        """Builds with the CUDA engine where that is possible and not forbidden; whether it did."""
        demanded = os.environ.get("IDSEL_CUDA")
        if demanded == "0":
            self._without("the CUDA engine", "IDSEL_CUDA=0")
            return False
        try:
            nvcc = _find_nvcc()
            say(f"building the CUDA engine with {nvcc}; IDSEL_CUDA_ARCHS says for which GPUs, IDSEL_CUDA=0 not to")
            self._cmake(target, cuda=True, nvcc=nvcc)
        except NoNvcc as error:
            if demanded == "1":
                raise RuntimeError(f"IDSEL_CUDA=1, but {error}") from None
            self._without("the CUDA engine", str(error))
        except (OSError, subprocess.CalledProcessError) as error:
            if demanded == "1":
                raise RuntimeError(f"IDSEL_CUDA=1, but the CUDA engine does not build: {_why(error)}") from None
            self._without("the CUDA engine", f"{_why(error)}; IDSEL_CUDA=1 makes it an error that pip shows")
        else:
            return True
        return False

    def _cmake(self, target: Path, cuda: bool, nvcc: str = "") -> None:
        import pybind11

        # A new folder of its own: CMake would remember a build that failed, or pip's environment of the last one, which
        # is gone, and its ninja with it.
        build = Path(self.build_temp).resolve() / ("cuda" if cuda else "cpu")
        shutil.rmtree(build, ignore_errors=True)
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
        (target / COPIES["DIGEST"]).write_text(f"{COPIES['digest'](ROOT)}\n", encoding="ascii")

    def _without(self, what: str, reason: str) -> None:
        say(f"going on without {what}: {reason}")
        self.notes.parent.mkdir(parents=True, exist_ok=True)
        with self.notes.open("a", encoding="utf-8") as notes:
            notes.write(f"without {what}: {reason}\n")

    def get_outputs(self) -> list[str]:
        """The module and what is written beside it, as far as it was."""
        outputs = super().get_outputs()
        outputs += [str(Path(path).with_name(name)) for path in outputs for name in BESIDE]
        return [path for path in outputs if os.path.exists(path)]

    def copy_extensions_to_source(self) -> None:
        """An editable install has them beside the sources."""
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))
            inplace, _ = self._get_inplace_equivalent(self.get_finalized_command("build_py"), ext)
            for name in (built.name, *BESIDE):
                origin, copy = built.with_name(name), Path(inplace).with_name(name)
                copy.unlink(missing_ok=True)  # that of an earlier build
                if origin.exists():
                    self.copy_file(str(origin), str(copy))


class NoNvcc(Exception):
    """There is none, or it is too old."""


def say(text: str) -> None:
    """To whoever runs pip with --verbose, or gets an error."""
    print(f"\nidsel_kernels: {text}\n", file=sys.stderr)


def _why(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"`{' '.join(error.cmd[:3])} ...` failed"
    return str(error)


def _find_nvcc() -> str:
    """As CMake looks for it: CUDACXX, CUDA_HOME, PATH, the usual place."""
    named = os.environ.get("CUDACXX")
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    search = [*folders, *os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/cuda/bin"]
    nvcc = shutil.which(named) if named else shutil.which("nvcc", path=os.pathsep.join(map(str, search)))
    if nvcc is None:
        raise NoNvcc("there is no nvcc: not on PATH, nor in CUDA_HOME, nor as CUDACXX")
    words = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.\d+", words)
    if release and int(release[1]) < OLDEST_CUDA:
        raise NoNvcc(f"{nvcc} is too old: it is of CUDA {release[0].split()[1]}, and {OLDEST_CUDA} or later is needed")
    return nvcc


setup(
    license="Apache-2.0",  # in pyproject.toml it needs setuptools 77, which --no-build-isolation may not find
    packages=[
        "_idsel_start",
        "idsel_kernels",
        "idsel_kernels._cli",
        "idsel_kernels.compat",
        "idsel_kernels.engines",
        "idsel_kernels.integrations",
        "idsel_kernels.integrations.transformers",
        "idsel_kernels.triton_impl",
    ],
    package_dir={
        "_idsel_start": "idsel_kernels/_cli/start",  # outside the package, which imports torch
        "idsel_kernels": "idsel_kernels",
        "idsel_kernels.triton_impl": "triton_impl",
    },
    ext_modules=[CMakeExtension("idsel_kernels._core")],
    cmdclass={"build_ext": CMakeBuild},
)

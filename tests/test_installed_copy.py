"""Python in a checkout's root imports the sources there: with the installed copy's library, or with a clear word.

The installed copy is a real installation by pip that compiles nothing; the library that these tests run with is put
into it. Interpreters run with -S, so that an editable installation in the environment of the tests plays no part.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from idsel_kernels import __version__, _copies, _native, env_report

ROOT = Path(__file__).parents[1]
PACKAGES = sysconfig.get_path("purelib")
PARTS = ("CMakeLists.txt", "LICENSE", "README.md", "cmake", "csrc", "idsel_kernels", "pyproject.toml", "setup.py")

needs_library = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
needs_setuptools = pytest.mark.skipif(
    shutil.which("pip", path=str(Path(sys.executable).parent)) is None, reason="installs with pip"
)

REPORT = """
import json, sys, torch, idsel_kernels as idsel
from idsel_kernels import _native, env_report
case = idsel.inputs.clustered(1, 40, 16)
picks = idsel.select(**case.inputs(), k=5).indices.tolist()
explained = str(idsel.explain(**case.inputs(), k=5))
facts = env_report.collect()["idsel_kernels"]
print(json.dumps({"backends": idsel.available_backends(), "picks": picks, "explained": explained, **facts}))
"""


def _python(code: str, folder: Path, *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a folder, with these paths before those of the environment's packages."""
    search = os.pathsep.join([*map(str, paths), PACKAGES])
    variables = {**os.environ, "PYTHONPATH": search, **environment}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


def _report(folder: Path, *paths: Path) -> dict[str, Any]:
    done = _python(REPORT, folder, *paths)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _copy_checkout(target: Path) -> Path:
    """The sources, with nothing built in them."""
    target.mkdir()
    unbuilt = shutil.ignore_patterns("_core.*", "__pycache__")
    for name in (*PARTS, "triton_impl"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, target / name, ignore=unbuilt)
        else:
            shutil.copy(origin, target / name)
    return target


@pytest.fixture(scope="module")
def pip_installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkout, and the folder of packages that `pip install` of it made without compiling."""
    folder = tmp_path_factory.mktemp("installed")
    checkout, packages = _copy_checkout(folder / "checkout"), folder / "packages"
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(packages))
    command = [sys.executable, "-m", "pip", "install", *options, str(checkout)]
    subprocess.run(command, env={**os.environ, "IDSEL_CPU": "0"}, check=True, timeout=300)
    shutil.rmtree(checkout / "build", ignore_errors=True)
    return checkout, packages


@pytest.fixture
def installed(pip_installed: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same for one test to change, and with the library that these tests run with."""
    checkout, packages = (shutil.copytree(path, tmp_path / path.name) for path in pip_installed)
    copy = packages / "idsel_kernels"
    (copy / _copies.NOTES).unlink()
    shutil.copy(str(_native.library().__file__), copy)
    (copy / _copies.DIGEST).write_text(f"{_copies.digest(checkout)}\n")
    return checkout, packages


@needs_library
def test_the_checkouts_root_and_another_folder_have_the_same_engine(installed: tuple[Path, Path]) -> None:
    checkout, packages = installed
    inside, outside = _report(checkout, packages), _report(packages.parent, packages)
    assert inside["location"] == str(checkout / "idsel_kernels")
    assert outside["location"] == str(packages / "idsel_kernels")
    assert inside["explained"].startswith("backend: cpu ") and inside["explained"] == outside["explained"]
    for key in ("backends", "picks", "library"):
        assert inside[key] == outside[key]
    assert Path(inside["library"]).parent == packages / "idsel_kernels"
    assert outside["build"] == "complete"
    assert inside["build"].startswith("complete; this source tree has no library of its own")


@needs_library
def test_a_library_of_other_sources_is_not_used_but_named(installed: tuple[Path, Path]) -> None:
    checkout, packages = installed
    with (checkout / "csrc" / "core" / "select.cpp").open("a") as source:
        source.write("// changed since\n")
    report = _report(checkout, packages)
    word = (
        f"the compiled library is not built in {checkout / 'idsel_kernels'}, the copy of idsel_kernels in use, and "
        f"that of {packages / 'idsel_kernels'} is not of the C++ sources here: start Python in another folder to use "
        f"that copy, or build it here with `pip install -e {checkout}`"
    )
    assert "cpu" not in report["backends"]
    assert f"  cpu: {word}" in report["explained"]
    assert (report["library"], report["build"]) == (None, word)


@needs_library
def test_an_installed_library_that_does_not_load_breaks_nothing(installed: tuple[Path, Path]) -> None:
    checkout, packages = installed
    (library,) = (packages / "idsel_kernels").glob("_core.*so")
    library.write_bytes(b"no library")
    for folder in (checkout, packages.parent):
        report = _report(folder, packages)
        assert report["build"].startswith("the compiled library does not load: ")
        assert str(library) in report["build"]


def test_where_nothing_is_built_the_reason_is_that_of_the_installation(pip_installed: tuple[Path, Path]) -> None:
    checkout, packages = pip_installed
    copy = packages / "idsel_kernels"
    assert _report(packages.parent, packages)["build"] == (
        "the compiled library is not built (without the C++ library: IDSEL_CPU=0)"
    )
    assert _report(checkout, packages)["build"] == (
        f"the compiled library is not built ({copy}: without the C++ library: IDSEL_CPU=0)"
    )
    assert _report(checkout)["build"] == (
        f"the compiled library is not built ({checkout / 'idsel_kernels'} is a source tree, and no installed copy has "
        f"one either; `pip install -e {checkout}` builds it here)"
    )


def test_the_installed_script_says_the_version(pip_installed: tuple[Path, Path]) -> None:
    _, packages = pip_installed
    script = packages / "bin" / "idsel"
    code = f"import runpy, sys; sys.argv = ['idsel', '--version']; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = _python(code, packages.parent, packages)
    assert (done.returncode, done.stdout) == (0, f"idsel {__version__}\n"), done.stderr


def test_a_checkout_finds_its_triton_kernels(pip_installed: tuple[Path, Path]) -> None:
    pytest.importorskip("triton")
    checkout, _ = pip_installed
    code = (
        "import idsel_kernels as idsel; from idsel_kernels.engines import triton;"
        "print('triton' in idsel.available_backends(), triton._library().__file__)"
    )
    done = _python(code, checkout, TRITON_INTERPRET="1")
    assert done.stdout.split() == ["True", str(checkout / "triton_impl" / "launch.py")], done.stderr


@pytest.mark.parametrize("missing", ["matplotlib", "rich"])
def test_the_bench_names_the_extra_that_it_needs(missing: str) -> None:
    for name in ("matplotlib", "rich"):
        pytest.importorskip(name, reason=f"{name} is missing already (pip install '.[bench]')")
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('bench', run_name='__main__')"
    done = _python(code, ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"python -m bench needs the extra: pip install '.[bench]' ({missing} not found)\n"


def test_the_bench_says_which_copy_it_measures(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    command = pytest.importorskip("bench.__main__", exc_type=SystemExit)
    monkeypatch.setattr(command, "_print_floor", lambda measured: None)
    command.main(["--quick", "--device", "cpu", "--suite", "overhead", "--shapes", "1x16x8x2"])
    assert env_report.installation() in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.kernels
def test_a_fresh_environment_after_pip_install(tmp_path: Path) -> None:
    """The whole of it: a virtual environment, `pip install .` with its compiler run, both folders."""
    if missing := [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    checkout, venv = _copy_checkout(tmp_path / "checkout"), tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip())
    # torch and what builds; of an editable installation there it takes nothing, that being a .pth file itself.
    (packages / "borrowed.pth").write_text(f"{PACKAGES}\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-build-isolation", "--no-deps"]
    words = [*install, "--quiet", "--no-index", "."]
    subprocess.run(words, cwd=checkout, env={**os.environ, "IDSEL_CUDA": "0", "IDSEL_CPU": "1"}, check=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    reports = [
        json.loads(
            subprocess.run(
                [python, "-c", REPORT], cwd=folder, env=variables, capture_output=True, text=True, check=True
            ).stdout
        )
        for folder in (checkout, tmp_path)
    ]
    assert [Path(report["location"]) for report in reports] == [
        checkout / "idsel_kernels",
        packages / "idsel_kernels",
    ]
    for report in reports:
        assert report["explained"].startswith("backend: cpu ")
        assert Path(report["library"]).parent == packages / "idsel_kernels"
    assert reports[0]["picks"] == reports[1]["picks"]
    script = [venv / "bin" / "idsel", "--version"]
    said = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    assert said == f"idsel {__version__}\n"

"""What building the package asks for: metadata that old and new releases of setuptools read the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml, so needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_license_is_where_every_setuptools_finds_it(settings: dict[str, Any]) -> None:
    """As text in pyproject.toml it needs setuptools 77, as a table newer ones warn of it, and its files are found."""
    project = settings["project"]
    assert not {"license", "license-files"} & set(project)
    assert "license" in project["dynamic"]
    assert (ROOT / "LICENSE").is_file()
    (setuptools,) = (need for need in settings["build-system"]["requires"] if need.startswith("setuptools"))
    assert setuptools == "setuptools>=61.2"  # the first that does; `make older-setuptools` builds with it


def test_the_installed_setuptools_reads_it_without_a_warning() -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed (pip install setuptools)")
    command = [sys.executable, "-W", "error", "setup.py", "--name", "--license", "--classifiers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, license_, *classifiers = done.stdout.splitlines()
    assert (re.sub("-", "_", name), license_) == ("idsel_kernels", "Apache-2.0")
    # Nobody should have to guess, and nothing is claimed that was not run: docs/platforms.md says what was.
    page = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    versions = [c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert versions
    for version in versions:
        assert re.search(rf"^\| {re.escape(version)}(\.\d+)? \|", page, flags=re.MULTILINE), version

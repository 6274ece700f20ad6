"""Which library a copy without one takes, case by case; tests/test_installed_copy.py goes through it for real."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from idsel_kernels import _copies, _native

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a library is compiled from, in miniature."""
    root = tmp_path / "checkout"
    (root / "csrc" / "rules").mkdir(parents=True)
    (root / "cmake").mkdir()
    (root / "CMakeLists.txt").write_text("project(idsel)\n")
    (root / "csrc" / "rules" / "rule.h").write_text("struct Rule {};\n")
    return root


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy with a library, which nobody loads."""
    folder = tmp_path / "site-packages" / "idsel_kernels"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / f"_core{SUFFIX}").touch()
    return folder


def _stands_in(monkeypatch: pytest.MonkeyPatch, root: Path, *others: Path) -> None:
    monkeypatch.setattr(_copies, "ROOT", root)
    monkeypatch.setattr(_copies, "PACKAGE", root / "idsel_kernels")
    monkeypatch.setattr(_copies, "_other_copies", lambda: iter(others))


def test_digest_is_of_everything_that_is_compiled(checkout: Path, tmp_path: Path) -> None:
    before = _copies.digest(checkout)
    assert before is not None and len(before) == 64 and before == _copies.digest(checkout)
    (checkout / "csrc" / "notes.md").write_text("not compiled")
    assert _copies.digest(checkout) == before
    (checkout / "csrc" / "rules" / "rule.h").write_text("struct Rule { int id; };\n")
    assert _copies.digest(checkout) != before
    assert _copies.digest(tmp_path) is None


def test_the_library_of_the_same_sources_is_taken(
    checkout: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stands_in(monkeypatch, checkout, installed)
    loaded: list[Path] = []
    monkeypatch.setattr(_copies, "_load", lambda path: loaded.append(path))
    (installed / _copies.DIGEST).write_text(f"{_copies.digest(checkout)}\n")
    _copies.load_from_other_copy()
    assert loaded == [installed / f"_core{SUFFIX}"]


@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_a_library_of_other_sources_is_named_and_not_taken(
    digest: str | None, checkout: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stands_in(monkeypatch, checkout, installed)
    if digest is not None:
        (installed / _copies.DIGEST).write_text(digest)
    with pytest.raises(_copies.NotBuilt, match="is not of the C\\+\\+ sources here") as refused:
        _copies.load_from_other_copy()
    assert str(installed) in str(refused.value) and f"pip install -e {checkout}" in str(refused.value)


def test_without_any_library_the_reason_is_that_of_the_installation(
    checkout: Path, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed / f"_core{SUFFIX}").unlink()
    _stands_in(monkeypatch, checkout, installed)
    with pytest.raises(_copies.NotBuilt, match="is a source tree, and no installed copy has one either"):
        _copies.load_from_other_copy()
    (installed / _copies.NOTES).write_text("without the C++ library: no compiler\n")
    with pytest.raises(_copies.NotBuilt, match=r"site-packages/idsel_kernels: without the C\+\+ library: no compiler"):
        _copies.load_from_other_copy()
    _stands_in(monkeypatch, tmp_path)  # not a checkout
    with pytest.raises(_copies.NotBuilt, match="it needs a C\\+\\+ compiler when idsel_kernels is installed"):
        _copies.load_from_other_copy()
    monkeypatch.setattr(_copies, "PACKAGE", installed)
    with pytest.raises(_copies.NotBuilt, match=r"\(without the C\+\+ library: no compiler\)"):
        _copies.load_from_other_copy()


def test_other_copies_are_those_on_the_path_and_of_finders(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(installed.parent)])

    class Broken:
        def find_spec(self, name: str, path: object) -> None:
            raise RuntimeError

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Broken()])
    assert installed in list(_copies._other_copies())
    monkeypatch.setattr(_copies, "PACKAGE", installed)
    assert installed not in list(_copies._other_copies())


def test_a_file_that_fails_to_import_leaves_nothing_behind(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("ANSWER = 42")
    bad.write_text("raise OSError('broken')")
    try:
        assert _copies._load(good, "idsel_kernels._test_copy").ANSWER == 42
        assert "idsel_kernels._test_copy" in sys.modules
    finally:
        sys.modules.pop("idsel_kernels._test_copy", None)
    with pytest.raises(OSError, match="broken"):
        _copies._load(bad, "idsel_kernels._test_copy")
    assert "idsel_kernels._test_copy" not in sys.modules
    with pytest.raises(ImportError, match="is not a module for this Python"):
        _copies._load(tmp_path / "library.unknown", "idsel_kernels._test_copy")


def test_a_checkout_provides_its_triton_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "triton_impl").mkdir()
    (checkout / "triton_impl" / "__init__.py").touch()
    monkeypatch.setattr(_copies, "ROOT", checkout)
    loaded: list[tuple[Path, str]] = []
    monkeypatch.setattr(_copies, "_load", lambda path, name: loaded.append((path, name)))
    monkeypatch.setattr(_copies.importlib.util, "find_spec", lambda name: None)
    _copies.add_triton_impl()
    assert loaded == [(checkout / "triton_impl" / "__init__.py", "idsel_kernels.triton_impl")]


def test_why_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    load = _native._load.__wrapped__
    monkeypatch.setattr(_native.importlib, "import_module", lambda name: SimpleNamespace(ABI=-1))
    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: object())
    assert load() == f"the compiled library has ABI -1, this package needs {_native.ABI}: reinstall idsel_kernels"

    def broken(*names: str) -> None:
        raise OSError("undefined symbol")

    monkeypatch.setattr(_native.importlib, "import_module", broken)
    assert load() == "the compiled library does not load: undefined symbol"

    def missing() -> None:
        raise _copies.NotBuilt("nowhere")

    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_copies, "load_from_other_copy", missing)
    assert load() == "nowhere"


def test_the_state_of_a_borrowed_library_says_so(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = installed / f"_core{SUFFIX}"
    monkeypatch.setattr(_native, "_load", lambda: SimpleNamespace(__file__=str(library)))
    path, state = _native.build_state()
    assert path == str(library)
    assert state.startswith("complete; this source tree has no library of its own")
    monkeypatch.setattr(_native, "_load", lambda: "no compiler")
    assert _native.build_state() == (None, "no compiler")

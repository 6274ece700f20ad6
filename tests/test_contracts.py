"""Comments in the sources name what is there: the functions of a contract, and files.

What C++ templates ask of a type (a rule, a model, an executor) is written as a contract, in a comment that clang-format
leaves alone:

    // clang-format off
    // contract: NAME: FILE FILE+BASE ...
    // Any text.
    //   float update(loop, j, dot)    what it does; the name may be that of a function or of a constant
    //                                 more indented: goes on with the text
    // clang-format on

FILES are relative to csrc/ and define the types that keep the contract; `+` joins a file and the one of its base. Every
name must be declared in each of them.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
NATIVE = {".h", ".cuh", ".cu", ".cpp"}


def _native_sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in NATIVE)


# --- Contracts --------------------------------------------------------------------------------------------------------


class Contract(NamedTuple):
    source: str
    name: str
    files: list[list[str]]  # of each type: where it and its bases are
    members: list[str]


def _contracts(csrc: Path) -> Iterator[Contract]:
    for path in _native_sources(csrc):
        source = path.relative_to(csrc).as_posix()
        text = re.sub(r"^ +//", "//", path.read_text(), flags=re.M)  # as if nothing were indented
        for block in re.findall(r"^// clang-format off\n(.*?)^// clang-format on$", text, re.M | re.S):
            if not all(line.startswith("//") for line in block.splitlines()):
                continue  # code
            before, *texts = re.split(r"^// contract: ", block, flags=re.M)
            assert not before.strip("/ \n"), f"{source}: a comment without `contract:` needs no fence"
            for text in texts:
                name, _, files = text.partition("\n")[0].partition(": ")
                signatures = re.findall(r"^//   (\S.*?)(?:  .*)?$", text, re.M)
                members = [re.sub(r"\(.*", "", signature).split()[-1].lstrip("*&") for signature in signatures]
                yield Contract(source, name, [group.split("+") for group in files.split()], members)


def _declares(code: str, name: str) -> bool:
    """Whether `name` stands behind a type, and is followed by what a declaration goes on with."""
    return re.search(rf"(?<![\w.:])(?!return\b|else\b)\w[\w:<>]*[\s*&]+{name}\s*[(\[={{;]", code) is not None


def _without_comments(code: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.S)


def _broken(csrc: Path) -> list[str]:
    """What the contracts name and a type lacks."""
    problems = []
    for contract in _contracts(csrc):
        for group in contract.files:
            missing = [name for name in group if not (csrc / name).is_file()]
            problems += [f"{contract.source}: {contract.name}: there is no {name}" for name in missing]
            code = _without_comments("".join((csrc / name).read_text() for name in group if name not in missing))
            for member in contract.members:
                if not missing and not _declares(code, member):
                    problems.append(f"{contract.source}: {contract.name}: {group[0]} lacks {member}")
    return problems


def test_there_are_contracts() -> None:
    contracts = list(_contracts(CSRC))
    assert {"cuda", "cpu"} <= {contract.source.partition("/")[0] for contract in contracts}
    for contract in contracts:
        assert contract.files and len(contract.members) >= 2, f"{contract} is not in the form that this file describes"


def test_every_type_keeps_its_contracts() -> None:
    assert not _broken(CSRC)


def test_a_renamed_function_breaks_its_contract(tmp_path: Path) -> None:
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    contract = next(c for c in _contracts(csrc) if c.source not in c.files[0])
    group, member = contract.files[0], contract.members[0]
    for name in group:
        path = csrc / name
        path.write_text(re.sub(rf"\b{member}\b", "renamed", path.read_text()))
    assert f"{contract.source}: {contract.name}: {group[0]} lacks {member}" in _broken(csrc)

    (csrc / group[0]).unlink()
    assert f"{contract.source}: {contract.name}: there is no {group[0]}" in _broken(csrc)


@pytest.mark.parametrize(
    ("code", "declared"),
    [
        ("float update(int j) {", True),
        ("IDSEL_DEVICE const float* update(int j);", True),
        ("std::vector<float> update(int j);", True),
        ("static constexpr bool update = true;", True),
        ("static constexpr const char* update[2] = {};", True),
        ("model.update(j);", False),
        ("return update(j);", False),
        ("Model::update(j);", False),
        ("float update_all(int j);", False),
        ("// float update(int j);", False),
    ],
)
def test_only_declarations_count(code: str, declared: bool) -> None:
    assert _declares(_without_comments(code), "update") == declared


# --- Files in comments ------------------------------------------------------------------------------------------------


def _comments(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix in NATIVE:
        return "\n".join(re.findall(r"//[^\n]*|/\*.*?\*/", text, re.S))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(docstrings + [token.string for token in tokens if token.type == tokenize.COMMENT])


def _missing_files(path: Path) -> list[str]:
    """Files that comments of a source name: from the root, csrc/, csrc/include/ or the folder of the source.

    Those of other projects begin with github.com/.
    """
    folders = (ROOT, CSRC, CSRC / "include", path.parent)
    named = re.findall(r"(?<![\w./*-])[\w-][\w./-]*\.(?:h|cuh|cu|cpp|md|py)\b(?![\w/])", _comments(path))
    named = [name for name in named if not name.startswith("github.com/")]
    return sorted({name for name in named if not any((folder / name).exists() for folder in folders)})


SOURCES = [
    *_native_sources(CSRC),
    *sorted((ROOT / "triton_impl").rglob("*.py")),
    *sorted((ROOT / "idsel_kernels").rglob("*.py")),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_in_comments_exist(path: Path) -> None:
    assert not _missing_files(path)


def test_a_file_that_is_gone_is_found(tmp_path: Path) -> None:
    native, python = tmp_path / "loop.cuh", tmp_path / "loop.py"
    native.write_text('#include "gone.h"\n// As in cuda/arch.cuh, not as in crew.cuh:\n/* nor in idsel/older.h */\n')
    assert _missing_files(native) == ["crew.cuh", "idsel/older.h"]
    python.write_text('"""See docs/gone.md."""\nname = "gone.py"  # and README.md\n')
    assert _missing_files(python) == ["docs/gone.md"]


def test_setup_names_every_package() -> None:
    named = set(re.findall(r'^        "([\w.]+)",$', (ROOT / "setup.py").read_text(), flags=re.MULTILINE))
    folders = [path.parent for path in (ROOT / "idsel_kernels").rglob("__init__.py")]
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders if folder.name != "start"}
    assert found - named == set()

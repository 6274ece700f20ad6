"""The pages say what is so: their code runs, their output is what it prints, and what they point at exists."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import pytest

import idsel_kernels
from idsel_kernels._cli import command as cli
from idsel_kernels.engines import reference
from idsel_kernels.rules import RULES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PACKAGE = ROOT / "idsel_kernels"

on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    language: str
    options: str
    text: str
    line: int


def _blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, also those indented inside an admonition."""
    blocks, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"( *)```(.*)$", line)
        if fence and opened is None:
            language, _, options = fence[2].strip().partition(" ")
            opened, indent, lines = (language, options, number + 1), len(fence[1]), []
        elif fence and opened is not None:
            language, options, first = opened
            blocks.append(Block(language, options, "".join(f"{text}\n" for text in lines), first))
            opened = None
        elif opened is not None:
            lines.append(line[indent:])
    assert opened is None, f"{page.name}: a block is not closed"
    return blocks


def _prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the shell blocks, as (where, words)."""
    for page in PAGES:
        for block in _blocks(page):
            if block.language in ("bash", "sh", "shell", "console"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    if words:
                        yield f"{page.relative_to(ROOT)}: {line}", words


def _modules() -> list[str]:
    found = pkgutil.walk_packages(idsel_kernels.__path__, "idsel_kernels.")
    return ["idsel_kernels", *(module.name for module in found if not module.name.endswith("__main__"))]


# --- Code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "python" for block in _blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_blocks_run_and_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look their module up
    printed = None
    # What a page sets or registers is gone after it.
    with mock.patch.dict(os.environ), mock.patch.dict(reference._STATES):
        for block in _blocks(page):
            if block.language == "python":
                # The name and the empty lines make a traceback point into the page.
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(code, vars(module))
                printed = output.getvalue()
            elif 'title="Output"' in block.options:
                assert printed is not None, f"{page.name}:{block.line}: no code before this output"
                assert printed == block.text, f"{page.name}:{block.line}: the code above prints something else"
                printed = None


@pytest.mark.parametrize("module", _modules())
def test_doctests_pass(module: str) -> None:
    if module in ("idsel_kernels._cli.demo", "idsel_kernels._cli.figure", "idsel_kernels._cli.model"):
        pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0, "see the captured output"


def test_public_functions_and_rules_have_an_example() -> None:
    for name in idsel_kernels.__all__:
        thing = getattr(idsel_kernels, name)
        results = ("Explanation", "Merged", "Pruned", "Selection")
        if callable(thing) and name not in (*results, "Rule", "UnsupportedProblem"):
            assert ">>> " in (thing.__doc__ or ""), f"{name} has no example"


def test_idsel_commands_parse() -> None:
    checked = 0
    for where, words in _commands():
        if words[:3] == ["python", "-m", "idsel_kernels"]:
            words = ["idsel", *words[3:]]
        if Path(words[0]).name != "idsel":
            continue
        end = next((i for i, word in enumerate(words) if word in ("|", ">", ">>", "&&", ";")), len(words))
        try:
            arguments = cli._parser().parse_args(words[1:end])
            if hasattr(arguments, "rule"):
                cli._rule(arguments.rule, arguments.param)
        except SystemExit as stop:  # --help and --version
            assert not stop.code, where
        except (cli.UserError, TypeError, ValueError) as error:
            pytest.fail(f"{where}: {error}")
        checked += 1
    assert checked >= 8, "the command-line examples are gone"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for where, words in _commands():
        if words[0] == "make":
            wanted = {word for word in words[1:] if "=" not in word}
            assert wanted <= targets, f"{where}: the Makefile has {sorted(targets)}"
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", _prose(page)))
        assert named <= targets, f"{page.name}: the Makefile has {sorted(targets)}"


# --- What the pages point at ------------------------------------------------------------------------------------------


@on_every_page
def test_links_and_images_exist(page: Path) -> None:
    text = _prose(page)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    # docs/changelog.md and docs/contributing.md are made of files from the root.
    targets += re.findall(r'^--8<-- "(.+)"$', text, flags=re.MULTILINE)
    for target in targets:
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        path = target.partition("#")[0]
        included = f'--8<-- "{target}"' in text
        assert ((ROOT if included else page.parent) / path).exists(), f"{page.name} points at {target}"


def _paths(text: str) -> set[str]:
    """Paths from the root in a line of text or code: those that begin with a folder of the checkout."""
    made = {"build", "dist", "site"}
    folders = (path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in made)
    tops = "|".join(re.escape(name) for name in folders if not name.startswith(".") or name == ".ci")
    return {path.rstrip(".") for path in re.findall(rf"(?<![\w./-])(?:{tops})/[\w./*-]+", text)}


def _there(path: str) -> bool:
    return any(ROOT.glob(path.rstrip("/")))


@on_every_page
def test_paths_in_the_text_exist(page: Path) -> None:
    sources = {path.name for path in (ROOT / "csrc").rglob("*")}
    for code in re.findall(r"`([^`\n]+)`", _prose(page)):
        missing = [path for path in _paths(code) if not _there(path)]
        assert not missing, f"{page.name} names {missing}"
        # A source without its folder; the guide also names files that its reader is to write.
        if re.fullmatch(r"[\w-]+\.(?:h|cuh|cu|cpp)", code) and page.name != "adding_a_rule.md":
            assert code in sources, f"{page.name} names {code}, which is not in csrc/"


def test_paths_in_commands_exist() -> None:
    missing = {where: path for where, words in _commands() for path in _paths(" ".join(words)) if not _there(path)}
    assert not missing


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("python bench/nothing.py --out=tests/x", {"bench/nothing.py", "tests/x"}),
        ("csrc/cuda/*.cuh", {"csrc/cuda/*.cuh"}),
        ("cmake -B build/lib; ../docs/x.md ./docs/y.md other/tests/z.py", set()),
    ],
)
def test_paths_are_found(text: str, paths: set[str]) -> None:
    assert _paths(text) == paths


def test_architecture_lists_files_that_exist_and_every_module_once() -> None:
    page = ROOT / "docs" / "architecture.md"
    (tree,) = (block.text for block in _blocks(page) if block.text.startswith("README.md "))
    listed = [line.split()[0] for line in tree.splitlines()]
    missing = sorted(name for name in listed if not (ROOT / name).exists())
    assert not missing, f"listed, but not there: {missing}"
    twice = sorted(name for name, times in Counter(listed).items() if times > 1)
    assert not twice, f"listed twice: {twice}"
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    unlisted = sorted(modules - set(listed))
    assert not unlisted, f"there, but not listed: {unlisted}"


def test_environment_variables_are_documented_and_read_in_one_place() -> None:
    def variables(path: Path) -> set[str]:
        return set(re.findall(r"\bIDSEL_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8")))

    known = variables(PACKAGE / "_env.py") | variables(ROOT / "setup.py")  # when it runs, when it is installed
    assert {"IDSEL_BACKEND", "IDSEL_CPU"} <= known
    assert variables(ROOT / "docs" / "env_vars.md") == known
    for source in PACKAGE.rglob("*.py"):
        assert variables(source) <= known, f"{source.name} names a variable that neither _env.py nor setup.py does"


def test_api_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: idsel_kernels\.(\w+)$", text, flags=re.MULTILINE))
    assert "rules" in described  # all of the module's classes
    described = described - {"rules"} | {"Rule", *RULES}
    # The version is a string, which no docstring describes.
    assert described == set(idsel_kernels.__all__) - {"__version__"}
    assert "`idsel_kernels.__version__`" in text


def test_rules_page_and_readme_name_every_rule_with_its_defaults() -> None:
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, rule in RULES.items():
        _, heading, section = page.partition(f"\n## {name}\n")
        assert heading, f"docs/rules.md has no section {name}"
        assert f"`{name}" in readme, f"README.md does not name {name}"
        section = section.partition("\n## ")[0]
        for field, default in vars(rule()).items():
            shown = re.search(rf"^\| `{field}` \| `?([^|`]+)`? \|", section, flags=re.MULTILINE)
            assert shown, f"docs/rules.md: {name} lacks {field}"
            assert shown[1].strip() == (f'"{default}"' if isinstance(default, str) else repr(default)) or (
                isinstance(default, float) and float(shown[1]) == default
            ), f"docs/rules.md: {name} has another default of {field}"


def _calls_of_table(section: str) -> dict[str, list[str]]:
    """The calls in the row of each method, as Python would write them; none where there is none."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert all(len(row) == 3 for row in rows)
    cells = {row[0].partition(",")[0]: row[2] for row in rows[1:]}
    codes = {method: re.findall(r"`([^`]*\([^`]*)`", cell) for method, cell in cells.items()}
    return {method: [ast.unparse(ast.parse(code)) for code in calls] for method, calls in codes.items()}


def _calls_of_block(code: str) -> dict[str, str]:
    """The entries of the dict `calls`, each with the functions of the block that it takes."""
    tree = ast.parse(code)
    functions = {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    (calls,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "calls"
    )
    assert isinstance(calls, ast.Dict)
    pairs = zip(calls.keys, calls.values, strict=True)
    entries = {ast.literal_eval(key): ast.unparse(value) for key, value in pairs if key}
    return {
        method: "\n".join([entry, *(functions[name] for name in functions if re.search(rf"\b{name}\b", entry))])
        for method, entry in entries.items()
    }


METHODS = (
    "FastV FasterVLM SparseVLM VisionZip PruMerge VisPruner DivPrune CDPruner DART D2Pruner MMG-Vid Nüwa VISA SCOPE "
    "HoloV VidCom2 EVS FlashVID MMTok"
)


def test_every_call_of_the_table_of_methods_is_run() -> None:
    page = ROOT / "docs" / "rules.md"
    _, heading, section = page.read_text(encoding="utf-8").partition("\n## Every method and its call\n")
    assert heading, "docs/rules.md has no table of methods"
    table = _calls_of_table(section)
    assert set(METHODS.split()) <= {method for method, calls in table.items() if calls}
    (block,) = (block for block in _blocks(page) if block.language == "python" and "\ncalls = {" in block.text)
    run = _calls_of_block(block.text)
    assert {method for method, calls in table.items() if calls} == set(run)
    for method, entry in run.items():
        for call in table[method]:
            assert call in entry, f"the row of {method} has {call}, which its entry of the block does not"


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason="the site is built by mkdocs-material (pip install '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in {*idsel_kernels.__all__} - {"__version__"}:
        name = f"rules.{name}" if name in {"Rule", *RULES} else name
        assert f'id="idsel_kernels.{name}"' in api, f"the API page does not describe {name}"
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text("utf-8"))
        assert not loaded, f"{page.name} loads from elsewhere: {loaded}"

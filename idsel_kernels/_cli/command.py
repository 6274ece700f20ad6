"""The `idsel` command, also `python -m idsel_kernels`.

Data goes to stdout, messages and progress to stderr. What a user got wrong is one line there,
with exit status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..env_report import collect, format_report, rows
from ..rules import RULES, Rule, by_name

if TYPE_CHECKING:
    import torch

    from ..selection import Selection

__all__ = ["main"]

BACKENDS_HELP = "cuda, triton, cpu or torch; it never falls back (default: chosen by the package)"


class UserError(Exception):
    """Something the user can put right; the message says what."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; None takes them from the command line.

    Returns:
        The exit status: 0; 2 where an argument, a file or the installation is at fault; 130 after Ctrl-C.

    Example:
        >>> main(["--version"])
        idsel 0.1.0
        0
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:
        # The reader of a pipe left, as `| head` does; Python would complain again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    # Errors of the package and of file formats: their text is for the user, their traceback is not.
    except (UserError, OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        print(f"idsel: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="idsel", description="Greedy visual-token selection from the command line.")
    parser.add_argument("--version", action="version", version=f"idsel {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_info(commands.add_parser("info", help="what is installed, and which backends can run here and why"))
    _add_select(commands.add_parser("select", help="select tokens from an array in a file"))
    _add_demo(commands.add_parser("demo", help="show what six rules keep of a picture"))
    return parser


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.description = "Reports versions, devices, tools and which backends can run here, or why not."
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table (default: table)")
    parser.set_defaults(run=_info)


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Selects k tokens per sample and prints JSON: indices in pick order, scores (null where a token was "
        "picked for want of others), the rule and the backend."
    )
    rules = ", ".join(f"{rule.short_name} ({name})" for name, rule in RULES.items())
    add = parser.add_argument
    add(
        "features",
        metavar="FEATURES",
        help="(N, D) or (B, N, D) array in a .npy, .npz or .safetensors file; float64 is rounded to float32",
    )
    add("--k", type=int, required=True, help="tokens to keep per sample (required)")
    add("--rule", default="id", metavar="RULE", help=f"short or class name: {rules} (default: id)")
    add(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="parameter of the rule, repeatable: gamma=10, floor=none, grid=24x24 (default: published values)",
    )
    add(
        "--importance",
        metavar="FILE",
        help="(N,) or (B, N) array (default: the array 'importance' in the archive of FEATURES, if any)",
    )
    add("--mask", metavar="FILE", help="bool or 0/1 array, 0 = not selectable (default: all are selectable)")
    add("--key", metavar="NAME", help="array of an archive for FEATURES (default: features, or the only one)")
    add("--backend", metavar="NAME", help=BACKENDS_HELP)
    add("--sort", action="store_true", help="ascending indices instead of pick order (default: pick order)")
    add("--validate", action="store_true", help="refuse NaN and infinite values (default: such tokens come last)")
    add("--output", metavar="FILE", help="write .json, or .npy of the indices (default: JSON to stdout)")
    add("--json", action="store_true", help="print the JSON also with --output (default: only without)")
    add(
        "--prune",
        metavar="FILE",
        help="write also the kept rows of FEATURES, in their order there, to a .npz file: hidden (B, k, D), indices "
        "(B, k), counts (B,) (default: picks only)",
    )
    parser.set_defaults(run=_select)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cuts a picture into patches, keeps a few of them by each of six rules, draws what is kept and prints "
        "how much of the importance and of the picture's variety it holds."
    )
    add = parser.add_argument
    add("image", nargs="?", metavar="IMAGE", help="picture (default: matplotlib's photograph of Grace Hopper)")
    add("--keep", type=int, default=16, help="patches to keep (default: 16)")
    add("--output", default="idsel_demo.png", metavar="FILE", help="PNG to write (default: idsel_demo.png)")
    add("--grid", type=int, default=24, help="patches on a side; a model brings its own (default: 24)")
    add(
        "--model",
        metavar="PATH_OR_ID",
        help="folder, or hub name of a model already downloaded, of a CLIP vision tower to take tokens from "
        "(default: none, patches are described by colours and gradients)",
    )
    add("--backend", metavar="NAME", help=BACKENDS_HELP)
    add("--json", action="store_true", help="print JSON instead of a table (default: table)")
    parser.set_defaults(run=_demo)


def _info(arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(collect(), indent=2))
        return
    if _missing("rich"):  # the first thing to look at when something is missing must not need anything
        print(format_report(collect()))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="idsel info", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    heading = ""
    for section, fact, text in rows(collect()):
        if section != heading:
            table.add_section()
        # As plain text: a path may hold what rich reads as markup.
        table.add_row(Text(section if section != heading else ""), Text(fact), Text(text))
        heading = section
    Console().print(table)


def _select(arguments: argparse.Namespace) -> None:
    from .. import api
    from .demo import device_for
    from .files import OUTPUTS, PRUNED, check_output, write_pruned, write_selection

    rule = _rule(arguments.rule, arguments.param)
    output = check_output(arguments.output, OUTPUTS)
    pruned = check_output(arguments.prune, PRUNED)
    held = _inputs(arguments)
    options = {
        **_computable(held, device_for(arguments.backend)),
        "k": arguments.k,
        "rule": rule,
        "sort": arguments.sort,
        "backend": arguments.backend,
    }
    backend = api.explain(**options).backend
    selection = api.select(**options, validate=arguments.validate)
    if (selection.indices < 0).any():
        print("idsel: note: a sample has fewer than k tokens; -1 pads its picks", file=sys.stderr)
    answer = {
        "indices": selection.indices.tolist(),
        "scores": [[_json_number(score) for score in row] for row in selection.scores.tolist()],
        "rule": type(rule).__name__,
        "params": dataclasses.asdict(rule),
        "backend": backend,
    }
    if pruned is not None:
        write_pruned(pruned, _kept(held["features"], selection))
    if output is not None:
        write_selection(output, answer)
    if output is None or arguments.json:
        print(json.dumps(answer, allow_nan=False))


def _demo(arguments: argparse.Namespace) -> None:
    # matplotlib brings numpy and Pillow.
    _require("idsel demo", "matplotlib", "rich")
    from rich.console import Console

    from .demo import result_table, run_demo

    with _progress(enabled=not arguments.json) as step:
        result = run_demo(
            arguments.image,
            arguments.keep,
            arguments.output,
            grid=arguments.grid,
            model=arguments.model,
            backend=arguments.backend,
            progress=step,
        )
    if arguments.json:
        print(json.dumps(result, allow_nan=False))
        return
    console = Console()
    console.print(result_table(result))
    console.print(f"wrote {result['output']}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(enabled: bool) -> Iterator[typing.Callable[[str], None]]:
    """A progress bar on stderr, or nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .demo import STEPS

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = not (enabled and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        # One step is under way while it is named: the bar counts those before it.
        task = bar.add_task("", total=STEPS, completed=-1)
        yield lambda label: bar.update(task, description=label, advance=1)


def _missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _require(command: str, *modules: str) -> None:
    if missing := _missing(*modules):
        names = " and ".join(missing)
        raise UserError(f"{command} needs the extra: pip install 'idsel_kernels[demo]' ({names} not found)")


def _rule(name: str, params: Sequence[str]) -> Rule:
    """The rule of that name, its parameters read as the types of their fields."""
    try:
        rule = by_name(name)
    except ValueError as error:  # it names the argument of `select`, which is the option but for its dashes
        raise UserError(f"--{error}") from None
    types_of = typing.get_type_hints(rule)
    fields = [field.name for field in dataclasses.fields(rule)]
    values = {}
    for param in params:
        field, separator, text = param.partition("=")
        if not separator:
            raise UserError(f"--param must be NAME=VALUE, got {param!r}")
        if field not in fields:
            allowed = ", ".join(fields) or "none, it has no parameters"
            raise UserError(f"--param of {rule.__name__} must be one of: {allowed}; got {field!r}")
        values[field] = _parse(field, text, types_of[field])
    return rule(**values)


def _parse(field: str, text: str, hint: Any) -> Any:
    """The first reading of the text that a type hint such as `float | None`, `tuple[int, int]` or a Literal allows."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if types.NoneType in choices and text.lower() == "none":
        return None
    for choice in choices:
        if typing.get_origin(choice) is typing.Literal and text in typing.get_args(choice):
            return text
        try:
            if typing.get_origin(choice) is tuple:
                return tuple(int(part) for part in text.replace(",", "x").split("x"))
            if choice in (int, float, str):
                return choice(text)
        except ValueError:
            continue
    wanted = " or ".join("none" if choice is types.NoneType else _type_words(choice) for choice in choices)
    raise UserError(f"--param {field} must be {wanted}, got {text!r}")


def _type_words(choice: Any) -> str:
    if typing.get_origin(choice) is tuple:
        return "like 24x24"
    if typing.get_origin(choice) is typing.Literal:
        return " or ".join(typing.get_args(choice))
    return {int: "an integer", float: "a number"}[choice]


def _inputs(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The arrays of a call as the files hold them, by the names of the arguments of `select`."""
    from .files import array_names, read_array

    path = Path(arguments.features)
    inputs = {"features": read_array(path, "features", arguments.key)}
    if arguments.importance is not None:
        inputs["importance"] = read_array(Path(arguments.importance), "importance")
    elif "importance" in array_names(path):
        inputs["importance"] = read_array(path, "importance", "importance")
    if arguments.mask is not None:
        mask = read_array(Path(arguments.mask), "mask")
        inputs["mask"] = mask if mask.is_floating_point() else mask.bool()
    return inputs


def _computable(held: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays on a device, with features that engines take."""
    import torch

    features = held["features"]
    # float64 is what numpy writes by default; no engine computes in it.
    features = features.float() if features.dtype is torch.float64 else features
    return {name: value.to(device) for name, value in {**held, "features": features}.items()}


def _kept(features: torch.Tensor, selection: Selection) -> dict[str, torch.Tensor]:
    """The rows that a selection keeps, as the file holds them, and where they were."""
    ordered = type(selection)(*(tensor.cpu() for tensor in selection)).sorted()
    rows = ordered.gather(features if features.dim() == 3 else features[None])
    return {"hidden": rows, "indices": ordered.indices, "counts": ordered.counts}


def _json_number(value: float) -> float | None:
    """A float32 in the fewest digits that give it back; JSON has no infinities."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__

"""`python -m bench`: run suites, or `report`, `compare` and `verify` records of earlier runs.

Tables go to stdout, progress to stderr. A provider that fails its check is shown as WRONG, without a time.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from idsel_kernels.env_report import installation

try:
    # Needed for pictures only, after minutes of measuring. (Without jsonschema a record is made all the same.)
    import matplotlib  # noqa: F401

    from . import compare, floor, records, report, workloads
    from .console import ERR, OUT, progress, suite_table
    from .harness import Budget
    from .suites import SUITES
    from .suites.session import Row, Session, unavailable
except ModuleNotFoundError as error:
    missing = str(error.name).partition(".")[0]
    if missing in ("bench", "idsel_kernels"):
        raise
    raise SystemExit(f"python -m bench needs the extra: pip install '.[bench]' ({missing} not found)") from None

STOPPED = "the rest of the suite"
QUICK = Budget(repeats=3, seconds=0.02, most=20)
QUICK_LIMIT_S = 40.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 1 where a provider was WRONG, a comparison or a check failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"report": report.main, "compare": compare.main, "verify": compare.verify_main}
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    return run(_parser().parse_args(words), words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[0])
    parser.epilog = "further commands: report, compare A.json B.json, verify; each has --help"
    add = parser.add_argument
    add("--suite", nargs="+", choices=SUITES, default=list(SUITES), metavar="NAME", help=f"of {', '.join(SUITES)}")
    add("--quick", action="store_true", help="few small shapes, under a minute, to see that everything runs")
    add("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--out", type=Path, help="write the record: a .json file, or a folder that gets DEVICE.json")
    add("--repeats", type=int, default=15, help="least number of timings of each (default: 15)")
    add("--seconds", type=float, default=0.3, help="time for each comparison beyond that (default: 0.3)")
    add("--shapes", nargs="+", type=workloads.Shape.parse, metavar="BxNxDxk", help="instead of the suites' lists")
    add("--limit", type=float, metavar="SECONDS", help="begin no shape after that (default: none; --quick: 40)")
    add("--no-compile", action="store_true", help="leave out torch.compile, half a minute a shape")
    return parser


def run(arguments: argparse.Namespace, words: list[str]) -> int:
    """Measures the floor, then the suites; prints and, if asked, records them."""
    begin = time.perf_counter()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    budget = QUICK if arguments.quick else Budget(arguments.repeats, arguments.seconds)
    limit = arguments.limit or (QUICK_LIMIT_S if arguments.quick else math.inf)
    environment = records.environment(device)
    OUT.print(f"{environment['device']['name']}, {environment['threads']} threads, torch {torch.__version__}, {dtype}")
    OUT.print(installation(), soft_wrap=True)
    _say_what_is_missing(device, arguments)
    with progress(len(arguments.suite) + 1) as bar:
        bar.step("floor")
        measured = floor.measure(device, dtype, budget)
        _print_floor(measured)
        bar.advance()
        session = Session(device, dtype, budget, measured, arguments.quick, arguments.shapes, not arguments.no_compile)
        session.say, session.step = OUT.print, bar.step
        rows: list[Row] = []
        for done, suite in enumerate(arguments.suite):
            # An even share of what is left; what a suite does not use goes to those after it.
            left = limit - (time.perf_counter() - begin)
            session.deadline = time.monotonic() + left / (len(arguments.suite) - done)
            rows += _suite(session, suite)
            bar.advance()
    record = _record(environment, measured, rows, words, time.perf_counter() - begin)
    records.check(record)
    if arguments.out:
        OUT.print(f"wrote {records.write(record, arguments.out)}", soft_wrap=True)
    wrong = sum(row["status"] == "wrong" for row in rows)
    OUT.print(f"{len(rows)} rows in {record['seconds']:.0f} s" + (f", {wrong} WRONG" if wrong else ""))
    return 1 if any(_is_failure(row) for row in rows) else 0


def _is_failure(row: Row) -> bool:
    """One of our engines is wrong, or a suite stopped."""
    ours = row["provider"] in records.SOURCES
    return (ours and row["status"] != "ok") or row["provider"] == STOPPED


def _suite(session: Session, suite: str) -> list[Row]:
    if not session.given and suite in workloads.GPU_SHAPES:
        gone = workloads.left_out(suite, workloads.shapes(suite, session.device, session.quick, None))
        why = "by --quick" if session.quick else "on a CPU, for time"
        if gone:
            OUT.print(f"{suite}, left out {why}: {' '.join(map(str, gone))}", soft_wrap=True, style="dim")
    rows: list[Row] = []
    try:
        rows.extend(SUITES[suite](session))
    except Exception as error:  # a record of the other suites is worth having
        ERR.print_exception()
        rows.append(unavailable(suite, STOPPED, f"{type(error).__name__}: {error}"[:200]))
    if suite != "prefill":
        rows.sort(key=lambda row: [row.get(axis, 0) for axis in "BNDk"])
    OUT.print(suite_table(suite, rows, session.on_gpu))
    return rows


def _say_what_is_missing(device: torch.device, arguments: argparse.Namespace) -> None:
    if device.type != "cuda":
        OUT.print("no GPU: graph replay, launches, the cuda and triton engines and the timed prefill need one")
    if arguments.quick or arguments.no_compile:
        OUT.print("torch.compile: left out")
    else:
        shapes = " ".join(map(str, workloads.COMPILED_SHAPES[device.type]))
        OUT.print(f"torch.compile: at {shapes} of the latency suite, as compiling takes half a minute each")


def _print_floor(measured: floor.Floor) -> None:
    OUT.print(
        f"floor: call {measured.call_us:.2f} µs, copy {measured.copy_gb_per_s:.1f} GB/s, "
        f"matrix product {measured.matrix_tflop_per_s:.3g} TFLOP/s, "
        f"step {measured.step_us:.2f} µs + {1e3 * measured.step_us_per_token:.2f} ns per token "
        f"({measured.step_method})",
        soft_wrap=True,
    )


def _record(
    environment: dict[str, Any], measured: floor.Floor, rows: list[Row], words: list[str], seconds: float
) -> dict[str, Any]:
    files = records.source_hashes()
    return {
        "schema": records.SCHEMA_VERSION,
        "command": shlex.join(["python", "-m", "bench", *_without_place(words)]),
        "seconds": round(seconds, 1),
        "environment": environment,
        "git": records.commit(),
        "sources": {"digest": records.digest(files), "files": files},
        "engines": records.engines_in(rows),
        "floor": measured._asdict(),
        "rows": rows,
    }


def _without_place(words: list[str]) -> list[str]:
    """The words of the command, without the path of a folder outside the checkout."""
    return ["OUT" if Path(word).is_absolute() else word for word in words]


if __name__ == "__main__":
    raise SystemExit(main())

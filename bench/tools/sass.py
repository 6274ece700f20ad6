"""What the loops of the CUDA kernels are made of: instructions, barriers, spills and registers, counted without a GPU.

    python -m bench.tools.sass [--arch 90] [--rules IDSelection] [--check] [--record] [--docs]

Compiles the kernel of each rule with nvcc and reads the listing of cuobjdump, which comes with CUDA and with Triton.
Counts are static: an unrolled loop counts all its copies, a branch counts on both sides, and an inner loop counts once.
`--check` fails on a figure that is over a limit or more than 10 % over the recorded one (sass.json), `--record` writes
that record, and `--docs` puts what is recorded into docs/cuda_engine.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "cuda_engine.md"
MARKERS = ("<!-- sass:begin -->", "<!-- sass:end -->")
SOURCES = {
    "IDSelection": "gram_id_selection", "MMR": "gram_mmr", "MaxMin": "gram_max_min",
    "HardSuppress": "gram_hard_suppress", "DPP": "gram_dpp", "Coverage": "gram_coverage", "TopK": "gram_top_k",
    "panels": "panel",
}  # fmt: skip
ARITHMETIC = ("-fmad=false",)  # as cmake/cuda.cmake has it
TOKENS = (1, 4, 12)  # a thread; the kernels have a pick loop for each

TOLERANCE = 1.1  # over the record
PICK_LIMIT = {1: 90, 4: 150}  # instructions of IDSelection
OTHER_RULES = 1.3  # how much more the rules that keep one number a token may take
BARRIERS = {"Coverage": 2, "panels": 0}  # a pick, where it is not one
LIMITED = ("IDSelection", "MMR", "MaxMin", "HardSuppress")
PER_MMA_LIMIT = 4
REGISTERS = 65536  # of a multiprocessor

# What the engine took before it was rewritten: a pick with up to four tokens a thread, and its mainloop per MMA.
BEFORE_PICK = {"IDSelection": "573"}
BEFORE_ANY_PICK = "364 to 1,023"
BEFORE_MAINLOOP = "23"

# A part of a kernel ("pick_4", "mainloop", "kernel") -> figure -> number. Lower is better in all but DESCRIPTIVE.
Figures = dict[str, dict[str, float]]
DESCRIPTIVE = ("mmas", "ffmas", "wide_loads", "ctas")


class Loop(NamedTuple):
    """A loop: its opcodes with their modifiers (LDG.E.128), without predicates and operands."""

    start: int
    opcodes: tuple[str, ...]

    def count(self, *names: str) -> int:
        """How many instructions have one of these names, whatever their modifiers."""
        return sum(opcode.split(".")[0] in names for opcode in self.opcodes)

    def narrow_loads(self) -> int:
        """Loads from global memory of less than 8 bytes."""
        return sum(bool(re.match(r"LDG\b(?!.*\.(64|128)\b)", opcode)) for opcode in self.opcodes)


class Usage(NamedTuple):
    """What a kernel takes. `spilled` is bytes of stack and local memory a thread."""

    registers: int
    spilled: int
    shared: int


# --- The listing -----------------------------------------------------------------------------------------------------


def functions(listing: str) -> dict[str, list[tuple[int, str]]]:
    """The functions of a listing: name -> (address, instruction)."""
    found: dict[str, list[tuple[int, str]]] = {}
    code: list[tuple[int, str]] = []
    for line in listing.splitlines():
        if name := re.match(r"\s*Function : (\S+)", line):
            code = found.setdefault(name[1], [])
        elif instruction := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            code.append((int(instruction[1], 16), instruction[2]))
    return found


def opcode_of(instruction: str) -> str:
    """`@!P0 LDG.E.64 R2, desc[UR4][R2.64]` -> `LDG.E.64`."""
    return re.sub(r"^@!?\w+\s+", "", instruction).split(" ")[0]


def loops(code: list[tuple[int, str]]) -> Iterator[Loop]:
    """Every stretch of code from the target of a backward branch to the branch."""
    places = {address: place for place, (address, _) in enumerate(code)}
    opcodes = tuple(opcode_of(instruction) for _, instruction in code)
    for place, (address, instruction) in enumerate(code):
        target = re.search(r"\b(0x[0-9a-f]+)", instruction) if opcodes[place].startswith("BRA") else None
        if target is not None and (start := int(target[1], 16)) < address and start in places:
            yield Loop(start, opcodes[places[start] : place + 1])


def usages(listing: str) -> dict[str, Usage]:
    """The resources of each function, from `cuobjdump -res-usage`."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = re.findall(pattern, listing)
    return {name: Usage(int(reg), int(stack) + int(local), int(shared)) for name, reg, stack, shared, local in found}


# --- Which loop is which ---------------------------------------------------------------------------------------------


def pick_loops(rule: str, found: list[Loop]) -> dict[str, Loop]:
    """The pick loops over tokens in registers, by part of the kernel. None for TopK, which sorts instead.

    They read the rows of the Gram and reduce to one winner; with 12 tokens a thread they hold more loads, and with 4
    more instructions than with 1. DPP has each twice: its history is in shared memory or, in a loop that stores
    through plain addresses, in the workspace.
    """
    if rule == "TopK":
        return {}
    synchronisations = (2, 3) if rule == "Coverage" else (1, 1)
    named = {}
    hot = [loop for loop in found if (loop.count("BAR"), loop.count("REDUX")) == synchronisations and loop.count("LDG")]
    for suffix, stores in (("", False), ("_workspace", True)):
        group = sorted(
            (loop for loop in hot if (loop.count("ST") > 0) == stores),
            key=lambda loop: (loop.count("LDG"), len(loop.opcodes)),
        )
        if len(group) != len(TOKENS) and (group or not stores):
            sizes = [len(loop.opcodes) for loop in group]
            raise LookupError(f"{rule}: found pick loops of {sizes} instructions, expected {len(TOKENS)} loops")
        named.update({f"pick_{tokens}{suffix}": loop for tokens, loop in zip(TOKENS, group, strict=False)})
    return named


def panel_pick_loops(found: list[Loop]) -> dict[str, Loop]:
    """The picks in a panel, by one warp: those of four rules from the shortest on, and of DPP, which sums overlaps."""
    counts = [(loop.count("BAR"), loop.count("REDUX"), loop.count("VOTE")) for loop in found]
    picks = [loop for loop, counted in zip(found, counts, strict=True) if counted == (0, 2, 1)]
    picks.sort(key=lambda loop: len(loop.opcodes))
    names = ["pick_1st", "pick_2nd", "pick_3rd", "pick_4th", "pick_dpp"]
    if len(picks) != len(names):
        raise LookupError(f"panels: found pick loops of {[len(loop.opcodes) for loop in picks]} instructions")
    return dict(zip(names, picks, strict=True))


def mainloop(rule: str, found: list[Loop], multiply: str) -> Loop:
    """The loop that multiplies most and neither synchronises nor stores to shared memory."""
    pure = [loop for loop in found if loop.count(multiply) and not loop.count("BAR", "STS", "LDS")]
    if not pure:
        raise LookupError(f"{rule}: no loop of {multiply} only")
    return max(pure, key=lambda loop: loop.count(multiply))


def pick_figures(loop: Loop) -> dict[str, float]:
    """What is counted in a pick loop."""
    return {"instructions": len(loop.opcodes), "barriers": loop.count("BAR"), "local": loop.count("LDL", "STL")}


def mainloop_figures(loop: Loop, multiply: str, name: str) -> dict[str, float]:
    """What is counted in a mainloop."""
    instructions, products = len(loop.opcodes), loop.count(multiply)
    return {
        "instructions": instructions,
        f"{name}s": products,
        f"per_{name}": round(instructions / products, 2),
        "wide_loads": loop.count("LDG") - loop.narrow_loads(),
        "narrow_loads": loop.narrow_loads(),
        "local": loop.count("LDL", "STL"),
    }


def kernel_figures(usage: Usage) -> dict[str, float]:
    """What a kernel takes, and how many CTAs the registers of a multiprocessor are enough for."""
    source = (ROOT / "csrc" / "cuda" / "kernel_args.h").read_text()
    threads = re.search(r"\bkCtaThreads = (\d+)", source)
    if threads is None:
        raise LookupError("csrc/cuda/kernel_args.h states no kCtaThreads")
    allocated = -(-usage.registers // 8) * 8  # a thread; a warp gets a multiple of 256
    return {**usage._asdict(), "ctas": REGISTERS // (allocated * int(threads[1]))}


def figures_of(rule: str, sass: str, resources: str) -> Figures:
    """All figures of a rule; the mainloops are those for bfloat16 and for float32."""
    code, used = functions(sass), usages(resources)
    names = [name for name in code if ("panel_kernel" if rule == "panels" else "gram_kernel") in name]
    if len(names) != 1:
        raise LookupError(f"{rule}: {len(names)} kernels")
    found = list(loops(code[names[0]]))
    tensor_cores = [loop for loop in found if any(re.match(r"HMMA\b.*\bBF16", opcode) for opcode in loop.opcodes)]
    picks = panel_pick_loops(found) if rule == "panels" else pick_loops(rule, found)
    return {
        **{part: pick_figures(loop) for part, loop in picks.items()},
        "mainloop": mainloop_figures(mainloop(rule, tensor_cores, "HMMA"), "HMMA", "mma"),
        "mainloop_float32": mainloop_figures(mainloop(rule, found, "FFMA"), "FFMA", "ffma"),
        "kernel": kernel_figures(used[names[0]]),
    }


# --- Compiling -------------------------------------------------------------------------------------------------------


def cuobjdump() -> str | None:
    """The tool of CUDA or else the one inside Triton, which is not imported for it."""
    if found := shutil.which("cuobjdump"):
        return found
    triton = importlib.util.find_spec("triton")
    places = triton.submodule_search_locations if triton else None
    tools = [Path(place) / "backends" / "nvidia" / "bin" / "cuobjdump" for place in places or ()]
    return next((str(tool) for tool in tools if tool.exists()), None)


def missing_tools() -> str:
    """Why nothing can be counted here, or an empty string."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on PATH"
    return "" if cuobjdump() else "cuobjdump is neither on PATH nor in an installed triton"


def nvcc_version() -> str:
    """The full version, for example 13.0.88."""
    found = re.search(r"\bV(\d+(\.\d+)+)", _output("nvcc", "--version"))
    return found[1] if found else "unknown"


def measure(rule: str, arch: int, folder: Path) -> Figures:
    """Compiles the kernel of a rule and counts."""
    cubin = folder / f"{SOURCES[rule]}.cubin"
    source = ROOT / "csrc" / "cuda" / "inst" / f"{SOURCES[rule]}.cu"
    includes = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc" / "include")]
    _output(
        "nvcc", "-O3", "-std=c++17", *ARITHMETIC, f"-arch=sm_{arch}", *includes, "-cubin", "-o", str(cubin), str(source)
    )
    tool = str(cuobjdump())
    return figures_of(rule, _output(tool, "-sass", str(cubin)), _output(tool, "-res-usage", str(cubin)))


def measure_all(rules: list[str], arch: int) -> dict[str, Figures]:
    """The figures of several rules, compiled in parallel."""
    workers = min(len(rules), os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        return dict(zip(rules, pool.map(lambda rule: measure(rule, arch, Path(folder)), rules), strict=True))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


# --- Limits ----------------------------------------------------------------------------------------------------------


def over_limits(rule: str, figures: Figures) -> Iterator[str]:
    """What is wrong with the figures of a rule, whatever the record says."""
    for part, numbers in figures.items():
        zero = [name for name in ("local", "narrow_loads", "spilled") if numbers.get(name)]
        yield from (f"{rule} {part}: {name} is {numbers[name]}, must be 0" for name in zero)
        if "barriers" in numbers and numbers["barriers"] != BARRIERS.get(rule, 1):
            yield f"{rule} {part}: {numbers['barriers']} barriers a pick"
    if figures["mainloop"]["per_mma"] > PER_MMA_LIMIT:
        yield f"{rule} mainloop: {figures['mainloop']['per_mma']} instructions per MMA, limit {PER_MMA_LIMIT}"
    for tokens, limit in PICK_LIMIT.items() if rule in LIMITED else ():
        allowed = limit if rule == "IDSelection" else round(limit * OTHER_RULES, 6)
        if (instructions := figures[f"pick_{tokens}"]["instructions"]) > allowed:
            yield f"{rule} pick_{tokens}: {instructions} instructions, limit {allowed:g}"


def over_record(rule: str, figures: Figures, recorded: Figures) -> Iterator[str]:
    """What a rule takes more than 10 % more of than recorded, and what only one of the two has."""
    if recorded.keys() != figures.keys():
        yield f"{rule}: has {sorted(figures)}, recorded are {sorted(recorded)}"
    for part in recorded.keys() & figures.keys():
        for name, number in recorded[part].items():
            now = figures[part].get(name)
            if now is None:
                yield f"{rule} {part}: {name} is recorded but was not counted"
            elif name not in DESCRIPTIVE and now > number * TOLERANCE:
                yield f"{rule} {part}: {name} is {now}, more than 10 % over the recorded {number}"


def problems(measured: dict[str, Figures], recorded: dict[str, Figures]) -> list[str]:
    """Everything that `--check` fails for."""
    found: list[str] = []
    for rule, figures in measured.items():
        found += over_limits(rule, figures)
        found += over_record(rule, figures, recorded[rule]) if rule in recorded else [f"{rule}: nothing recorded"]
    return found


def read_record() -> dict[str, Any]:
    """Compute capability -> the version of nvcc (`nvcc`) and the figures (`rules`)."""
    return dict(json.loads(RECORD.read_text())) if RECORD.exists() else {}


def write_record(arch: int, measured: dict[str, Figures]) -> None:
    """Replaces the figures of these rules, or all of an architecture whose compiler has another version now."""
    record, version = read_record(), nvcc_version()
    old = record.get(str(arch), {})
    kept = old["rules"] if old.get("nvcc") == version else {}
    rules = {rule: {**kept, **measured}[rule] for rule in SOURCES if rule in kept or rule in measured}
    record[str(arch)] = {"nvcc": version, "rules": rules}
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


# --- What is printed -------------------------------------------------------------------------------------------------


def report(measured: dict[str, Figures]) -> str:
    """All figures, a line for each part of each kernel."""
    lines = []
    for rule, figures in measured.items():
        for part, numbers in figures.items():
            cells = ", ".join(f"{name.replace('_', ' ')} {number:g}" for name, number in numbers.items())
            lines.append(f"{rule:<12} {part:<18} {cells}")
    return "\n".join(lines)


def markdown(arch: int, version: str, recorded: dict[str, Figures]) -> str:
    """The table for docs/cuda_engine.md."""
    lines = ["| Instructions | Before | Now |", "|---|---:|---:|"]
    panels = recorded.get("panels")
    recorded = {rule: figures for rule, figures in recorded.items() if rule != "panels"}
    for rule, figures in recorded.items():
        before = BEFORE_PICK.get(rule, BEFORE_ANY_PICK)
        for suffix, where in (("", ""), ("_workspace", ", history in the workspace")):
            picks = [figures.get(f"pick_{tokens}{suffix}") for tokens in TOKENS]
            counts = [f"{pick['instructions']:,g}" for pick in picks if pick]
            if counts:
                lines.append(f"| a pick of `{rule}`{where} | {before} | {', '.join(counts)} |")
    per_mma = _span(recorded, "mainloop", "per_mma")
    lines.append(f"| mainloop in bfloat16, per tensor-core instruction | {BEFORE_MAINLOOP} | {per_mma} |")
    per_ffma = _span(recorded, "mainloop_float32", "per_ffma")
    lines.append(f"| mainloop in float32, per multiply-add | not counted | {per_ffma} |")
    note = (
        f"A pick: with {TOKENS[0]}, {TOKENS[1]} and {TOKENS[2]} tokens a thread; before, with up to four, "
        f"{BEFORE_ANY_PICK} is the range over all rules. An inner loop counts once. The kernels take "
        f"{_span(recorded, 'kernel', 'registers')} registers a thread and spill {_span(recorded, 'kernel', 'spilled')} "
        f"bytes; CTAs a multiprocessor: {_span(recorded, 'kernel', 'ctas')}. Compiled by `nvcc` {version} for compute "
        f"capability {arch / 10:.1f}, counted by `python -m bench.tools.sass --record --docs`."
    )
    if panels is not None:
        picks = [f"{numbers['instructions']:,g}" for part, numbers in panels.items() if part.startswith("pick")]
        lines.append(f"| a pick in a panel: four rules, `DPP` | not counted | {', '.join(picks)} |")
        loops_of_panel = (panels["mainloop"]["per_mma"], panels["mainloop_float32"]["per_ffma"])
        lines.append("| mainloop of a panel, per MMA and multiply-add | not counted | {}, {} |".format(*loops_of_panel))
        note += (
            f" The kernel for panels takes {panels['kernel']['registers']:g} registers and spills "
            f"{panels['kernel']['spilled']:g} bytes."
        )
    return "\n".join([*lines, "", *textwrap.wrap(note, 120, break_on_hyphens=False)])


def write_docs(arch: int, page: Path = PAGE) -> None:
    """Replaces what is between the markers."""
    entry = read_record().get(str(arch))
    if entry is None:
        raise LookupError(f"nothing is recorded for {arch}")
    replace_between(page, MARKERS, markdown(arch, entry["nvcc"], entry["rules"]))


def replace_between(page: Path, markers: tuple[str, str], text: str) -> None:
    """Puts text between two markers of a page."""
    begin, end = markers
    before, found_begin, rest = page.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise LookupError(f"{page.name} has no markers {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _span(recorded: dict[str, Figures], part: str, name: str) -> str:
    numbers = [figures[part][name] for figures in recorded.values()]
    low, high = f"{min(numbers):.3g}", f"{max(numbers):.3g}"
    return low if low == high else f"{low} to {high}"


def main(arguments: list[str] | None = None) -> int:
    """Counts and prints; checks, records and documents what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for 9.0")
    parser.add_argument("--rules", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--check", action="store_true", help="fail on figures over their limits")
    parser.add_argument("--record", action="store_true", help="write sass.json")
    parser.add_argument("--docs", action="store_true", help="write the table; alone it compiles nothing")
    options = parser.parse_args(arguments)
    if (options.check or options.record or not options.docs) and (reason := missing_tools()):
        parser.error(reason)
    try:
        return run(options)
    except (LookupError, RuntimeError) as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """What the command does once its options are known. Returns its exit status."""
    found: list[str] = []
    if options.check or options.record or not options.docs:
        measured = measure_all(options.rules, options.arch)
        print(report(measured))
        if options.check:
            found = check_against_record(options.arch, measured)
        if options.record:
            write_record(options.arch, measured)
    if options.docs:
        write_docs(options.arch)
    return 1 if found else 0


def check_against_record(arch: int, measured: dict[str, Figures]) -> list[str]:
    """Prints and returns the problems; says so where another nvcc made the record."""
    entry = read_record().get(str(arch), {"nvcc": "none", "rules": {}})
    found = problems(measured, entry["rules"])
    if found and (version := nvcc_version()) != entry["nvcc"]:
        print(f"the record is of nvcc {entry['nvcc']}, this is {version}", file=sys.stderr)
    for problem in found:
        print(f"FAILED {problem}", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())

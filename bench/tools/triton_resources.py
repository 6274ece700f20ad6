"""What Triton makes of a call, compiled without a GPU: registers, spills, shared memory, loads, matrix instructions.

    python -m bench.tools.triton_resources [--targets cuda:90 hip:gfx942] [--rules IDSelection] [--markdown]

Compiles with the compiler inside Triton for each target, by default for all that the installed Triton knows; nothing
runs. Signature, constants and attributes are those
that Triton's own binder gives the arguments of a call, so what is shown is what a call compiles. A stack of 0 bytes
means that nothing spilled.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from idsel_kernels import rules
from idsel_kernels.problem import Problem
from idsel_kernels.triton_impl import launch

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "cuda:120": GPUTarget("cuda", 120, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
# Triton 3.2 stops the process on compute capability 10.0 and later, and looks for a ROCm installation to link.
KNOWN = tuple(target for target in TARGETS if VERSION >= (3, 3) or target in ("cuda:80", "cuda:90"))
# What a block may have, in bytes.
SHARED_LIMIT = {
    "cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "cuda:100": 227 * 1024, "cuda:120": 99 * 1024,
    "hip:gfx942": 64 * 1024,
}  # fmt: skip
# The instructions of the matrix units, in PTX or in the assembly of AMD.
MATRIX_INSTRUCTION = {
    "cuda:80": r"\bmma\.sync\b", "cuda:90": r"\bwgmma\.mma_async\b", "cuda:100": r"\b(tcgen05\.mma|mma\.sync)\b",
    "cuda:120": r"\bmma\.sync\b", "hip:gfx942": r"\bv_mfma_",
}  # fmt: skip
FAMILIES = tuple(name for name, rule in rules.RULES.items() if rule.is_greedy)
# Copies from global to shared memory that pass no register, by bytes.
ASYNCHRONOUS_COPY = r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\], (?:0x)?([0-9a-f]+)"


class Variant(NamedTuple):
    """A call to compile for.

    With `similarity` what the caller gives are similarities in float32, `dim` being the number of tokens.
    """

    rule: str = "IDSelection"
    dtype: torch.dtype = torch.bfloat16
    tokens: int = 576
    dim: int = 1024
    batch: int = 1
    k: int = 64
    ragged: bool = False
    mask: bool = False
    counts: bool = False
    grids: bool = False
    given: int = 0
    sort: bool = False
    similarity: bool = False
    budget_bytes: int = 2**30

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        names = ("ragged", "mask", "counts", "grids", "given", "sort", "similarity")
        flags = [name for name in names if getattr(self, name)]
        return "-".join([self.rule, dtype, f"N{self.tokens}", f"D{self.dim}", *flags])


class Resources(NamedTuple):
    """What a compiled kernel takes. `stack` is bytes of local memory per thread: 0 where nothing spilled."""

    registers: int
    stack: int
    shared: int
    matrix_instructions: int
    num_warps: int
    seconds: float


class _Driver(NamedTuple):
    """As much of a driver as Triton asks about before it compiles: a device of a target that is not here."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return list(TARGETS.values()).index(self.target)  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def device_of(target: str) -> Iterator[None]:
    """Triton compiles for this target."""
    triton.runtime.driver.set_active(_Driver(TARGETS[target]))
    try:
        yield
    finally:
        triton.runtime.driver.__init__()  # not its `reset_active`, which without a GPU finds nothing to go back to


def plan_of(variant: Variant, target: str) -> launch.Plan:
    """The launch that the engine would make on this target."""
    backend, arch = target.split(":")
    counts = (variant.k,) * variant.batch if variant.counts else (variant.k,)
    problem = Problem(
        rule=rules.RULES[variant.rule](), k=counts, batch=variant.batch, tokens=variant.tokens, dim=variant.dim,
        dtype=variant.dtype, device=torch.device("cuda", 0), ragged=variant.ragged, has_importance=True,
        has_mask=variant.mask, has_grids=variant.grids, given=variant.given, sort=variant.sort,
        similarity=variant.similarity,
    )  # fmt: skip
    return launch.make_plan(problem, int(arch) if backend == "cuda" else 0, variant.budget_bytes)


def compiled(variant: Variant, plan: launch.Plan) -> Any:
    """What Triton compiles for contiguous, aligned tensors; they have no memory."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    per_token = (variant.tokens,) if variant.ragged else (variant.batch, variant.tokens)
    features, importance = empty(*per_token, variant.dim, dtype=variant.dtype), empty(*per_token)
    mask = empty(*per_token, dtype=torch.bool) if variant.mask else None
    tensors = launch.pointers(
        features,
        importance,
        mask,
        cu_seqlens=empty(variant.batch + 1, dtype=torch.int32) if variant.ragged else None,
        counts=empty(variant.batch, dtype=torch.int32) if variant.counts else None,
        grids=empty(variant.batch, 2, dtype=torch.int32) if variant.grids else None,
        given=empty(variant.batch, variant.given, dtype=torch.int32) if variant.given else None,
        workspace=empty(plan.workspace),
        counters=empty(plan.counters, dtype=torch.int32),
        indices=empty(variant.batch, variant.k, dtype=torch.int64),
        scores=empty(variant.batch, variant.k),
    )
    return launch.Launches(plan, features, importance, mask).compiled(tensors)


def compiled_for(variant: Variant, target: str) -> Any:
    """Triton's kernel of one variant for one target."""
    plan = plan_of(variant, target)
    with device_of(target):
        return compiled(variant, plan)


def compile_for(variant: Variant, target: str) -> Resources:
    """Compiles one variant for one target."""
    begin = time.monotonic()
    kernel = compiled_for(variant, target)
    seconds = time.monotonic() - begin
    if target.startswith("cuda"):
        registers, stack = _cubin_usage(kernel.asm["cubin"])
        text = kernel.asm["ptx"]
    else:
        text = kernel.asm["amdgcn"]
        registers = _field(text, "vgpr_count")
        stack = _field(text, "vgpr_spill_count") * 4 + _field(text, "private_segment_fixed_size")
    matrix = len(re.findall(MATRIX_INSTRUCTION[target], text))
    return Resources(registers, stack, kernel.metadata.shared, matrix, kernel.metadata.num_warps, seconds)


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    if usage is None:
        raise RuntimeError(f"cuobjdump prints no resource usage: {listing}")
    registers, stack, local = (int(number) for number in usage.groups())
    return registers, stack + local


def _field(assembly: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    if found is None:
        raise RuntimeError(f"the assembly does not state .{name}")
    return int(found[1])


def default_variants(names: list[str]) -> Iterator[Variant]:
    """Each rule at the usual size, then one rule over dtypes, sizes and features."""
    for name in names:
        yield Variant(name)
    first = names[0]
    yield Variant(first, torch.float32)
    yield Variant(first, torch.float16)
    yield Variant(first, tokens=2880, dim=3584)
    yield Variant(first, tokens=4096)
    yield Variant(first, tokens=16384, dim=3584)
    yield Variant(first, tokens=32768, dim=3584)
    yield Variant(first, torch.float32, tokens=576, dim=576, similarity=True)
    yield Variant(first, ragged=True, mask=True, counts=True, sort=True, batch=4)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=KNOWN)
    parser.add_argument("--rules", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--markdown", action="store_true", help="registers and shared memory")
    options = parser.parse_args(arguments)
    if unknown := [target for target in options.targets if target not in KNOWN]:
        knows = f"triton {triton.__version__} compiles for {', '.join(KNOWN)}"
        parser.error(f"--targets: {knows}, got {', '.join(unknown)}")
    variants = list(default_variants(options.rules))
    if options.markdown:
        print(f"| registers, KiB shared | {' | '.join(options.targets)} |")
        print("|---|" + "---:|" * len(options.targets))
        for variant in variants:
            used = [compile_for(variant, target) for target in options.targets]
            cells = (_cell(resources) for resources in used)
            print(f"| {variant}, {used[0].num_warps} warps | {' | '.join(cells)} |", flush=True)
        return 0
    line = "{:<11} {:<58}" + " {:>9}" * 6
    print(line.format("target", "variant", "warps", "registers", "stack", "shared", "matrix", "seconds"))
    for variant in variants:
        for target in options.targets:
            used = compile_for(variant, target)
            cells = (used.num_warps, used.registers, used.stack, used.shared, used.matrix_instructions)
            print(line.format(target, str(variant), *cells, f"{used.seconds:.1f}"), flush=True)
    return 0


def _cell(used: Resources) -> str:
    spilled = f", {used.stack} bytes of stack" if used.stack else ""
    return f"{used.registers}, {used.shared / 1024:.0f}{spilled}"


if __name__ == "__main__":
    sys.exit(main())

"""The Triton kernel compiled, not run: what a call compiles has vector loads, matrix instructions and no spills.

Tests marked `every_triton` also run on the other versions of `make triton-versions`, by the targets those know.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (pip install 'idsel_kernels[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from bench.tools import triton_resources
from bench.tools.triton_resources import (
    ASYNCHRONOUS_COPY,
    FAMILIES,
    KNOWN,
    MATRIX_INSTRUCTION,
    SHARED_LIMIT,
    VERSION,
    Variant,
    compile_for,
    compiled_for,
    main,
)

pytestmark = pytest.mark.kernels

CUDA = [target for target in KNOWN if target.startswith("cuda")]


def _of_similarities(rule: str, tokens: int = 576, **more: Any) -> Variant:
    """A call that is given them in place of features."""
    return Variant(rule, torch.float32, tokens, tokens, similarity=True, **more)


# One rule where another path of the kernel or the table is taken than in the usual call.
OTHER_PATHS = [
    *(Variant(rule, dtype=torch.float32) for rule in ("IDSelection", "MaxMin", "Coverage")),
    Variant(dim=4096),  # parts of D in several programs
    Variant("MaxMin", dim=4096),
    Variant(tokens=4096, dim=3584),  # the largest block in registers
    Variant("DPP", tokens=32768, dim=3584, sort=True),  # panels, values in memory
    Variant("MMR", dtype=torch.float16, dim=64, batch=4, ragged=True, mask=True, counts=True),
    Variant("HardSuppress", batch=4, ragged=True, grids=True),
    Variant("IDSelection", given=8),
    Variant("Coverage", given=8),
    Variant("DPP", given=8),
    Variant("DPP", tokens=32768, dim=3584, given=8),
    *(_of_similarities(rule) for rule in ("IDSelection", "DPP", "Coverage")),
    _of_similarities("DPP", tokens=32768, given=8),
    _of_similarities("MaxMin", tokens=2890, mask=True),  # rows that are no vectors
]


def _assert_fits(variant: Variant, target: str) -> None:
    used = compile_for(variant, target)
    print(f"{target} {variant}: {used.registers} registers, {used.shared} bytes shared, {used.seconds:.1f} s")
    assert used.stack == 0
    assert used.shared <= SHARED_LIMIT[target]
    if variant.dtype is not torch.float32:
        assert used.matrix_instructions > 0
    elif target.startswith("cuda"):
        assert used.matrix_instructions == 0, "float32 must not be rounded to TF32"


# The rules with the most in registers everywhere, each rule where registers are fewest and on the other vendor's.
@pytest.mark.parametrize(
    ("rule", "target"),
    [
        (rule, target)
        for rule in FAMILIES
        for target in KNOWN
        if rule in ("DPP", "Coverage") or target in ("cuda:90", "hip:gfx942")
    ],
)
def test_no_rule_spills(rule: str, target: str) -> None:
    _assert_fits(Variant(rule), target)


@pytest.mark.every_triton
@pytest.mark.parametrize("target", ["cuda:90"])
@pytest.mark.parametrize("variant", [Variant("IDSelection"), Variant("Coverage"), *OTHER_PATHS], ids=str)
def test_no_path_spills(variant: Variant, target: str) -> None:
    _assert_fits(variant, target)


@pytest.mark.parametrize("target", [target for target in KNOWN if target in ("cuda:120", "hip:gfx942")])
@pytest.mark.parametrize("variant", OTHER_PATHS, ids=str)
def test_no_path_spills_elsewhere(variant: Variant, target: str) -> None:
    _assert_fits(variant, target)


def _mainloop(ttgir: str) -> str:
    """The innermost loop around the matrix products."""
    loops = [loop.split("scf.yield")[0] for loop in re.split(r"\bscf\.for\b", ttgir)[1:]]
    # On 10.0 the loop over tiles is a pipeline as well, which begins with products of the last tile.
    return [loop for loop in loops if re.search(r"\b(warp_group_dot|tt\.dot|tc_gen5_mma)\b", loop)][-1]


@pytest.mark.every_triton
@pytest.mark.parametrize("target", CUDA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_contiguous_call_copies_16_bytes_at_a_time(dtype: torch.dtype, target: str) -> None:
    """Of the signature that Triton's binder makes of the call, not of one typed by hand."""
    kernel = compiled_for(Variant(dtype=dtype), target)
    sizes = {int(size, 16) for size in re.findall(ASYNCHRONOUS_COPY, kernel.asm["ptx"])}
    assert sizes == {16}
    assert not re.search(r"ld\.global\S*\.(b16|u16)\b", kernel.asm["ptx"]), "2 bytes at a time"
    mainloop = _mainloop(kernel.asm["ttgir"])
    assert mainloop.count("async_copy_global_to_local") == 2
    assert not re.search(r"\btt\.load\b", mainloop), "through registers"


@pytest.mark.parametrize("target", [target for target in KNOWN if target.startswith("hip")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_contiguous_call_loads_vectors_on_amd(dtype: torch.dtype, target: str) -> None:
    text = compiled_for(Variant(dtype=dtype), target).asm["amdgcn"]
    assert re.search(r"\b(global|buffer)_load_dwordx4\b", text)
    assert not re.search(r"\b(global|buffer)_load_(ushort|short_d16)", text), "2 bytes at a time"


@pytest.mark.every_triton
def test_rows_of_similarities_are_loaded_by_vectors() -> None:
    """In the loop over picks: a row of the Gram is padded, so no mask ends within a vector."""
    ptx = compiled_for(Variant(), "cuda:90").asm["ptx"]
    assert len(re.findall(r"ld\.global\.cg\.v4\.b32", ptx)) >= 2


@pytest.mark.every_triton
@pytest.mark.parametrize("rule", ["IDSelection", "DPP", "Coverage"])
def test_rows_of_given_similarities_are_loaded_by_vectors(rule: str) -> None:
    """Where N is a multiple of 16: the caller's rows are not padded, and their length says where a mask ends."""
    ptx = compiled_for(_of_similarities(rule), "cuda:90").asm["ptx"]
    assert len(re.findall(r"ld\.global\.cg\.v4\.b32", ptx)) >= 2
    assert not re.search(r"ld\.global\.cg\.b32", ptx)
    assert not re.search(MATRIX_INSTRUCTION["cuda:90"], ptx)


@pytest.mark.every_triton
def test_the_command_prints_a_row_for_each_target_that_this_triton_knows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VERSION >= (3, 3) or KNOWN == ("cuda:80", "cuda:90")
    monkeypatch.setattr(triton_resources, "default_variants", lambda names: [Variant("TopK")])
    assert main([]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["target", "variant", "warps", "registers", "stack", "shared", "matrix", "seconds"]
    assert [row.split()[0] for row in rows] == list(KNOWN)
    monkeypatch.setattr(triton_resources, "KNOWN", ("cuda:80",))
    with pytest.raises(SystemExit):
        main(["--targets", "cuda:80", "cuda:90"])
    assert re.search(r"--targets: triton \S+ compiles for cuda:80, got cuda:90", capsys.readouterr().err)


def test_the_command_refuses_what_is_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "cuda:60"])
    assert "cuda:60" in capsys.readouterr().err

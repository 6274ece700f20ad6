"""The Triton kernel compiled, not run, for five targets: nothing spills, shared memory fits, dot is on tensor cores."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (pip install 'idsel_kernels[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from bench.tools.triton_resources import FAMILIES, SHARED_LIMIT, TARGETS, Variant, compile_for, main

pytestmark = pytest.mark.kernels
every_target = pytest.mark.parametrize("target", TARGETS)

# Each rule at the usual size, and one rule where another path of the kernel or the table is taken.
VARIANTS = [
    *(Variant(rule) for rule in FAMILIES),
    *(Variant(rule, dtype=torch.float32) for rule in ("IDSelection", "MaxMin", "Coverage")),
    Variant(tokens=4096, dim=3584),  # the largest block in registers
    Variant("DPP", tokens=32768, dim=3584, sort=True),  # panels, values in memory
    Variant("MMR", dtype=torch.float16, dim=64, batch=4, ragged=True, mask=True, counts=True),
]


@every_target
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_default_configurations_do_not_spill(variant: Variant, target: str) -> None:
    used = compile_for(variant, target)
    print(f"{target} {variant}: {used.registers} registers, {used.shared} bytes shared, {used.seconds:.1f} s")
    assert used.stack == 0
    assert used.shared <= SHARED_LIMIT[target]
    if variant.dtype is not torch.float32:
        assert used.matrix_instructions > 0
    elif target.startswith("cuda"):
        assert used.matrix_instructions == 0, "float32 must not be rounded to TF32"


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "cuda:60"])
    assert "cuda:60" in capsys.readouterr().err

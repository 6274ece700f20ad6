"""The rows path needs memory like its input, not like N x N."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch, idsel_kernels as idsel

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

dtype = getattr(torch, sys.argv[2])
rule = eval("idsel." + sys.argv[1])
features = torch.randn(10240, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
importance = torch.rand(10240)
idsel.select(features[:64], 4, rule, importance[:64], backend="torch")  # loads libraries, starts threads
before = kib("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
idsel.select(features, 64, rule, importance, backend="torch")
print((kib("VmHWM:") - before) * 1024 / (features.numel() * features.element_size()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        ("IDSelection()", "float32"),
        ("IDSelection()", "bfloat16"),  # whose rows are widened
        ("MaxMin()", "float32"),  # all pairs, in tiles
        ("MaxMin()", "bfloat16"),
        ("DPP()", "bfloat16"),  # with a history
    ],
)
def test_peak_memory_of_the_rows_path_is_under_three_inputs(rule: str, dtype: str) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, rule, dtype], check=True, capture_output=True, text=True)
    assert float(run.stdout) < 3

"""A few small selections by every engine at hand, for compute-sanitizer: `python -m bench.tools.sanitizer_driver`.

Sanitizers slow kernels down a hundredfold, so shapes are small; odd, so that no tile is full; and every rule runs.
"""

from __future__ import annotations

import torch

import idsel_kernels as idsel
from idsel_kernels.testing import Case, check_selection, clustered, ragged

from .. import providers
from ..suites.selection import RULES
from ..workloads import to_device


def main() -> None:
    """Selects, and checks what was selected."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cases = [(clustered(2, 77, 40, dtype=dtype), 9), (ragged((5, 0, 70, 1), 24, dtype=dtype), 5)]
    for provider in providers.engines(device):
        for rule in RULES:
            for case, k in cases:
                _select(provider.name, rule, to_device(case, device), k)
        print(f"{provider.name}: {len(RULES)} rules, {len(cases)} inputs, right", flush=True)


def _select(backend: str, rule: idsel.Rule, case: Case, k: int) -> None:
    counts: int | list[int] = k if case.cu_seqlens is None else [k] * (len(case.cu_seqlens) - 1)
    sel = idsel.select(**case.inputs(), k=counts, rule=rule, backend=backend)
    check_selection(sel, **case.inputs(), rule=rule, k=counts).assert_ok()


if __name__ == "__main__":
    main()

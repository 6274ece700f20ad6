"""The latency and rules suites as pytest-benchmark cases: `pytest bench --benchmark-only`.

pytest-benchmark times and stores them its own way (`--benchmark-autosave`, `pytest-benchmark compare`); inputs,
providers and the check before the timing are those of `python -m bench`.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from bench import harness, providers, workloads
from bench.suites.selection import RULES, rule_name
from bench.workloads import Shape
from idsel_kernels import IDSelection, Rule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
SHAPES = [Shape(1, n, 1024, k) for n in (576, 2304) for k in (16, 64)]
CASES = [
    *(pytest.param(shape, IDSelection(), "clustered", id=f"IDSelection-{shape}") for shape in SHAPES),
    *(
        pytest.param(SHAPES[1], rule, kind, id=f"{rule_name(rule)}-{SHAPES[1]}-{kind}")
        for rule, kind in itertools.product(RULES, ("picture", "ties"))
    ),
]
NAMES = [provider.name for provider in providers.engines(DEVICE)] + [providers.LOOP]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "rule", "kind"), CASES)
def test_select(benchmark: Any, name: str, shape: Shape, rule: Rule, kind: str) -> None:
    found = {p.name: p for p in [*providers.engines(DEVICE), *providers.baselines(rule)]}
    if name not in found:
        pytest.skip(f"no {name} for this rule")
    sets = workloads.make_sets(kind, shape, DTYPE, DEVICE)
    select = found[name].make(rule, shape.k)
    checker = harness.Checker(sets, rule)
    worst = max(checker.regret(i, select(case.features, case.importance)) for i, case in enumerate(sets))
    assert worst <= harness.tolerance(DTYPE, found[name].half_arithmetic), "WRONG: not timed"
    turns = itertools.cycle(sets)

    def call() -> None:
        case = next(turns)
        select(case.features, case.importance)
        harness.synchronize(DEVICE)

    benchmark.extra_info.update(provider=name, rule=rule_name(rule), input=kind, **shape._asdict())
    benchmark(call)

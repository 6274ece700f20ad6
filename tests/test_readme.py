"""The figures of the README are those of the demo as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_demo_table_is_what_the_demo_prints() -> None:
    pytest.importorskip("matplotlib", reason="the demo reads a photograph that comes with matplotlib")
    from idsel_kernels._cli.demo import run_demo
    from idsel_kernels._cli.measures import shown

    rows = [
        f"| {run['title']} | {shown(run['importance_kept'], '.1f', ' %')} | {shown(run['coverage'], '.3f')} "
        f"| {shown(run['smallest_distance'], '.3f')} |"
        for run in run_demo(output=None)["rules"]
    ]
    section = README.read_text().split("## What the rules keep")[1].split("\n## ")[0]
    assert re.findall(r"^\| [A-Z].*\|$", section, flags=re.M) == rows


def test_every_rule_has_a_row_with_its_defaults() -> None:
    from idsel_kernels.rules import RULES

    section = README.read_text().split("## Rules")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+\(.*?\))` \|", section, flags=re.M)
    assert [eval(row, dict(RULES)) for row in listed] == [rule() for rule in RULES.values()]
    # The defaults are spelled out, so that the row still means the same when one changes.
    assert [
        row for row in listed if repr(eval(row, dict(RULES))) != row.replace('"', "'").replace("1e-6", "1e-06")
    ] == []

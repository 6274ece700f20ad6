"""What bench/tools/panels.py counts is what the panel kernel does: the same picks, rounds and panels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import emulated
import pytest
import torch
from backends import EMULATED, registered, set_gram_budget

import idsel_kernels as idsel
from bench.tools import panels
from idsel_kernels.testing import clustered, exact

ROOT = Path(__file__).parents[1]


class Case(NamedTuple):
    features: torch.Tensor
    importance: torch.Tensor
    k: int


def _clustered(tokens: int, k: int, importance: str, seed: int = 0) -> Case:
    features, values, _ = clustered(1, tokens, 16, seed=seed, importance=importance)
    return Case(features[0], values[0], k)


def _with_zeros() -> Case:
    """Nearly all tokens are worth nothing, so that picks change nothing and ties go by index."""
    features, importance, k = _clustered(250, 60, "uniform")
    return Case(features, torch.where(torch.arange(250) % 9 == 4, importance, 0.0), k)


def _negative() -> Case:
    """Picks raise priorities, and less gain is worth more."""
    features, importance, k = _clustered(200, 12, "uniform", 3)
    return Case(features, importance - importance.median(), k)


def _ties() -> Case:
    features, importance, _ = exact(1, 200, 16)
    return Case(features[0], importance[0], 24)


CASES = {
    "skewed": _clustered(400, 70, "skewed", 5),
    "uniform": _clustered(250, 30, "uniform", 1),
    "flat": Case(*panels.tokens_and_importance("flat", 200), 16),
    "zeros": _with_zeros(),
    "negative": _negative(),
    "ties": _ties(),
    "one pick": _clustered(200, 1, "uniform", 2),
}
RULES = panels.RULES | {
    "MMR, refreshed now and then": idsel.MMR(parallel_k=4),
    "Coverage, sum": idsel.Coverage(combine="add"),
}
# Rules for which a case is of no use: rounding decides between equal tokens, or there is nothing new.
LEFT_OUT = {
    "skewed": ("Coverage, sum",),
    "flat": ("Coverage, sum",),
    "zeros": ("MMR", "MaxMin", "DPP", "Coverage"),
    "negative": ("MMR", "MaxMin", "HardSuppress", "DPP", "Coverage, sum"),
    "ties": ("IDSelection", "DPP"),
    "one pick": ("MMR,", "MaxMin(", "HardSuppress", "Coverage, sum"),
}
# Of the emulated device: more than a sample has use for, few, one.
MULTIPROCESSORS = dict(zip(CASES, (4, 132, 132, 132, 3, 132, 1), strict=True))
GRID = [(rule, case) for rule in RULES for case in CASES if not rule.startswith(LEFT_OUT.get(case, ()))]


def _replay(rule: str, case: str, multiprocessors: int) -> tuple[list[int], panels.Counts]:
    features, importance, k = CASES[case]
    group = panels.group_size(len(features), features.shape[1], multiprocessors)
    return panels.replay(panels.rankings(RULES[rule], features, importance)(k), importance, k, group)


@pytest.mark.parametrize("rule", RULES)
def test_a_replay_picks_what_the_rule_picks(rule: str) -> None:
    features, importance, k = CASES["uniform"]
    picks, counts = _replay(rule, "uniform", 6)
    sel = idsel.select(features[None], k, RULES[rule], importance[None], backend="torch")
    assert picks == sel.indices[0].tolist()
    assert counts.panels <= counts.rounds


@pytest.fixture(scope="module")
def engine() -> Iterator[emulated.EmulatedEngine]:
    with registered(emulated.engine()):
        yield emulated.engine()


@pytest.mark.parametrize(("rule", "case"), [pytest.param(*names, marks=EMULATED.marks) for names in GRID])
def test_a_replay_counts_what_the_kernel_counts(
    rule: str, case: str, engine: emulated.EmulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, importance, k = CASES[case]
    made = torch.zeros(1, 2, dtype=torch.int64)
    monkeypatch.setattr(engine, "panels_made", made)
    set_gram_budget(monkeypatch, emulated.NAME, 1)
    multiprocessors = MULTIPROCESSORS[case]
    monkeypatch.setenv("IDSEL_EMULATOR_MULTIPROCESSORS", str(multiprocessors))
    sel = idsel.select(features[None], k, RULES[rule], importance[None], backend=emulated.NAME)
    picks, counts = _replay(rule, case, multiprocessors)
    assert picks == sel.indices[0].tolist()
    assert list(counts) == made[0].tolist()


def test_sizes_are_those_of_the_kernel() -> None:
    source = (ROOT / "csrc" / "cuda" / "kernel_args.h").read_text()
    sizes = dict(re.findall(r"constexpr \w+ (k\w+) = (\w+);", source))
    assert [int(sizes[name]) for name in ("kTile", "kRun", "kMaxGroup")] == [
        panels.PANEL_ROWS, panels.RUN, panels.MAX_GROUP
    ]  # fmt: skip
    assert sizes["kPanelRows"] == "kTile" and sizes["kGainsAtOnce"] == "kRun" and panels.GAINS_AT_ONCE == panels.RUN
    assert [panels.offers_of(ctas) for ctas in (1, 2, 6, 46, 132)] == [64, 64, 22, 3, 2]
    assert [panels.group_size(n, 64, 132) for n in (64, 576, 2880, 16384)] == [2, 10, 46, 132]
    assert panels.group_size(576, 225, 132) == 20 and panels.group_size(16384, 4096, 131) == 130


def test_the_table_and_where_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    begin, end = panels.MARKERS
    page.write_text(f"before\n\n{begin}\n\nold\n\n{end}\n\nafter\n")
    monkeypatch.setattr(panels, "PAGE", page)
    panels.main(["--tokens", "100", "200", "--k", "1", "10%", "--rules", "MMR", "--inputs", "random", "--docs"])
    printed, text = capsys.readouterr().out, page.read_text()
    assert "| 200 | random | MMR | 1 / 0 |" in printed
    assert text.startswith(f"before\n\n{begin}\n\n| N, k | 100, 1 |") and text.endswith(f"\n\n{end}\n\nafter\n")
    assert "| random, `MMR` | 1 / 0 |" in text and "old" not in text

"""The script that compares the picks of two builds finds a changed bit, and runs as a file of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.tools import same_picks

ROOT = Path(__file__).parents[1]


def _changed(path: Path, out: Path, field: str) -> Path:
    arrays = dict(np.load(path))
    arrays[field] = arrays[field].copy()
    arrays[field][-1] ^= 1
    np.savez(out, **arrays)
    return out


def test_a_changed_bit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a.npz", "b.npz")]
    for path in paths:
        command = [
            sys.executable,
            "bench/tools/same_picks.py",
            "record",
            str(path),
            "--backends",
            "torch",
            "--cases",
            "9",
        ]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={"PYTHONPATH": str(ROOT)})
    assert same_picks.compare(argparse.Namespace(a=paths[0], b=paths[1])) == 0
    assert "torch: 9 cases, all alike" in capsys.readouterr().out
    for field, words in (("scores", "0 in indices, 1 in scores"), ("indices", "1 in indices, 0 in scores")):
        other = _changed(paths[1], tmp_path / "c.npz", f"torch.{field}")
        assert same_picks.compare(argparse.Namespace(a=paths[0], b=other)) == 1
        printed = capsys.readouterr().out
        assert words in printed and "case(0, " in printed and f"    {field} at " in printed


def test_files_of_other_cases_are_refused(tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path / f"{seed}.npz")
        options = {"backends": ["torch"], "cases": 2, "seed": seed, "device": None, "checkout": ROOT}
        same_picks.record(argparse.Namespace(out=paths[-1], **options))
    assert same_picks.compare(argparse.Namespace(a=paths[0], b=paths[1])) == 2


def test_a_case_is_the_same_every_time() -> None:
    assert same_picks.case(3, 17).checksum() == same_picks.case(3, 17).checksum() != same_picks.case(3, 18).checksum()

"""What nvcc makes of the hot loops, counted without a GPU: no spills, one barrier a pick, few instructions."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from bench.tools import sass

# A mainloop, and a pick loop inside a loop over work; the branch to itself and the one forward are no loops.
LISTING = """
\tcode for sm_90
\t\tFunction : _Z5firstv
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
                                                                      /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR8][R2.64] ;  /* 0x0000000802047981 */
        /*0020*/                   LDG.E.64 R8, desc[UR8][R2.64+0x40] ;
        /*0030*/              @!PT LDG.E.U16 R9, desc[UR8][R2.64+0x128] ;
        /*0040*/                   HMMA.16816.F32.BF16 R160, R196, R20, R160 ;
        /*0050*/                   LDGDEPBAR ;
        /*0060*/               @P1 BRA 0x10 ;
        /*0070*/                   EXIT ;
\t\tFunction : _Z6secondv
        /*0000*/                   LDG.E R4, desc[UR8][R2.64] ;
        /*0010*/                   REDUX.MAX.S32 UR4, R4 ;
        /*0020*/                   STL [R1], R4 ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/              @!P3 BRA P2, 0x10 ;
        /*0050*/               @P0 BRA 0x70 ;
        /*0060*/              @!P0 BRA 0x0 ;
        /*0070*/                   BRA 0x70;
"""
USAGE = """
 Function _Z5firstv:
  REG:230 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:1864 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
needs_compiler = pytest.mark.skipif(bool(sass.missing_tools()), reason=sass.missing_tools() or "nvcc is here")


def recorded() -> dict[str, sass.Figures]:
    rules: dict[str, sass.Figures] = sass.read_record()["90"]["rules"]
    return copy.deepcopy(rules)


def test_loops_are_stretches_to_backward_branches() -> None:
    code = sass.functions(LISTING)
    assert list(code) == ["_Z5firstv", "_Z6secondv"]
    (mainloop,) = sass.loops(code["_Z5firstv"])
    assert (mainloop.start, len(mainloop.opcodes)) == (0x10, 6)
    assert (mainloop.count("LDG"), mainloop.narrow_loads(), mainloop.count("HMMA"), mainloop.count("BAR")) == (
        3,
        1,
        1,
        0,
    )
    inner, outer = sass.loops(code["_Z6secondv"])
    assert (inner.start, len(inner.opcodes), inner.count("LDG")) == (0x10, 4, 0)
    assert (outer.start, len(outer.opcodes), outer.count("LDG")) == (0x0, 7, 1)
    assert sass.pick_figures(outer) == {"instructions": 7, "barriers": 1, "local": 1}


def test_usage_counts_stack_and_local_memory_as_spilled() -> None:
    assert sass.usages(USAGE) == {"_Z5firstv": sass.Usage(registers=230, spilled=24, shared=1024)}


def test_a_pick_loop_that_cannot_be_told_apart_is_an_error() -> None:
    with pytest.raises(LookupError, match="MMR: found pick loops of"):
        sass.pick_loops("MMR", list(sass.loops(sass.functions(LISTING)["_Z6secondv"])))


def test_the_record_keeps_its_own_limits() -> None:
    rules = recorded()
    assert list(rules) == list(sass.SOURCES)
    assert sass.problems(rules, rules) == []


def test_figures_over_the_record_fail() -> None:
    now, record = recorded(), recorded()
    mainloop = record["MMR"]["mainloop"]
    mainloop["instructions"] = now["MMR"]["mainloop"]["instructions"] / 1.09
    assert sass.problems(now, record) == []
    mainloop["instructions"] = now["MMR"]["mainloop"]["instructions"] / 1.11
    (problem,) = sass.problems(now, record)
    assert problem.startswith("MMR mainloop: instructions is") and "more than 10 % over" in problem
    del record["MMR"]
    assert sass.problems(now, record) == ["MMR: nothing recorded"]


@pytest.mark.parametrize(
    ("rule", "part", "name", "number"),
    [
        ("IDSelection", "pick_1", "instructions", 91),
        ("IDSelection", "pick_4", "instructions", 151),
        ("HardSuppress", "pick_1", "instructions", 118),
        ("MaxMin", "pick_4", "instructions", 196),
        ("DPP", "pick_12", "barriers", 2),
        ("Coverage", "pick_4", "local", 1),
        ("TopK", "mainloop", "per_mma", 4.01),
        ("TopK", "mainloop", "narrow_loads", 1),
        ("MMR", "kernel", "spilled", 4),
    ],
)
def test_figures_over_a_limit_fail_whatever_is_recorded(rule: str, part: str, name: str, number: float) -> None:
    now = recorded()
    now[rule][part][name] = number
    (problem,) = sass.problems(now, now)
    assert problem.startswith(f"{rule} {part}: ")


def test_the_command_fails_over_a_doctored_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = recorded()
    monkeypatch.setattr(sass, "RECORD", tmp_path / "sass.json")
    monkeypatch.setattr(sass, "missing_tools", lambda: "")
    monkeypatch.setattr(sass, "nvcc_version", lambda: "1.2.3")
    monkeypatch.setattr(sass, "measure_all", lambda rules, arch: {rule: measured[rule] for rule in rules})
    assert sass.main(["--check", "--rules", "MMR"]) == 1
    assert "FAILED MMR: nothing recorded" in capsys.readouterr().err
    assert sass.main(["--record"]) == 0 and sass.main(["--check"]) == 0
    record = sass.read_record()
    assert record == {"90": {"nvcc": "1.2.3", "rules": measured}}
    record["90"]["rules"]["DPP"]["pick_4"]["instructions"] *= 0.9
    sass.RECORD.write_text(json.dumps(record))
    assert sass.main(["--check"]) == 1
    assert "FAILED DPP pick_4: instructions is" in capsys.readouterr().err


def test_docs_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = sass.MARKERS
    page.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    sass.write_docs(90, page)
    written = page.read_text()
    sass.write_docs(90, page)
    assert page.read_text() == written
    assert written.startswith(f"above\n{begin}\n") and written.endswith(f"\n{end}\nbelow\n") and "old" not in written
    assert "| a pick of `IDSelection` | 573 |" in written
    page.write_text("no markers")
    with pytest.raises(LookupError, match="no markers"):
        sass.write_docs(90, page)


def test_what_is_counted_computes_as_the_module_does() -> None:
    options = (sass.ROOT / "cmake" / "cuda.cmake").read_text()
    assert all(option in options for option in sass.ARITHMETIC)


@pytest.mark.kernels
@needs_compiler
def test_compiled_kernels_stay_within_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    status = sass.main(["--check", "--rules", "IDSelection", "panels"])
    captured = capsys.readouterr()
    print(captured.out)
    assert status == 0, captured.err

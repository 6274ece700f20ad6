"""A run leaves a valid record; records can be compared and verified, and the pages show what they hold."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonschema", reason="records are checked against a JSON schema")
pytest.importorskip("matplotlib", reason="the report draws with matplotlib")
pytest.importorskip("rich", reason="the bench prints with rich")

import jsonschema

from bench import __main__ as command
from bench import compare, console, images, records, report, tables

ROOT = Path(__file__).parents[1]
Record = dict[str, Any]


pytestmark = pytest.mark.xdist_group("bench")  # one run for all tests here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Record]:
    """What a quick run of every suite on a tiny shape prints, and its record."""
    out = tmp_path_factory.mktemp("bench") / "record.json"
    options = ["--quick", "--limit", "900", "--device", "cpu", "--shapes", "1x48x32x6", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, records.read(out)


# --- A run ------------------------------------------------------------------------------------------------------------


def test_a_run_has_rows_of_every_suite_and_says_what_needs_a_gpu(run: tuple[str, Record]) -> None:
    printed, record = run
    assert {row["suite"] for row in record["rows"]} == set(command.SUITES)
    assert "no GPU: graph replay, launches, the cuda and triton engines and the timed prefill need one" in printed
    assert "WRONG" not in printed
    (timed,) = [row for row in record["rows"] if row["status"] == "unavailable"]
    assert timed["note"] == "needs a GPU"


def test_rates_follow_from_the_time(run: tuple[str, Record]) -> None:
    for row in records.rows_of(run[1], "latency"):
        time = row["eager"]["median_us"]
        assert row["eager"]["p20_us"] <= time <= row["eager"]["p80_us"]
        assert row["us_per_pick"] == pytest.approx(time / 6, rel=1e-2)
        assert row["gb_per_s"] == pytest.approx(48 * 32 * 4 / time / 1e3, rel=1e-2)
        assert row["times_floor"] == pytest.approx(time / row["floor_us"], rel=1e-2)


def test_the_counted_saving_is_the_published_one_without_text(run: tuple[str, Record]) -> None:
    saved = {r["provider"]: r["value"] for r in records.rows_of(run[1], "prefill") if r.get("unit") == "%"}
    assert 97 < saved["576 to 16 visual tokens, no text tokens: saved"] < 98
    assert 87 < saved["576 to 16 visual tokens, 64 text tokens: saved"] < 88


def test_a_lying_engine_makes_the_run_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"suite": "latency", "provider": "cpu", "status": "wrong", "B": 1, "N": 8, "D": 8, "k": 2}
    monkeypatch.setitem(command.SUITES, "latency", lambda session: iter([row]))
    monkeypatch.setattr(command.floor, "measure", lambda *arguments: command.floor.Floor(1, 1, 1, 1, 0, 1, "given"))
    assert command.main(["--quick", "--device", "cpu", "--suite", "latency"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_suite_that_breaks_leaves_the_others_their_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(session: Any) -> Any:
        yield {"suite": "batch", "provider": "torch", "status": "ok"}
        raise RuntimeError("out of memory")

    monkeypatch.setitem(command.SUITES, "batch", broken)
    monkeypatch.setattr(command.floor, "measure", lambda *arguments: command.floor.Floor(1, 1, 1, 1, 0, 1, "given"))
    out = tmp_path / "record.json"
    options = ["--quick", "--device", "cpu", "--suite", "batch", "ragged", "--shapes", "1x20x8x3"]
    assert command.main([*options, "--out", str(out)]) == 1
    rows = records.read(out)["rows"]
    assert [row.get("note") for row in rows if row["suite"] == "batch"] == [None, "RuntimeError: out of memory"]
    assert records.rows_of({"rows": rows}, "ragged")


# --- Records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("floor"),
        lambda record: record["rows"][0].update(suite="other"),
        lambda record: record["rows"][0].update(median=1.0),
        lambda record: record["rows"][0]["eager"].update(median_us=-1.0),
        lambda record: record["sources"].update(digest="none"),
        lambda record: record["environment"]["device"].update(type="tpu"),
    ],
)
def test_a_record_that_is_not_one_is_refused(run: tuple[str, Record], spoil: Callable[[Record], Any]) -> None:
    record = copy.deepcopy(run[1])
    records.check(record)
    spoil(record)
    with pytest.raises(jsonschema.ValidationError):
        records.check(record)


def test_a_record_survives_writing(run: tuple[str, Record], tmp_path: Path) -> None:
    path = records.write(run[1], tmp_path)
    assert path.name == records.file_name(run[1])
    assert records.read_all(tmp_path) == {path.stem: run[1]}


def _slower(row: dict[str, Any], factor: float) -> None:
    for name in ("median_us", "p20_us", "p80_us"):
        row["eager"][name] *= factor


def test_compare_flags_what_moved_beyond_spread_and_drift(
    run: tuple[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run[1]
    ours = "cpu" if "cpu" in before["engines"] else "torch"

    def verdicts(record: Record) -> dict[str, str]:
        return {c.key[1]: c.verdict for c in compare.changes(before, record) if c.key[0] == "latency"}

    def times(factor: float, drift: float = 1.0) -> Record:
        after = copy.deepcopy(before)
        after["sources"]["files"]["idsel_kernels/engines/reference.py"] = "0" * 16
        for row in after["rows"]:
            if row.get("eager"):
                _slower(row, factor if row["provider"] == ours else drift)
        return after

    assert verdicts(times(100))[ours] == "slower" and verdicts(times(1 / 100))[ours] == "faster"
    assert verdicts(times(100))["published loop"] == "drift" and verdicts(times(1))[ours] == "within the spread"
    # All is as much slower: that is the machine, whichever way it goes.
    assert verdicts(times(100, drift=100))[ours] == verdicts(times(1 / 90, drift=100))[ours] == "within the drift"
    assert verdicts(times(100, drift=2))[ours] == "slower"
    alone = copy.deepcopy(before)
    alone["rows"] = [row for row in alone["rows"] if row["provider"] == ours]
    paths = {name: tmp_path / f"{name}.json" for name in ("before", "slower", "alone")}
    for name, record in (("before", before), ("slower", times(100)), ("alone", alone)):
        records.write(record, paths[name])
    assert compare.main([str(paths["before"]), str(paths["before"])]) == 0
    assert compare.main([str(paths["before"]), str(paths["slower"])]) == 1
    capsys.readouterr()
    assert compare.main([str(paths["alone"]), str(paths["slower"])]) == 0
    assert "too little that cannot have changed is in both" in capsys.readouterr().out


def test_a_file_that_is_no_record_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.json").write_text("not JSON")
    (tmp_path / "other.json").write_text('{"rows": []}')
    for name, words in (
        ("none.json", "none.json cannot be read: No such file or directory"),
        ("text.json", "text.json is not JSON: "),
        ("other.json", "other.json is not a record of this bench: "),
    ):
        path = str(tmp_path / name)
        assert compare.main([path, path]) == compare.verify_main([path]) == 2
        assert words in capsys.readouterr().err.replace("\n", " ")


def test_compare_names_rows_that_one_record_lacks(run: tuple[str, Record]) -> None:
    after = copy.deepcopy(run[1])
    gone = after["rows"].pop(0)
    after["rows"][0]["status"] = "wrong"
    verdicts = [change.verdict for change in compare.changes(run[1], after)]
    assert verdicts.count("only in A") == 1 and "ok → wrong" in verdicts
    assert gone["suite"] == "latency"


def test_verify_knows_records_of_other_sources(
    run: tuple[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records.write(run[1], tmp_path)
    assert compare.verify_main([str(path)]) == 0
    stale = copy.deepcopy(run[1])
    stale["sources"]["files"]["idsel_kernels/engines/reference.py"] = "0" * 16
    assert compare.verify_main([str(records.write(stale, tmp_path / "stale.json"))]) == 1
    printed = capsys.readouterr().out
    assert "matches the sources" in printed and "STALE, changed since:" in printed
    assert "\n  idsel_kernels/engines/reference.py\n" in printed and run[1]["sources"]["digest"] in printed


def test_a_source_of_another_engine_does_not_make_a_record_stale(run: tuple[str, Record]) -> None:
    now = {**records.source_hashes(), "csrc/cuda/new.cu": "1" * 16, "triton_impl/kernels.py": "1" * 16}
    record = {**run[1], "engines": ["cpu", "torch"]}
    assert records.changed_sources(record, now) == []
    assert records.changed_sources({**record, "engines": ["cuda"]}, now) == ["csrc/cuda/new.cu"]


def test_every_engine_has_sources_that_are_hashed() -> None:
    hashed = records.source_hashes()
    assert any(path.startswith(records.SOURCES["cpu"]) for path in hashed)
    assert set(records.SOURCES) == set(tables.ENGINES)


# --- The report -------------------------------------------------------------------------------------------------------


def test_report_fills_the_pages_and_draws(run: tuple[str, Record], tmp_path: Path) -> None:
    results = tmp_path / "results"
    records.write(run[1], results)
    (tmp_path / "docs").mkdir()
    marked = "before\n<!-- bench:begin {0} -->\nold\n<!-- bench:end {0} -->\nafter\n"
    (tmp_path / "README.md").write_text(marked.format("summary"))
    (tmp_path / "docs" / "benchmarks.md").write_text(marked.format("results"))
    options = ["--results", str(results), "--root", str(tmp_path)]
    assert report.main([*options, "--check"]) == 1
    assert report.main(options) == 0
    assert report.main([*options, "--check"]) == 0
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    found = re.findall(r"\]\((images/[^)]+)\)", page)
    assert len(found) == len(images.CAPTIONS)
    for image in found:
        assert 1000 < (tmp_path / "docs" / image).stat().st_size < 150_000


def test_report_says_that_a_record_is_of_other_sources(run: tuple[str, Record]) -> None:
    now = records.source_hashes()
    for other, said in ((now, False), ({**now, "idsel_kernels/engines/reference.py": "0" * 16}, True)):
        for text in report.fragments({"device": run[1]}, other).values():
            assert ("sources have changed since" in text) == said
            assert run[1]["sources"]["digest"] in text and run[1]["environment"]["taken"][:10] in text


def _on_gpu(record: Record) -> Record:
    """The latency rows of a record as one of a GPU has them: twice as fast in a graph, the loop four times."""
    made = copy.deepcopy(record)
    made["environment"]["device"] |= {"type": "cuda", "name": "A GPU"}
    made["rows"] = records.rows_of(made, "latency")
    for row in made["rows"]:
        gain = {"published loop": 4, "torch": 0}.get(row["provider"], 2)
        graph = {name: row["eager"][name] / gain for name in ("median_us", "p20_us", "p80_us")} if gain else None
        row["graph"] = graph and {**graph, "repeats": 1}
    return made


def test_ratios_on_a_gpu_are_by_one_clock(run: tuple[str, Record]) -> None:
    record = _on_gpu(run[1])
    assert "× of the floor" in tables.latency(record)
    for timed in record["rows"]:  # a record that does not say of which clock its floor is
        timed.pop("clock", None)
    (ours,) = tables.ours(record)
    if ours == "torch":
        pytest.skip("no second engine here")
    head, _, row = ([c.strip() for c in line.split("|")] for line in tables.latency(record).splitlines())
    assert not [name for name in head if "floor" in name]
    eager, graph = (console.times_text(f) for f in _factors(record, ours))
    assert row[head.index("× published loop")] == f"{eager} / {graph}"
    assert row[head.index("× torch engine")].endswith(" / –")
    assert "floor" not in images.drawn(record)
    missing = tables.missing(record)
    assert "suites `rules`, `batch`, `scale`, `ragged`, `overhead`, `breakdown`, `prefill`" in missing
    assert "100 of the 100 shapes of `latency`; `torch.compile`" in missing


def _factors(record: Record, ours: str) -> list[float]:
    rows = {row["provider"]: row for row in record["rows"]}
    return [rows["published loop"][c]["median_us"] / rows[ours][c]["median_us"] for c in ("eager", "graph")]


def test_pages_show_what_the_records_hold() -> None:
    made = report.fragments(records.read_all(), records.source_hashes())
    for page in report.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "<!-- bench:begin" in text
        assert report.filled(text, made) == text, f"{page} is out of date: python -m bench report"


def test_records_in_the_repository_are_valid_and_under_their_names() -> None:
    found = records.read_all()
    assert found, "bench/results has no record"
    for stem, record in found.items():
        assert records.file_name(record) == f"{stem}.json"
        assert not record["git"]["modified"], f"{stem}: taken from files that no commit has"
        assert not any(row["status"] == "wrong" and row["provider"] in records.SOURCES for row in record["rows"])
        assert "/" not in record["command"].replace("bench/results", ""), "a path of one machine"


def test_commands_of_the_pages_parse() -> None:
    parsers = {"report": report.parser(), "compare": compare.parser(), "verify": compare.verify_parser()}
    commands = []
    for page in report.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        commands += re.findall(r"^python -m bench(.*)$", text, flags=re.MULTILINE)
        commands += re.findall(r"`python -m bench([^`]*)`", text)
    assert len(commands) > 8
    for line in commands:
        words = shlex.split(line, comments=True)
        if words == ["compare"]:  # the name of the command, in a sentence
            continue
        if words and words[0] in parsers:
            parsers[words[0]].parse_args(words[1:])
        else:
            command._parser().parse_args(words)


@pytest.mark.parametrize(
    ("microseconds", "text"), [(0.1234, "0.12 µs"), (12.34, "12.3 µs"), (999.6, "1.00 ms"), (123_456.0, "123 ms")]
)
def test_times_have_three_digits(microseconds: float, text: str) -> None:
    assert console.time_text(microseconds) == text


def test_a_dry_session_goes_through_every_step_and_leaves_few_files(tmp_path: Path) -> None:
    script, out = ROOT / "bench" / "gpu_session.sh", tmp_path / "out"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"DRY": "1", "OUT": str(out), "PYTHON": sys.executable}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (out / "summary.txt").read_text()
    steps = [line.split()[0] for line in summary.splitlines()[:-1]]
    wanted = {"build", "info", "sanitizer", "suite", "replays", "profile", "bench", "verify", "report"}
    assert wanted <= set(steps), summary
    assert summary.splitlines()[-1].startswith("0 steps failed")
    (record,) = out.glob("*.json")
    assert records.read(record)["rows"] and len(list(out.iterdir())) <= 8
    assert "latency" in (out / "report.md").read_text().lower()


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(records.SCHEMA.read_text()))

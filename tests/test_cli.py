"""The `idsel` command: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
import torch

import idsel_kernels as idsel
from idsel_kernels._cli import command as cli
from idsel_kernels._cli import files, start
from idsel_kernels.rules import RULES


@pytest.fixture
def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Features (2, 12, 8) float32 and importance (2, 12) float32."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((2, 12, 8)).astype(np.float32)
    return features, generator.random((2, 12)).astype(np.float32)


@pytest.fixture
def archive(tokens, tmp_path) -> str:
    path = tmp_path / "tokens.npz"
    np.savez(path, features=tokens[0], importance=tokens[1], other=tokens[0][:, ::-1])
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """Runs a command that must succeed and prints only JSON."""
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert captured.err == ""
    return json.loads(captured.out)


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail, with one line on stderr and nothing on stdout; that line's message."""
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("idsel: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("idsel: error: ").rstrip("\n")


def expected(tokens, rule=None, k=3, **options) -> list[list[int]]:
    features, importance = (torch.from_numpy(array) for array in tokens)
    return idsel.select(features, k, rule or idsel.IDSelection(), importance, **options).indices.tolist()


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "idsel_kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- as a program ---


def test_program_prints_json(tokens, archive):
    done = run_program("select", archive, "--k", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["indices"] == expected(tokens)


def test_program_fails_in_one_line(tmp_path):
    done = run_program("select", str(tmp_path / "none.npy"), "--k", "3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"idsel: error: {tmp_path / 'none.npy'}: No such file or directory\n"


def test_program_is_quiet_when_the_reader_of_its_output_leaves(archive):
    command = [sys.executable, "-m", "idsel_kernels", "select", archive, "--k", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=120) == 1


def test_the_library_loads_nothing_of_the_command():
    code = "import sys, idsel_kernels; print([name for name in sys.modules if name.startswith('idsel_kernels._cli')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


# --- select ---


def test_select_answers_with_scores_rule_and_backend(capsys, tokens, archive):
    answer = run(capsys, "select", archive, "--k", "3", "--backend", "torch")
    features, importance = (torch.from_numpy(array) for array in tokens)
    selection = idsel.select(features, 3, importance=importance, backend="torch")
    assert answer["indices"] == selection.indices.tolist()
    # The digits printed give the very float32 back.
    assert torch.equal(torch.tensor(answer["scores"]), selection.scores)
    assert answer["rule"] == "IDSelection"
    assert answer["params"] == {"gamma": 20.0, "floor": 0.0, "ties": "index"}
    assert answer["backend"] == "torch"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_select_reads_npy(capsys, tokens, tmp_path, dtype):
    features, importance = tokens
    np.save(tmp_path / "f.npy", features.astype(dtype))
    np.save(tmp_path / "i.npy", importance)
    answer = run(capsys, "select", str(tmp_path / "f.npy"), "--k", "3", "--importance", str(tmp_path / "i.npy"))
    read = features.astype(np.float16) if dtype is np.float16 else features
    assert answer["indices"] == expected((read, importance))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_select_reads_safetensors(capsys, tokens, tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is optional")
    features, importance = (torch.from_numpy(array) for array in tokens)
    path = tmp_path / "tokens.safetensors"
    safetensors.save_file({"features": features.to(dtype), "importance": importance}, path)
    answer = run(capsys, "select", str(path), "--k", "3")
    assert answer["indices"] == idsel.select(features.to(dtype), 3, importance=importance).indices.tolist()


def test_select_takes_one_sample_without_a_batch_axis(capsys, tokens, tmp_path):
    np.savez(tmp_path / "one.npz", features=tokens[0][1], importance=tokens[1][1])
    answer = run(capsys, "select", str(tmp_path / "one.npz"), "--k", "3")
    assert answer["indices"] == expected(tokens)[1:]


def test_select_takes_another_array_by_key(capsys, tokens, archive):
    answer = run(capsys, "select", archive, "--k", "3", "--key", "other")
    assert answer["indices"] == expected((tokens[0][:, ::-1].copy(), tokens[1]))


def test_select_takes_the_only_array_whatever_its_name(capsys, tokens, tmp_path):
    np.savez(tmp_path / "a.npz", hidden=tokens[0])
    np.savez(tmp_path / "b.npz", attention=tokens[1])
    answer = run(
        capsys, "select", str(tmp_path / "a.npz"), "--k", "3", "--importance", str(tmp_path / "b.npz"), "--rule", "topk"
    )
    assert answer["indices"] == expected(tokens, idsel.TopK())


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_select_keeps_to_the_mask(capsys, tokens, archive, tmp_path, dtype):
    mask = np.zeros((2, 12), dtype=dtype)
    mask[:, 4:8] = 1
    np.save(tmp_path / "mask.npy", mask)
    answer = run(capsys, "select", archive, "--k", "3", "--mask", str(tmp_path / "mask.npy"))
    assert answer["indices"] == expected(tokens, mask=torch.from_numpy(mask.astype(bool)))
    assert {index for row in answer["indices"] for index in row} <= {4, 5, 6, 7}


def test_select_sorts(capsys, tokens, archive):
    answer = run(capsys, "select", archive, "--k", "5", "--sort")
    assert answer["indices"] == [sorted(row) for row in expected(tokens, k=5)]


def test_select_writes_null_where_json_has_no_number(capsys, archive):
    assert cli.main(["select", archive, "--k", "14", "--rule", "nms", "--param", "threshold=-1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    # All but the first pick are suppressed, and the last two do not exist.
    assert [row[-2:] for row in answer["indices"]] == [[-1, -1], [-1, -1]]
    assert [[score is None for score in row] for row in answer["scores"]] == [[False] + 13 * [True]] * 2


RULE_ARGUMENTS = {rule.short_name: ([], rule()) for rule in RULES.values()} | {
    "id": (["gamma=5", "floor=none"], idsel.IDSelection(gamma=5.0, floor=None)),
    "mmr": (["lam=0.25", "parallel_k=2"], idsel.MMR(lam=0.25, parallel_k=2)),
    "maxmin": (["start=4"], idsel.MaxMin(start=4)),
    "nms": (["threshold=0.9", "grid=3x4", "radius=1"], idsel.HardSuppress(threshold=0.9, grid=(3, 4), radius=1)),
    "dpp": (["eps=1e-4"], idsel.DPP(eps=1e-4)),
    "coverage": (["alpha=0.5", "combine=add"], idsel.Coverage(alpha=0.5, combine="add")),
    "topk": ([], idsel.TopK()),
    "elimination": (["important=0.25", "order=position"], idsel.Elimination(important=0.25, order="position")),
    "dart": (["pivots=2", "text_pivots=1"], idsel.DART(pivots=2, text_pivots=1)),
}


@pytest.mark.parametrize("short", RULE_ARGUMENTS)
def test_select_knows_every_rule_and_parameter(capsys, tokens, archive, short):
    texts, rule = RULE_ARGUMENTS[short]
    params = [part for text in texts for part in ("--param", text)]
    for name in (short, type(rule).__name__):
        answer = run(capsys, "select", archive, "--k", "3", "--rule", name, *params)
        assert answer["rule"] == type(rule).__name__
        assert answer["indices"] == expected(tokens, rule)


def test_short_names_are_those_of_the_rules_and_no_two_are_equal():
    assert len(set(SHORT_NAMES)) == len(SHORT_NAMES)
    assert list(RULE_ARGUMENTS) == SHORT_NAMES


def test_a_rule_that_joins_the_list_needs_nothing_on_the_command_line(capsys, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Newcomer(idsel.Rule):
        """Has no name but that of its class."""

        strength: float = 1.0
        rule_id: ClassVar[int] = 99

    monkeypatch.setitem(RULES, "Newcomer", Newcomer)
    assert cli._rule("newcomer", ["strength=2"]) == cli._rule("Newcomer", ["strength=2"]) == Newcomer(2.0)
    assert cli.main(["select", "--help"]) == 0
    assert "newcomer (Newcomer)" in " ".join(capsys.readouterr().out.split())


def test_select_writes_files(capsys, tokens, archive, tmp_path):
    for name in ("out.npy", "out.json"):
        assert cli.main(["select", archive, "--k", "3", "--output", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == ""
    indices = np.load(tmp_path / "out.npy")
    assert indices.dtype == np.int64
    assert indices.tolist() == expected(tokens)
    assert json.loads((tmp_path / "out.json").read_text())["indices"] == expected(tokens)
    # With --json it is printed as well.
    answer = run(capsys, "select", archive, "--k", "3", "--output", str(tmp_path / "out.json"), "--json")
    assert answer == json.loads((tmp_path / "out.json").read_text())


def pruned(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_select_writes_the_kept_rows(capsys, tokens, tmp_path, dtype):
    features, path = tokens[0].astype(dtype) / 3, tmp_path / "kept.npz"
    np.savez(tmp_path / "f.npz", features=features, importance=tokens[1])
    answer = run(capsys, "select", str(tmp_path / "f.npz"), "--k", "5", "--prune", str(path))
    kept = pruned(path)
    assert sorted(kept) == ["counts", "hidden", "indices"]
    # JSON has them in the order of the picks, the archive in that of the file.
    assert kept["indices"].tolist() == [sorted(row) for row in answer["indices"]] != answer["indices"]
    assert kept["counts"].tolist() == [5, 5]
    assert kept["indices"].dtype == kept["counts"].dtype == np.int64
    assert kept["hidden"].dtype == dtype
    np.testing.assert_array_equal(kept["hidden"], np.take_along_axis(features, kept["indices"][..., None], axis=1))


def test_select_pads_the_kept_rows_with_zeros(capsys, tokens, archive, tmp_path):
    mask, path = np.zeros((2, 12), bool), tmp_path / "kept.npz"
    mask[0, [7, 2]] = mask[1, [1, 5, 11]] = True
    np.save(tmp_path / "mask.npy", mask)
    arguments = ("--k", "4", "--mask", str(tmp_path / "mask.npy"), "--prune", str(path))
    assert cli.main(["select", archive, *arguments]) == 0
    kept = pruned(path)
    assert kept["indices"].tolist() == [[2, 7, -1, -1], [1, 5, 11, -1]]
    assert kept["counts"].tolist() == [2, 3]
    for sample, count in enumerate(kept["counts"]):
        rows = kept["indices"][sample, :count]
        np.testing.assert_array_equal(kept["hidden"][sample, :count], tokens[0][sample, rows])
        assert not kept["hidden"][sample, count:].any()


def test_select_prunes_one_sample_without_a_batch_axis(capsys, tokens, tmp_path):
    np.save(tmp_path / "one.npy", tokens[0][1])
    path = tmp_path / "kept.npz"
    run(capsys, "select", str(tmp_path / "one.npy"), "--k", "3", "--rule", "maxmin", "--prune", str(path))
    kept = pruned(path)
    assert {name: array.shape for name, array in kept.items()} == {
        "hidden": (1, 3, 8),
        "indices": (1, 3),
        "counts": (1,),
    }
    np.testing.assert_array_equal(kept["hidden"][0], tokens[0][1][kept["indices"][0]])


def test_select_prunes_what_numpy_has_no_type_for(capsys, tokens, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is optional")
    features = torch.from_numpy(tokens[0]).bfloat16()
    safetensors.save_file({"features": features}, tmp_path / "f.safetensors")
    path = tmp_path / "kept.npz"
    run(capsys, "select", str(tmp_path / "f.safetensors"), "--k", "3", "--rule", "maxmin", "--prune", str(path))
    kept = pruned(path)
    rows = np.take_along_axis(features.float().numpy(), kept["indices"][..., None], axis=1)
    assert kept["hidden"].dtype == np.float32
    np.testing.assert_array_equal(kept["hidden"], rows)


def test_select_prunes_beside_its_other_output(capsys, tokens, archive, tmp_path):
    names = [str(tmp_path / name) for name in ("kept.npz", "picks.npy")]
    assert cli.main(["select", archive, "--k", "3", "--prune", names[0], "--output", names[1]]) == 0
    assert capsys.readouterr().out == ""
    assert np.load(names[1]).tolist() == expected(tokens)
    assert pruned(Path(names[0]))["indices"].tolist() == [sorted(row) for row in expected(tokens)]


@pytest.mark.parametrize("name", ["out.json", "out.npy", "out.npz"])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch, name):
    def full(*arguments: object, **options: object) -> None:
        raise OSError("no space left")

    for module, writer in ((np, "save"), (np, "savez"), (json, "dumps")):
        monkeypatch.setattr(module, writer, full)
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match="no space left"):
        files.write_pruned(path, {}) if path.suffix == ".npz" else files.write_selection(path, {"indices": []})
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_text() == "old"


def test_a_folder_is_no_output(capsys, archive, tmp_path):
    folder = tmp_path / "folder.npy"
    folder.mkdir()
    message = fail(capsys, "select", archive, "--k", "3", "--output", str(folder))
    assert message == f"{folder}: Is a directory"
    # Made after it was looked for: the file in between is not named, and does not stay.
    with pytest.raises(OSError) as caught:
        files.write_selection(folder, {"indices": []})
    assert caught.value.filename == str(folder)
    assert [*tmp_path.glob(".*")] == []


def test_a_link_to_an_output_stays_one(archive, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "picks.npy").symlink_to(tmp_path / "elsewhere" / "picks.npy")
    assert cli.main(["select", archive, "--k", "3", "--output", str(tmp_path / "picks.npy")]) == 0
    assert (tmp_path / "picks.npy").is_symlink()
    assert np.load(tmp_path / "elsewhere" / "picks.npy").shape == (2, 3)


SHORT_NAMES = [rule.short_name for rule in RULES.values()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "greedy"], f"--rule must be one of {', '.join(SHORT_NAMES)} or a class name"),
        (["--param", "gamma"], "--param must be NAME=VALUE, got 'gamma'"),
        (["--param", "beta=1"], "--param of IDSelection must be one of: gamma, floor, ties; got 'beta'"),
        (["--rule", "topk", "--param", "beta=1"], "--param of TopK must be one of: none, it has no parameters"),
        (["--param", "gamma=high"], "--param gamma must be a number, got 'high'"),
        (["--param", "floor=low"], "--param floor must be a number or none, got 'low'"),
        (["--rule", "nms", "--param", "grid=3"], "HardSuppress: grid must be"),
        (["--rule", "nms", "--param", "grid=a"], "--param grid must be like 24x24 or none, got 'a'"),
        (["--rule", "mmr", "--param", "parallel_k=1.5"], "--param parallel_k must be an integer, got '1.5'"),
        (["--rule", "coverage", "--param", "combine=x"], "--param combine must be mul or add, got 'x'"),
        (["--param", "gamma=-1"], "IDSelection: gamma must be"),
        (["--param", "gamma=nan"], "IDSelection: gamma must be"),
        (["--k", "-1"], "k must be >= 0, got -1"),
        (["--k", "many"], "argument --k: invalid int value: 'many' (see idsel select --help)"),
        (["--backend", "abacus"], "backend must be one of"),
        (["--key", "nothing"], "no array 'nothing'; it holds features, importance, other"),
        (["--output", "picks.txt"], "picks.txt: output must be a .json or .npy file"),
        (["--output", "no/such/folder/picks.npy"], "no/such/folder: no such folder to write to"),
        (["--prune", "kept.npy"], "kept.npy: output must be a .npz file"),
        (["--prune", "no/such/folder/kept.npz"], "no/such/folder: no such folder to write to"),
        (["--importance", "nowhere.npy"], "nowhere.npy: No such file or directory"),
        (["--mask", "nowhere.npy"], "nowhere.npy: No such file or directory"),
    ],
)
def test_select_refuses_arguments(capsys, archive, arguments, message):
    assert message in fail(capsys, "select", archive, "--k", "3", *arguments)


def test_select_refuses_files_that_hold_no_array(capsys, tmp_path):
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.csv").write_text("1,2")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "renamed", np.zeros((2, 3)))
    (tmp_path / "renamed.npy").rename(tmp_path / "renamed.npz")
    np.savez(tmp_path / "archive", np.zeros((2, 3)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    (tmp_path / "folder.npy").mkdir()
    for path in sorted(tmp_path.iterdir()):
        message = fail(capsys, "select", str(path), "--k", "1", "--rule", "maxmin")
        assert message.startswith(f"{path}: "), message


def test_select_refuses_a_cut_off_file(capsys, archive, tmp_path):
    whole = Path(archive).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "cut.npy", np.zeros((100, 8), np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:300])
    for name in ("cut.npz", "cut.npy"):
        message = fail(capsys, "select", str(tmp_path / name), "--k", "1")
        assert message.startswith(f"{tmp_path / name}: not a readable array file")


def test_select_refuses_a_damaged_safetensors_file(capsys, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is optional")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\xff" * 64)
    assert f"{path}: not a readable array file" in fail(capsys, "select", str(path), "--k", "1")


def test_select_says_what_a_safetensors_file_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"")
    assert "pip install 'idsel_kernels[demo]'" in fail(capsys, "select", str(path), "--k", "1")


def test_select_wants_a_name_where_an_archive_leaves_a_choice(capsys, tmp_path):
    np.savez(tmp_path / "two.npz", left=np.zeros((2, 3)), right=np.zeros((2, 3)))
    message = fail(capsys, "select", str(tmp_path / "two.npz"), "--k", "1")
    assert message.endswith("no array 'features' (--key takes another); it holds left, right")
    np.save(tmp_path / "one.npy", np.zeros((2, 3)))
    message = fail(capsys, "select", str(tmp_path / "one.npy"), "--k", "1", "--key", "left")
    assert message.endswith("a .npy file has no names, so there is no array 'left'")


def test_select_passes_on_what_the_package_refuses(capsys, tokens, tmp_path):
    path = tmp_path / "f.npy"
    np.save(path, np.zeros((2, 3, 4, 5), np.float32))
    assert "features must be (B, N, D) or (N, D)" in fail(capsys, "select", str(path), "--k", "1", "--rule", "maxmin")
    np.save(path, np.zeros((4, 5), np.int64))
    assert "features must be float32" in fail(capsys, "select", str(path), "--k", "1", "--rule", "maxmin")
    np.save(path, tokens[0])
    assert "importance is required" in fail(capsys, "select", str(path), "--k", "1")
    np.save(tmp_path / "i.npy", tokens[1][:, :-1])
    message = fail(capsys, "select", str(path), "--k", "1", "--importance", str(tmp_path / "i.npy"))
    assert "importance must be (B, N) = (2, 12)" in message
    np.save(tmp_path / "mask.npy", np.ones((2, 12), np.float32))
    message = fail(capsys, "select", str(path), "--k", "1", "--rule", "maxmin", "--mask", str(tmp_path / "mask.npy"))
    assert "mask must be" in message


# --- info, demo and the parser ---


def test_info_prints_json(capsys):
    report = run(capsys, "info", "--json")
    assert report["idsel_kernels"]["version"] == idsel.__version__
    assert report["backends"]["torch"] == []


def test_info_prints_a_table(capsys):
    pytest.importorskip("rich", reason="the table is drawn by rich")
    assert cli.main(["info"]) == 0
    table = capsys.readouterr().out
    assert "backends" in table
    assert "available" in table
    assert torch.__version__ in table


def test_info_without_rich_is_plain_text(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli.main(["info"]) == 0
    assert "backends:\n" in capsys.readouterr().out


def test_select_validate_refuses_what_is_otherwise_left_for_last(capsys, tokens, tmp_path):
    features = tokens[0].copy()
    features[0, 3, 1] = np.nan
    np.save(tmp_path / "f.npy", features)
    command = ["select", str(tmp_path / "f.npy"), "--k", "1", "--rule", "maxmin"]
    assert cli.main(command) == 0
    capsys.readouterr()
    message = fail(capsys, *command, "--validate")
    assert message == "features must be finite, got a NaN or infinity in row 3 of sample 0"


def test_select_says_that_picks_are_padded(capsys, tokens, tmp_path):
    np.save(tmp_path / "f.npy", tokens[0])
    assert cli.main(["select", str(tmp_path / "f.npy"), "--k", "99", "--rule", "maxmin"]) == 0
    assert capsys.readouterr().err == "idsel: note: a sample has fewer than k tokens; -1 pads its picks\n"


@pytest.mark.parametrize(("command", "missing"), [("demo", "rich"), ("demo", "matplotlib")])
def test_a_missing_extra_is_named(capsys, monkeypatch, command, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("rich", "matplotlib"):
        if name != missing:
            pytest.importorskip(name, reason="only one extra may be missing here")
    message = fail(capsys, command)
    assert message == f"idsel {command} needs the extra: pip install 'idsel_kernels[demo]' ({missing} not found)"


def test_version_and_help_succeed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"idsel {idsel.__version__}\n"
    for command in ("info", "select", "demo"):
        assert cli.main([command, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: idsel {command}")


def test_the_installed_script_says_the_version_without_torch(tmp_path):
    script = importlib.metadata.entry_points(group="console_scripts", name="idsel")
    if not script:
        pytest.skip("idsel_kernels is not installed")
    code = (
        "import sys; from importlib.metadata import entry_points;"
        "(script,) = entry_points(group='console_scripts', name='idsel');"
        "print(script.load()(['--version']), [name for name in ('torch', 'idsel_kernels') if name in sys.modules])"
    )
    # Elsewhere: in a checkout's root Python would take what an earlier build left there for the installation.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"idsel {idsel.__version__}\n0 []\n", done.stderr


def test_the_script_does_all_else_as_the_command_does(capsys, monkeypatch, archive):
    assert start.main(["select", archive, "--k", "3"]) == cli.main(["select", archive, "--k", "3"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    monkeypatch.setattr(sys, "argv", ["idsel", "--version"])
    # Sources that nobody installed.
    monkeypatch.setattr(importlib.metadata, "version", mock.Mock(side_effect=importlib.metadata.PackageNotFoundError))
    assert start.main() == 0
    assert capsys.readouterr().out == f"idsel {idsel.__version__}\n"


def test_a_command_is_required(capsys):
    assert "COMMAND" in fail(capsys)
    assert "invalid choice: 'prune'" in fail(capsys, "prune")


def test_every_option_has_help_with_its_default():
    (commands,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    for command, parser in commands.choices.items():
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                told = action.help or ""
                assert "(default: " in told or "(required)" in told, f"idsel {command} {action.option_strings}"
                if action.default not in (None, False, []):
                    assert f"(default: {action.default})" in told, f"idsel {command} {action.option_strings}"


def test_an_interrupt_ends_quietly(capsys, monkeypatch, archive):
    def interrupted(arguments: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_select", interrupted)
    assert cli.main(["select", archive, "--k", "1"]) == 130
    assert capsys.readouterr().err == ""

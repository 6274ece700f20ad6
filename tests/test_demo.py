"""The picture demo: its numbers, its claim, its PNG and its failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import idsel_kernels as idsel
from idsel_kernels import picture
from idsel_kernels._cli import command as cli
from idsel_kernels._cli import demo
from idsel_kernels._cli.measures import measure
from idsel_kernels.importance import cls_attention, minmax

Image = pytest.importorskip("PIL.Image", reason="the demo reads and writes pictures with Pillow")
pytest.importorskip("matplotlib", reason="the demo draws with matplotlib and uses its photograph")

RULES = ["TopK", "MaxMin", "MMR", "DPP", "Coverage", "IDSelection"]


@pytest.fixture(autouse=True)
def few_timed_runs(monkeypatch):
    """No test reads the times closely enough to need their median."""
    monkeypatch.setattr(demo, "TIMED_RUNS", 1)


def without_times(result: dict) -> dict:
    runs = [{key: value for key, value in run.items() if key != "milliseconds"} for run in result["rules"]]
    return {**result, "rules": runs}


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()  # what making the input printed, such as a progress bar
    status = cli.main(["demo", *arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("idsel: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- the numbers ---


@pytest.mark.parametrize("keep", [8, 16, 32, 64])
def test_id_selection_beats_maxmin_in_importance_and_topk_in_coverage(keep):
    runs = {run["rule"]: run for run in demo.run_demo(keep=keep, output=None)["rules"]}
    assert list(runs) == RULES
    assert runs["IDSelection"]["importance_kept"] > 1.1 * runs["MaxMin"]["importance_kept"]
    assert runs["IDSelection"]["coverage"] > 0.1 + runs["TopK"]["coverage"]
    # What each rule is best at by construction.
    assert max(RULES, key=lambda rule: runs[rule]["importance_kept"]) == "TopK"
    assert max(RULES, key=lambda rule: runs[rule]["coverage"]) == "Coverage"
    assert max(RULES, key=lambda rule: runs[rule]["smallest_distance"]) == "MaxMin"


def test_rules_of_the_demo_are_the_published_ones():
    assert dict(demo.DEMO_RULES)["ID-Selection"] == idsel.IDSelection(gamma=20.0, floor=0.0)
    assert [type(rule).__name__ for _, rule in demo.DEMO_RULES] == RULES


def test_result_is_json_and_repeatable(tmp_path):
    results = [demo.run_demo(keep=5, grid=8, output=tmp_path / "sheet.png") for _ in range(2)]
    assert json.loads(json.dumps(results[0])) == results[0]
    assert without_times(results[0]) == without_times(results[1])
    assert all(run["milliseconds"] > 0 for run in results[0]["rules"])
    assert results[0]["backend"] in idsel.available_backends()


def test_indices_are_those_of_the_public_function():
    features, importance = picture.bundled_patches(8)
    result = demo.run_demo(keep=5, grid=8, output=None, backend="torch")
    for (_, rule), run in zip(demo.DEMO_RULES, result["rules"], strict=True):
        chosen = idsel.select(features, 5, rule, importance, backend="torch").indices[0].tolist()
        assert run["indices"] == chosen
    assert result["backend"] == "torch"


def test_measure_on_tokens_worked_by_hand():
    features = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 5.0], [-1.0, 0.0]])
    importance = torch.tensor([0.5, 0.25, 0.125, 0.125])
    measured = measure(features, importance, [2, 0])
    # Token 1 is at 0.8 from the nearer of the kept two; token 3 is at 0 from token 2.
    assert measured == {"importance_kept": 62.5, "coverage": pytest.approx(0.4), "smallest_distance": 1.0}


def test_measure_has_none_where_there_is_nothing_to_measure():
    features = torch.eye(3)
    assert measure(features, torch.zeros(3), [1])["importance_kept"] is None
    assert measure(features, torch.ones(3), [1])["smallest_distance"] is None
    assert measure(features, torch.ones(3), [0, 1, 2])["coverage"] is None


def test_progress_names_every_step():
    labels: list[str] = []
    demo.run_demo(keep=2, grid=4, output=None, progress=labels.append)
    assert len(labels) == demo.STEPS
    assert labels[-1] == "drawing"


# --- patches, descriptors, saliency ---


def test_descriptors_spread_cosines_from_below_zero_to_nearly_one():
    features, importance = picture.bundled_patches(24)
    assert features.dtype == importance.dtype == torch.float32
    assert importance.shape == (576,)
    unit = torch.nn.functional.normalize(features, dim=-1)
    cosines = (unit @ unit.T)[~torch.eye(576, dtype=torch.bool)]
    assert cosines.min() < -0.5
    assert cosines.median().abs() < 0.1
    assert 0.95 < cosines.max() < 1.0
    assert importance.min() == 0
    assert importance.max() == 1


def test_patches_run_row_by_row_from_the_top_left():
    board = Image.new("RGB", (40, 20), "navy")
    board.paste("white", (30, 0, 40, 5))  # the last patch of the first row
    features = picture.picture_tokens(board, 4).features
    unit = torch.nn.functional.normalize(features, dim=-1)
    assert int((unit @ unit.T).mean(1).argmin()) == 3


def test_equal_patches_have_equal_descriptors():
    tile = picture.load_picture(picture.bundled_photograph()).crop((200, 200, 214, 214))
    tiled = Image.new("RGB", (56, 56))
    for corner in range(16):
        tiled.paste(tile, (14 * (corner % 4), 14 * (corner // 4)))
    moments = picture._colour_moments(picture.to_square(tiled, 4), 4)
    assert torch.allclose(moments, moments[:1].expand_as(moments), atol=1e-5)


def test_a_picture_of_one_colour_works():
    tokens = picture.picture_tokens(Image.new("RGB", (64, 48), (200, 30, 30)), 6)
    assert torch.equal(tokens.features, torch.zeros_like(tokens.features))
    # Only the centre counts.
    assert tokens.importance.argmax() in (14, 15, 20, 21)
    assert len(set(idsel.select(tokens.features, 7, importance=tokens.importance).indices[0].tolist())) == 7


def test_load_picture_turns_upright_and_fills_transparency(tmp_path):
    wide = Image.new("RGB", (30, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    wide.save(tmp_path / "turned.jpg", exif=exif)
    assert picture.load_picture(tmp_path / "turned.jpg").size == (10, 30)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert picture.load_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


# --- the sheet ---


def test_sheet_is_a_png_of_readme_size_and_always_the_same(tmp_path):
    for name in ("a.png", "b.png"):
        demo.run_demo(output=tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 700_000
    with Image.open(tmp_path / "a.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG"
        assert sheet.width == 1400
        assert 900 < sheet.height < 1200


def test_sheet_shows_kept_patches_in_colour_and_dropped_ones_grey(tmp_path):
    from idsel_kernels._cli.figure import _Sheet

    sheet = _Sheet(Image.new("RGB", (48, 48), (220, 20, 20)), 4)
    run = {"rule": "TopK", "title": "TopK", "indices": [5], "importance_kept": None, "coverage": None}
    sheet.rule_panel(2, run)
    pixels = sheet.figure.axes[0].images[0].get_array()
    side = pixels.shape[0] // 4
    assert pixels[side + side // 2, side + side // 2].tolist() == [220, 20, 20]
    grey = pixels[side // 2, side // 2].tolist()
    assert len(set(grey)) == 1
    assert [tuple(patch.get_xy()) for patch in sheet.figure.axes[0].patches] == [(1, 1)]


@pytest.mark.parametrize("size", [(400, 60), (60, 400)], ids=["wide", "tall"])
def test_sheet_of_an_unusual_shape(tmp_path, size):
    Image.new("RGB", size, "teal").save(tmp_path / "in.png")
    demo.run_demo(tmp_path / "in.png", keep=16, grid=4, output=tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.width == 1400
        assert 300 < sheet.height < 1400


# --- the command ---


def test_command_prints_a_table_and_writes_the_sheet(capsys, tmp_path, monkeypatch):
    pytest.importorskip("rich", reason="the table is drawn by rich")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--grid", "8", "--keep", "5"]) == 0
    captured = capsys.readouterr()
    for text in ("5 of 64 patches", "importance kept", "smallest distance", "ID-Selection", "wrote idsel_demo.png"):
        assert text in captured.out
    assert captured.err == ""
    assert Path("idsel_demo.png").stat().st_size > 0


def test_command_prints_json(capsys, tmp_path, monkeypatch):
    pytest.importorskip("rich", reason="the command needs rich")
    monkeypatch.setenv("FORCE_COLOR", "1")  # even on a terminal only JSON is printed
    output = tmp_path / "sheet.png"
    assert cli.main(["demo", "--grid", "8", "--keep", "5", "--json", "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert without_times(result) == without_times(demo.run_demo(keep=5, grid=8, output=output))


def test_command_shows_progress_on_a_terminal(capsys, tmp_path, monkeypatch):
    pytest.importorskip("rich", reason="progress is shown by rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["demo", "--grid", "4", "--keep", "2", "--output", str(tmp_path / "sheet.png")]) == 0
    assert "drawing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: No such file or directory"),
        (["--keep", "0"], "keep must be 1 to 576, the number of patches, got 0"),
        (["--keep", "577"], "keep must be 1 to 576, the number of patches, got 577"),
        (["--grid", "3"], "grid must be 4 to 64 patches on a side, got 3"),
        (["--output", "sheet.jpg"], "output must be a .png file, got 'sheet.jpg'"),
        (["--output", "no/such/folder/sheet.png"], "no/such/folder: no such folder to write to"),
        (["--backend", "abacus"], "backend must be one of"),
        (["--model", "no/such/folder"], "no CLIP vision tower at 'no/such/folder' on this machine; `hf download"),
    ],
)
def test_command_refuses_arguments(capsys, tmp_path, monkeypatch, arguments, message):
    pytest.importorskip("rich", reason="the command needs rich")
    if "--model" in arguments:
        pytest.importorskip("transformers", reason="looks for weights with transformers")
    monkeypatch.chdir(tmp_path)
    assert message in fail(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_unreadable_pictures(capsys, tmp_path):
    pytest.importorskip("rich", reason="the command needs rich")
    output = ["--output", str(tmp_path / "out.png")]
    (tmp_path / "text.jpg").write_text("not a picture")
    photograph = picture.bundled_photograph().read_bytes()
    (tmp_path / "cut.jpg").write_bytes(photograph[: len(photograph) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.jpg", "cut.jpg", "empty.png"):
        message = fail(capsys, str(tmp_path / name), *output)
        assert f"cannot read '{tmp_path / name}' as a picture" in message
    assert f"{tmp_path}: Is a directory" in fail(capsys, str(tmp_path), *output)
    assert not (tmp_path / "out.png").exists()


# --- with a model ---


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory) -> Path:
    """A tiny CLIP vision tower with random weights: 4 x 4 patches, 3 layers."""
    transformers = pytest.importorskip("transformers", reason="--model is for CLIP towers of transformers")
    torch.manual_seed(0)
    return save_tower(transformers, tmp_path_factory.mktemp("tower"), layers=3)


def save_tower(transformers, folder: Path, layers: int) -> Path:
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    return folder


def test_model_gives_the_tokens_and_attention_of_its_last_layer_but_one(tower_folder):
    import transformers

    from idsel_kernels._cli.model import clip_tokens

    tokens = clip_tokens(picture.load_picture(picture.bundled_photograph()), str(tower_folder))
    assert tokens.grid == 4
    assert tokens.picture.size == (56, 56)
    # The same from the queries and keys of that layer, caught as they are computed.
    tower = transformers.CLIPVisionModel.from_pretrained(tower_folder).eval()
    caught: dict[str, torch.Tensor] = {}
    modules = {name: module for name, module in tower.named_modules() if "layers.1.self_attn." in name}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name[-6:]: caught.update({name: output}))
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    with torch.inference_mode():
        pixels = processor(images=tokens.picture, return_tensors="pt")["pixel_values"]
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    query, key = (caught[name].unflatten(-1, (4, 8)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    # The picture went through 8 bits on the way.
    torch.testing.assert_close(tokens.features, hidden, rtol=0, atol=0.02)
    torch.testing.assert_close(tokens.importance, minmax(cls_attention(query, key))[0], rtol=0, atol=0.05)


def test_command_runs_with_a_model(capsys, tower_folder, tmp_path):
    pytest.importorskip("rich", reason="the command needs rich")
    output = tmp_path / "sheet.png"
    command = ["demo", "--model", str(tower_folder), "--keep", "4", "--json", "--output", str(output)]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert result["grid"] == 4
    assert result["features"].startswith("layer -2 of ")
    assert output.stat().st_size > 0


def test_model_must_be_a_clip_tower_deep_enough(capsys, tower_folder, tmp_path):
    pytest.importorskip("rich", reason="the command needs rich")
    import transformers

    shallow = save_tower(transformers, tmp_path / "shallow", layers=1)
    assert "must have at least 2 layers, got 1" in fail(capsys, "--model", str(shallow))
    (tmp_path / "bert").mkdir()
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    assert "must be a CLIP model, got one of type 'bert'" in fail(capsys, "--model", str(tmp_path / "bert"))
    (tmp_path / "empty").mkdir()
    assert "no CLIP vision tower" in fail(capsys, "--model", str(tmp_path / "empty"))
    damaged = save_tower(transformers, tmp_path / "damaged", layers=2)
    (damaged / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "no CLIP vision tower" in fail(capsys, "--model", str(damaged))


def test_model_without_transformers_names_the_extra(capsys, monkeypatch):
    pytest.importorskip("rich", reason="the command needs rich")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'idsel_kernels[model]'" in fail(capsys, "--model", "anything")

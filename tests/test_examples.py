"""The scripts in examples/: as they are, and with a model and a picture from files."""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@functools.cache
def _usage(script: str) -> str:
    return _run(script, "--help")


def _run(script: str, *options: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llava_keeps_64_of_its_576_tokens() -> None:
    assert "prompt: 582 tokens, of which the model saw 70\nvisual tokens kept: [64]\n" in _run("llava_prune.py")


def test_qwen_keeps_a_fifth_of_its_tokens() -> None:
    assert "visual tokens kept: [77] of a prompt of 389 tokens\n" in _run("qwen_prune.py")


def test_examples_are_short() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert len(script.read_text().splitlines()) < 60, script.name


def test_commands_on_the_pages_have_options_of_the_scripts() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = [line for page in pages for line in page.read_text().splitlines() if line.startswith("python examples/")]
    assert len(found) >= 4
    for line in found:
        script, *options = shlex.split(line)[1:]
        usage = _usage(Path(script).name)
        for option in options[::2]:
            assert option.startswith("--") and f"{option} " in usage, line


def test_llava_from_files(tmp_path: Path) -> None:
    """With a processor, as from the hub."""
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    _save_llava(tmp_path / "model")
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "photo.png")
    options = {"--model": tmp_path / "model", "--picture": tmp_path / "photo.png", "--keep": 5, "--rule": "mmr"}
    printed = _run("llava_prune.py", *(str(each) for pair in options.items() for each in pair))
    assert "visual tokens kept: [5]\n" in printed
    assert "new tokens" not in printed


def _save_llava(folder: Path) -> Any:
    """A LLaVA of 16 visual tokens whose tokenizer knows a handful of words."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "what", "is", "in", "the", "picture", "?", "a", "cat"]
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    rules.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=rules, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    side = {"height": 16, "width": 16}
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endfor %}"
    )
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side), tokenizer, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**size, image_size=16, patch_size=4),
        text_config=transformers.LlamaConfig(**size, vocab_size=len(words), pad_token_id=0),
        image_token_id=4,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)

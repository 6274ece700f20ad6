"""Qwen2.5-VL with few of its visual tokens: tiny and random, or `--model Qwen/Qwen2.5-VL-3B-Instruct`, a picture."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import transformers

import idsel_kernels as idsel


def tiny() -> tuple[Any, dict[str, torch.Tensor]]:
    """A random Qwen2.5-VL, and a prompt with an image of 16 x 24 tokens in it."""
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    rope = {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, **heads, **rope},
        vision_config={"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64},
        image_token_id=999, video_token_id=998, vision_start_token_id=997,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.tensor([[1, 997] + [999] * 16 * 24 + [7, 8, 9]])
    return transformers.Qwen2_5_VLForConditionalGeneration(config), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(32 * 48, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 32, 48]]),
    }


def real(name: str, picture: str, question: str) -> tuple[Any, Any, Any]:
    """A model of the Hugging Face hub, its inputs, and its processor."""
    processor = transformers.AutoProcessor.from_pretrained(name)
    model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    content = [{"type": "image", "path": picture}, {"type": "text", "text": question}]
    chat = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **chat)
    return model, inputs.to(model.device), processor


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="a Qwen2.5-VL or Qwen3-VL on the hub or in a folder; without it a tiny random one")
parser.add_argument("--picture", default="photo.jpg")
parser.add_argument("--question", default="What is in the picture?")
parser.add_argument("--ratio", type=float, default=0.2, help="share of the visual tokens to keep")
args = parser.parse_args()
model, inputs, *processor = real(args.model, args.picture, args.question) if args.model else tiny()

with idsel.integrations.transformers.pruned(model.eval(), keep_ratio=args.ratio) as pruner:
    out = model.generate(**inputs, max_new_tokens=8 if not args.model else 64, do_sample=False)

answer = out[:, inputs["input_ids"].shape[1] :]
print(f"visual tokens kept: {pruner.last.counts} of a prompt of {inputs['input_ids'].shape[1]} tokens")
print(processor[0].batch_decode(answer, skip_special_tokens=True)[0] if processor else f"new tokens: {answer.tolist()}")

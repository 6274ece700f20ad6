"""LLaVA-1.5 with few of its visual tokens: tiny and random, or `--model llava-hf/llava-1.5-7b-hf` and a picture."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import transformers

import idsel_kernels as idsel


def tiny() -> tuple[Any, dict[str, torch.Tensor]]:
    """A random LLaVA with the 576 visual tokens of the real one, and a prompt with an image in it."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**size, image_size=336, patch_size=14),
        text_config=transformers.LlamaConfig(**size, vocab_size=1000),
        image_token_id=999,
    )
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 6] + [999] * 576 + [7, 8, 9]])
    return transformers.LlavaForConditionalGeneration(config), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 336, 336),
    }


def real(name: str, picture: str, question: str) -> tuple[Any, Any, Any]:
    """A model of the Hugging Face hub, its inputs, and its processor."""
    processor = transformers.AutoProcessor.from_pretrained(name)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(name, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    content = [{"type": "image", "path": picture}, {"type": "text", "text": question}]
    chat = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **chat)
    return model, inputs.to(model.device, model.dtype), processor


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="a LLaVA-1.5 on the hub or in a folder; without it a tiny random one")
parser.add_argument("--picture", default="photo.jpg")
parser.add_argument("--question", default="What is in the picture?")
parser.add_argument("--keep", type=int, default=64, help="visual tokens to keep, of 576")
parser.add_argument("--rule", default="id", help="id, mmr, maxmin, nms, dpp, coverage or topk")
args = parser.parse_args()
model, inputs, *processor = real(args.model, args.picture, args.question) if args.model else tiny()
model.eval()

with idsel.integrations.transformers.pruned(model, args.keep, rule=args.rule) as pruner:
    out = model.generate(**inputs, max_new_tokens=8 if not args.model else 64, do_sample=False)

answer = out[:, inputs["input_ids"].shape[1] :]
print(f"prompt: {inputs['input_ids'].shape[1]} tokens, of which the model saw {int(pruner.last.keep_mask.sum())}")
print(f"visual tokens kept: {pruner.last.counts}")
print(processor[0].batch_decode(answer, skip_special_tokens=True)[0] if processor else f"new tokens: {answer.tolist()}")

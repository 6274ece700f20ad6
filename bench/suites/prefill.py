"""The suite `prefill`: what selection saves of a language model's prefill, and what it costs.

On a GPU: a Llama of 7B parameters with random weights (time does not depend on their values) reads 576 visual tokens
and 64 of text, against 16, 64 or 192 selected ones and the text. On any machine: the operations of both, counted on
the meta device, where nothing is computed or stored.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from idsel_kernels import IDSelection

from .. import harness, providers, workloads
from ..workloads import Shape
from . import session as common
from .session import Row, Session

VISUAL, TEXT = 576, 64
KEPT = (16, 64, 192)
# LLaVA-1.5-7B's language model is Vicuna-7B: Llama with a vocabulary of 32064.
LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
# 2 bytes per weight, and room for activations.
NEEDED_BYTES = 18 * 2**30


def prefill(session: Session) -> Iterator[Row]:
    """Operations everywhere, times where there is a GPU with room."""
    if not importlib.util.find_spec("transformers"):
        yield common.unavailable("prefill", "Llama 7B", "needs transformers: pip install 'idsel_kernels[model]'")
        return
    session.step("prefill: counting operations on the meta device")
    yield from flop_rows()
    if why := missing(session):
        yield common.unavailable("prefill", "Llama 7B, timed", why)
        return
    yield from timed(session, build(LLAMA_7B, session.device, session.dtype))


def missing(session: Session) -> str:
    """Why the model is not run here, or nothing."""
    if not session.on_gpu:
        return "needs a GPU"
    if session.quick:
        return "left out by --quick"
    free, _ = torch.cuda.mem_get_info(session.device)
    return "" if free >= NEEDED_BYTES else f"needs {NEEDED_BYTES >> 30} GiB of free GPU memory, got {free >> 30}"


# --- Operations -------------------------------------------------------------------------------------------------------


def flop_rows() -> Iterator[Row]:
    """The prefill's operations with all visual tokens and with 16, with the text and without it."""
    model = build(LLAMA_7B, torch.device("meta"), torch.bfloat16)
    for text in (TEXT, 0):
        full, kept = (flops(model, visual + text) for visual in (VISUAL, KEPT[0]))
        name = f"{VISUAL} to {KEPT[0]} visual tokens, {text or 'no'} text tokens"
        for label, count in (("before", full), ("after", kept)):
            yield _counted(f"{name}: {label}", count / 1e12, "TFLOP")
        yield _counted(f"{name}: saved", 100 * (1 - kept / full), "%")


def _counted(name: str, value: float, unit: str) -> Row:
    note = "torch.utils.flop_counter, attention counted in full, logits of the last position"
    row = {"suite": "prefill", "provider": name, "status": "ok", "value": round(value, 4), "unit": unit}
    return {**row, "note": note}


def flops(model: Any, tokens: int) -> int:
    """Operations of one prefill of so many tokens; a multiply-add is two."""
    embeds = torch.empty((1, tokens, model.config.hidden_size), dtype=model.dtype, device=model.device)
    # Given a mask, the model does not look at values to make one, and the meta device has none.
    mask = torch.empty((1, 1, tokens, tokens), dtype=model.dtype, device=model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, logits_to_keep=1)
    return counter.get_total_flops()


def build(sizes: dict[str, int], device: torch.device, dtype: torch.dtype) -> Any:
    """A Llama with random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**sizes))
    finally:
        torch.set_default_dtype(default)
    return model.eval()


# --- Times ------------------------------------------------------------------------------------------------------------


def timed(session: Session, model: Any, visual: int = VISUAL, kept: tuple[int, ...] = KEPT) -> Iterator[Row]:
    """The whole prefill against selection plus the shorter prefill, by turns, in one run."""
    dim, rule = model.config.hidden_size, IDSelection()
    case = workloads.make_sets("clustered", Shape(1, visual, dim, kept[0]), session.dtype, session.device)[0]
    text = torch.randn((1, TEXT, dim), device=session.device).to(session.dtype)
    calls: dict[str, list[harness.Call]] = {"all tokens": [partial(_run, model, case.features, text)]}
    about: dict[str, Shape] = {"all tokens": Shape(1, visual, dim, visual)}
    for k in kept:
        for provider in _selecting(session):
            select, name = provider.make(rule, k), f"{provider.name}, k = {k}"
            calls[name] = [partial(_select_and_run, model, select, case, text)]
            calls[f"{name}: selection alone"] = [partial(select, case.features, case.importance)]
            about[name] = about[f"{name}: selection alone"] = Shape(1, visual, dim, k)
    session.step("prefill: timing")
    with torch.no_grad():
        for name, timing in harness.interleave(calls, session.device, session.budget).items():
            row = common.base_row(session, "prefill", name, about[name], rule, "clustered")
            yield row | {"eager": common.rounded(timing), "graph": None}


def _selecting(session: Session) -> list[providers.Provider]:
    loops = [p for p in providers.baselines(IDSelection()) if p.name == providers.LOOP]
    return [*providers.engines(session.device)[:1], *loops]


def _run(model: Any, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    embeds = torch.cat([visual, text], dim=1)
    return model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits


def _select_and_run(model: Any, select: providers.Selector, case: workloads.Case, text: torch.Tensor) -> torch.Tensor:
    indices = select(case.features, case.importance).sort(dim=-1).values
    return _run(model, torch.take_along_dim(case.features, indices[..., None], dim=1), text)

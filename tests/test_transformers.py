"""Pruned models of transformers, against the same models with the dropped tokens masked."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from vlms import FAMILIES, IMAGE, VIDEO, Batch, build, transformers

import idsel_kernels as idsel
from idsel_kernels.integrations.transformers import PrunedInputs, Visual, prune_inputs, pruned

# The models compute in float64, but for the sines of positions and the softmax of attention: those are float32.
TOLERANCE = 1e-12
FLOAT32_POSITIONS = 1e-6
NOT_YET = "mm_encoder_outputs" not in inspect.signature(transformers.LlavaModel.forward).parameters

every_family = pytest.mark.parametrize("family", FAMILIES)
with_class_token = pytest.mark.parametrize("family", ["internvl", "llava", "llava_next"])

_built = functools.cache(build)


def _model_and_batch(family: str) -> tuple[Any, Batch]:
    vlm = _built(family)
    torch.manual_seed(1)
    return vlm.model, vlm.batch()


def _logits(model: Any, cut: PrunedInputs) -> torch.Tensor:
    with torch.no_grad(), cut.handed_on(model):
        return model(**cut.inputs).logits


def _positions(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Those of the whole sequence: (B, L), or (3, B, L) of the Qwens."""
    mask = inputs["attention_mask"]
    if "image_grid_thw" not in inputs:
        return (mask.cumsum(1) - 1).clamp(min=0)
    names = inspect.signature(model.model.get_rope_index).parameters
    return model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})[0]


def _masked_logits(model: Any, inputs: dict[str, torch.Tensor], keep: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Of the whole model, told not to look at what is dropped, with `new` (B, m) tokens behind the prompt."""
    positions = _positions(model, inputs)
    behind = torch.arange(1, new.shape[1] + 1)
    more = {
        "input_ids": torch.cat([inputs["input_ids"], new], 1),
        "attention_mask": torch.cat([keep.long(), torch.ones_like(new)], 1),
        "position_ids": torch.cat([positions, positions[..., -1:] + behind], -1),
    }
    if "mm_token_type_ids" in inputs:
        more["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], 1)
    with torch.no_grad():
        return model(**{**inputs, **more}).logits


def _visuals(model: Any, inputs: dict[str, torch.Tensor]) -> list[Visual]:
    """What a function for the importance is shown."""
    seen: list[Visual] = []
    prune_inputs(
        model, 1, rule="topk", importance=lambda each: seen.append(each) or torch.rand(len(each.features)), **inputs
    )
    return seen


NOTHING = torch.zeros(2, 0, dtype=torch.long)


@every_family
def test_all_tokens_kept_give_the_logits_of_the_untouched_model(family: str) -> None:
    model, batch = _model_and_batch(family)
    cut = prune_inputs(model, 1000, **batch.inputs)
    real = batch.inputs["attention_mask"].bool()
    assert cut.keep_mask.equal(real)
    assert cut.counts == [n + line for n, line in zip(batch.units, batch.newlines, strict=True)]
    with torch.no_grad():
        untouched = model(**batch.inputs).logits
    torch.testing.assert_close(_logits(model, cut)[real], untouched[real], rtol=0, atol=FLOAT32_POSITIONS)


@every_family
@pytest.mark.parametrize("rule", ["maxmin", "id", "coverage"])
def test_pruned_logits_are_those_of_the_model_with_dropped_keys_masked(family: str, rule: str) -> None:
    model, batch = _model_and_batch(family)
    cut = prune_inputs(model, 3, rule=rule, **batch.inputs)
    assert cut.counts == [3 + line for line in batch.newlines]
    few = _logits(model, cut)[cut.inputs["attention_mask"].bool()]
    masked = _masked_logits(model, batch.inputs, cut.keep_mask, NOTHING)[cut.keep_mask]
    torch.testing.assert_close(few, masked, rtol=0, atol=TOLERANCE)
    with torch.no_grad():
        whole = model(**batch.inputs).logits[cut.keep_mask]
    assert (few - whole).abs().max() > 0.01, "the dropped tokens have no influence: nothing is compared"


@every_family
def test_generate_goes_on_as_the_model_with_dropped_keys_masked(family: str) -> None:
    model, batch = _model_and_batch(family)
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = [IMAGE, VIDEO]  # which the whole model would look for features for
    with pruned(model, 3) as pruner:
        out = model.generate(**batch.inputs, **options)
    length = batch.inputs["input_ids"].shape[1]
    assert out.sequences[:, :length].equal(batch.inputs["input_ids"])
    assert pruner.last is not None
    new = out.sequences[:, length:]
    assert new.shape == (2, 5)
    masked = _masked_logits(model, batch.inputs, pruner.last.keep_mask, new)
    # The logits of each new token are those behind the token before it.
    expected = masked[:, length - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1).double(), expected, rtol=0, atol=FLOAT32_POSITIONS)
    expected[..., [IMAGE, VIDEO]] = -torch.inf
    assert new.equal(expected.argmax(-1))


@every_family
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_generate_with_all_tokens_kept_is_that_of_the_untouched_model(family: str, options: dict[str, int]) -> None:
    if options and NOT_YET:
        pytest.skip("this version repeats images for beams in another order than samples")
    model, batch = _model_and_batch(family)
    options = {"max_new_tokens": 4, "do_sample": False, **options}
    untouched = model.generate(**batch.inputs, **options)
    with pruned(model, 1000):
        assert model.generate(**batch.inputs, **options).equal(untouched)


@every_family
def test_beams_of_pruned_inputs_end_as_greedy_does_with_one(family: str) -> None:
    """Beams repeat samples, and what belongs to them: with one sample's tokens in another's place this would differ."""
    model, batch = _model_and_batch(family)
    with pruned(model, 3):
        greedy = model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
        beams = model.generate(**batch.inputs, max_new_tokens=1, do_sample=False, num_beams=3)
    assert beams.equal(greedy)


@every_family
def test_every_image_gets_the_picks_of_a_select_of_its_own(family: str) -> None:
    model, batch = _model_and_batch(family)
    cut = prune_inputs(model, 3, rule="maxmin", **batch.inputs)
    visuals = _visuals(model, batch.inputs)
    assert [int(each.selectable.sum()) for each in visuals] == batch.units
    assert [int((~each.selectable).sum()) for each in visuals] == batch.newlines
    ids = batch.inputs["input_ids"]
    expected = torch.cat([_kept_alone(each) for each in visuals])
    kept = torch.cat([cut.keep_mask[ids == token] for token in (IMAGE, VIDEO)])
    assert kept.equal(expected)


def _kept_alone(visual: Visual) -> torch.Tensor:
    sel = idsel.select(visual.features.float(), 3, "maxmin", mask=visual.selectable)
    return sel.keep_mask(len(visual.features))[0] | ~visual.selectable


@every_family
def test_newline_tokens_are_the_newlines_of_the_model(family: str) -> None:
    model, batch = _model_and_batch(family)
    newline = getattr(model.model, "image_newline", None)
    for each in _visuals(model, batch.inputs):
        is_newline = torch.zeros(len(each.features), dtype=torch.bool)
        if newline is not None:
            is_newline = (each.features == newline).all(1)
        assert is_newline.equal(~each.selectable)


@with_class_token
def test_attention_of_the_class_token_is_what_eager_attention_returns(family: str) -> None:
    model, batch = _model_and_batch(family)
    tower = model.model.vision_tower
    layer = model.config.vision_feature_layer
    pixels = batch.inputs["pixel_values"]
    tiles = pixels[0, :3] if family == "llava_next" else pixels[:1]  # of the first image, the base tile first
    implementation = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    weights: list[torch.Tensor] = []
    module = [each for each in tower.modules() if hasattr(each, "q_proj")][layer]
    handle = module.register_forward_hook(lambda _module, _args, output: weights.append(output[1]))
    with torch.no_grad():
        tower(tiles, **({} if family == "internvl" else {"output_attentions": True}))
    handle.remove()
    tower.set_attn_implementation(implementation)
    attention = weights[0][:, :, 0, 1:].mean(1)
    ours = _visuals(model, batch.inputs)[0].attention
    assert ours is not None
    if family == "internvl":  # patches of 4 x 4 in tokens of 2 x 2
        attention = attention.view(1, 2, 2, 2, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(ours[: attention.shape[1]].double(), attention[0].double(), rtol=1e-5, atol=1e-7)
    if family == "llava_next":  # the two tiles side by side, and a newline behind each row
        rows = torch.cat([attention[1].view(4, 4), attention[2].view(4, 4), torch.zeros(4, 1)], 1)
        torch.testing.assert_close(ours[16:].double(), rows.flatten().double(), rtol=1e-5, atol=1e-7)


@with_class_token
def test_importance_by_name_is_what_its_formula_says(family: str) -> None:
    model, batch = _model_and_batch(family)
    formulas = {
        "cls": lambda each: idsel.importance.minmax(each.attention, each.selectable),
        "text": lambda each: idsel.importance.minmax(
            idsel.importance.text_relevance(each.features, each.text), each.selectable
        ),
        "unified": lambda each: idsel.importance.unify(
            each.attention, idsel.importance.text_relevance(each.features, each.text), mask=each.selectable
        ),
    }
    kept = {}
    for name, formula in formulas.items():
        cuts = [prune_inputs(model, 3, rule="topk", importance=how, **batch.inputs) for how in (name, formula)]
        assert cuts[0].keep_mask.equal(cuts[1].keep_mask), name
        kept[name] = cuts[0].keep_mask
    assert not kept["cls"].equal(kept["text"])
    assert prune_inputs(model, 3, rule="topk", **batch.inputs).keep_mask.equal(kept["cls"]), "the default"


@every_family
def test_text_is_what_stands_behind_the_last_image(family: str) -> None:
    model, batch = _model_and_batch(family)
    embed = model.get_input_embeddings()
    first, *_, last = _visuals(model, batch.inputs)
    rows = batch.inputs["input_ids"]
    sample = 0 if last.modality == "video" and family == "llava_onevision" else 1
    ids = rows[sample]
    end = int(((ids == IMAGE) | (ids == VIDEO)).nonzero()[-1])
    assert last.text.equal(embed(ids[end + 1 :]))
    assert len(first.text) > 0


def test_text_before_the_image_counts_where_there_is_none_behind() -> None:
    model, _batch = _model_and_batch("llava")
    ids = torch.tensor([[1, 7, 8, *[IMAGE] * 16]])
    (only,) = _visuals(model, {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16).double()})
    assert only.text.equal(model.get_input_embeddings()(torch.tensor([1, 7, 8])))


def test_budgets_per_image_and_by_share() -> None:
    model, batch = _model_and_batch("qwen2_5_vl")
    assert prune_inputs(model, [1, 2, 3, 4], **batch.inputs).counts == [1, 2, 3, 4]
    assert prune_inputs(model, keep_ratio=0.5, **batch.inputs).counts == [6, 4, 3, 6]
    model, batch = _model_and_batch("llava_next")
    assert prune_inputs(model, keep_ratio=0.25, **batch.inputs).counts == [12 + 4, 20 + 8, 12 + 8]


def test_padding_on_the_right_and_labels_are_kept() -> None:
    model, batch = _model_and_batch("llava")
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    shift = [int((row == 0).sum()) for row in mask]
    right = {
        "input_ids": torch.stack([row.roll(-n) for row, n in zip(ids, shift, strict=True)]),
        "attention_mask": torch.stack([row.roll(-n) for row, n in zip(mask, shift, strict=True)]).bool(),
        "pixel_values": batch.inputs["pixel_values"],
    }
    labels = (
        right["input_ids"].masked_fill(right["input_ids"] == IMAGE, -100).masked_fill(~right["attention_mask"], -100)
    )
    given = {**{name: value.clone() for name, value in right.items()}}
    cut = prune_inputs(model, 3, labels=labels, **given)
    assert all(value.equal(right[name]) for name, value in given.items()), "the inputs were written to"
    assert cut.inputs["attention_mask"].diff(dim=1).max() == 0, "padded on the right"
    left = prune_inputs(model, 3, **batch.inputs)
    assert cut.next_positions.equal(left.next_positions)
    wanted = labels[labels != -100]
    assert cut.inputs["labels"][cut.inputs["labels"] != -100].equal(wanted)
    with torch.no_grad(), cut.handed_on(model):
        out = model(**cut.inputs)
    masked = _masked_logits(model, right, cut.keep_mask, NOTHING)[cut.keep_mask]
    torch.testing.assert_close(out.logits[cut.inputs["attention_mask"].bool()], masked, rtol=0, atol=TOLERANCE)
    assert torch.isfinite(out.loss)


def test_contiguous_positions_are_those_of_a_prompt_that_never_had_the_others() -> None:
    model, batch = _model_and_batch("llava")
    cut = prune_inputs(model, 3, positions="contiguous", **batch.inputs)
    mask = cut.inputs["attention_mask"]
    assert cut.inputs["position_ids"].equal((mask.cumsum(1) - 1).clamp(min=0))
    with pruned(model, 3, positions="contiguous") as pruner:
        out = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
    assert pruner.last is not None
    # The same tokens, shown to the model as embeddings.
    embeds = model.get_input_embeddings()(pruner.last.input_ids)
    visuals = _visuals(model, batch.inputs)
    features = torch.cat([each.features for each in visuals])
    kept = pruner.last.keep_mask[batch.inputs["input_ids"] == IMAGE]
    embeds[pruner.last.input_ids == IMAGE] = features[kept]
    plain = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert out[:, -3:].equal(plain[:, -3:])


def test_generate_is_put_back_and_contexts_nest() -> None:
    model, batch = _model_and_batch("llava")
    before = model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    with pytest.raises(RuntimeError, match="inside"), pruned(model, 3):
        raise RuntimeError("inside")
    assert "generate" not in vars(model)
    with pruned(model, 1000), pruned(model, 3) as inner:
        model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        assert inner.last is not None and inner.last.counts == [3, 3, 3]
    assert model.generate(**batch.inputs, max_new_tokens=2, do_sample=False).equal(before)


def test_generate_without_images_is_left_alone() -> None:
    model, _batch = _model_and_batch("llava")
    ids = torch.tensor([[1, 5, 6, 7]])
    before = model.generate(ids, max_new_tokens=3, do_sample=False)
    with pruned(model, 3) as pruner:
        assert model.generate(ids, max_new_tokens=3, do_sample=False).equal(before)
    assert pruner.last is None


def test_lengths_count_the_whole_prompt() -> None:
    model, batch = _model_and_batch("qwen3_vl")
    ids = batch.inputs["input_ids"]
    others = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
    wanted = ids.shape[1] + 3
    config = transformers.GenerationConfig(max_length=wanted, do_sample=False)
    with pruned(model, 3):
        assert model.generate(ids, **others, max_length=wanted, do_sample=False).shape[1] == wanted
        assert model.generate(ids, config, **others).shape[1] == wanted
        assert model.generate(**batch.inputs, generation_config=config, max_new_tokens=2).shape[1] == wanted - 1
        default = model.generate(**batch.inputs, do_sample=False).shape[1]
    assert default == model.generate(**batch.inputs, do_sample=False).shape[1]


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_what_looks_at_the_tokens_sees_the_whole_prompt(family: str) -> None:
    model, batch = _model_and_batch(family)
    prompt = batch.inputs["input_ids"]
    seen: list[torch.Tensor] = []

    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return scores

    def stop(ids: torch.Tensor, _scores: torch.Tensor, **_more: Any) -> torch.Tensor:
        seen.append(ids)
        return torch.full(ids.shape[:1], ids.shape[1] >= prompt.shape[1] + 2)

    def allowed(sample: int, ids: torch.Tensor) -> list[int]:
        whole = ids[: prompt.shape[1]]
        # Before 5.19 it is told a row of the batch, in which samples are repeated where there are no beams.
        tells_rows = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 19)
        assert (prompt == whole).all(1).any() if tells_rows else whole.equal(prompt[sample])
        return [7]

    options = {
        "logits_processor": transformers.LogitsProcessorList([process]),
        "stopping_criteria": transformers.StoppingCriteriaList([stop]),
        "prefix_allowed_tokens_fn": allowed,
    }
    with pruned(model, 3):
        out = model.generate(**batch.inputs, **options, max_new_tokens=5, do_sample=False)
        model.generate(**batch.inputs, **options, max_new_tokens=5, do_sample=False, num_beams=2)
        model.generate(**batch.inputs, **options, max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert out[:, prompt.shape[1] :].tolist() == [[7, 7], [7, 7]]
    assert all(ids[:, : prompt.shape[1]].equal(prompt.repeat_interleave(len(ids) // 2, 0)) for ids in seen)


def _own(length: int) -> dict[str, dict[str, Any]]:
    """Criteria and processors of transformers itself, by what `generate` or they count; eos is a token that comes."""
    criteria, processors = transformers.StoppingCriteriaList, transformers.LogitsProcessorList
    module = transformers.generation
    return {
        "replaces the default": {
            "stopping_criteria": criteria([transformers.MaxLengthCriteria(length + 30)]), "max_new_tokens": 5,
        },
        "counts the prompt": {"stopping_criteria": criteria([transformers.MaxLengthCriteria(length + 3)])},
        "ends a row": {
            "stopping_criteria": criteria([module.EosTokenCriteria(7)]), "pad_token_id": 0, "max_new_tokens": 5,
        },
        "penalty": {
            "logits_processor": processors([transformers.RepetitionPenaltyLogitsProcessor(1.5)]),
            "repetition_penalty": 3.0, "max_new_tokens": 5,
        },
        "least": {
            "logits_processor": processors([transformers.MinLengthLogitsProcessor(length + 3, list(range(1, 64)))]),
            "max_new_tokens": 5,
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", _own(0))
def test_criteria_and_processors_of_transformers_do_what_they_did(name: str) -> None:
    model, batch = _model_and_batch("llava")
    length = batch.inputs["input_ids"].shape[1]
    options = {**_own(length)[name], "do_sample": False, "suppress_tokens": [IMAGE]}
    untouched = model.generate(**batch.inputs, **options)
    with pruned(model, 1000):
        assert model.generate(**batch.inputs, **options).equal(untouched)
    with pruned(model, 3):
        few = model.generate(**batch.inputs, **options)
    if name in ("counts the prompt", "replaces the default"):
        assert few.shape == untouched.shape
    if name == "least":  # no other token is allowed until then
        assert (few[:, length : length + 3] == 0).all()


@pytest.mark.parametrize("where", ["model", "argument", "both"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_lengths_of_configurations_count_as_they_did(family: str, where: str) -> None:
    model, batch = _model_and_batch(family)
    length = batch.inputs["input_ids"].shape[1]
    given = {"do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
    before = model.generation_config.max_length
    if where != "argument":
        model.generation_config.max_length = length + 4
    if where != "model":
        config = transformers.GenerationConfig(max_length=length + 7) if where == "argument" else None
        given["generation_config"] = config or transformers.GenerationConfig()
    try:
        untouched = model.generate(**batch.inputs, **given)
        with pruned(model, 3):
            assert model.generate(**batch.inputs, **given).shape == untouched.shape
    finally:
        model.generation_config.max_length = before


def test_contexts_may_end_in_any_order() -> None:
    model, batch = _model_and_batch("llava")
    options = {"max_new_tokens": 2, "do_sample": False}
    before = model.generate(**batch.inputs, **options)
    one, two = pruned(model, 2), pruned(model, 3)
    first, second = one.__enter__(), two.__enter__()
    one.__exit__(None, None, None)
    model.generate(**batch.inputs, **options)
    assert first.last is None and second.last is not None and second.last.counts == [3, 3, 3]
    two.__exit__(None, None, None)
    assert "generate" not in vars(model)
    assert model.generate(**batch.inputs, **options).equal(before)


def test_each_thread_has_the_options_that_it_entered_with() -> None:
    model, batch = _model_and_batch("llava")
    meet = threading.Barrier(2, timeout=60)

    def kept(k: int) -> list[int]:
        with pruned(model, k) as pruner:
            meet.wait()
            model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
            assert pruner.last is not None
            meet.wait()
            return pruner.last.counts

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(kept, [2, 5])) == [[2] * 3, [5] * 3]
    assert "generate" not in vars(model)


@every_family
def test_a_loop_of_ones_own_goes_on_as_generate(family: str) -> None:
    model, batch = _model_and_batch(family)
    with pruned(model, 3):
        out = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE, VIDEO])
    cut = prune_inputs(model, 3, **batch.inputs)
    positions, mask, new = cut.next_positions, cut.inputs["attention_mask"], []
    with torch.no_grad(), cut.handed_on(model):
        step = model(**cut.inputs, use_cache=True)
        for _ in range(3):
            logits = step.logits[:, -1].clone()
            logits[:, [IMAGE, VIDEO]] = -torch.inf
            new.append(logits.argmax(1, keepdim=True))
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            cache = {name: step[name] for name in ("cache", "past_key_values") if name in step}
            step = model(input_ids=new[-1], attention_mask=mask, position_ids=positions, **cache)
            positions = positions + 1
    assert torch.cat(new, 1).equal(out[:, -3:])


@pytest.mark.parametrize("family", [name for name in FAMILIES if "qwen" not in name])  # those refuse it themselves
def test_tokens_that_the_caller_masks_stay_masked(family: str) -> None:
    model, batch = _model_and_batch(family)
    inputs = {**batch.inputs, "attention_mask": batch.inputs["attention_mask"].clone()}
    places = (inputs["input_ids"][1] == IMAGE).nonzero().flatten()[1:4]
    inputs["attention_mask"][1, places] = 0
    for k in (1000, 3):
        cut = prune_inputs(model, k, **inputs)
        assert not cut.keep_mask[1, places].any()
        few = _logits(model, cut)[cut.inputs["attention_mask"].bool()]
        masked = _masked_logits(model, inputs, cut.keep_mask, NOTHING)[cut.keep_mask]
        torch.testing.assert_close(few, masked, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("rows", [None, 3, 4])
def test_positions_of_the_caller_are_kept(family: str, rows: int | None) -> None:
    model, batch = _model_and_batch(family)
    mask = batch.inputs["attention_mask"]
    given = (2 * mask.cumsum(1)).clamp(min=0)
    expected = given.expand(3, *given.shape)
    if rows is not None:
        expected = torch.stack([given + axis for axis in range(rows)])
    cut = prune_inputs(model, 3, **batch.inputs, position_ids=given if rows is None else expected)
    real = cut.inputs["attention_mask"].bool()
    assert cut.inputs["position_ids"][-3:, real].equal(expected[-3:, cut.keep_mask])


def test_a_static_cache_goes_by_places() -> None:
    """What one says of its length depends on its values: here that of a padded sample."""
    model, batch = _model_and_batch("llava")
    options = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        padding = model.model.language_model.embed_tokens.weight[0]
        before = padding.clone()
        padding.zero_()
    with pruned(model, 3):
        dynamic = model.generate(**batch.inputs, **options)
        static = model.generate(**batch.inputs, **options, cache_implementation="static")
    with torch.no_grad():
        padding.copy_(before)
    assert static.equal(dynamic)


def test_images_of_different_sizes_of_a_pixtral_tower() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.PixtralVisionConfig(**size, head_dim=8, image_size=16, patch_size=4),
        text_config=transformers.LlamaConfig(**size, vocab_size=64, pad_token_id=0),
        image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config).eval()
    sizes = torch.tensor([[16, 16], [16, 8]])
    inputs = {
        "input_ids": torch.tensor([[1, *[IMAGE] * 16, 5, *[IMAGE] * 8, 6]]),
        "pixel_values": torch.randn(2, 3, 16, 16),
        "image_sizes": sizes,
    }
    assert prune_inputs(model, 3, **inputs).counts == [3, 3]
    assert prune_inputs(model, 1000, **inputs).counts == [16, 8]


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_compiled_model_is_pruned_as_it_was(family: str) -> None:
    model, batch = _model_and_batch(family)
    compiled = torch.compile(model, backend="eager")
    with pruned(model, 3):
        plain = model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    with pruned(compiled, 3):
        assert compiled.generate(**batch.inputs, max_new_tokens=2, do_sample=False).equal(plain)
    assert "generate" not in vars(model)
    cut = prune_inputs(compiled, 3, **batch.inputs)
    torch.testing.assert_close(_logits(compiled, cut), _logits(model, prune_inputs(model, 3, **batch.inputs)))


def test_gradients_reach_the_tower_with_checkpoints() -> None:
    model, batch = build("llava").model.float().train(), _model_and_batch("llava")[1]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = {**batch.inputs, "pixel_values": batch.inputs["pixel_values"].float()}
    cut = prune_inputs(
        model, 3, **inputs, labels=batch.inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    )
    with cut.handed_on(model):
        model(**cut.inputs).loss.backward()
    gradient = next(p for name, p in model.model.vision_tower.named_parameters() if name.endswith("q_proj.weight")).grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_two_threads_do_not_meet() -> None:
    """Each sees the attention of its own pictures, and its own positions."""
    model, batch = _model_and_batch("llava")
    one = {name: batch.inputs[name][:1] for name in ("input_ids", "attention_mask", "pixel_values")}
    two = {"input_ids": torch.tensor([[1, 5, *[IMAGE] * 16, 6]]), "pixel_values": batch.inputs["pixel_values"][1:2]}
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
    with pruned(model, 3):
        alone = [model.generate(**inputs, **options) for inputs in (one, two)]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda inputs: model.generate(**inputs, **options), [one, two] * 4))
    assert all(out.equal(alone[i % 2]) for i, out in enumerate(together))


def test_a_function_runs_where_the_class_token_is_a_feature() -> None:
    model, batch = _model_and_batch("llava")
    ids = torch.tensor([[1, *[IMAGE] * 17, 6]])
    inputs = {
        "input_ids": ids,
        "pixel_values": batch.inputs["pixel_values"][:1],
        "vision_feature_select_strategy": "full",
    }
    (visual,) = _visuals(model, inputs)
    assert visual.attention is None and len(visual.features) == 17
    with pytest.raises(ValueError, match="vision_feature_select_strategy must be 'default'"):
        prune_inputs(model, 3, importance="cls", **inputs)
    with pytest.raises(ValueError, match=r"vision_feature_layer must be what is behind a layer .*, got -4"):
        prune_inputs(model, 3, vision_feature_layer=-4, **{**inputs, "vision_feature_select_strategy": "default"})


def test_a_model_in_bfloat16_is_pruned_too() -> None:
    model = build("qwen3_vl").model.to(torch.bfloat16)
    inputs = _model_and_batch("qwen3_vl")[1].inputs
    with pruned(model, 3) as pruner:
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 2
    assert pruner.last is not None and pruner.last.counts == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        ("llava", {}, TypeError, "either k or keep_ratio must be given"),
        ("llava", {"k": 0}, ValueError, "k must be >= 1, got 0"),
        ("llava", {"k": [1, 0, 1]}, ValueError, r"k\[1\] must be >= 1, got 0"),
        ("llava", {"k": 3.0}, TypeError, "k must be an int, got float"),
        ("llava", {"k": torch.tensor(3)}, TypeError, "k must be an int, got Tensor"),
        ("llava", {"k": 3, "rule": "best"}, ValueError, "rule"),
        ("llava", {"k": 3, "importance": "best"}, ValueError, "importance must be one of 'cls', 'text', 'unified'"),
        ("llava", {"k": 3, "importance": 5}, TypeError, "importance must be one of .* or a function, got int"),
        ("llava", {"k": 3, "positions": "new"}, ValueError, "positions must be one of"),
        ("qwen2_5_vl", {"k": 3, "importance": "cls"}, ValueError, "for this Qwen2.5-VL model.* no class token"),
        ("llava_onevision", {"k": 3, "importance": "unified"}, ValueError, "no class token, got 'unified'"),
        ("qwen3_vl", {"k": 3, "positions": "contiguous"}, ValueError, "positions must be 'original' for Qwen3-VL"),
    ],
)
def test_bad_options_raise_on_entry(family: str, options: dict[str, Any], error: type, message: str) -> None:
    model, batch = _model_and_batch(family)
    with pytest.raises(error, match=message), pruned(model, **options):
        pass
    with pytest.raises(error, match=message):
        prune_inputs(model, **options, **batch.inputs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": None}, TypeError, "input_ids must be a torch.Tensor, got NoneType"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, ValueError, r"input_ids must be \(B, L\), got shape \(3,\)"),
        ({"input_ids": torch.ones(2, 41).long()}, ValueError, "a placeholder for each image token, got 0 for 48"),
        ({"attention_mask": torch.ones(2, 3)}, ValueError, "attention_mask must be .* got shape"),
        ({"pixel_values": None}, ValueError, "must have pixel_values or pixel_values_videos"),
        ({"inputs_embeds": torch.ones(2, 41, 32)}, ValueError, "inputs_embeds must be None"),
        ({"k": [1, 2]}, ValueError, "k must be an int or one for each of 3 images and videos, got 2"),
        ({"importance": lambda _: torch.ones(4)}, ValueError, r"importance must return \(n,\) = \(16,\) scores"),
    ],
)  # fmt: skip
def test_bad_inputs_raise(change: dict[str, Any], error: type, message: str) -> None:
    model, batch = _model_and_batch("llava")
    with pytest.raises(error, match=message):
        prune_inputs(model, **{"k": 3, **batch.inputs, **change})


def test_what_generate_cannot_do_raises() -> None:
    model, batch = _model_and_batch("llava")
    cache = model.model.language_model(torch.tensor([[1, 2]]), use_cache=True)
    name = "cache" if "cache" in cache else "past_key_values"
    with pruned(model, 3):
        with pytest.raises(ValueError, match="use_cache"):
            model.generate(**batch.inputs, use_cache=False)
        with pytest.raises(ValueError, match="prefill_chunk_size must be None with pruned tokens, got 7"):
            model.generate(**batch.inputs, prefill_chunk_size=7)
        with pytest.raises(ValueError, match="the cache must be empty where images are given, got one of 2 tokens"):
            model.generate(**batch.inputs, **{name: cache[name]})
        with pytest.raises(ValueError, match="the cache must be empty for a prompt with image tokens"):
            model.generate(batch.inputs["input_ids"], **{name: cache[name]})
        with pytest.raises(ValueError, match="use_cache"):
            model.generate(**batch.inputs, generation_config=transformers.GenerationConfig(use_cache=False))
        with pytest.raises(ValueError, match="input_ids must be given once, got inputs too"):
            model.generate(batch.inputs["input_ids"], **batch.inputs)
        ending = {"input_ids": torch.tensor([[1, *[IMAGE] * 16]]), "pixel_values": batch.inputs["pixel_values"][:1]}
        with pytest.raises(ValueError, match=r"input_ids must end with text in every sample, .* end of \[0\]"):
            model.generate(**ending)
        if NOT_YET:
            with pytest.raises(ValueError, match=r"assistant_model must be None .* before transformers 5\.18"):
                model.generate(**batch.inputs, assistant_model=model)
            with pytest.raises(ValueError, match=r"guidance_scale must be None .* got 2\.0"):
                model.generate(**batch.inputs, guidance_scale=2.0)


def test_other_models_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"model must be a .*ForConditionalGeneration of type internvl, llava, .*got Linear"
    ):
        prune_inputs(torch.nn.Linear(2, 2), 3)
    config = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(TypeError, match="got LlamaModel of type 'llama'"), pruned(transformers.LlamaModel(config), 3):
        pass


def test_importing_the_adapters_imports_no_framework() -> None:
    code = (
        "import sys; from idsel_kernels import integrations; "
        "[getattr(integrations, name) for name in integrations.__all__]; "
        "sys.exit(bool({'transformers', 'vllm', 'lmms_eval'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

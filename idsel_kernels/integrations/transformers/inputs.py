"""`prune_inputs`: what a model is given, with fewer visual tokens."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ... import api, checks
from ...counts import check_count
from ...rules import MaxMin, Rule, by_name
from .attention import has_class_token
from .families import MODALITIES, Encoded, Family, family_of, placeholders, takes_encoder_outputs
from .language_model import LanguageModelHook
from .scores import NAMES, Importance, Modality, Visual, importance_of, needs_attention, needs_text
from .sequence import Cut, run_lengths, samples_of, text_positions

__all__ = ["Options", "PrunedInputs", "prune_inputs", "prune_with"]

_POSITIONS = ("original", "contiguous")
_NO_LABEL = -100  # what the losses of transformers leave out


@dataclass(frozen=True)
class Options:
    """The arguments of `prune_inputs` and `pruned`, checked."""

    k: int | Sequence[int] | None
    keep_ratio: float | None
    rule: Rule | str
    importance: Importance | None
    positions: Literal["original", "contiguous"]
    backend: str | None

    def checked_for(self, model: Any) -> Options:
        """With the rule for its name and the default importance; raises what needs no inputs to be seen."""
        family, base = family_of(model)
        rule = by_name(self.rule)() if isinstance(self.rule, str) else self.rule
        checks.check_rule(rule)
        if (self.k is None) == (self.keep_ratio is None):
            given = f"k={self.k!r} and keep_ratio={self.keep_ratio!r}"
            raise TypeError(f"either k or keep_ratio must be given, got {given}")
        for name, count in _each(self.k):
            check_count(name, count, low=1)
        checks.check_choice("positions", self.positions, _POSITIONS)
        if self.positions == "contiguous" and family.has_mrope:
            raise ValueError(f"positions must be 'original' for {family.name}, got 'contiguous'")
        has_token = has_class_token(base)
        chosen = self.importance
        if chosen is None and not isinstance(rule, MaxMin):
            chosen = "cls" if has_token else "text"
        if isinstance(chosen, str):
            checks.check_choice("importance", chosen, NAMES)
            if chosen != "text" and not has_token:
                raise ValueError(
                    f"importance must be 'text' or a function for this {family.name} model, whose vision tower has no "
                    f"class token, got {chosen!r}"
                )
        elif chosen is not None and not callable(chosen):
            raise TypeError(f"importance must be one of {NAMES} or a function, got {type(chosen).__name__}")
        return Options(self.k, self.keep_ratio, rule, chosen, self.positions, self.backend)


def _each(k: Any) -> list[tuple[str, Any]]:
    """The counts in k, with their names."""
    if k is None:
        return []
    return [(f"k[{i}]", count) for i, count in enumerate(k)] if isinstance(k, Sequence) else [("k", k)]


@dataclass
class PrunedInputs:
    """What a model gets in place of its inputs.

    Attributes:
        inputs: the arguments for `model(**inputs)` and, from transformers 5.18 on, for `model.generate(**inputs)`.
        keep_mask: (B, L) bool, which tokens of the original sequences are still there.
        counts: how many tokens of each image or video were kept, images first, newline tokens included.
        input_ids: (B, L') what is left of the original ones.
    """

    inputs: dict[str, Any]
    keep_mask: Tensor
    counts: list[int]
    input_ids: Tensor
    _hook: LanguageModelHook | None = field(default=None, repr=False)

    @property
    def next_positions(self) -> Tensor:
        """The `position_ids` of the first token behind the prompt: (B, 1), or (4, B, 1) for Qwen; others go on from it.

        A prompt that ends with an image has none: the last of its tokens may be gone.
        """
        positions: Tensor = self.inputs["position_ids"]
        return positions[..., -1:] + 1

    @contextlib.contextmanager
    def handed_on(self, model: Any) -> Iterator[None]:
        """Inside, the language model gets what versions before 5.18 do not let through `generate` and `forward`.

        `generate` needs it there, and `forward` of Qwen3-VL. With a newer version it does nothing.
        """
        if self._hook is None:
            yield
            return
        handle = family_of(model)[1].language_model.register_forward_pre_hook(self._hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def prune_inputs(
    model: Any,
    k: int | Sequence[int] | None = None,
    *,
    keep_ratio: float | None = None,
    rule: Rule | str = "id",
    importance: Importance | None = None,
    positions: Literal["original", "contiguous"] = "original",
    backend: str | None = None,
    **inputs: Any,
) -> PrunedInputs:
    """Encodes the images and videos of a batch, selects k tokens of each, and cuts the sequences to them.

    Args:
        model: a `...ForConditionalGeneration` of LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, InternVL, Qwen2.5-VL or
            Qwen3-VL, from transformers 4.57 or later.
        k: tokens to keep of every image and video, >= 1: an int, or one for each of them, images first. One that has
            fewer keeps all. A video is one unit, its frames compete; for InternVL all tiles of an image do, and frames
            do not.
        keep_ratio: in (0, 1], in place of k: that share of the tokens of each, at least one.
        rule: as for `select`.
        importance: "cls": what the class token of the vision tower pays to each token, in the layer that features are
            taken from, averaged over heads (FasterVLM, VisionZip); its attention may stay fused. "text": the mean
            cosine of a token's features with the embeddings of the text after the last image. "unified": their product
            (`importance.unify`). Each is scaled to [0, 1] for each image. Or a function that takes a `Visual` and
            returns its (n,) scores, used as they are. None: "cls" where there is a class token, else "text"; nothing
            for `MaxMin`.
        positions: "original": tokens stay at the positions they had (FastV, ID-Selection), so that the logits are those
            of the whole sequence with the dropped keys masked. "contiguous": as if the others had never been there, as
            in the LLaVA code of VisionZip and CDPruner; not with the three axes of Qwen.
        backend: as for `select`.
        **inputs: what the processor returned: `input_ids`, `attention_mask`, `pixel_values`, sizes or grids, ...
            Any further (B, L) tensor, such as `labels`, is cut with the tokens.

    Returns:
        `PrunedInputs`. Newline tokens of LLaVA-NeXT and LLaVA-OneVision are kept beside the k. Samples that have become
        shorter than others are padded, on the right if the batch was padded there, else on the left.

    Its shapes depend on where the images lie, so it waits for the device a few times.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it, what was wanted and what came.

    Example:
        >>> import torch, transformers
        >>> text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
        >>> vision = dict(text, num_hidden_layers=2, image_size=8, patch_size=2, projection_dim=16)
        >>> config = transformers.LlavaConfig(
        ...     vision_config=transformers.CLIPVisionConfig(**vision),
        ...     text_config=transformers.LlamaConfig(**text),
        ...     image_token_id=31,
        ... )
        >>> model = transformers.LlavaForConditionalGeneration(config).eval()
        >>> ids = torch.tensor([[1] + [31] * 16 + [2, 3]])
        >>> cut = prune_inputs(model, 4, input_ids=ids, pixel_values=torch.randn(1, 3, 8, 8))
        >>> cut.counts, cut.keep_mask.sum().item(), model(**cut.inputs).logits.shape
        ([4], 7, torch.Size([1, 7, 32]))
    """
    options = Options(k, keep_ratio, rule, importance, positions, backend).checked_for(model)
    return prune_with(options, model, inputs)


class _Part(NamedTuple):
    """The images of a batch, or its videos, after the selection."""

    encoded: Encoded
    where: Tensor  # (B, L) bool, their placeholders
    lengths: list[int]  # of each image or video
    kept: Tensor  # (T,) bool

    def units(self, rows: Tensor) -> list[Tensor]:
        """What is kept of (T, ...) rows, image by image."""
        pairs = zip(torch.split(rows, self.lengths), torch.split(self.kept, self.lengths), strict=True)
        return [unit[kept] for unit, kept in pairs]


def prune_with(options: Options, model: Any, inputs: Mapping[str, Any]) -> PrunedInputs:
    """`prune_inputs` with options that `Options.checked_for` returned."""
    family, base = family_of(model)
    ids, mask = _sequences(inputs)
    with_attention = needs_attention(options.importance) and has_class_token(base)
    encoded = [
        family.encode(base, modality, inputs, with_attention)
        for modality, pixels in MODALITIES.items()
        if inputs.get(pixels) is not None
    ]
    if not encoded:
        raise ValueError(f"inputs must have {' or '.join(MODALITIES.values())}, got {', '.join(sorted(inputs))}")
    where = {modality: ids == token for modality, token in placeholders(base.config).items()}
    token_types = torch.zeros_like(ids)  # of text, images, videos: 0, 1, 2, as in `mm_token_type_ids`
    for number, modality in enumerate(MODALITIES, 1):
        if modality in where:
            token_types[where[modality]] = number
    texts = _texts(base, ids, mask, token_types) if needs_text(options.importance) else None
    parts = _selected(family, options, encoded, where, mask, texts)
    keep = mask.bool().clone()
    for part in parts:
        keep[part.where] = part.kept
    cut = Cut.of(keep, pad_left=bool(mask[:, -1].all()))
    if options.positions == "original":
        positions = cut.apply_to_positions(family.positions(base, inputs, mask, token_types))
    else:
        positions = text_positions(cut.real)
    return _assembled(model, base, inputs, parts, cut, keep, positions)


def _sequences(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask`, ones unless given: both (B, L)."""
    if inputs.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds must be None: images are found in input_ids by their token, got a tensor")
    ids: Any = inputs.get("input_ids")
    checks.check_tensor("input_ids", ids)
    if ids.dim() != 2:
        raise ValueError(f"input_ids must be (B, L), got shape {tuple(ids.shape)}")
    mask: Any = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    checks.check_tensor("attention_mask", mask)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask must be (B, L) = {tuple(ids.shape)}, got shape {tuple(mask.shape)}")
    return ids, mask


def _selected(
    family: Family,
    options: Options,
    encoded: list[Encoded],
    where: Mapping[Modality, Tensor],
    mask: Tensor,
    texts: list[Tensor] | None,
) -> list[_Part]:
    """Selects among the tokens of each image and each video."""
    lengths = [_lengths(family, each, where[each.modality]) for each in encoded]
    budgets = _budgets(options.k, [len(each) for each in lengths])
    parts = []
    for each, sizes, budget in zip(encoded, lengths, budgets, strict=True):
        places = where[each.modality]
        newlines, real = torch.cat(each.newlines), mask[places].bool()
        visuals = _visuals(each, sizes, ~newlines & real, samples_of(places, sizes), texts)
        parts.append(_Part(each, places, sizes, _picked(options, visuals, budget) | newlines & real))
    return parts


def _lengths(family: Family, encoded: Encoded, where: Tensor) -> list[int]:
    """How many tokens each image or video has; by what stands between them where the encoder knows tiles only."""
    rows, places = sum(map(len, encoded.units)), int(where.sum())
    if rows != places:
        raise ValueError(
            f"input_ids must have a placeholder for each {encoded.modality} token, got {places} for {rows} tokens"
        )
    return run_lengths(where) if family.joins_tiles else [len(unit) for unit in encoded.units]


def _budgets(k: Any, units: list[int]) -> list[Any]:
    """`k` for the images and for the videos."""
    if not isinstance(k, Sequence):
        return [k] * len(units)
    if len(k) != sum(units):
        raise ValueError(f"k must be an int or one for each of {sum(units)} images and videos, got {len(k)}")
    ends = list(itertools.accumulate(units))
    return [list(k[end - n : end]) for n, end in zip(units, ends, strict=True)]


def _texts(base: Any, ids: Tensor, mask: Tensor, token_types: Tensor) -> list[Tensor]:
    """Of each sample the embeddings of the text behind its last image; of all its text if there is none behind it."""
    is_text = mask.bool() & (token_types == 0)
    images_ahead = (token_types != 0).flip(1).cumsum(1).flip(1)
    is_behind = is_text & (images_ahead == 0)
    chosen = torch.where(is_behind.any(1, keepdim=True), is_behind, is_text)
    return [base.get_input_embeddings()(row[wanted]) for row, wanted in zip(ids, chosen, strict=True)]


def _visuals(
    encoded: Encoded, sizes: list[int], selectable: Tensor, samples: list[int], texts: list[Tensor] | None
) -> list[Visual]:
    features = torch.split(torch.cat(encoded.units), sizes)
    attention: Sequence[Tensor | None] = [None] * len(sizes)
    if encoded.attention is not None:
        attention = torch.split(torch.cat(encoded.attention), sizes)
    no_text = features[0][:0]
    return [
        Visual(rows, no_text if texts is None else texts[sample], row, free, encoded.modality)
        for rows, sample, row, free in zip(features, samples, attention, torch.split(selectable, sizes), strict=True)
    ]


def _picked(options: Options, visuals: list[Visual], k: Any) -> Tensor:
    """(T,) bool: what the rule picks of all these tokens."""
    features = torch.cat([visual.features for visual in visuals])
    features = features if features.dtype in checks.FEATURE_DTYPES else features.float()
    selectable = torch.cat([visual.selectable for visual in visuals])
    sizes = [len(visual.features) for visual in visuals]
    cu_seqlens = torch.tensor([0, *itertools.accumulate(sizes)], device=features.device)
    importance = None
    if options.importance is not None:
        importance = torch.cat([importance_of(visual, options.importance) for visual in visuals])
    sel = api.select(
        features, k, options.rule, importance, mask=selectable, cu_seqlens=cu_seqlens, backend=options.backend,
        keep_ratio=options.keep_ratio, k_max=None if options.keep_ratio is None else max(sizes),
    )  # fmt: skip
    return sel.keep_mask(len(features), cu_seqlens)


def _assembled(
    model: Any, base: Any, inputs: Mapping[str, Any], parts: list[_Part], cut: Cut, keep: Tensor, positions: Tensor
) -> PrunedInputs:
    """The arguments for the model, in the way in which its version takes visual features."""
    ids = inputs["input_ids"]
    encoders = [getattr(base, f"get_{modality}_features", None) for modality in MODALITIES]
    used = {name for each in encoders if each is not None for name in inspect.signature(each).parameters}
    used |= {*MODALITIES.values(), "position_ids", "cache_position", "image_sizes", "second_per_grid_ts"}
    rest = {name: value for name, value in inputs.items() if name not in used}
    for name, value in rest.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            rest[name] = cut.apply(value, _NO_LABEL if name == "labels" else 0)
    short_ids = cut.apply(ids, _padding(model.config))
    rest |= {"input_ids": short_ids, "attention_mask": cut.real.long(), "position_ids": positions}
    counts = [len(unit) for part in parts for unit in part.units(part.kept)]
    if takes_encoder_outputs(model):
        rest["mm_encoder_outputs"] = {part.encoded.modality: _cut_output(part) for part in parts}
        return PrunedInputs(rest, keep, counts, short_ids)
    embeds = base.get_input_embeddings()(rest.pop("input_ids"))
    for part in parts:
        rows = torch.cat(part.encoded.units)[part.kept]
        embeds = embeds.masked_scatter(cut.apply(part.where)[..., None], rows.to(embeds))
    hook = LanguageModelHook(positions, *_deepstack(parts, cut, keep))
    return PrunedInputs({**rest, "inputs_embeds": embeds}, keep, counts, short_ids, hook)


def _padding(config: Any) -> int:
    for holder in (config, getattr(config, "text_config", None)):
        number = getattr(holder, "pad_token_id", None)
        if isinstance(number, int) and number >= 0:
            return number
    return 0


def _cut_output(part: _Part) -> Any:
    """What the encoder returned, with the rows that are kept."""
    output, rows = part.encoded.output, torch.cat(part.encoded.units)
    # A tensor of tiles becomes one of tokens: transformers counts them one by one where it repeats samples for beams.
    is_tensor = isinstance(output.pooler_output, Tensor)
    output.pooler_output = rows[part.kept][:, None] if is_tensor else part.units(rows)
    if part.encoded.deepstack:
        output.deepstack_features = [part.units(layer) for layer in part.encoded.deepstack]
    return output


def _deepstack(parts: list[_Part], cut: Cut, keep: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """(B, L') bool, which tokens get visual features inside the language model, and (T', D) of each layer."""
    if not parts[0].encoded.deepstack:
        return None, []
    where = torch.stack([part.where for part in parts]).any(0)
    layers = []
    for rows in zip(*(part.encoded.deepstack for part in parts), strict=True):
        joint = rows[0].new_zeros(int(where.sum()), rows[0].shape[-1])
        for part, row in zip(parts, rows, strict=True):
            joint[part.where[where]] = row
        layers.append(joint[keep[where]])
    return cut.apply(where), layers

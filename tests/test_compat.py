"""The functions of `compat` have the signatures and results of the published ones, and keep what these kept.

Recorded runs of the published code are in data/golden and data/merges, whose README.md describe them, and for MMTok in
data/selectors, see `test_mmtok_matrix_as_recorded`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden import GoldenRun
from no_sync import META, nothing_read, to_meta
from test_merge_golden import MergeRun
from tolerances import GOLDEN_REGRET
from torch import Tensor

import idsel_kernels as idsel
from idsel_kernels.compat import angelslim
from idsel_kernels.compat.cdpruner import encode_images, index_masks
from idsel_kernels.compat.divprune import DivPrune
from idsel_kernels.compat.fastv import keep_indexs
from idsel_kernels.compat.mmtok import matrix
from idsel_kernels.compat.scope import SCOPE
from idsel_kernels.compat.visionzip import CLIPVisionTower_VisionZip, zip_tokens

DATA = Path(__file__).parent / "data"
CASES = {folder: json.loads((DATA / folder / "index.json").read_text())["cases"] for folder in ("golden", "merges")}
MMTOK = json.loads((DATA / "selectors" / "mmtok.json").read_text())
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASE = idsel.testing.clustered(tokens=60, dim=16, batch=2)
FEATURES, SCORES = CASE.features, CASE.importance
EMBEDS, TEXTS = torch.randn(2, 60, 8, generator=torch.manual_seed(0)), torch.randn(3, 8)
TEXTS16 = torch.randn(3, 16)
HIDDEN, KEYS = torch.randn(2, 61, 12), torch.randn(2, 61, 4)
ROW = torch.ones(1, 4, 1, 9)  # of attention
IMAGE = 7  # the id of an image token
SELECTOR = "algorithm.utils.vision_selector_utils"


# --- A stand-in for AngelSlim -----------------------------------------------------------------------------------------


@dataclass
class Context:
    """What a strategy finds in AngelSlim's `PruningContext`: three tokens of text, an image, two tokens of text."""

    input_ids: Tensor
    inputs_embeds: Tensor
    vit_q: dict[int, Any] = field(default_factory=dict)
    vit_k: dict[int, Any] = field(default_factory=dict)
    model_config: Any = None

    @classmethod
    def of(cls, features: Tensor) -> Context:
        """With the features (N, D) of an image; the text is as similar to it as it is to itself."""
        ids = torch.tensor([1, 2, 3, *[IMAGE] * len(features), 4, 5])[None]
        return cls(ids, torch.cat([features[:1].expand(3, -1), features, features[-1:].expand(2, -1)])[None])

    def with_attention(self, scores: Tensor, keys: Tensor | None = None) -> Context:
        """The tensors stand for queries and keys of layer 4, from which AngelSlim computes scores (N,) and keys."""
        self.vit_q[4], self.vit_k[4] = scores, scores[:, None] if keys is None else keys
        return self


@pytest.fixture
def slim(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """AngelSlim's modules, as far as they are used; `raw_scores` are those of the selector."""

    def segments(context: Context) -> tuple[Any, ...]:
        return None, [], None, [3, context.input_ids.shape[1] - 5, 2], [False, True, False]

    def scorer(selector_path: str, vision_hidden: Tensor, text_hidden: Tensor | None, mode: str) -> Tensor:
        assert (selector_path, text_hidden, mode) == ("there", None, "raw") and vision_hidden.dim() == 3
        return theirs.raw_scores[None]

    theirs = SimpleNamespace(
        get_model_specific_vision_token_ids=lambda context: {IMAGE, -1},
        _recompute_attention_maps_for_all_images=lambda q, k, context: ([q[None]], [k[None]]),
        get_dialogue_masks=segments,
        PRUNING_STRATEGIES={"random": len, "divprune": min, "idpruner": max, "scope": sum},
        MERGING_STRATEGIES={"visionzip": abs},
        get_universal_selector_scores=scorer,
        raw_scores=SCORES[0],
    )
    for module in ("factory", "algorithm.utils.utils", "algorithm.utils.merging_utils", SELECTOR):
        monkeypatch.setitem(sys.modules, f"angelslim.compressor.token_compressor.{module}", theirs)
    return theirs


def of_image(mask: Tensor) -> Tensor:
    """The part of a mask (1, L) that is the image's; text is kept."""
    assert mask.dtype is torch.bool and mask[0, :3].all() and mask[0, -2:].all()
    return mask[:, 3:-2]


def share_dropped(run: GoldenRun) -> float:
    return 1.0 - run.k / int(run.case["n"])


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test starts with neither variable of SCOPE set, whatever the shell has."""
    for name in ("ALPHA", "COMBINED"):
        monkeypatch.delenv(name, raising=False)


# --- Recorded runs ----------------------------------------------------------------------------------------------------


def golden(*sources: str) -> list[Any]:
    runs = [GoldenRun(DATA / "golden", case) for case in CASES["golden"] if case["source"] in sources]
    return [pytest.param(run, id=f"{run.case['id']}-{run.case['source']}") for run in runs]


def merges(source: str) -> list[Any]:
    runs = [MergeRun(DATA / "merges", case) for case in CASES["merges"] if case["source"] == source and case["clear"]]
    return [pytest.param(run, id=run.case["id"]) for run in runs]


def batched(run: GoldenRun) -> dict[str, Tensor]:
    """Its features (B, N, D) and importance (B, N)."""
    return {name: t[None] if run.case["batch"] is None else t for name, t in run.inputs().items()}


def assert_same_picks(run: GoldenRun, picks: Tensor) -> None:
    """(B, k) in pick order: the same where the margin is clear, and beyond it none much worse than the best."""
    assert picks.dtype is torch.int64 and picks.shape == run.picks().shape
    for ours, theirs, clear in zip(picks.tolist(), run.picks().tolist(), run.clear_prefix(), strict=True):
        assert ours[:clear] == theirs[:clear]
    report = idsel.testing.check_selection(idsel.Selection.of(picks), **run.inputs(), rule=run.rule)
    assert not report.defects and report.relative_regret <= GOLDEN_REGRET


def assert_same_mask(run: GoldenRun, mask: Tensor) -> None:
    """(B, N): k tokens, among them the clear picks; the same ones where all are clear."""
    assert mask.dtype is torch.bool and mask.sum(1).tolist() == [run.k] * len(mask)
    for ours, theirs, clear in zip(mask, run.picks(), run.clear_prefix(), strict=True):
        assert ours[theirs[:clear]].all()


@pytest.mark.parametrize("run", golden("divprune"))
def test_divprune_as_recorded(run: GoldenRun) -> None:
    features = run.inputs()["features"]
    picks, distances = DivPrune(None, features, len(features), None, run.k / len(features))
    assert_same_picks(run, picks[None])
    assert distances is not None and distances.shape == (len(features),) * 2 and distances.dtype is torch.float32


@pytest.mark.parametrize("run", golden("cdpruner"))
def test_cdpruner_as_recorded(run: GoldenRun) -> None:
    features = batched(run)["features"]
    with np.load(run.folder / run.case["file"]) as data:
        image, text = (torch.from_numpy(data[name].astype(np.float32)) for name in ("image_embeds", "text_embeds"))
    assert_same_mask(run, index_masks(features, image.view(*features.shape[:2], -1), text, run.k))


def set_environment(run: GoldenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHA", str(run.case["params"]["alpha"]))
    monkeypatch.setenv("COMBINED", {"mul": "multi", "add": "add"}[run.case["params"]["combine"]])


@pytest.mark.parametrize("run", golden("scope"))
def test_scope_as_recorded(run: GoldenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(run, monkeypatch)
    given = batched(run)
    picks, similarities = SCOPE(given["features"], run.k, given.get("importance"))
    assert_same_picks(run, picks)
    batch, tokens, _ = given["features"].shape
    assert similarities is not None and similarities.shape == (batch, tokens, tokens)


@pytest.mark.parametrize("run", golden("angelslim-scope"))
def test_scope_of_angelslim_as_recorded(run: GoldenRun, monkeypatch: pytest.MonkeyPatch, slim: SimpleNamespace) -> None:
    set_environment(run, monkeypatch)
    monkeypatch.setenv("ALPHA", "100")  # which AngelSlim does not read
    given, alpha = batched(run), run.case["params"]["alpha"]
    assert_same_picks(run, angelslim.SCOPE(given["features"], run.k, given.get("importance"), alpha)[0])
    if len(given["features"]) == 1 and "importance" in given:
        context = Context.of(given["features"][0]).with_attention(given["importance"][0])
        mask = angelslim.scope_pruning(context, ratio=share_dropped(run), layer_idx=4, alpha=alpha)
        assert_same_mask(run, of_image(mask))


@pytest.mark.parametrize("run", golden("angelslim-divprune"))
def test_divprune_of_angelslim_as_recorded(run: GoldenRun, slim: SimpleNamespace) -> None:
    context = Context.of(run.inputs()["features"])
    assert_same_mask(run, of_image(angelslim.divprune(context, ratio=share_dropped(run))))


@pytest.mark.parametrize("run", golden("angelslim-idpruner"))
def test_idpruner_as_recorded(run: GoldenRun, slim: SimpleNamespace) -> None:
    with np.load(run.folder / run.case["file"]) as data:
        slim.raw_scores = torch.from_numpy(data["raw_scores"])
    params = {"mmr_lambda": run.rule.lam, "parallel_k": run.rule.parallel_k}  # type: ignore[attr-defined]
    mask = angelslim.idpruner(
        Context.of(run.inputs()["features"]), ratio=share_dropped(run), selector_path="there", **params
    )
    assert_same_mask(run, of_image(mask))


@pytest.mark.parametrize("run", merges("visionzip"))
def test_visionzip_as_recorded(run: MergeRun) -> None:
    hidden, keys = (x.view(-1, *x.shape[-2:]) for x in (run.given("features"), run.given("keys")))
    attention = run.given("importance").view(len(hidden), -1)
    dominant, contextual = (run.case["params"][name] for name in ("dominant", "contextual"))
    tokens, all_indices = zip_tokens(hidden, keys, attention, dominant, contextual)
    assert all_indices[:, 0].tolist() == [0] * len(hidden)
    assert torch.equal(all_indices[:, 1:] - 1, run.came("order").view(len(hidden), -1))
    run.assert_output(tokens, run.came("output").view_as(tokens))


@pytest.mark.parametrize("run", merges("angelslim-visionzip"))
def test_visionzip_of_angelslim_as_recorded(run: MergeRun, slim: SimpleNamespace) -> None:
    features, logits = run.given("features"), run.given("importance_logits")
    keys = torch.cat([run.given("keys"), logits[:, None]], 1)
    context = Context.of(features).with_attention(logits, keys)
    (weights,), sizes, is_vision, mask = angelslim.visionzip(context, layer_idx=4, **run.case["params"])
    assert of_image(mask[None])[0].nonzero()[:, 0].tolist() == run.came("order").tolist()
    assert (sizes.tolist(), is_vision.tolist()) == ([3, len(features), 2], [False, True, False])
    ones = weights > 0
    assert ones.sum(1).tolist() == run.came("row_sizes").tolist()
    owners = run.came("targets")[run.came("assignment")]  # of the merged tokens
    rows = run.came("order").tolist()
    assert ones[:, run.came("merged")].int().argmax(0).tolist() == [rows.index(owner) for owner in owners.tolist()]
    torch.testing.assert_close(weights, ones / (ones.sum(1, keepdim=True) + 1e-8))


@pytest.mark.parametrize("file", MMTOK["files"])
def test_mmtok_matrix_as_recorded(file: str) -> None:
    """W (M + N, N) float32 is what the official code made of `features` (N, D), `clip_features` (N, D) and
    `text_features` (M, D), float16 and upcast to float32 before it ran.

    data/selectors/mmtok.json has `cases` (the runs, with parameters), `sources` (project, file, function, commit and
    licence) and `files`, each with its SHA-256. `rXX_order` and the other arrays of a run are its greedy selection.
    """
    path = DATA / "selectors" / file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MMTOK["files"][file]
    with np.load(path) as data:
        given = {name: torch.from_numpy(data[name].astype(np.float32)) for name in data if not name.startswith("r")}
    for case in MMTOK["cases"]:
        if case["file"] == file:
            alpha, *temperatures = (case["params"][name] for name in ("alpha", "tv_temp", "vv_temp"))
            options = dict(zip(("text_temperature", "vision_temperature"), temperatures, strict=True))
            ours = matrix(given["features"], given["text_features"], given["clip_features"], alpha=alpha, **options)
            # A cosine may be off by 2^-23, and that over the temperature is the relative error of a weight, but twice.
            error = 2 * 2**-23 / min(temperatures) + 2**-20
            torch.testing.assert_close(ours, given["W"], rtol=error, atol=1e-40)  # what is not normal is rounded more


def test_every_source_of_the_projects_is_recorded_and_most_runs_are_clear() -> None:
    golden_runs = [case for case in CASES["golden"] if case["source"] != "float64-oracle"]
    clear = Counter(case["source"] for case in golden_runs if np.min(case["clear_prefix"]) >= case["k"])
    slim = {"angelslim-idpruner", "angelslim-divprune", "angelslim-scope"}
    assert set(clear) == {case["source"] for case in golden_runs} == {"divprune", "cdpruner", "scope", *slim}
    assert min(clear.values()) >= 10


def test_where_the_published_code_repeats_tokens_all_are_distinct() -> None:
    repeats = {case["source"] for case in CASES["golden"] if np.min(case["distinct_picks"]) < case["k"]}
    assert repeats == {"divprune", "cdpruner"}  # whose tests above then ask for k distinct tokens


# --- Signatures -------------------------------------------------------------------------------------------------------

CONTEXT = "context, **kwargs"
SIGNATURES = [
    (DivPrune, "self, visual_feature_vectors, image_feature_length, cosine_matrix=None, threshold_ratio=0.1"),
    (encode_images, "self, images, texts=None"),
    (index_masks, "image_features, image_embeds, text_embeds, visual_token_num"),
    (SCOPE, "visual_feature_vectors, num_selected_token, cls_attn=None"),
    (CLIPVisionTower_VisionZip.forward, "self, images"),
    (zip_tokens, "hidden_states, metric, cls_attention_sum, dominant_num, contextual_num"),
    (keep_indexs, "last_layer_attention, fast_v_sys_length, fast_v_image_token_length, fast_v_attention_rank"),
    (angelslim.SCOPE, "visual_feature_vectors, num_selected_token, cls_attn=None, alpha=1.0"),
    (angelslim.divprune, CONTEXT),
    (angelslim.idpruner, CONTEXT),
    (angelslim.scope_pruning, CONTEXT),
    (angelslim.visionzip, CONTEXT),
]


@pytest.mark.parametrize(("function", "published"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_signatures_are_the_published_ones_and_more_by_keyword(function: Callable[..., Any], published: str) -> None:
    def bare(parameter: inspect.Parameter) -> inspect.Parameter:
        return parameter.replace(annotation=inspect.Parameter.empty)

    given = inspect.signature(function).parameters.values()
    theirs = [bare(p) for p in given if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    ours = [p for p in given if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert str(inspect.Signature(theirs)) == f"({published})"
    assert all(p.default is not inspect.Parameter.empty for p in ours)


def test_nothing_is_imported_unasked() -> None:
    code = """
import sys, idsel_kernels
assert not any(name.startswith("idsel_kernels.compat") for name in sys.modules), "compat"
from idsel_kernels.compat import angelslim, cdpruner, divprune, fastv, mmtok, scope, visionzip
foreign = {"angelslim", "llava", "transformers", "safetensors", "huggingface_hub"} & set(sys.modules)
assert not foreign, foreign
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_cdpruner_scales_relevance_over_the_whole_batch() -> None:
    """As published: what is kept of an image depends on those beside it."""
    features = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    text = torch.tensor([[1.0, 0.0]])
    angle = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.5], [3.0]])
    angle[0] += 2.5  # far from the text, by its own measure from 0 to 1
    image = torch.stack([angle.cos(), angle.sin()], -1)
    masks = index_masks(features, image, text, 6)
    quality = -angle.cos()
    relevance = (quality - quality.min() + 1e-6) / (quality.max() - quality.min())
    assert torch.equal(masks, idsel.dpp_select(features, 6, relevance).keep_mask(40))
    assert not torch.equal(masks[:1], index_masks(features[:1], image[:1], text, 6))


# --- In place of the published ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_divprune_as_a_method(dtype: torch.dtype) -> None:
    class Model:
        DivPrune = DivPrune

    features = FEATURES[0].to(dtype)
    picks, distances = Model().DivPrune(features, 60, None, threshold_ratio=0.2)
    assert picks.tolist() == idsel.maxmin_select(features, 12).indices[0].tolist()
    assert distances is not None and distances.dtype is dtype
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    torch.testing.assert_close(distances, (1 - unit @ unit.T).to(dtype))
    picks += 35  # as the caller does
    again, same = DivPrune(None, features, 60, distances, 0.2)
    assert same is distances and torch.equal(again, picks - 35)
    assert DivPrune(None, features, 60, threshold_ratio=0.2, with_matrix=False)[1] is None
    assert DivPrune(None, features, 5, threshold_ratio=0.5)[0].shape == (2,), "half to even, of the length given"


@pytest.mark.parametrize("dtype", DTYPES)
def test_cdpruner_as_a_method(dtype: torch.dtype) -> None:
    class Model:
        encode_images = encode_images
        visual_token_num = 9
        mm_projector = torch.nn.Linear(16, 24).to(dtype)

        def get_model(self) -> Model:
            return self

        def get_vision_tower(self) -> Callable[..., Any]:
            return self.tower

        def tower(self, images: Tensor, texts: Any) -> tuple[Tensor, ...]:
            assert texts == ["a question"]
            return FEATURES.to(dtype), EMBEDS.to(dtype), TEXTS.to(dtype)

    features, masks = Model().encode_images(torch.zeros(2, 3, 4, 4), texts=["a question"])
    assert features.shape == (2, 60, 24) and features.dtype is dtype
    assert masks.dtype is torch.bool and masks.sum(1).tolist() == [9, 9]
    assert torch.equal(masks, index_masks(features, EMBEDS.to(dtype), TEXTS.to(dtype), 9))
    assert index_masks(features, EMBEDS.to(dtype), TEXTS.to(dtype), 61).all(), "no more than there are"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", [SCOPE, angelslim.SCOPE])
def test_scope_reads_its_environment(dtype: torch.dtype, scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    features, attention = FEATURES.to(dtype), SCORES.to(dtype)

    def ours(alpha: float, combine: Any) -> list[list[int]]:
        return idsel.coverage_select(features, 6, attention, alpha=alpha, combine=combine).indices.tolist()

    picks, similarities = scope(features, 6, attention)
    assert picks.dtype is torch.int64 and picks.tolist() == ours(1.0, "mul") and similarities.dtype is dtype
    assert scope(features, 6, with_matrix=False)[1] is None
    assert scope(features, 6)[0].tolist() == idsel.coverage_select(features, 6).indices.tolist()
    monkeypatch.setenv("COMBINED", "add")
    assert scope(features, 6, attention)[0].tolist() == ours(1.0, "add")
    monkeypatch.setenv("ALPHA", "3")
    alpha = 3.0 if scope is SCOPE else 1.0
    assert scope(features, 6, attention)[0].tolist() == ours(alpha, "add")
    monkeypatch.setenv("COMBINED", "sum")
    with pytest.raises(ValueError, match="COMBINED must be one of 'multi', 'add', got 'sum'"):
        scope(features, 6, attention)
    monkeypatch.setenv("ALPHA", "much")
    if scope is SCOPE:
        with pytest.raises(ValueError, match="ALPHA must be a number, got 'much'"):
            scope(features, 6, attention)


@pytest.mark.parametrize("dtype", DTYPES)
def test_visionzip_as_the_method_of_a_vision_tower(dtype: torch.dtype) -> None:
    heads = torch.rand(2, 4, 61, 61).to(dtype)

    class VisionTower:
        _info = MappingProxyType({"dominant": 7, "contextual": 5})
        vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=[SimpleNamespace(metric=KEYS), None]))

        def __call__(self, images: Tensor, output_hidden_states: bool, output_attentions: bool) -> Any:
            assert images.dtype is HIDDEN.dtype and output_hidden_states and output_attentions
            return SimpleNamespace(hidden_states=[None, HIDDEN, None], attentions=[heads, None])

    class Tower(torch.nn.Module):
        vision_tower, device, dtype = VisionTower(), torch.device("cpu"), HIDDEN.dtype
        forward = CLIPVisionTower_VisionZip.forward

    tokens, all_indices = Tower()(torch.zeros(2, 3, 4, 4, dtype=dtype))
    assert tokens.shape == (2, 13, 12) and tokens.dtype is dtype
    assert all_indices.shape == (2, 8) and all_indices.dtype is torch.int64
    attention = heads[:, :, 0, 1:].float().sum(1)
    expected, rows = zip_tokens(HIDDEN, KEYS, attention, 7, 5)
    assert torch.equal(tokens, expected.to(dtype)) and torch.equal(all_indices, rows)
    kept = torch.stack([x[at] for x, at in zip(HIDDEN, rows.sort(1).values, strict=True)])
    assert torch.equal(expected[:, :8], kept), "CLS and the dominant tokens, by position"
    with pytest.raises(TypeError, match=r"images must be a torch.Tensor, got list"):
        Tower()([torch.zeros(3, 4, 4)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_visionzip_in_the_dtype_of_the_hidden_states(dtype: torch.dtype) -> None:
    tokens, _ = zip_tokens(HIDDEN.to(dtype), KEYS.to(dtype), SCORES, 7, 5)
    assert tokens.dtype is dtype
    exact, _ = zip_tokens(HIDDEN.to(dtype).float(), KEYS.to(dtype), SCORES, 7, 5)
    assert torch.equal(tokens, exact.to(dtype)), "rounded once"


@pytest.mark.parametrize("dtype", DTYPES)
def test_fastv_keeps_text_and_the_attended_image_tokens(dtype: torch.dtype) -> None:
    attention = torch.rand(2, 4, 30, 30).to(dtype)
    kept = keep_indexs(attention, 5, 20, 8)
    best = attention[0, :, -1, 5:25].float().mean(0).topk(8).indices + 5
    assert kept.dtype is torch.int64
    assert kept.tolist() == [*range(5), *best.sort().values.tolist(), *range(25, 30)]
    ties = torch.ones(1, 1, 1, 30, dtype=dtype)  # one query, as in decoding
    assert keep_indexs(ties, 5, 20, 3).tolist() == [*range(8), *range(25, 30)]
    assert keep_indexs(ties, 5, 20, 0).tolist() == [*range(5), *range(25, 30)]


# --- MMTok ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
def test_mmtok_matrix_is_the_formula(dtype: torch.dtype, shared: bool) -> None:
    x, q, t = FEATURES[:, :7].to(dtype), EMBEDS[:, :7].to(dtype), torch.randn(2, 3, 16).to(dtype)
    t = t[0] if shared else t
    ours = matrix(x, t, q, text_temperature=0.1, vision_temperature=0.3, alpha=2.0)
    assert ours.dtype is torch.float32 and ours.shape == (2, 10, 7)
    for sample in range(2):
        texts, rows = (t if shared else t[sample]).double().tolist(), ours[sample].double()
        tokens, clips = x[sample].double().tolist(), q[sample].double().tolist()
        for i, text in enumerate(texts):
            weights = [math.exp(cosine(text, token) / 0.1) for token in tokens]
            expected = torch.tensor([w / sum(weights) / 3 for w in weights], dtype=torch.float64)
            torch.testing.assert_close(rows[i], expected, rtol=2e-5, atol=0)
        for i, clip in enumerate(clips):
            weights = [math.exp(cosine(clip, other) / 0.3) for other in clips]
            expected = torch.tensor([2.0 * w / sum(weights) / 7 for w in weights], dtype=torch.float64)
            torch.testing.assert_close(rows[3 + i], expected, rtol=2e-5, atol=0)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_mmtok_matrix_defaults_and_one_sample() -> None:
    text = TEXTS16
    whole = matrix(FEATURES, text)
    assert torch.equal(
        whole, matrix(FEATURES, text, FEATURES, text_temperature=0.02, vision_temperature=0.2, alpha=0.5)
    )
    torch.testing.assert_close(matrix(FEATURES[1], text), whole[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(whole[:, :3].sum(-1), torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(whole[:, 3:].sum(-1), torch.full((2, 60), 0.5 / 60))
    spoiled = FEATURES.clone()
    spoiled[0, 5, 2] = math.nan
    assert torch.equal(matrix(spoiled, text)[1], whole[1])
    assert not matrix(FEATURES, text, alpha=0)[:, 3:].any()
    zeros = matrix(torch.zeros(2, 4), torch.zeros(1, 4))
    assert torch.equal(zeros, torch.tensor([[0.5, 0.5], [0.125, 0.125], [0.125, 0.125]]))


def test_mmtok_matrix_is_in_full_precision_whatever_the_caller_has_set() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = matrix(FEATURES, TEXTS16)
    assert torch.equal(inside, matrix(FEATURES, TEXTS16))


# --- AngelSlim --------------------------------------------------------------------------------------------------------

STRATEGIES = {
    "divprune": (angelslim.divprune, {}),
    "idpruner": (angelslim.idpruner, {"selector_path": "there"}),
    "scope": (angelslim.scope_pruning, {"layer_idx": 4}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_keep_the_share_of_the_vision_tokens(dtype: torch.dtype, name: str, slim: SimpleNamespace) -> None:
    strategy, params = STRATEGIES[name]
    context = Context.of(FEATURES[0].to(dtype)).with_attention(SCORES[0].to(dtype))
    for ratio, kept in ((0, 60), (0.75, 15), (0.9, 6), (0.875, 8), (0.999, 1), (1.0, 0)):
        mask = strategy(context, ratio=ratio, unheard_of=1, **params)
        assert mask.shape == context.input_ids.shape
        assert int(of_image(mask).sum()) == kept
    text = Context(torch.tensor([[1, 2, 3]]), FEATURES[:1, :3].to(dtype))
    assert strategy(text, ratio=0.5, **params).tolist() == [[True] * 3]


def test_strategies_pick_as_the_rules_do(slim: SimpleNamespace) -> None:
    features, context = FEATURES[0], Context.of(FEATURES[0]).with_attention(SCORES[0])
    importance = idsel.importance.minmax(SCORES[0], eps=1e-6)
    for given, rule, score in (
        ({}, idsel.MMR(), importance),
        ({"mmr_lambda": 0.8, "parallel_k": 4}, idsel.MMR(0.8, 4), importance),
        ({"importance_func": torch.neg}, idsel.MMR(), -SCORES[0]),
    ):
        mask = angelslim.idpruner(context, ratio=0.75, selector_path="there", **given)
        assert torch.equal(of_image(mask), idsel.select(features, 15, rule, score).keep_mask(60))
    mask = angelslim.scope_pruning(context, ratio=0.75, layer_idx=4, alpha=2.0)
    ours = idsel.coverage_select(features, 15, SCORES[0], alpha=2.0)
    assert torch.equal(of_image(mask), ours.keep_mask(60))


@pytest.mark.parametrize("dtype", DTYPES)
def test_visionzip_strategy_returns_what_angelslim_applies(dtype: torch.dtype, slim: SimpleNamespace) -> None:
    context = Context.of(FEATURES[0].to(dtype)).with_attention(SCORES[0].to(dtype), KEYS[0, 1:].to(dtype))
    for ratio, kept in ((0.0, 60), (0.75, 15), (0.999, 1), (1.0, 1)):  # one is averaged, always
        (weights,), sizes, is_vision, mask = angelslim.visionzip(context, ratio=ratio, layer_idx=4, zip_ratio=0.3)
        assert weights.shape == (kept, 60) and weights.dtype is dtype
        assert sizes.dtype is torch.int64 and is_vision.dtype is torch.bool and mask.shape == (65,)
        assert int(of_image(mask[None]).sum()) == kept
        torch.testing.assert_close(weights.float().sum(1), torch.ones(kept), rtol=0.01, atol=0.0)


def test_register_and_back(slim: SimpleNamespace) -> None:
    before = dict(slim.PRUNING_STRATEGIES), dict(slim.MERGING_STRATEGIES)
    theirs = angelslim.register()
    assert theirs == {"divprune": min, "idpruner": max, "scope": sum, "visionzip": abs}
    ours = {"divprune": angelslim.divprune, "idpruner": angelslim.idpruner, "scope": angelslim.scope_pruning}
    assert {"random": len, **ours} == slim.PRUNING_STRATEGIES
    assert {"visionzip": angelslim.visionzip} == slim.MERGING_STRATEGIES
    angelslim.register(theirs)
    assert before == (slim.PRUNING_STRATEGIES, slim.MERGING_STRATEGIES)
    with pytest.raises(ValueError, match=r"strategies must have names among 'random', 'divprune', .*, got 'dart'"):
        angelslim.register({"random": print, "dart": print})
    assert slim.PRUNING_STRATEGIES["random"] is len, "all or nothing"


def test_without_angelslim_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "angelslim.compressor.token_compressor.factory", None)
    with pytest.raises(ImportError, match=r"needs the token compression of AngelSlim: .*; a checkout of github"):
        angelslim.register()


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("divprune", {"ratio": 5}, ValueError, r"ratio must be in \[0, 1\], got 5"),
        ("divprune", {"ratio": float("nan")}, ValueError, r"ratio must be in \[0, 1\], got nan"),
        ("divprune", {"ratio": "half"}, TypeError, r"ratio must be a number in \[0, 1\], got 'half'"),
        ("idpruner", {"similarity_func": max}, ValueError, "similarity_func must be None: the similarity is"),
        ("idpruner", {"importance_func": "code"}, TypeError, "importance_func must be callable or None, got 'code'"),
        ("scope", {"layer_idx": 5}, ValueError, "scope_pruning needs queries and keys of layer_idx=5 of the vision"),
    ],
)  # fmt: skip
def test_errors_of_strategies(name: str, change: Any, error: Any, words: str, slim: SimpleNamespace) -> None:
    strategy, params = STRATEGIES[name]
    context = Context.of(FEATURES[0]).with_attention(SCORES[0])
    with pytest.raises(error, match=words):
        strategy(context, **{"ratio": 0.5, **params, **change})


def test_errors_of_contexts(slim: SimpleNamespace) -> None:
    context = Context.of(FEATURES[0]).with_attention(SCORES[0, :59])
    with pytest.raises(ValueError, match=r"idpruner needs the parameter selector_path, got \['ratio'\]"):
        angelslim.idpruner(context, ratio=0.5)
    with pytest.raises(ValueError, match="importance must have one value for each of the 60 vision tokens, got 59"):
        angelslim.scope_pruning(context, ratio=0.5, layer_idx=4)
    with pytest.raises(ValueError, match="keys of each of the 60 tokens of an image, got 59"):
        angelslim.visionzip(context, ratio=0.5, layer_idx=4)
    with pytest.raises(ValueError, match=r"context.inputs_embeds must be \(1, L, C\), got shape \(2, 60, 16\)"):
        angelslim.divprune(Context(torch.zeros(2, 60), FEATURES), ratio=0.5)
    with pytest.raises(ValueError, match=r"context.input_ids must be \(1, 60\), got \(1, 9\)"):
        angelslim.divprune(Context(torch.zeros(1, 9), FEATURES[:1]), ratio=0.5)


# --- Errors and waiting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "given", "error", "words"),
    [
        (DivPrune, (None, FEATURES, 60), ValueError, r"visual_feature_vectors must be \(N, D\), got shape \(2, 60"),
        (DivPrune, (None, FEATURES[0].double(), 60), TypeError, r"visual_feature_vectors must be float.*; pass .fl"),
        (DivPrune, (None, FEATURES[0], 60, None, 1.5), ValueError, r"round\(1.5 \* 60\) must be at most 60, the rows"),
        (DivPrune, (None, FEATURES[0], 60, None, -1.0), ValueError, r"round\(-1.0 \* 60\) must be >= 0, got -60"),
        (index_masks, (FEATURES[0], EMBEDS, TEXTS, 5), ValueError, r"image_features must be \(B, N, D\), got shape"),
        (index_masks, (FEATURES, EMBEDS[:, 1:], TEXTS, 5), ValueError, r"image_embeds must be \(2, 60, C\), got shape"),
        (index_masks, (FEATURES, EMBEDS, TEXTS[:, 1:], 5), ValueError, r"text_embeds must be \(M, 8\), got shape"),
        (index_masks, (FEATURES, EMBEDS, TEXTS, -1), ValueError, "visual_token_num must be >= 0, got -1"),
        (SCOPE, (FEATURES, 61), ValueError, "num_selected_token must be at most 60, the tokens of an image, got 61"),
        (SCOPE, (FEATURES, 6, SCORES[:1]), ValueError, r"cls_attn must be \(2, 60\), got shape \(1, 60\)"),
        (zip_tokens, (HIDDEN, KEYS, SCORES, 61, 1), ValueError, "dominant_num must be at most 60, the tokens beside"),
        (zip_tokens, (HIDDEN, KEYS, SCORES, 50, 11), ValueError, "contextual_num must be at most 10, the tokens that"),
        (zip_tokens, (HIDDEN, KEYS, SCORES, 50, 0), ValueError, "contextual_num must be >= 1, got 0"),
        (zip_tokens, (HIDDEN, KEYS[:, 1:], SCORES, 5, 5), ValueError, r"metric must be \(2, 61, D\), got shape"),
        (zip_tokens, (HIDDEN, KEYS, SCORES[:, 1:], 5, 5), ValueError, r"cls_attention_sum must be \(2, 60\), got"),
        (keep_indexs, (TEXTS, 1, 5, 3), ValueError, r"last_layer_attention must be \(B, H, Q, S\), got shape \(3, 8\)"),
        (keep_indexs, (ROW, 10, 5, 3), ValueError, "fast_v_sys_length must be at most 9, the length of the sequence"),
        (keep_indexs, (ROW, 5, 5, 3), ValueError, "fast_v_image_token_length must be at most 4, the tokens behind"),
        (keep_indexs, (ROW, 1, 5, 6), ValueError, "fast_v_attention_rank must be at most 5, fast_v_image_token_length"),
        (matrix, (FEATURES[None], TEXTS16), ValueError, r"features must be \(N, D\), got shape \(1, 2, 60, 16\)"),
        (matrix, (FEATURES.double(), TEXTS16), TypeError, r"features must be float32.* got torch.float64; pass .float"),
        (matrix, (FEATURES, TEXTS), ValueError, r"text must be \(M, 16\), got shape \(3, 8\)"),
        (matrix, (FEATURES, TEXTS16.expand(3, 3, 16)), ValueError, r"text must be \(2, M, 16\), got shape \(3, 3, 16"),
        (matrix, (FEATURES, TEXTS16[:0]), ValueError, r"text must have at least one token, got shape \(0, 16\)"),
        (matrix, (FEATURES, TEXTS16, EMBEDS[0]), ValueError, r"clip_features must be \(2, 60, C\), got shape \(60"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_of_the_published_function(
    function: Callable[..., Any], given: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        function(*given)


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"text_temperature": 0.0}, ValueError, "text_temperature must be finite and >= 1e-06, got 0.0"),
        ({"vision_temperature": math.nan}, ValueError, "vision_temperature must be finite and >= 1e-06, got nan"),
        ({"alpha": -0.5}, ValueError, "alpha must be finite and >= 0, got -0.5"),
        ({"alpha": math.inf}, ValueError, "alpha must be finite and >= 0, got inf"),
        ({"alpha": "x"}, TypeError, "alpha must be a number, got str"),
    ],
)
def test_errors_of_mmtoks_parameters(option: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        matrix(FEATURES, TEXTS16, **option)
    assert str(caught.value) == words


def test_nothing_waits_for_a_gpu(slim: SimpleNamespace) -> None:
    features, scores, hidden, keys = (to_meta(t) for t in (FEATURES, SCORES, HIDDEN, KEYS))
    context = Context(to_meta(torch.zeros(1, 60, dtype=torch.int64)), features[:1])
    with nothing_read():
        for answer in (
            *DivPrune(None, features[0], 60),
            index_masks(features, to_meta(EMBEDS), to_meta(TEXTS), 9),
            *SCOPE(features, 9, scores),
            *zip_tokens(hidden, keys, scores, 7, 5),
            keep_indexs(to_meta(torch.zeros(1, 4, 30, 30)), 5, 20, 8),
            matrix(features, to_meta(TEXTS16)),
            angelslim.divprune(context, ratio=0.75),
            angelslim.scope_pruning(context.with_attention(scores[0]), ratio=0.75, layer_idx=4),
        ):
            assert answer is not None and answer.device == META

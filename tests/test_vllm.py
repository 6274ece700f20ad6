"""vLLM's contract for the pruning of video tokens, kept without vLLM, on a stand-in for it, and by the real one."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from backends import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import nothing_read, to_meta
from torch import Tensor

import idsel_kernels as idsel
from idsel_kernels import budgets
from idsel_kernels.integrations import vllm as integration
from idsel_kernels.rules import RULES

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "budgets"
NAMES = [rule.short_name for rule in RULES.values()]
GREEDY = [rule.short_name for rule in RULES.values() if rule.is_greedy]  # which every backend has
VARIABLES = ("IDSEL_VLLM_RULE", "IDSEL_VLLM_BUDGET", "IDSEL_VLLM_CHANNELS")
EVS, VIDCOM2 = "vllm.multimodal.video_prune.evs", "vllm.multimodal.video_prune.vidcom2"
RATES = st.sampled_from([0.0, 1e-9, 0.25, 0.3, 0.5, 0.7, 0.9, 0.999999]) | st.floats(0.0, 1.0, exclude_max=True)
SIZES = st.tuples(st.integers(1, 7), st.integers(1, 13), st.integers(1, 13), st.integers(1, 3))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def video_of(frames: int, n: int, width: int = 8, seed: int = 0) -> Tensor:
    """(T * n, D): slow change, a cut in the middle, and every third token as in the frame before."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(1, n, width, generator=generator) + 0.3 * torch.randn(frames, n, width, generator=generator)
    video[frames // 2 :] += torch.randn(n, width, generator=generator)
    video[1:, ::3] = video[:-1, ::3].clone()
    return video.reshape(frames * n, width)


# --- The contract -----------------------------------------------------------------------------------------------------


def vllm_count(tokens_per_frame: int, num_frames: int, q: float, method: str) -> int:
    """vLLM's two formulas."""
    if method == "evs":
        return max(tokens_per_frame, int(tokens_per_frame * num_frames * (1 - q)))
    return max(num_frames, min(int(tokens_per_frame * num_frames * (1.0 - q)), tokens_per_frame * num_frames))


@given(st.integers(0, 2000), st.integers(0, 300), RATES, st.sampled_from(["evs", "vidcom2"]))
@settings(max_examples=500, deadline=None)
def test_count_is_that_of_vllm(n: int, frames: int, q: float, method: Any) -> None:
    assert integration.retained_tokens_count(n, frames, q, method=method) == vllm_count(n, frames, q, method)


@given(
    SIZES,
    RATES,
    st.sampled_from(GREEDY),
    st.sampled_from(["evs", "vidcom2"]),
    st.sampled_from(["video", "evs", "even"]),
    st.sampled_from(["cpu", "torch"]),
)
@settings(max_examples=250, deadline=None)
def test_mask_is_flat_and_has_exactly_that_many(
    size: tuple[int, int, int, int], q: float, rule: str, method: Any, budget: Any, backend: str
) -> None:
    frames, height, width, merge = size
    n = (height // merge) * (width // merge)
    options = {"rule": rule, "method": method, "budget": budget, "backend": backend}
    mask = integration.retention_mask(video_of(frames, n), (frames, height, width), merge, q, **options)
    assert mask.dtype == torch.bool and mask.shape == (frames * n,)
    if n:
        assert int(mask.sum()) == vllm_count(n, frames, q, method)


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("frames", [1, 6])
def test_mask_of_any_dtype_size_and_memory(rule: str, frames: int) -> None:
    embeds = video_of(frames, 12)
    expected = integration.retention_mask(embeds, (frames, 6, 8), 2, 0.6, rule=rule)
    assert int(expected.sum()) == max(12, int(frames * 12 * 0.4))
    for size in ([frames, 6, 8], torch.tensor([frames, 6, 8]), torch.tensor([frames, 6, 8], dtype=torch.int32)):
        assert torch.equal(integration.retention_mask(embeds, size, 2, 0.6, rule=rule), expected)
    strided = torch.cat([embeds, embeds], 1)[:, :8]
    assert torch.equal(integration.retention_mask(strided, (frames, 6, 8), 2, 0.6, rule=rule), expected)
    with torch.inference_mode():
        assert torch.equal(integration.retention_mask(embeds * 1, (frames, 6, 8), 2, 0.6, rule=rule), expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = integration.retention_mask(embeds.to(dtype), (frames, 6, 8), 2, 0.6, rule=rule)
        assert int(half.sum()) == int(expected.sum())


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("budget", ["video", "evs", "even"])
def test_count_holds_whatever_the_values_are(rule: str, budget: Any) -> None:
    for value in (0.0, 1.0, float("nan"), float("inf"), -1e30):
        embeds = torch.full((24, 4), value)
        assert int(integration.retention_mask(embeds, (4, 2, 3), 1, 0.6, rule=rule, budget=budget).sum()) == 9
        embeds = video_of(4, 6, 4)
        embeds[5:20, 1] = value
        assert int(integration.retention_mask(embeds, (4, 2, 3), 1, 0.6, rule=rule, budget=budget).sum()) == 9


def test_nothing_to_prune() -> None:
    embeds = video_of(3, 4)
    assert integration.retention_mask(embeds, (3, 2, 2), 1, 0.0).all()
    assert integration.retention_mask(embeds[:4], (1, 2, 2), 1, 0.99).all()  # EVS keeps the first frame
    assert integration.retention_mask(embeds[:0], (3, 1, 2), 2, 0.5).shape == (0,)


@pytest.mark.parametrize("rule", GREEDY)
def test_mask_on_every_backend(rule: str, backend: Backend) -> None:
    embeds = video_of(3, 10, 16)
    expected = integration.retention_mask(embeds, (3, 2, 5), 1, 0.6, rule=rule, backend="torch")
    moved = integration.retention_mask(backend.put(embeds), (3, 2, 5), 1, 0.6, rule=rule, backend=backend.name)
    assert moved.device.type == backend.device.type
    assert torch.equal(moved.cpu(), expected)


@pytest.mark.parametrize("method", ["evs", "vidcom2"])
@pytest.mark.parametrize("budget", ["video", "evs", "even"])
def test_nothing_waits_for_a_gpu(budget: Any, method: Any) -> None:
    """vLLM may watch for that (its `gpu_sync_debug`)."""
    embeds = to_meta(video_of(4, 6))
    for rule in NAMES:
        with nothing_read():
            mask = integration.retention_mask(embeds, (4, 2, 3), 1, 0.6, rule=rule, method=method, budget=budget)
        assert mask.shape == (24,) and mask.dtype == torch.bool


IN_A_PROCESS = """
import sys, torch
from idsel_kernels.integrations import vllm
embeds = torch.randn(16 * 60, 96, generator=torch.Generator().manual_seed(5)).bfloat16()
for backend in ("cpu", "torch"):
    for rule in sys.argv[1:]:
        for budget in ("video", "evs"):
            mask = vllm.retention_mask(embeds, (16, 12, 20), 2, 0.8, rule=rule, budget=budget, backend=backend)
            print(backend, rule, budget, "".join(map(str, mask.int().tolist())))
"""


def test_two_processes_choose_alike() -> None:
    command = [sys.executable, "-c", IN_A_PROCESS, *GREEDY]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout.count("\n") == 2 * 2 * len(GREEDY)
    assert runs[0].stdout == runs[1].stdout


# --- What is chosen ---------------------------------------------------------------------------------------------------


def test_it_is_select_on_the_whole_video() -> None:
    embeds = video_of(5, 12)
    scores = integration.novelty(embeds.view(5, 12, 8)).flatten()
    for rule in (idsel.MMR(0.3), idsel.IDSelection(gamma=5.0), idsel.DPP(), idsel.Coverage()):
        expected = idsel.select(embeds, 24, rule, scores).keep_mask(60)[0]
        assert torch.equal(integration.retention_mask(embeds, (5, 3, 4), 1, 0.6, rule=rule), expected)


def test_budgets_are_those_of_the_frames() -> None:
    embeds, count = video_of(5, 12), integration.retained_tokens_count(12, 5, 0.55)
    for rule in NAMES:
        even = integration.retention_mask(embeds, (5, 3, 4), 1, 0.55, rule=rule, budget="even")
        assert even.view(5, 12).sum(1).tolist() == budgets.per_frame(count, 5)
        like_evs = integration.retention_mask(embeds, (5, 3, 4), 1, 0.55, rule=rule, budget="evs")
        assert like_evs.view(5, 12).sum(1).tolist() == budgets.evs(embeds.view(5, 12, 8), 1 - 0.55).tolist()


def test_importance_of_the_caller() -> None:
    embeds = video_of(4, 6)
    seen = []

    def last_first(video: Tensor) -> Tensor:
        seen.append(video.shape)
        return torch.arange(24.0).view(4, 6)

    mask = integration.retention_mask(embeds, (4, 2, 3), 1, 0.5, rule="topk", importance=last_first)
    assert mask.nonzero().flatten().tolist() == list(range(12, 24))
    assert seen == [(4, 6, 8)]
    with pytest.raises(ValueError, match=r"importance must make \(T, n\) = \(4, 6\) scores, got shape \(24,\)"):
        integration.retention_mask(embeds, (4, 2, 3), 1, 0.5, importance=lambda video: torch.rand(24))


def test_deepstack_channels_count_unless_told_otherwise() -> None:
    main, deep = video_of(4, 6, seed=1), 10 * video_of(4, 6, width=24, seed=2)  # three layers of deepstack
    embeds, size = torch.cat([main, deep], 1), (4, 2, 3)
    for rule in ("mmr", "topk", "maxmin"):
        of_main = integration.retention_mask(main, size, 1, 0.6, rule=rule)
        assert torch.equal(integration.retention_mask(embeds, size, 1, 0.6, rule=rule, channels=8), of_main)
        assert not torch.equal(integration.retention_mask(embeds, size, 1, 0.6, rule=rule), of_main)


def test_scores_are_the_formula() -> None:
    video = video_of(4, 5, seed=3).view(4, 5, 8)
    scores = integration.evs_scores(video)
    assert scores.dtype == torch.float32 and bool((scores[0] == 255).all())
    for t in range(1, 4):
        for i in range(5):
            a, b = video[t, i].double(), video[t - 1, i].double()
            assert float(scores[t, i]) == pytest.approx(1 - float(a @ b / a.norm() / b.norm()), abs=1e-6)
    assert torch.equal(integration.novelty(video)[1:], scores[1:].clamp(min=0))
    assert bool((integration.novelty(video)[0] == 1).all())


RECORDED = [case for case in json.loads((GOLDEN / "index.json").read_text())["cases"] if case["source"] == "vllm-evs"]


@pytest.mark.parametrize("backend_name", ["cpu", "torch"])
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_topk_is_evs_in_recorded_runs_of_vllm(case: dict[str, Any], backend_name: str) -> None:
    data, params = np.load(GOLDEN / case["file"]), case["params"]
    embeds = torch.from_numpy(data["features"].astype(np.float32))
    theirs = torch.from_numpy(data[f"{case['run']}_mask"])
    scores = integration.evs_scores(embeds.view(params["frames"], -1, embeds.shape[1])).flatten()
    torch.testing.assert_close(scores, torch.from_numpy(data[f"{case['run']}_scores"]), rtol=0, atol=2e-6)
    arguments = embeds, params["grid_thw"], params["spatial_merge_size"], params["q"]
    ours = integration.retention_mask(*arguments, rule="topk", backend=backend_name)
    assert int(ours.sum()) == case["target"] == int(theirs.sum())
    # The recipe of the page, without this module: the same tokens.
    recipe = idsel.topk_select(embeds, case["target"], scores, backend=backend_name).keep_mask(len(embeds))[0]
    assert torch.equal(recipe, ours)
    if case["clear"]:
        assert torch.equal(ours, theirs)
    else:  # still pictures: where they differ, rounding decides between tokens that did not change
        assert float(scores[ours != theirs].abs().max() if bool((ours != theirs).any()) else 0.0) <= 1e-6


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"video_embeds": [[1.0]]}, TypeError, "video_embeds must be a torch.Tensor, got list"),
        ({"video_embeds": torch.ones(12, 4).double()}, TypeError, "video_embeds must be float16, bfloat16 or float32"),
        ({"video_embeds": torch.ones(11, 4)}, ValueError, r"T \* n = 3 \* 4 = 12 .* got shape \(11, 4\)"),
        ({"video_embeds": torch.ones(3, 4, 4)}, ValueError, r"got shape \(3, 4, 4\)"),
        ({"video_size_thw": (3, 4)}, ValueError, r"video_size_thw must be \(T, H, W\), got 2 numbers"),
        ({"spatial_merge_size": 0}, ValueError, "spatial_merge_size must be >= 1, got 0"),
        ({"q": 1.0}, ValueError, r"q must be in \[0, 1\), got 1.0"),
        ({"q": -0.1}, ValueError, r"q must be in \[0, 1\), got -0.1"),
        ({"q": None}, TypeError, "q must be a number, got NoneType"),
        ({"rule": "none"}, ValueError, "none"),
        ({"method": "fastv"}, ValueError, "method must be one of 'evs', 'vidcom2', got 'fastv'"),
        ({"budget": "frame"}, ValueError, "budget must be one of 'video', 'evs', 'even', got 'frame'"),
        ({"channels": 5}, ValueError, r"channels must be in \[1, D = 4\], got 5"),
        ({"channels": 2.0}, TypeError, "channels must be an int or None, got float"),
        ({"backend": "tpu"}, ValueError, "backend must be one of"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"video_embeds": torch.ones(12, 4), "video_size_thw": (3, 4, 4), "spatial_merge_size": 2, "q": 0.5}
    with pytest.raises(error, match=text):
        integration.retention_mask(**{**arguments, **change})


# --- The plugin, on a stand-in ----------------------------------------------------------------------------------------


def _functions(method: str) -> dict[str, Callable[..., Any]]:
    """A method's two functions, with vLLM's names and signatures; the mask keeps the first tokens there are."""

    def compute_retained_tokens_count(tokens_per_frame: int, num_frames: int, q: float) -> int:
        return vllm_count(tokens_per_frame, num_frames, q, method)

    def compute_retention_mask(video_embeds: Any, video_size_thw: Any, spatial_merge_size: int, q: float) -> Tensor:
        frames, height, width = map(int, video_size_thw)
        n = (height // spatial_merge_size) * (width // spatial_merge_size)
        return torch.arange(frames * n) < vllm_count(n, frames, q, method)

    found = (compute_retained_tokens_count, compute_retention_mask)
    return {function.__name__: function for function in found}


class StandIn:
    """The part of vLLM that has to do with pruning, as modules in `sys.modules`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, methods: dict[str, str]) -> None:
        self.monkeypatch = monkeypatch
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            monkeypatch.delitem(sys.modules, name)
        self.package("vllm")
        for place, method in methods.items():
            for parent in _parents(place):
                self.package(parent)
            vars(self.module(place)).update(_functions(method))

    def package(self, name: str) -> None:
        self.module(name).__path__ = []

    def module(self, name: str) -> ModuleType:
        if name not in sys.modules:
            module = ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            self.monkeypatch.setitem(sys.modules, name, module)
        return sys.modules[name]

    def model(self) -> ModuleType:
        """The module of a model, which has imported the functions by name, as vLLM's have."""
        model = self.module("vllm.model_executor.models.qwen3_vl")
        exec(
            f"from {EVS} import compute_retained_tokens_count, compute_retention_mask\n"
            f"from {VIDCOM2} import compute_retained_tokens_count as vidcom2_compute_retained_tokens_count\n"
            f"from {VIDCOM2} import compute_retention_mask as vidcom2_compute_retention_mask\n",
            vars(model),
        )
        return model


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch, {EVS: "evs", VIDCOM2: "vidcom2"})


def keeps_the_contract(module: Any, method: Any, chosen_by: Callable[..., Tensor] | None) -> None:
    """The test of any module with vLLM's two functions: that they agree, and that the mask is that of `chosen_by`."""
    for seed, (frames, height, width, merge, q) in enumerate(
        [
            (1, 2, 2, 1, 0.5),
            (4, 6, 8, 2, 0.75),
            (3, 5, 7, 2, 0.0),
            (9, 4, 4, 1, 0.9),
            (2, 6, 6, 3, 0.999),
            (6, 3, 3, 1, 0.3),
        ]
    ):
        n = (height // merge) * (width // merge)
        embeds = video_of(frames, n, seed=seed)
        mask = module.compute_retention_mask(
            embeds, video_size_thw=[frames, height, width], spatial_merge_size=merge, q=q
        )
        count = module.compute_retained_tokens_count(tokens_per_frame=n, num_frames=frames, q=q)
        assert mask.dtype == torch.bool and mask.shape == (frames * n,)
        assert int(mask.sum()) == count == integration.retained_tokens_count(n, frames, q, method=method)
        if chosen_by is not None:
            assert torch.equal(mask, chosen_by(embeds, (frames, height, width), merge, q, method=method))


def by_mmr(*arguments: Any, **options: Any) -> Tensor:
    return integration.retention_mask(*arguments, rule="mmr", **options)


def test_the_stand_in_keeps_the_contract(stand_in: StandIn) -> None:
    keeps_the_contract(sys.modules[EVS], "evs", None)
    keeps_the_contract(sys.modules[VIDCOM2], "vidcom2", None)


def test_without_the_variable_nothing_happens(stand_in: StandIn) -> None:
    before = dict(vars(sys.modules[EVS]))
    integration.register()
    assert vars(sys.modules[EVS]) == before


def test_without_the_variable_vllm_is_not_even_looked_for() -> None:
    code = "import sys; sys.modules['vllm'] = None; from idsel_kernels.integrations.vllm import register; register()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("imported_before", [True, False])
def test_plugin_replaces_the_masks_of_both_methods(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, imported_before: bool
) -> None:
    model = stand_in.model() if imported_before else None
    monkeypatch.setenv("IDSEL_VLLM_RULE", "mmr")
    with caplog.at_level(logging.WARNING, logger="vllm"):
        integration.register()
    assert "video tokens by MMR(lam=0.5, parallel_k=1), for the methods evs and vidcom2" in caplog.text
    model = model or stand_in.model()
    renamed = ModuleType("renamed")
    renamed.compute_retention_mask = model.vidcom2_compute_retention_mask  # type: ignore[attr-defined]
    renamed.compute_retained_tokens_count = model.vidcom2_compute_retained_tokens_count  # type: ignore[attr-defined]
    for module, method in ((model, "evs"), (sys.modules[EVS], "evs"), (renamed, "vidcom2")):
        keeps_the_contract(module, method, by_mmr)
    signature = inspect.signature(model.compute_retention_mask)
    assert list(signature.parameters) == ["video_embeds", "video_size_thw", "spatial_merge_size", "q"]


def test_plugin_may_be_loaded_again_and_taken_out(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stand_in.model()
    theirs = model.compute_retention_mask, model.vidcom2_compute_retention_mask
    monkeypatch.setenv("IDSEL_VLLM_RULE", "id")
    integration.register()
    monkeypatch.setenv("IDSEL_VLLM_RULE", "MMR")
    integration.register()
    keeps_the_contract(model, "evs", by_mmr)
    integration.uninstall()
    assert (model.compute_retention_mask, model.vidcom2_compute_retention_mask) == theirs
    integration.uninstall()
    assert sys.modules[EVS].compute_retention_mask is theirs[0]  # type: ignore[attr-defined]


def test_the_page_names_values_that_exist(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "vllm.md").read_text()
    (rules,) = re.findall(r"^\| `IDSEL_VLLM_RULE` \| a rule's name: (.+?) \|", page, re.MULTILINE)
    assert re.findall(r"`(\w+)`", rules) == NAMES
    commands = re.findall(r"^IDSEL_VLLM_RULE=(\w+) vllm serve .* --video-pruning-rate ([\d.]+)$", page, re.MULTILINE)
    assert commands
    for rule, rate in commands:
        monkeypatch.setenv("IDSEL_VLLM_RULE", rule)
        integration.register()
        assert int(stand_in.model().compute_retention_mask(video_of(4, 6), (4, 2, 3), 1, float(rate)).sum()) == 6


def test_variables_reach_the_mask(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDSEL_VLLM_RULE", "maxmin")
    monkeypatch.setenv("IDSEL_VLLM_BUDGET", "even")
    monkeypatch.setenv("IDSEL_VLLM_CHANNELS", "8")
    integration.register()
    embeds = torch.cat([video_of(4, 6), 10 * video_of(4, 6, width=24, seed=2)], 1)
    mask = stand_in.model().compute_retention_mask(embeds, (4, 2, 3), 1, 0.6)
    expected = integration.retention_mask(embeds[:, :8], (4, 2, 3), 1, 0.6, rule="maxmin", budget="even")
    assert torch.equal(mask, expected)


def test_install_takes_what_the_environment_cannot_say(stand_in: StandIn) -> None:
    options: dict[str, Any] = {"importance": lambda video: -budgets.vidcom2_scores(video)[1], "backend": "torch"}
    integration.install(idsel.MMR(0.9), **options)
    embeds = video_of(4, 6)
    mask = stand_in.model().compute_retention_mask(embeds, (4, 2, 3), 1, 0.6)
    assert torch.equal(mask, integration.retention_mask(embeds, (4, 2, 3), 1, 0.6, rule=idsel.MMR(0.9), **options))


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("IDSEL_VLLM_RULE", "evs", "IDSEL_VLLM_RULE: .*'evs'"),
        ("IDSEL_VLLM_BUDGET", "frame", "IDSEL_VLLM_BUDGET must be one of 'video', 'evs', 'even', got 'frame'"),
        ("IDSEL_VLLM_CHANNELS", "-4", "IDSEL_VLLM_CHANNELS must be a number >= 1, got '-4'"),
    ],
)
def test_wrong_variables_are_errors(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, text: str
) -> None:
    monkeypatch.setenv("IDSEL_VLLM_RULE", "id")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=text):
        integration.register()


def test_wrong_options_are_errors(stand_in: StandIn) -> None:
    with pytest.raises(TypeError, match="install takes importance, budget, channels and backend, got rate"):
        integration.install("id", rate=3)
    with pytest.raises(ValueError, match="budget must be one of"):
        integration.install("id", budget="frame")


def test_the_older_layout_has_evs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch, {"vllm.multimodal.evs": "evs"})
    integration.install("mmr")
    keeps_the_contract(sys.modules["vllm.multimodal.evs"], "evs", by_mmr)


def _is_gone(stand_in: StandIn) -> None:
    stand_in.monkeypatch.delitem(sys.modules, EVS)


def _has_no_mask(stand_in: StandIn) -> None:
    del sys.modules[EVS].compute_retention_mask  # type: ignore[attr-defined]


def _takes_more(stand_in: StandIn) -> None:
    sys.modules[VIDCOM2].compute_retention_mask = lambda video_embeds, video_size_thw, q: None  # type: ignore[attr-defined]


def _counts_otherwise(stand_in: StandIn) -> None:
    count = _functions("vidcom2")["compute_retained_tokens_count"]
    sys.modules[EVS].compute_retained_tokens_count = count  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_is_gone, f"there is none of {EVS}, vllm.multimodal.evs"),
        (_has_no_mask, f"{EVS} has no compute_retention_mask"),
        (
            _takes_more,
            rf"{VIDCOM2}.compute_retention_mask takes \(video_embeds, video_size_thw, q\), not \(video_embeds",
        ),
        (_counts_otherwise, rf"{EVS}.compute_retained_tokens_count\(1, 2, 0.1\) is 2, not 1"),
    ],
)
def test_another_vllm_is_an_error_that_names_the_versions(
    stand_in: StandIn, change: Callable[[StandIn], None], text: str
) -> None:
    theirs = sys.modules[EVS].compute_retention_mask  # type: ignore[attr-defined]
    change(stand_in)
    with pytest.raises(RuntimeError, match=text) as raised:
        integration.install("id")
    assert "0.33.0" in str(raised.value)
    assert EVS not in sys.modules or vars(sys.modules[EVS]).get("compute_retention_mask", theirs) is theirs


def test_an_import_error_of_vllm_itself_is_shown(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'cbor2'", name="cbor2")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="cbor2"):
        integration.install("id")


def test_entry_point_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["idsel"].partition(":")
    assert getattr(importlib.import_module(module), function) is integration.register


# --- The real one -----------------------------------------------------------------------------------------------------


def _sources_of_vllm() -> dict[str, Path]:
    """Files of the pruning of an installed vLLM, by method; found without importing it, which needs more than torch."""
    try:
        spec = importlib.util.find_spec("vllm")
    except ValueError:
        spec = None
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
    names = {"evs": ("video_prune/evs.py", "evs.py"), "vidcom2": ("video_prune/vidcom2.py",)}
    paths = {
        method: next((p for f in folders for x in files if (p := f / "multimodal" / x).exists()), None)
        for method, files in names.items()
    }
    return {method: path for method, path in paths.items() if path is not None}


@pytest.mark.parametrize("method", ["evs", "vidcom2"])
def test_vllm_itself_keeps_the_contract(method: Any) -> None:
    path = _sources_of_vllm().get(method)
    if path is None:
        pytest.skip(f"vLLM is not installed, or has no {method}")
    spec = importlib.util.spec_from_file_location(f"of_vllm_{method}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    as_evs = (lambda *a, **b: integration.retention_mask(*a, rule="topk", **b)) if method == "evs" else None
    keeps_the_contract(module, method, as_evs)
    integration._check_module(method, module)


def test_plugin_gets_into_vllm_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm.multimodal", reason="vLLM is not installed", exc_type=ImportError)
    model = pytest.importorskip("vllm.model_executor.models.qwen2_5_vl", exc_type=ImportError)
    monkeypatch.setenv("IDSEL_VLLM_RULE", "mmr")
    integration.register()
    try:
        keeps_the_contract(model, "evs", by_mmr)
    finally:
        integration.uninstall()
    assert (
        model.compute_retention_mask
        is importlib.import_module(model.compute_retention_mask.__module__).compute_retention_mask
    )

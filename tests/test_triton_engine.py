"""What the triton engine says about itself, its table of configurations, and its host side; no GPU needed."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import idsel_kernels as idsel
from idsel_kernels import dispatch
from idsel_kernels.engines import probe
from idsel_kernels.engines import triton as engine
from idsel_kernels.engines.base import in_int32
from idsel_kernels.problem import Problem
from idsel_kernels.rules import RULES

ROOT = Path(__file__).parents[1]
GREEDY = {name: rule for name, rule in RULES.items() if rule.is_greedy}
HAS_TRITON = importlib.util.find_spec("triton") is not None

needs_triton = pytest.mark.skipif(
    not HAS_TRITON, reason="triton is not installed (pip install 'idsel_kernels[triton]')"
)


def _problem(rule: idsel.Rule, device: str = "cuda:0", tokens: int = 576, **more: object) -> Problem:
    fields: dict[str, object] = {
        "rule": rule, "k": (64,), "batch": 1, "tokens": tokens, "dim": 1024, "dtype": torch.bfloat16,
        "device": torch.device(device), "has_importance": True,
    }  # fmt: skip
    return Problem(**{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that there are a GPU and a working Triton, and nothing is interpreted."""
    monkeypatch.setattr(engine, "_installation", lambda: None)
    monkeypatch.setattr(engine, "_numpy_too_new", lambda: None)
    monkeypatch.setattr(engine, "_has_gpu", lambda: True)
    monkeypatch.setattr(engine, "_interpreted", lambda: False)
    launch = ModuleType("launch")
    launch.RULE_IDS = {rule.rule_id for rule in GREEDY.values()}  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_too_new", lambda index: None)
    monkeypatch.setattr(engine, "_load", lambda: launch)
    monkeypatch.setattr(probe, "failure", lambda engine, device=None: None)


# --- Who is chosen, and why not ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("rule", GREEDY.values(), ids=GREEDY)
def test_explain_names_triton_on_a_cuda_tensor_without_the_cuda_extension(
    rule: type[idsel.Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dispatch._MODULES, "cuda", "idsel_kernels.engines.absent")
    dispatch._load.cache_clear()
    try:
        explanation = dispatch.explain_problem(_problem(rule()))
    finally:
        dispatch._load.cache_clear()
    assert (explanation.backend, explanation.chosen_by) == ("triton", "automatic")
    assert explanation.reasons["cuda"] == ("this build of idsel_kernels has no cuda engine",)
    assert explanation.algorithm.startswith("one launch: ")


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("rule", [idsel.Elimination(), idsel.DART()], ids=["elimination", "dart"])
def test_rules_that_decide_at_once_are_refused(rule: idsel.Rule) -> None:
    explanation = dispatch.explain_problem(_problem(rule))
    assert explanation.backend == "torch"
    assert explanation.reasons["triton"] == (f"its kernel has no branch for {type(rule).__name__}",)


@pytest.mark.usefixtures("with_gpu")
def test_cpu_tensors_never_go_to_triton_when_a_gpu_is_there() -> None:
    explanation = dispatch.explain_problem(_problem(idsel.MMR(), "cpu"))
    assert explanation.backend in ("cpu", "torch")
    (reason,) = explanation.reasons["triton"]
    assert reason == "it runs on CUDA and HIP tensors (on CPU tensors with TRITON_INTERPRET=1, for tests)"


@pytest.mark.usefixtures("with_gpu")
def test_interpreted_cpu_tensors_go_to_triton_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_interpreted", lambda: True)
    problem = _problem(idsel.MMR(), "cpu")
    automatic, named = dispatch.explain_problem(problem), dispatch.explain_problem(problem, "triton")
    assert automatic.backend in ("cpu", "torch")
    assert automatic.reasons["triton"] == ("TRITON_INTERPRET=1 is for tests: it runs only when asked for by name",)
    assert (named.backend, named.reasons["triton"]) == ("triton", ())
    assert dispatch.choose(problem).name in ("cpu", "torch")
    assert dispatch.choose(problem, "triton").name == "triton"


@pytest.mark.usefixtures("with_gpu")
def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusals(problem: Problem) -> list[str]:
        return engine.ENGINE.unsupported_reasons(problem)

    assert refusals(_problem(idsel.MMR(), "mps")) == ["it runs on CUDA and HIP tensors, got a tensor on mps"]
    monkeypatch.setattr(engine, "_too_new", lambda index: "too new")
    assert refusals(_problem(idsel.MMR())) == ["too new"]
    monkeypatch.setattr(engine, "_too_new", lambda index: None)
    assert refusals(_problem(idsel.MMR(), tokens=2**21 + 1)) == ["it takes at most 2**21 tokens, got 2097153"]

    class Novel(idsel.TopK):
        rule_id = 99

    assert refusals(_problem(Novel())) == ["its kernel has no branch for Novel"]
    assert refusals(_problem(idsel.Coverage(), tokens=16384)) == []
    assert refusals(_problem(idsel.Coverage(), tokens=20000)) == [
        "Coverage reads the N x N similarities after every pick: 1526 MiB, more than the budget of 1024 MiB"
    ]
    (reason,) = refusals(_problem(idsel.Coverage(), tokens=20000, ragged=True))
    assert reason.startswith("Coverage reads the T x T similarities of a ragged batch after every pick: ")
    assert refusals(_problem(idsel.DPP(), tokens=20000)) == []


@pytest.mark.usefixtures("with_gpu")
def test_algorithm_says_what_is_kept() -> None:
    def algorithm(rule: idsel.Rule, **more: object) -> str:
        return engine.ENGINE.algorithm(_problem(rule, **more))  # type: ignore[arg-type]

    assert algorithm(idsel.MMR()) == (
        "one launch: the Gram by tiles, then 64 greedy steps by the last program of a sample"
    )
    assert algorithm(idsel.MMR(), tokens=20000).endswith("then 64 greedy steps on panels of the Gram")
    assert "where a sample's Gram is too large" in algorithm(idsel.MMR(), tokens=20000, ragged=True)
    assert algorithm(idsel.TopK()) == "one launch: norms by tiles, then 64 greedy steps"


def test_reasons_for_not_being_available(monkeypatch: pytest.MonkeyPatch) -> None:
    status = engine.ENGINE.unavailable_reasons
    monkeypatch.setattr(engine, "_interpreted", lambda: False)
    monkeypatch.setattr(engine, "_has_gpu", lambda: False)
    monkeypatch.setattr(engine, "_installation", lambda: None)
    assert status() == ["no CUDA or HIP device (with TRITON_INTERPRET=1 it runs on the CPU, for tests)"]
    monkeypatch.setattr(engine, "_has_gpu", lambda: True)
    monkeypatch.setattr(engine, "_load", lambda: "triton does not load: OSError: damaged")
    assert status() == ["triton does not load: OSError: damaged"]
    with pytest.raises(ImportError, match="damaged"):
        engine._library()
    monkeypatch.undo()
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert engine._installation.__wrapped__() == (
        "triton is not installed (pip install 'idsel_kernels[triton]'; it exists for Linux)"
    )
    monkeypatch.undo()
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: object())
    for version, reason in (("3.1.0", "triton must be at least 3.2, got 3.1"), ("3.2.0", None), ("4.0", None)):
        monkeypatch.setattr(engine.importlib.metadata, "version", lambda name, v=version: v)
        assert engine._installation.__wrapped__() == reason


def test_a_gpu_that_triton_does_not_know_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, arch, reason in (
        ("3.2.0", 120, "compute capability 12.0 needs triton 3.3 or later, got 3.2"),
        ("3.2.0", 90, None),
        ("3.3.0", 120, None),
        ("git", 120, None),
    ):
        monkeypatch.setattr(engine.importlib.metadata, "version", lambda name, v=version: v)
        monkeypatch.setattr(engine, "_arch", lambda index, a=arch: a)
        assert engine._too_new.__wrapped__(0) == reason


def test_a_launcher_that_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idsel_kernels.triton_impl.launch", None)
    assert str(engine._load.__wrapped__()).startswith("triton does not load: ModuleNotFoundError: ")


def test_importing_the_package_and_asking_what_is_available_imports_no_triton() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import idsel_kernels as idsel;"
        "from idsel_kernels.engines import triton; idsel.available_backends();"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "sys.exit('triton' in new and not torch.cuda.is_available())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# --- Tables -----------------------------------------------------------------------------------------------------------


@needs_triton
def test_parameters_arrive_in_the_order_of_encode() -> None:
    from idsel_kernels.triton_impl import kernels, launch, rules

    for name, rule in GREEDY.items():
        plan = launch.make_plan(_problem(rule()), 90, 2**30)
        params = rule().encode()[1]
        arrived = struct.unpack(f"<{rules.PARAMS}d", struct.pack(f"<{rules.PARAMS}q", *plan.scalars[-rules.PARAMS :]))
        assert list(arrived) == params + [0.0] * (rules.PARAMS - len(params)), name
    # An annotation that a version of Triton does not know would be dropped in silence.
    of_params = [p.annotation_type for p in kernels.select_kernel.params if p.name in ("p0", "p1", "p2", "p3")]
    assert of_params == ["i64"] * rules.PARAMS


@needs_triton
def test_the_table_has_a_tile_for_every_architecture_dtype_and_dim() -> None:
    from idsel_kernels.triton_impl import config

    for arch in (0, 70, 75, 80, 86, 89, 90, 100, 120):
        for itemsize in (2, 4):
            for dim in (1, 64, 192, 193, 1024, 16384):
                tile = config.tile_for(arch, itemsize, dim)
                assert tile.block_m >= 16 and tile.block_k >= 16
    with pytest.raises(ValueError, match="no tile for arch 90, 8 bytes per element, D = 4"):
        config.tile_for(90, 8, 4)


@needs_triton
def test_the_tile_does_not_depend_on_the_number_of_tokens() -> None:
    from idsel_kernels.triton_impl import config

    tiles = {config.choose(90, 2, tokens, 1024).tile for tokens in (1, 65, 576, 5000, 2**20)}
    assert len(tiles) == 1
    warps = {config.choose(90, 2, n, 64, norms=True).num_warps for n in (1, 576, 4096, 16384)}
    assert len(warps) == 1, "Coverage's sums would have another order"


@needs_triton
def test_memory_grows_as_the_page_says() -> None:
    from idsel_kernels.triton_impl import launch, workspace

    def plan(tokens: int, rule: idsel.Rule, batch: int = 1, k: int = 64, ragged: bool = False) -> launch.Plan:
        return launch.make_plan(_problem(rule, tokens=tokens, batch=batch, k=(k,), ragged=ragged), 90, 2**30)

    arrays = workspace.ARRAYS
    assert plan(576, idsel.MMR()).workspace == 576 * 576 + arrays * 576
    assert plan(577, idsel.MMR()).workspace == pytest.approx(577 * 592 + arrays * 592, abs=16)
    assert plan(576, idsel.DPP()).workspace == 576 * 576 + (arrays + 64) * 576
    assert plan(576, idsel.TopK()).workspace == arrays * 576
    assert plan(16384, idsel.MMR()).workspace == 16384 * 16384 + arrays * 16384
    # Beyond the budget: a panel of 64 rows.
    assert plan(32768, idsel.MMR()).workspace == (64 + arrays) * 32768
    assert plan(32768, idsel.MaxMin()).workspace == (64 + arrays + 512) * 32768
    # Ragged: T x T, or as many columns as the budget has, and rows of samples that begin at multiples of 16.
    assert plan(4000, idsel.MMR(), batch=10, ragged=True).workspace == 4000 * 4000 + arrays * (4000 + 16 * 10)
    wide = plan(100_000, idsel.MMR(), batch=100, ragged=True)
    assert 4 * wide.workspace <= 2**30 + 4 * arrays * (100_000 + 16 * 100)
    # A batch beyond the budget: several launches.
    assert plan(576, idsel.MMR(), batch=128).samples == 128
    chunked = plan(2880, idsel.MMR(), batch=128)
    assert 4 * chunked.workspace <= 2**30 and chunked.samples < 128
    assert sum(samples for _, samples in chunked.first_samples()) == 128
    assert chunked.samples * chunked.programs < 2**31


@needs_triton
@pytest.mark.parametrize("tokens", [1, 16, 17, 50, 63, 64])
def test_engine_and_plan_agree_on_what_fits(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.triton_impl import launch, workspace

    for budget in (engine._gram_bytes(tokens) - 4, engine._gram_bytes(tokens)):
        monkeypatch.setattr(engine.ENGINE, "gram_budget_bytes", budget)
        plan = launch.make_plan(_problem(idsel.MMR(), tokens=tokens), 90, budget)
        assert engine.ENGINE._gram_fits(tokens) == (plan.dots == workspace.WHOLE.value) == (budget % 64 == 0)
    with pytest.raises(ValueError, match="Coverage needs the whole Gram"):
        launch.make_plan(_problem(idsel.Coverage(), tokens=tokens), 90, engine._gram_bytes(tokens) - 4)


# --- The host side of a launch ----------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.kernels
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter has no compiled kernel to keep")
def test_the_second_call_hands_its_arguments_to_the_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.triton_impl import kernels, launch

    compiled: list[dict[str, object]] = []
    launched: list[tuple[tuple[object, ...], int]] = []

    class Compiled:
        function, packed_metadata = "function", "metadata"

        def __init__(self, run: Callable[..., None]) -> None:
            self.run = run

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments: launched.append((("watched", *grid), len(arguments)))

    def run(*arguments: object) -> None:
        pointers = arguments[9:20]
        assert all(type(pointer) is int for pointer in pointers), "for a tensor the launcher asks the driver"
        launched.append((arguments[:6], len(arguments) - 9))

    class Jit:
        def warmup(self, *arguments: object, grid: tuple[int, ...], **options: object) -> Compiled:
            assert {"num_warps", "num_stages"} <= set(options)
            compiled.append(options)
            return Compiled(run)

    names = kernels.select_kernel.arg_names
    monkeypatch.setattr(kernels, "select_kernel", Jit())
    launch.make_plan.cache_clear()

    def call(features: torch.Tensor) -> None:
        plan = launch.make_plan(_problem(idsel.MMR(), batch=2, tokens=100, dim=32, k=(5,)), 90, 2**30)
        importance, empty = torch.rand(2, 100), torch.empty(0)
        tensors = launch.pointers(features, importance, None, None, None, None, None, empty, empty, empty, empty)
        launch.Launches(plan, features, importance, None)(77, tensors)

    features = torch.randn(2, 100, 32)
    call(features)
    call(features)
    assert len(compiled) == 1
    call(torch.randn(2, 100, 64)[:, :, ::2])  # another stride: compiled anew
    assert len(compiled) == 2
    assert [where for where, _ in launched] == [(2 * 3, 1, 1, 77, "function", "metadata")] * 3
    monkeypatch.setattr(launch, "_is_watched", lambda: True)  # by a profiler: Triton's own way, which tells it
    call(features)
    launch.make_plan.cache_clear()
    assert launched[-1][0] == ("watched", 2 * 3, 1, 1)
    plan = launch.make_plan(_problem(idsel.MMR()), 90, 2**30)
    expected = len(names) - (0 if launch._TAKES_CONSTEXPRS else len(plan.constexprs))
    assert {count for _, count in launched} == {expected}
    assert tuple(plan.constexprs) == tuple(names[-len(plan.constexprs) :]), "they are handed over in this order"


def test_counts_beyond_32_bits_are_all_or_none() -> None:
    """Nobody reads them on the host where they lie on a GPU."""
    counts = torch.tensor([2**40 + 1, -(2**33) + 3, 2**31, 4])
    assert in_int32(counts, 0, 6).tolist() == [6, 0, 6, 4]
    narrow = counts[3:].to(torch.int32)
    assert in_int32(narrow, 0, 6) is narrow


@needs_triton
def test_launches_are_watched_where_a_profiler_has_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from idsel_kernels.triton_impl import launch

    runtime = triton.knobs.runtime if hasattr(triton, "knobs") else launch.CompiledKernel
    assert not launch._is_watched()
    monkeypatch.setattr(runtime, "launch_exit_hook", lambda metadata: None)
    assert launch._is_watched()


@needs_triton
@pytest.mark.parametrize("dim", [64, 1024, 2048, 3584, 4096, 16384])
def test_the_parts_of_d_are_a_function_of_the_sample(dim: int) -> None:
    """So is the order of additions; who adds is a function of the batch."""
    from idsel_kernels.triton_impl import config, launch

    def plan(batch: int, tokens: int = 576, **more: object) -> launch.Plan:
        return launch.make_plan(_problem(idsel.MMR(), tokens=tokens, batch=batch, dim=dim, **more), 90, 2**30)

    parts = config.parts_of(45, dim)
    assert parts == max(1, min(8, dim // 1024))
    for batch in (1, 2, 3, 4, 128):
        assert plan(batch).constexprs["PARTS"] == parts
        assert plan(batch).constexprs["SPLIT"] == (parts > 1 and batch <= 3)
        assert plan(batch).programs == 45 * (parts if plan(batch).constexprs["SPLIT"] else 1)
        assert plan(batch).counters == plan(batch).samples * (46 if plan(batch).constexprs["SPLIT"] else 1)
    assert plan(1, tokens=1024).constexprs["PARTS"] == parts
    assert plan(1, tokens=1025).constexprs["PARTS"] == 1
    # The kernel itself takes one part for a longer sample of a ragged batch.
    assert plan(8, tokens=9000, ragged=True).constexprs["PARTS"] == parts
    assert not plan(8, tokens=9000, ragged=True).constexprs["SPLIT"]


@needs_triton
@pytest.mark.usefixtures("with_gpu")
def test_a_call_hands_over_the_callers_tensors_and_keeps_its_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.triton_impl import launch

    launched: list[tuple[launch.Plan, tuple[torch.Tensor, ...]]] = []
    monkeypatch.setattr(engine, "_load", lambda: sys.modules[launch.__name__])
    monkeypatch.setattr(engine, "_interpreted", lambda: True)
    monkeypatch.setattr(launch.Launches, "__call__", lambda self, _, tensors: launched.append((self._plan, tensors)))
    features, importance = torch.randn(3, 10, 8, requires_grad=True), torch.rand(3, 10)
    mask = importance > 0.5
    sel = idsel.select(features, [2, 3, 4], idsel.MMR(), importance, mask=mask, backend="triton")
    assert sel.indices.shape == sel.scores.shape == (3, 4)
    assert (sel.indices.dtype, sel.scores.dtype) == (torch.int64, torch.float32)
    plan, tensors = launched[0]
    assert tensors[0] is features and tensors[1] is importance and tensors[2] is mask
    names = ("offsets", "counts", "grids", "given", "workspace", "counters", "indices", "scores")
    rest = dict(zip(names, tensors[3:], strict=True))
    assert rest["offsets"] is rest["grids"] is rest["given"] is rest["counters"], (
        "what is not read still has an address"
    )
    assert rest["counts"].tolist() == [2, 3, 4]
    assert rest["workspace"].numel() == plan.workspace and not rest["counters"].any()
    offsets = torch.tensor([0, 4, 10], dtype=torch.int32)
    idsel.select(features[0], 2, idsel.MMR(), importance[0], cu_seqlens=offsets, backend="triton")
    assert launched[1][1][8] is rest["counters"] and torch.equal(launched[1][1][3], offsets)
    # Nothing to select: nothing to launch.
    assert (idsel.select(features[:, :0], 2, idsel.MaxMin(), backend="triton").indices == -1).all()
    assert len(launched) == 2


# --- Commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the search would run")
@needs_triton
def test_the_search_for_tiles_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.tools.triton_tiles"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "triton_tiles times kernels: it needs a CUDA or HIP device, and found none"


def test_the_search_says_which_tiles_its_times_do_not_tell_apart() -> None:
    from bench.tools.triton_tiles import ranking

    times = {
        (64, 64, 3): [[10.0, 10.2, 10.1], [20.0, 20.2, 20.1]],
        (64, 64, 4): [[10.1, 10.3, 10.2], [20.1, 20.3, 20.2]],
        (32, 64, 3): [[9.0, 9.1, 9.2], [30.0, 30.2, 30.1]],
    }
    assert ranking(times) == ((64, 64, 3), [(64, 64, 4)])

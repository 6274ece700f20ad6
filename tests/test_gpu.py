"""What only a GPU shows of an engine that runs on one: many launches, streams, graphs, no waiting, several devices.

Parity, ties and edges are in the tests that take a `backend`, which run on the GPU too where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from backends import Backend, same, set_gram_budget
from cases import RULE_CASES

import idsel_kernels as idsel
from idsel_kernels import dispatch
from idsel_kernels.testing import clustered, exact, ragged

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES)


@ALL_RULES
def test_a_thousand_launches_give_the_same_bits(rule: str, gpu: Backend) -> None:
    cases = [
        gpu.inputs(clustered(batch, tokens, dim, seed=tokens, dtype=dtype).inputs())
        for batch, tokens, dim in ((1, 576, 1024), (5, 130, 72), (16, 257, 256), (2, 200, 2048))
        for dtype in (torch.bfloat16, torch.float32)
    ]
    calls = [dict(**inputs, k=24, rule=RULE_CASES[rule], backend=gpu.name) for inputs in cases]
    first = [idsel.select(**call) for call in calls]
    order = torch.randint(len(calls), (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert all(same(first[i], idsel.select(**calls[i])) for i in order)


@ALL_RULES
@pytest.mark.parametrize(("tokens", "dim"), [(57, 96), (576, 96), (3000, 96), (576, 4096)])
def test_batch_mates_and_raggedness_change_no_bit(rule: str, tokens: int, dim: int, gpu: Backend) -> None:
    case = clustered(3, tokens, dim, seed=tokens, dtype=torch.bfloat16)
    together = gpu.select(**case.inputs(), k=20, rule=RULE_CASES[rule])
    offsets = torch.arange(4, dtype=torch.int32) * tokens
    flat = {name: value.flatten(0, 1) for name, value in case.inputs().items()}
    joined = gpu.select(**flat, cu_seqlens=offsets, k=20, rule=RULE_CASES[rule])
    assert same(together, joined)
    alone = gpu.select(case.features[2], 20, RULE_CASES[rule], case.importance[2])
    assert torch.equal(together.indices[2], alone.indices[0]) and torch.equal(together.scores[2], alone.scores[0])


@ALL_RULES
def test_two_streams_at_once(rule: str, gpu: Backend) -> None:
    inputs = [gpu.inputs(clustered(4, 300, 128, seed=seed, dtype=torch.float16).inputs()) for seed in (0, 1)]
    calls = [dict(**tensors, k=30, rule=RULE_CASES[rule], backend=gpu.name) for tensors in inputs]
    expected = [idsel.select(**call) for call in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results: list[list[idsel.Selection]] = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(idsel.select(**calls[i]))
    torch.cuda.synchronize()
    assert all(same(expected[i], sel) for i in (0, 1) for sel in results[i])


@ALL_RULES
@pytest.mark.parametrize("is_ragged", [False, True], ids=["dense", "ragged"])
def test_capture_and_replay(rule: str, is_ragged: bool, gpu: Backend) -> None:
    lengths = (90, 0, 200, 17)
    case = ragged(lengths, 64, seed=3) if is_ragged else clustered(4, 200, 64, seed=3)
    inputs = gpu.inputs(case.inputs())
    counts = [20, 3, 30, 5]
    call = dict(**inputs, k=counts, rule=RULE_CASES[rule], backend=gpu.name)
    expected = idsel.select(**call)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = idsel.select(**call)
    for _ in range(3):
        captured.indices.fill_(-7)
        graph.replay()
        assert same(captured, expected)
    other = clustered(1, sum(lengths), 64, seed=9) if is_ragged else clustered(4, 200, 64, seed=9)
    inputs["features"].copy_(other.features[0] if is_ragged else other.features)
    graph.replay()
    assert same(captured, idsel.select(**call))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_captured_graph_takes_other_grids(dtype: torch.dtype, gpu: Backend) -> None:
    grids = torch.tensor([[4, 6], [3, 8], [1, 24]], dtype=dtype)
    inputs = gpu.inputs({**clustered(3, 24, 8, seed=3).inputs(), "grids": grids})
    call = dict(**inputs, k=24, rule=idsel.HardSuppress(0.9, radius=1), backend=gpu.name)
    expected = idsel.select(**call)  # compiles
    with nothing_waits():
        idsel.select(**call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = idsel.select(**call)
    graph.replay()
    assert same(captured, expected)
    inputs["grids"].copy_(grids.flip(1))
    graph.replay()
    assert same(captured, idsel.select(**call)) and not same(captured, expected)


@ALL_RULES
@pytest.mark.parametrize("panels", [False, True], ids=["gram", "panels"])
def test_a_captured_graph_takes_other_given_tokens(
    rule: str, panels: bool, gpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if panels:
        if gpu.name == "triton" and isinstance(RULE_CASES[rule], idsel.Coverage):
            pytest.skip("triton has no panels of Coverage")
        set_gram_budget(monkeypatch, gpu.name, 1)
    given = torch.stack([torch.arange(70) * step for step in (1, 2, -1, 5)])  # some beyond the sample, some below it
    inputs = gpu.inputs({**clustered(4, 200, 64, seed=3).inputs(), "given": given})
    call = dict(**inputs, k=[90, 3, 30, 5], rule=RULE_CASES[rule], backend=gpu.name)
    expected = idsel.select(**call)  # compiles
    with nothing_waits():
        idsel.select(**call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = idsel.select(**call)
    graph.replay()
    assert same(captured, expected)
    inputs["given"].copy_(given.flip(0))
    graph.replay()
    assert same(captured, idsel.select(**call)) and not same(captured, expected)


@ALL_RULES
def test_a_planned_run_is_captured(rule: str, gpu: Backend) -> None:
    inputs = gpu.inputs(clustered(4, 200, 64, seed=3).inputs())
    plan = idsel.plan(**inputs, k=[20, 3, 30, 5], rule=RULE_CASES[rule], backend=gpu.name)
    expected = idsel.select(**inputs, k=[20, 3, 30, 5], rule=RULE_CASES[rule], backend=gpu.name)
    assert same(plan.run(**inputs), expected)  # compiles
    with nothing_waits():
        plan.run(**inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = plan.run(**inputs)
        with pytest.raises(RuntimeError, match="a plan must be made before the capture"):
            idsel.plan(**inputs, k=3, rule=RULE_CASES[rule], backend=gpu.name)
    for _ in range(3):
        captured.indices.fill_(-7)
        graph.replay()
        assert same(captured, expected)


def test_the_graphs_of_torch_compile_find_no_leak(gpu: Backend) -> None:
    """The first call ever of an engine on a stream is inside of a memory pool, in which nothing may be left."""
    inputs = gpu.inputs(clustered(2, 200, 64, seed=3).inputs())
    expected = idsel.select(**inputs, k=20, backend=gpu.name)
    compiled = torch.compile(
        lambda x, s: x * idsel.select(x, 20, importance=s, backend=gpu.name).keep_mask(200)[..., None],
        mode="reduce-overhead",
        fullgraph=True,
    )
    wanted = inputs["features"] * expected.keep_mask(200)[..., None]
    for _ in range(4):
        assert torch.equal(compiled(inputs["features"], inputs["importance"]), wanted)


def test_a_captured_graph_takes_other_budgets(gpu: Backend) -> None:
    case = clustered(4, 200, 64, seed=3)
    inputs, k = gpu.inputs(case.inputs()), gpu.put(torch.tensor([20, 3, 30, 5]))

    def prune() -> idsel.Pruned:
        budget = {"k": k, "k_max": 30, "rule": "mmr", "backend": gpu.name}
        return idsel.prune(inputs["features"], importance=inputs["importance"], merge="mean", **budget)

    prune()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = prune()
    for counts in ([20, 3, 30, 5], [1, 0, 7, 30]):
        k.copy_(torch.tensor(counts))
        graph.replay()
        wanted = idsel.prune(case.features, counts, "mmr", case.importance, merge="mean")
        width = max(counts)
        assert torch.equal(captured.indices[:, :width].cpu(), wanted.indices)
        torch.testing.assert_close(captured.hidden[:, :width].cpu(), wanted.hidden, rtol=1e-4, atol=1e-5)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Whatever waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(gpu: Backend) -> None:
    inputs = gpu.inputs(clustered(4, 300, 128).inputs())
    call = dict(**inputs, k=[3, 4, 5, 6], rule=idsel.MMR(), backend=gpu.name)
    idsel.select(**call)
    with nothing_waits():
        idsel.select(**call)


@pytest.mark.parametrize("how", [None, "mean", "add_mean", "weighted"])
@pytest.mark.parametrize("is_ragged", [False, True], ids=["dense", "ragged"])
def test_pruning_and_merging_wait_for_nothing_and_repeat(how: Any, is_ragged: bool, gpu: Backend) -> None:
    case = ragged((90, 0, 200, 17), 64, seed=3) if is_ragged else clustered(4, 200, 64, seed=3)
    inputs = gpu.inputs(case.inputs())
    hidden, on_gpu = inputs.pop("features"), torch.device(gpu.device.type)
    protect = torch.zeros(hidden.shape[:-1], dtype=torch.bool, device=on_gpu)
    positions = torch.arange(hidden.shape[-2], device=on_gpu)
    options = dict(**inputs, rule="mmr", merge=how, protect=protect, position_ids=positions, backend=gpu.name)
    for budget in ({"k": 20}, {"k": torch.tensor([3, 0, 20, 9], device=on_gpu), "k_max": 20}, {"keep_ratio": 0.1}):
        call = dict(**options, **budget, max_seqlen=200 if is_ragged else None)
        first = idsel.prune(hidden, **call)
        with nothing_waits():
            again = idsel.prune(hidden, **call)
        assert torch.equal(first.hidden, again.hidden) and same(first.selection, again.selection)


# Products that are not exact: how they are rounded must not depend on where a token is.
INEXACT = {"mmr-0.3": idsel.MMR(lam=0.3), "mmr-0.3-parallel3": idsel.MMR(lam=0.3, parallel_k=3)}


@pytest.mark.parametrize("name", [*RULE_CASES, *INEXACT])
def test_panels_pick_what_the_gram_does(name: str, gpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {**RULE_CASES, **INEXACT}[name]
    if gpu.name == "triton" and isinstance(rule, idsel.Coverage):
        pytest.skip("triton has no panels of Coverage")
    inputs = gpu.inputs(clustered(2, 1500, 256, seed=5, dtype=torch.bfloat16).inputs())
    with_gram = gpu.select(**inputs, k=64, rule=rule)
    set_gram_budget(monkeypatch, gpu.name, 2**20)
    assert same(with_gram, gpu.select(**inputs, k=64, rule=rule))


@pytest.mark.parametrize("panels", [False, True], ids=["gram", "panels"])
@ALL_RULES
def test_similarities_give_the_picks_of_features(
    rule: str, panels: bool, gpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(RULE_CASES[rule], idsel.MatrixCoverage):
        pytest.skip("MatrixCoverage takes no similarities")
    case = exact(2, 200, 64, seed=3)
    unit = torch.nn.functional.normalize(case.features.double(), dim=-1)
    features, importance = gpu.put(case.features), gpu.put(case.importance)
    expected = gpu.select(features, 60, RULE_CASES[rule], importance)
    if panels:
        set_gram_budget(monkeypatch, gpu.name, 1)
    similarity = gpu.put((unit @ unit.mT).float())
    assert same(expected, gpu.select(None, 60, RULE_CASES[rule], importance, similarity=similarity))


@pytest.mark.parametrize("name", RULE_CASES)
def test_given_its_own_first_picks_a_selection_is_the_same_also_on_panels(
    name: str, gpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = RULE_CASES[name]
    call = {**gpu.inputs(clustered(2, 1500, 256, seed=5, dtype=torch.bfloat16).inputs()), "k": 96, "rule": rule}
    plain = gpu.select(**call)
    others = torch.arange(140, device=gpu.device).view(2, 70)  # more than a panel has rows
    with_gram = gpu.select(**call, given=others)
    assert same(plain, gpu.select(**call, given=gpu.put(plain.indices[:, :70])))
    if not isinstance(rule, idsel.Coverage):  # of which triton has no panels
        set_gram_budget(monkeypatch, gpu.name, 2**20)
        assert same(plain, gpu.select(**call, given=gpu.put(plain.indices[:, :70])))
        assert same(with_gram, gpu.select(**call, given=others))
    assert torch.equal(with_gram.indices[:, :70], others.cpu())


def keep_another_stream_busy() -> torch.cuda.Event:
    """Small and large kernels of others come and go until the event."""
    small, large = torch.ones(64, 64, device="cuda"), torch.ones(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for at in range(2000):
            torch.mm(small, small) if at % 8 else torch.mm(large, large)
        done = torch.cuda.Event()
        done.record()
    return done


@pytest.mark.parametrize("rule", [name for name, rule in RULE_CASES.items() if rule.needs_similarities])
@pytest.mark.parametrize("is_ragged", [False, True], ids=["dense", "ragged"])
def test_groups_of_ctas_never_hang_beside_other_work(
    rule: str, is_ragged: bool, gpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls whose CTAs wait for one another; all rules together make more than 10,000."""
    if gpu.name == "triton":
        pytest.skip("triton has one program a sample on panels")
    case = ragged((4000, 60, 3500), 64, seed=3) if is_ragged else clustered(1, 4000, 64, seed=3)
    set_gram_budget(monkeypatch, gpu.name, 2**20)
    call = dict(**gpu.inputs(case.inputs()), k=16, rule=RULE_CASES[rule], backend=gpu.name)
    expected = idsel.select(**call)
    others = keep_another_stream_busy()
    found = [idsel.select(**call) for _ in range(40)]
    assert not others.query(), "nothing else ran meanwhile"
    found += [idsel.select(**call) for _ in range(360)]
    torch.cuda.synchronize()
    assert all(same(expected, sel) for sel in found)


@pytest.mark.parametrize("rule", [idsel.IDSelection(), idsel.MMR(), idsel.MaxMin(start=0)], ids=str)
def test_many_tokens_take_little_memory(rule: idsel.Rule, gpu: Backend) -> None:
    if gpu.name == "triton":
        pytest.skip("it keeps a Gram of 1 GiB")
    inputs = gpu.inputs(clustered(1, 16384, 64, dtype=torch.bfloat16).inputs())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    idsel.select(**inputs, k=1638, rule=rule, backend=gpu.name)
    assert torch.cuda.max_memory_allocated() - before <= 16384**2 * 4 // 20


def test_another_device_than_the_current_one(gpu: Backend) -> None:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two GPUs, found {count}")
    case = clustered(2, 300, 128)
    expected = gpu.select(**case.inputs(), k=20)
    last = {name: tensor.to(f"cuda:{count - 1}") for name, tensor in case.inputs().items()}
    sel = idsel.select(**last, k=20, backend=gpu.name)
    assert sel.indices.device.index == count - 1 != torch.cuda.current_device()
    assert same(expected, gpu.fetch(sel))


def test_automatic_choice_is_an_engine_for_gpus(gpu: Backend) -> None:
    chosen = idsel.explain(**gpu.inputs(clustered(1, 100, 16).inputs()), k=5).backend
    assert chosen is not None and gpu.device.type in dispatch.device_types(chosen)


def test_tensors_on_the_cpu_are_refused(gpu: Backend) -> None:
    case = clustered(1, 100, 16)
    with pytest.raises(idsel.UnsupportedProblem, match="it runs on CUDA"):
        idsel.select(**case.inputs(), k=5, backend=gpu.name)

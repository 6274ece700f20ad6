"""The Triton kernel on a GPU: parity, graph capture, streams, repetition."""

from __future__ import annotations

import pytest
import torch
from cases import EXACT_RULES, INPUT_CASES, RULE_CASES
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels.testing import check_selection, clustered, exact, ragged

pytest.importorskip("triton", reason="triton is not installed (pip install 'idsel_kernels[triton]')")
if not torch.cuda.is_available():
    pytest.skip("no CUDA or HIP device", allow_module_level=True)

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES)


def _on_gpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in tensors.items()}


def _same(a: idsel.Selection, b: idsel.Selection) -> bool:
    return torch.equal(a.indices, b.indices) and torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("case", INPUT_CASES)
@ALL_RULES
def test_selects_what_the_rule_says(rule: str, case: str) -> None:
    call = INPUT_CASES[case]
    inputs = _on_gpu(call.inputs())
    sel = idsel.select(**inputs, k=call.k, rule=RULE_CASES[rule], backend="triton")
    check_selection(sel, **inputs, rule=RULE_CASES[rule], k=call.k).assert_ok(REGRET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_exact_input_gives_the_same_bits(rule: str, dtype: torch.dtype) -> None:
    case = exact(2, 100, 256, seed=1, dtype=dtype)
    expected = idsel.testing.oracle(**case.inputs(), k=100, rule=RULE_CASES[rule])
    sel = idsel.select(**_on_gpu(case.inputs()), k=100, rule=RULE_CASES[rule], backend="triton")
    assert torch.equal(sel.indices.cpu(), expected.indices)
    assert torch.equal(sel.scores.cpu(), expected.scores.float())


@ALL_RULES
def test_a_thousand_launches_give_the_same_bits(rule: str) -> None:
    cases = [
        _on_gpu(clustered(batch, tokens, dim, seed=tokens, dtype=dtype).inputs())
        for batch, tokens, dim in ((1, 576, 1024), (5, 130, 72), (16, 257, 256))
        for dtype in (torch.bfloat16, torch.float32)
    ]
    calls = [dict(**inputs, k=24, rule=RULE_CASES[rule], backend="triton") for inputs in cases]
    first = [idsel.select(**call) for call in calls]
    order = torch.randint(len(calls), (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert all(_same(first[i], idsel.select(**calls[i])) for i in order)


@ALL_RULES
@pytest.mark.parametrize("tokens", [57, 576, 3000])
def test_batch_mates_and_raggedness_change_no_bit(rule: str, tokens: int) -> None:
    case = clustered(3, tokens, 96, seed=tokens, dtype=torch.bfloat16)
    inputs = _on_gpu(case.inputs())
    together = idsel.select(**inputs, k=20, rule=RULE_CASES[rule], backend="triton")
    offsets = torch.arange(4, dtype=torch.int32, device="cuda") * tokens
    flat = {name: value.flatten(0, 1) for name, value in inputs.items()}
    joined = idsel.select(**flat, cu_seqlens=offsets, k=20, rule=RULE_CASES[rule], backend="triton")
    assert _same(together, joined)
    alone = idsel.select(
        inputs["features"][2], 20, RULE_CASES[rule], inputs["importance"][2], backend="triton"
    )  # fmt: skip
    assert torch.equal(together.indices[2], alone.indices[0]) and torch.equal(together.scores[2], alone.scores[0])


@ALL_RULES
def test_two_streams_at_once(rule: str) -> None:
    inputs = [_on_gpu(clustered(4, 300, 128, seed=seed, dtype=torch.float16).inputs()) for seed in (0, 1)]
    calls = [dict(**tensors, k=30, rule=RULE_CASES[rule], backend="triton") for tensors in inputs]
    expected = [idsel.select(**call) for call in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results: list[list[idsel.Selection]] = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(idsel.select(**calls[i]))
    torch.cuda.synchronize()
    assert all(_same(expected[i], sel) for i in (0, 1) for sel in results[i])


@ALL_RULES
@pytest.mark.parametrize("is_ragged", [False, True], ids=["dense", "ragged"])
def test_capture_and_replay(rule: str, is_ragged: bool) -> None:
    lengths = (90, 0, 200, 17)
    case = ragged(lengths, 64, seed=3) if is_ragged else clustered(4, 200, 64, seed=3)
    inputs = _on_gpu(case.inputs())
    counts = [20, 3, 30, 5]
    call = dict(**inputs, k=counts, rule=RULE_CASES[rule], backend="triton")
    expected = idsel.select(**call)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = idsel.select(**call)
    for _ in range(3):
        captured.indices.fill_(-7)
        graph.replay()
        assert _same(captured, expected)
    other = clustered(1, sum(lengths), 64, seed=9) if is_ragged else clustered(4, 200, 64, seed=9)
    inputs["features"].copy_(other.features[0] if is_ragged else other.features)
    graph.replay()
    assert _same(captured, idsel.select(**call))


def test_nothing_waits_for_the_device() -> None:
    inputs = _on_gpu(clustered(4, 300, 128).inputs())
    call = dict(**inputs, k=[3, 4, 5, 6], rule=idsel.MMR(), backend="triton")
    idsel.select(**call)
    torch.cuda.set_sync_debug_mode("error")
    try:
        idsel.select(**call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_panels_pick_what_the_gram_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.engines import triton as engine

    inputs = _on_gpu(clustered(2, 1500, 256, seed=5, dtype=torch.bfloat16).inputs())
    for name, rule in RULE_CASES.items():
        if not name.startswith("coverage"):
            with_gram = idsel.select(**inputs, k=64, rule=rule, backend="triton")
            with monkeypatch.context() as patch:
                patch.setattr(engine, "GRAM_BUDGET_BYTES", 2**20)
                on_panels = idsel.select(**inputs, k=64, rule=rule, backend="triton")
            assert _same(with_gram, on_panels), name


def test_automatic_choice_is_a_gpu_engine() -> None:
    inputs = _on_gpu(clustered(1, 100, 16).inputs())
    assert idsel.explain(**inputs, k=5).backend in ("cuda", "triton")

"""`plan` and `Plan.run`: the picks of `select`, into memory that is there before, and errors where tensors differ."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import Backend, same
from cases import INPUT_CASES, RULE_CASES

import idsel_kernels as idsel
from idsel_kernels.testing import clustered, ragged

X, S = torch.randn(2, 12, 8), torch.rand(2, 12)
NMS, GRIDS = idsel.HardSuppress(radius=1), torch.tensor([[3, 4], [2, 6]])


@pytest.fixture
def plain(backend: Backend) -> Backend:
    """Each backend of plain tensors: others are traced, which a plan refuses."""
    return backend


@pytest.mark.parametrize("rule", ["idselection", "mmr", "maxmin", "hardsuppress", "dpp", "coverage", "topk"])
@pytest.mark.parametrize("case", ["fp16", "ragged"])
def test_a_run_is_a_select(rule: str, case: str, plain: Backend) -> None:
    call = INPUT_CASES[case]
    k, inputs = plain.fewer(call.k, case), plain.inputs(call.inputs())
    expected = idsel.select(**inputs, k=k, rule=RULE_CASES[rule], sort=True, backend=plain.name)
    plan = idsel.plan(**inputs, k=k, rule=RULE_CASES[rule], sort=True, backend=plain.name)
    assert plan.backend == plain.name and plan.algorithm
    first = plan.run(**inputs)
    assert first is plan.out and same(first, expected)
    out = idsel.Selection(torch.full_like(expected.indices, -7), torch.zeros_like(expected.scores))
    plan.out.indices.fill_(-9)
    again = plan.run(**inputs, out=out)
    assert again.indices is out.indices and same(again, expected)
    assert (plan.out.indices == -9).all()


def test_values_and_strides_are_free(plain: Backend) -> None:
    cases = [plain.inputs(clustered(2, 30, 8, seed=seed).inputs()) for seed in range(3)]
    plan = idsel.plan(**cases[0], k=5, backend=plain.name)
    for inputs in cases:
        apart = torch.stack([inputs["features"]] * 2, -1)[..., 0]
        assert apart.stride() != inputs["features"].stride()
        expected = idsel.select(**inputs, k=5, backend=plain.name)
        assert same(plan.run(**inputs), expected)
        assert same(plan.run(apart, inputs["importance"][:, :]), expected)


def test_one_sample_without_an_axis(plain: Backend) -> None:
    features, importance = (t[0] for t in clustered(1, 30, 8)[:2])
    features, importance = plain.put(features), plain.put(importance.half())
    plan = idsel.plan(features, 6, "mmr", importance, backend=plain.name)
    assert same(plan.run(features, importance), idsel.select(features, 6, "mmr", importance, backend=plain.name))


def test_budgets_on_the_device_may_change(plain: Backend) -> None:
    inputs = plain.inputs(clustered(3, 20, 8).inputs())
    k = plain.put(torch.tensor([1, 4, 2]))
    plan = idsel.plan(**inputs, k=k, k_max=4, backend=plain.name)
    assert plan.run(**inputs).counts.tolist() == [1, 4, 2]
    k.copy_(torch.tensor([3, 0, 4]))
    assert plan.run(**inputs).counts.tolist() == [3, 0, 4]
    assert plan.run(**inputs, k=plain.put(torch.tensor([2, 2, 1]))).counts.tolist() == [2, 2, 1]


def test_a_share_of_the_tokens_that_exist_is_counted_at_each_run() -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    plan = idsel.plan(X, keep_ratio=0.5, importance=S, mask=mask)
    assert plan.run(X, S, mask=mask).counts.tolist() == [6, 6]
    mask[1, 2:] = False
    assert plan.run(X, S, mask=mask).counts.tolist() == [6, 1]
    on_grids = idsel.plan(X, keep_ratio=0.5, importance=S, mask=mask, rule=NMS, grids=GRIDS)
    assert on_grids.run(X, S, mask=mask, grids=GRIDS.flip(1)).counts.tolist() == [6, 1]


@pytest.mark.parametrize("lengths", [None, (12, 5)], ids=["dense", "ragged"])
def test_grids_may_change(lengths: tuple[int, int] | None, plain: Backend) -> None:
    case = clustered(2, 12, 8) if lengths is None else ragged(lengths, 8)
    sides = torch.tensor([[3, 4], [2, 6] if lengths is None else [1, 5]])
    given, rule = plain.inputs(case.inputs()), idsel.HardSuppress(0.9, radius=1)
    plan = idsel.plan(**given, grids=plain.put(sides), k=5, rule=rule, backend=plain.name)
    for grids in (sides, sides.flip(1), sides.T.contiguous().T):
        call = {**given, "grids": plain.put(grids)}
        assert same(plan.run(**call), idsel.select(**call, k=5, rule=rule, backend=plain.name))


def test_nothing_to_select(plain: Backend) -> None:
    features = plain.put(X[:, :0])
    plan = idsel.plan(features, 3, "maxmin", backend=plain.name)
    assert (plan.run(features).indices == -1).all() and plan.out.indices.shape == (2, 3)


OFFSETS = torch.tensor([0, 5, 12])
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "shape": (
        lambda: idsel.plan(X, 3, importance=S).run(X[:1], S),
        ValueError,
        "features must be (2, 12, 8) torch.float32 on cpu, as planned, got (1, 12, 8) torch.float32 on cpu",
    ),
    "dtype": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S.half()),
        ValueError,
        "importance must be (2, 12) torch.float32 on cpu, as planned, got (2, 12) torch.float16 on cpu",
    ),
    "missing": (
        lambda: idsel.plan(X, 3, importance=S).run(X),
        ValueError,
        "importance must be (2, 12) torch.float32 on cpu, as planned, got None",
    ),
    "too many": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S, mask=S > 0.5),
        ValueError,
        "mask must be None, as planned, got (2, 12) torch.bool on cpu",
    ),
    "sparse": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S.to_sparse()),
        TypeError,
        "importance must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
    "no tensor": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S.tolist()),  # type: ignore[arg-type]
        TypeError,
        "importance must be a torch.Tensor, got list",
    ),
    "k": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S, k=4),  # type: ignore[arg-type]
        TypeError,
        "k must be None in a run of a plan that was made without a tensor k, got 4",
    ),
    "length of k": (
        lambda: idsel.plan(X, torch.tensor([1, 2]), importance=S, k_max=2).run(X, S, k=torch.tensor([1, 2, 3])),
        ValueError,
        "k as a tensor must be (B,) = (2,), or one number, got shape (3,)",
    ),
    "value of k": (
        lambda: idsel.plan(X, torch.tensor([1, 2]), importance=S, k_max=2).run(X, S, k=torch.tensor([1, 3])),
        ValueError,
        "k[1] must be in [0, k_max = 2], got 3",
    ),
    "offsets": (
        lambda: idsel.plan(X[0], 2, importance=S[0], cu_seqlens=OFFSETS).run(X[0], S[0], cu_seqlens=OFFSETS + 1),
        ValueError,
        "cu_seqlens must start at 0, got 1",
    ),
    "grids that were not planned": (
        lambda: idsel.plan(X, 3, "nms", S).run(X, S, grids=GRIDS),
        ValueError,
        "grids must be None, as planned, got (2, 2) torch.int64 on cpu",
    ),
    "grids that were": (
        lambda: idsel.plan(X, 3, NMS, S, grids=GRIDS).run(X, S),
        ValueError,
        "grids must be (2, 2) torch.int64 on cpu, as planned, got None",
    ),
    "sides of grids": (
        lambda: idsel.plan(X, 3, NMS, S, grids=GRIDS).run(X, S, grids=GRIDS + 1),
        ValueError,
        "grids[0] must have N = 12 cells, got 4 x 5",
    ),
    "out is no pair": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S, out=torch.zeros(2, 3)),  # type: ignore[arg-type]
        TypeError,
        "out must be a pair of tensors, indices and scores, got Tensor",
    ),
    "dtype of out": (
        lambda: idsel.plan(X, 3, importance=S).run(X, S, out=(torch.zeros(2, 3), torch.zeros(2, 3))),
        ValueError,
        "out.indices must be (2, 3) torch.int64 on cpu, got (2, 3) torch.float32 on cpu",
    ),
    "strides of out": (
        lambda: idsel.plan(X, 3, importance=S).run(
            X, S, out=(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2).T)
        ),
        ValueError,
        "out.scores must be contiguous, got strides (1, 2)",
    ),
    "plan of a wrong call": (
        lambda: idsel.plan(X, 3),
        ValueError,
        "importance is required by IDSelection, got None (MaxMin, Coverage and MatrixCoverage run without)",
    ),
    "plan on the meta device": (
        lambda: idsel.plan(X.to("meta"), 3, importance=S.to("meta")),
        RuntimeError,
        "idsel.plan must be called eagerly and on plain tensors, got a call that torch traces",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_as_planned_is_named(name: str) -> None:
    call, exception, message = BAD[name]
    with pytest.raises(exception, match=f"^{re.escape(message)}$"):
        call()


def test_a_backend_that_refuses_refuses_the_plan() -> None:
    with pytest.raises(idsel.UnsupportedProblem, match="backend 'cuda' \\(by argument\\) cannot run this"):
        idsel.plan(X, 3, importance=S, backend="cuda")
    with idsel.use_backend("torch"):
        plan = idsel.plan(X, 3, importance=S)
    assert plan.backend == "torch" and same(plan.run(X, S), idsel.select(X, 3, importance=S, backend="torch"))


def test_a_traced_run_is_a_select_with_outputs_of_its_own() -> None:
    plan = idsel.plan(X, 3, importance=S)
    expected = idsel.select(X, 3, importance=S)
    compiled = torch.compile(lambda x, s: tuple(plan.run(x, s)), backend="eager", fullgraph=True)
    plan.out.indices.fill_(-9)
    assert same(idsel.Selection(*compiled(X, S)), expected)
    assert (plan.out.indices == -9).all()


def test_threads_with_outputs_of_their_own_share_a_plan() -> None:
    cases = [clustered(1, 200, 16, seed=seed) for seed in range(4)]
    plan = idsel.plan(cases[0].features, 20, importance=cases[0].importance, backend="cpu")
    expected = [idsel.select(case.features, 20, importance=case.importance, backend="cpu") for case in cases]
    wrong: list[Any] = []

    def run(case: Any, wanted: idsel.Selection) -> None:
        out = idsel.Selection(torch.empty_like(wanted.indices), torch.empty_like(wanted.scores))
        for _ in range(50):
            if not same(plan.run(case.features, case.importance, out=out), wanted):
                wrong.append(case)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(cases, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_ragged_plan_takes_other_offsets() -> None:
    first, second = ragged((7, 5), 8, seed=1), ragged((3, 9), 8, seed=2)
    plan = idsel.plan(**first.inputs(), k=4)
    for case in (first, second):
        assert same(plan.run(**case.inputs()), idsel.select(**case.inputs(), k=4))

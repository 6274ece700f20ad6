"""A grid for each sample: `grids`, on every backend, against the rules once more and against a rule's own grid."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from backends import Backend, same, set_gram_budget
from naive import naive_select
from tolerances import REGRET

import idsel_kernels as idsel
from idsel_kernels import dispatch
from idsel_kernels.problem import Inputs, Problem
from idsel_kernels.testing import Case, assert_parity, check_selection, clustered, ragged

Sides = list[tuple[int, int]]

RULE = idsel.HardSuppress(threshold=0.9, radius=1)
SIDES: Sides = [(4, 6), (3, 8), (1, 24)]
DENSE = clustered(3, 24, 8, seed=8)
RAGGED_SIDES: Sides = [(5, 6), (0, 3), (7, 1), (4, 10), (1, 1)]
RAGGED = ragged([height * width for height, width in RAGGED_SIDES], 8, seed=9)
# More tokens than a panel or the threads of a CTA.
LARGE_SIDES: Sides = [(15, 20), (30, 10), (1, 300)]
LARGE = clustered(3, 300, 8, seed=10)
EVERY_THIRD = torch.arange(72).view(3, 24) % 3 != 1

KINDS = pytest.mark.parametrize("kind", ["dense", "ragged"])


def _inputs(kind: str, dtype: torch.dtype = torch.int32) -> dict[str, Any]:
    of, sides = (DENSE, SIDES) if kind == "dense" else (RAGGED, RAGGED_SIDES)
    return {**of.inputs(), "grids": torch.tensor(sides, dtype=dtype)}


def _samples(inputs: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
    """Features, importance and mask of each, on its own."""
    names = ("features", "importance", "mask")
    tensors = [inputs[name] if name in inputs else torch.ones_like(inputs["importance"]).bool() for name in names]
    if "cu_seqlens" not in inputs:
        return list(zip(*tensors, strict=True))
    lengths = inputs["cu_seqlens"].diff().tolist()
    return list(zip(*(torch.split(tensor, lengths) for tensor in tensors), strict=True))


def _assert_picks_of_the_rule(sel: idsel.Selection, inputs: dict[str, Any], rule: idsel.HardSuppress, k: int) -> None:
    """Each sample as if alone, with its grid in the rule."""
    grids = map(tuple, inputs["grids"].tolist())
    for b, ((features, importance, mask), (height, width)) in enumerate(zip(_samples(inputs), grids, strict=True)):
        grid = (height, width) if len(features) else None
        alone = dataclasses.replace(rule, grid=grid, radius=rule.radius if grid else 0)
        picks, scores = naive_select(features.numpy(), k, alone, importance.numpy(), mask.numpy())
        assert sel.indices[b].tolist() == picks
        assert sel.scores[b].tolist() == pytest.approx(scores, abs=1e-6)


@KINDS
@pytest.mark.parametrize("radius", [0, 1, 2, 10**9])
@pytest.mark.parametrize("k", [7, 24])
def test_each_sample_lies_on_its_own_grid(kind: str, radius: int, k: int, backend: Backend) -> None:
    inputs, rule, k = _inputs(kind), dataclasses.replace(RULE, radius=radius), backend.fewer(k)
    sel = backend.select(**inputs, k=k, rule=rule)
    _assert_picks_of_the_rule(sel, inputs, rule, k)
    check_selection(sel, **inputs, rule=rule, k=k).assert_ok(REGRET)


def test_masked_tokens_have_cells_but_suppress_nothing(backend: Backend) -> None:
    inputs, k = {**_inputs("dense"), "mask": EVERY_THIRD}, backend.fewer(24)
    _assert_picks_of_the_rule(backend.select(**inputs, k=k, rule=RULE), inputs, RULE, k)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_grid_for_all_is_that_of_the_rule_bit_for_bit(dtype: torch.dtype, backend: Backend) -> None:
    own, k = idsel.HardSuppress(0.9, (4, 6), 1), backend.fewer(24)
    expected = backend.select(**DENSE.inputs(), k=k, rule=own)
    grids = torch.tensor([4, 6], dtype=dtype)
    for laid_out in (grids.repeat(3, 1), grids.expand(3, 2), grids.repeat(3, 1).T.contiguous().T):
        assert same(backend.select(**DENSE.inputs(), grids=laid_out, k=k, rule=RULE), expected)
    offsets = torch.tensor([0, 24, 48, 72], dtype=torch.int32)
    flat = {name: value.flatten(0, 1) for name, value in DENSE.inputs().items()}
    sel = backend.select(**flat, cu_seqlens=offsets, grids=grids.repeat(3, 1), k=k, rule=RULE)
    assert torch.equal(sel.indices, expected.indices)


@KINDS
def test_batch_mates_change_no_bit(kind: str, backend: Backend) -> None:
    inputs, k = _inputs(kind), backend.fewer(12)
    together = backend.select(**inputs, k=k, rule=RULE)
    for b, (features, importance, _) in enumerate(_samples(inputs)):
        alone = backend.select(features, k, RULE, importance, grids=inputs["grids"][b : b + 1])
        assert torch.equal(alone.indices[0], together.indices[b])


def test_with_as_many_picks_as_the_device_says(backend: Backend) -> None:
    k = torch.tensor([5, 0, 9])
    inputs = backend.inputs({**_inputs("dense", torch.int64), "k": k})
    sel = backend.fetch(idsel.select(**inputs, k_max=9, rule=RULE, sort=True, backend=backend.name))
    listed = backend.select(**_inputs("dense"), k=k.tolist(), rule=RULE, sort=True)
    assert torch.equal(sel.indices, listed.indices)


def _large(kind: str) -> dict[str, Any]:
    grids = torch.tensor(LARGE_SIDES)
    if kind == "dense":
        return {**LARGE.inputs(), "grids": grids}
    flat = {name: value.flatten(0, 1) for name, value in LARGE.inputs().items()}
    return {**flat, "grids": grids, "cu_seqlens": torch.tensor([0, 300, 600, 900])}


@KINDS
def test_more_tokens_than_threads(kind: str, backend: Backend) -> None:
    inputs, k = _large(kind), backend.fewer(60)
    check_selection(backend.select(**inputs, k=k, rule=RULE), **inputs, rule=RULE).assert_ok(REGRET)


@KINDS
def test_panels(kind: str, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each CTA of a group works on the grid of its sample."""
    if backend.name == "cpu" or not hasattr(dispatch._load(backend.name), "gram_budget_bytes"):
        pytest.skip(f"{backend.name} has no panels")
    inputs, k = _large(kind), backend.fewer(60)
    monkeypatch.setenv("IDSEL_EMULATOR_MULTIPROCESSORS", "7")
    set_gram_budget(monkeypatch, backend.name, 1)
    assert "panels" in idsel.explain(**backend.inputs(inputs), k=k, rule=RULE, backend=backend.name).algorithm
    check_selection(backend.select(**inputs, k=k, rule=RULE), **inputs, rule=RULE).assert_ok(REGRET)


# What a GPU does not check, of samples of 24 tokens; the last one is right.
UNCHECKED = [[0, 0], [24, -1], [-4, -6], [5, 5], [1, 2**31 - 1], [7, -(2**31)], [4, 6]]


def test_widths_that_nobody_checked(backend: Backend) -> None:
    features, importance, _ = clustered(len(UNCHECKED), 24, 8, seed=11)
    inputs = Inputs(*map(backend.put, (features, importance)), grids=backend.put(torch.tensor(UNCHECKED)))
    problem = Problem.of(inputs, RULE, [24], False)
    engine = dispatch._load(backend.name)
    assert not isinstance(engine, str)
    sel = backend.fetch(engine.launcher(problem, inputs)(*inputs))
    assert sel.indices.sort().values.tolist() == [list(range(24))] * len(UNCHECKED)
    without = backend.select(features, 24, idsel.HardSuppress(threshold=0.9), importance)
    for b, (_, width) in enumerate(UNCHECKED):
        assert width > 0 or torch.equal(sel.indices[b], without.indices[b])
    own = backend.select(features[-1], 24, idsel.HardSuppress(0.9, (4, 6), 1), importance[-1])
    assert torch.equal(sel.indices[-1], own.indices[0])


# --- Wherever tensors are handed on -----------------------------------------------------------------------------------


def test_the_shorthand_and_explain_take_them() -> None:
    inputs = _inputs("ragged")
    expected = idsel.select(**inputs, k=6, rule=RULE)
    assert same(idsel.nms_select(**inputs, k=6, threshold=0.9, radius=1), expected)
    problem = idsel.explain(**inputs, k=6, rule=RULE).problem
    assert problem.has_grids and problem.rule == RULE


def test_prune_cuts_a_ragged_batch_of_pictures(backend: Backend) -> None:
    inputs, k = _inputs("ragged"), backend.fewer(6)
    sel = backend.select(**inputs, k=k, rule=RULE)
    given = backend.inputs(inputs)
    out = idsel.prune(given.pop("features"), k, RULE, **given, order="pick", backend=backend.name).trimmed()
    assert torch.equal(out.hidden.cpu(), RAGGED.features[sel.flat(inputs["cu_seqlens"])])


def test_prune_keeps_protected_tokens_on_their_grid() -> None:
    inputs = _inputs("dense")
    protect = torch.zeros((3, 24), dtype=torch.bool)
    protect[:, 5] = True
    out = idsel.prune(inputs.pop("features"), 6, RULE, **inputs, protect=protect, order="pick")
    sel = idsel.select(DENSE.features, 5, RULE, DENSE.importance, mask=~protect, grids=inputs["grids"])
    assert torch.equal(out.indices, torch.cat([torch.full((3, 1), 5), sel.indices], 1))


def test_checks_take_them() -> None:
    for kind in ("dense", "ragged"):
        inputs = _inputs(kind)
        assert_parity("torch", "torch", **inputs, k=9, rule=RULE)
        sel = idsel.select(**inputs, k=9, rule=RULE)
        assert torch.equal(idsel.testing.oracle(**inputs, k=9, rule=RULE).indices, sel.indices)
        narrower = {**inputs, "grids": inputs["grids"].flip(1)}
        assert check_selection(sel, **narrower, rule=RULE, k=9).worst_regret > 0


@KINDS
def test_the_operator(kind: str) -> None:
    inputs = _inputs(kind)
    rule_id, params = RULE.encode()
    arguments = inputs.pop("features"), [4], rule_id, params, inputs.pop("importance")
    torch.library.opcheck(torch.ops.idsel.select.default, arguments, inputs)


@KINDS
def test_a_compiled_program_takes_other_grids(kind: str) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def pruned(grids: torch.Tensor, of: Case) -> torch.Tensor:
        return idsel.prune(of.features, 5, RULE, of.importance, cu_seqlens=of.cu_seqlens, grids=grids).hidden

    of, grids = (DENSE, SIDES) if kind == "dense" else (RAGGED, RAGGED_SIDES)
    compiled = torch.compile(pruned, fullgraph=True, backend=count)
    for sides in (torch.tensor(grids), torch.tensor(grids).flip(1)):
        assert torch.equal(compiled(sides, of), pruned(sides, of))
    assert len(graphs) == 1


def test_a_subclass_of_a_tensor_goes_through_the_operator() -> None:
    class Tagged(torch.Tensor):
        pass

    grids = torch.tensor(SIDES)
    expected = idsel.select(**DENSE.inputs(), k=5, rule=RULE, grids=grids)
    assert same(idsel.select(**DENSE.inputs(), k=5, rule=RULE, grids=grids.as_subclass(Tagged)), expected)
    with pytest.raises(ValueError, match=r"grids\[0\] must have N = 24 cells, got 5 x 7"):
        idsel.select(**DENSE.inputs(), k=5, rule=RULE, grids=(grids + 1).as_subclass(Tagged))

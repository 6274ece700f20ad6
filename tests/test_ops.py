"""The operator under everything that traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import RULE_CASES
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import idsel_kernels as idsel
from idsel_kernels.testing import clustered, ragged

ALL_RULES = pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES.keys())
OP = torch.ops.idsel.select.default


@pytest.fixture(autouse=True)
def _forget_compiled_graphs() -> None:
    """One function compiled for many rules would run into the limit of recompilations."""
    torch.compiler.reset()


def _same(a: idsel.Selection, b: idsel.Selection) -> bool:
    return torch.equal(a.indices, b.indices) and torch.equal(a.scores, b.scores)


def _count_op(graph: torch.fx.Graph) -> int:
    return sum(node.target is OP for node in graph.nodes)


@ALL_RULES
@pytest.mark.parametrize("kind", ["dense", "masked", "ragged", "half", "requires_grad", "counts"])
def test_opcheck(rule: idsel.Rule, kind: str) -> None:
    case = ragged((5, 9), 8) if kind == "ragged" else clustered(2, 12, 8)
    features = case.features.half() if kind == "half" else case.features
    if kind == "requires_grad":
        features.requires_grad_()
    more: dict[str, Any] = {"cu_seqlens": case.cu_seqlens} if kind == "ragged" else {}
    if kind == "counts":
        more["counts"] = torch.tensor([1, 4])
    if kind == "masked":
        more["mask"] = torch.arange(24).view(2, 12) % 3 != 0
    rule_id, params = rule.encode()
    torch.library.opcheck(OP, (features, [4], rule_id, params, case.importance), more)


@ALL_RULES
def test_compile_fullgraph_reaches_the_operator_and_agrees(rule: idsel.Rule) -> None:
    graphs = []

    def record(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(module.graph)
        return module.forward

    def kept(features: torch.Tensor, importance: torch.Tensor) -> tuple[idsel.Selection, torch.Tensor]:
        sel = idsel.select(features, 5, rule=rule, importance=importance, sort=True)
        return sel, features.gather(1, sel.indices[..., None].expand(-1, -1, features.shape[-1]))

    case = clustered(2, 40, 16)
    expected, rows = kept(*case[:2])
    actual, compiled_rows = torch.compile(kept, fullgraph=True, backend=record)(*case[:2])
    assert _same(actual, expected) and torch.equal(rows, compiled_rows)
    assert [_count_op(graph) for graph in graphs] == [1]


def test_compile_with_inductor_agrees() -> None:
    def kept(features: torch.Tensor, importance: torch.Tensor) -> tuple[idsel.Selection, torch.Tensor]:
        sel = idsel.select(features * 2, 5, importance=importance.clamp(max=0.5))
        return sel, features.gather(1, sel.indices[..., None].expand(-1, -1, features.shape[-1])) - 1

    case = clustered(2, 40, 16)
    (sel, rows), (expected, expected_rows) = torch.compile(kept, fullgraph=True)(*case[:2]), kept(*case[:2])
    assert _same(sel, expected) and torch.equal(rows, expected_rows)


def test_compile_accepts_a_rule_made_inside_and_ragged_batches() -> None:
    def pick(features: torch.Tensor, importance: torch.Tensor, cu_seqlens: torch.Tensor) -> idsel.Selection:
        rule = idsel.IDSelection(gamma=10.0, floor=None)
        return idsel.select(features, [2, 3], rule=rule, importance=importance, cu_seqlens=cu_seqlens)

    case = ragged((6, 9), 8)
    assert _same(torch.compile(pick, fullgraph=True, backend="aot_eager")(*case), pick(*case))


def test_compile_does_not_recompile_when_shapes_change_under_dynamic() -> None:
    compiled_graphs = []

    def count(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        compiled_graphs.append(module)
        return module.forward

    def pick(features: torch.Tensor, importance: torch.Tensor) -> idsel.Selection:
        return idsel.select(features, 4, importance=importance)

    compiled = torch.compile(pick, fullgraph=True, dynamic=True, backend=count)
    for batch, tokens in ((2, 30), (3, 41), (5, 64)):
        case = clustered(batch, tokens, 8)
        assert _same(compiled(*case[:2]), pick(*case[:2]))
    assert len(compiled_graphs) == 1


def test_compile_raises_the_shape_error_of_the_eager_call() -> None:
    def pick(features: torch.Tensor, importance: torch.Tensor) -> idsel.Selection:
        return idsel.select(features, 4, importance=importance)

    with pytest.raises(Exception, match=r"importance must be \(B, N\) = \(2, 6\) to match features, got \(2, 5\)"):
        torch.compile(pick, fullgraph=True, backend="eager")(torch.randn(2, 6, 4), torch.rand(2, 5))


class _Pruner(torch.nn.Module):
    def __init__(self, rule: idsel.Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, features: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sel = idsel.select(features, 5, rule=self.rule, importance=importance)
        return sel.indices, sel.scores


@ALL_RULES
@pytest.mark.parametrize("strict", [False, True], ids=["draft", "strict"])
def test_export_with_dynamic_shapes(rule: idsel.Rule, strict: bool) -> None:
    module, case = _Pruner(rule), clustered(2, 40, 8)
    batch, tokens = Dim("batch", min=2), Dim("tokens", min=2)
    axes = ({0: batch, 1: tokens}, {0: batch, 1: tokens})
    program = torch.export.export(module, case[:2], dynamic_shapes=axes, strict=strict)
    assert _count_op(program.graph) == 1
    other = clustered(3, 57, 8)
    for ours, expected in zip(program.module()(*other[:2]), module(*other[:2]), strict=True):
        assert torch.equal(ours, expected)


def test_make_fx_records_the_operator() -> None:
    case = clustered(1, 20, 8)
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(lambda f, i: idsel.select(f, 3, importance=i), tracing_mode=mode)(*case[:2])
        assert _count_op(traced.graph) == 1


def test_dispatch_modes_see_the_operator() -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    case = clustered(1, 20, 8)
    with Watch():
        idsel.select(**case.inputs(), k=3)
    assert seen == [OP]


def test_tensor_subclasses_go_through_the_operator() -> None:
    class Tagged(torch.Tensor):
        pass

    from idsel_kernels.tracing import must_trace

    case = clustered(1, 20, 8)
    assert must_trace(case.features.as_subclass(Tagged))
    assert not must_trace(case.features, torch.nn.Parameter(case.features), None)
    expected = idsel.select(**case.inputs(), k=3)
    assert _same(idsel.select(case.features.as_subclass(Tagged), 3, importance=case.importance), expected)


def test_meta_tensors_give_meta_outputs_of_the_right_shape() -> None:
    sel = idsel.select(torch.empty(3, 10, 4, device="meta"), 4, importance=torch.empty(3, 10, device="meta"))
    assert (sel.indices.shape, sel.indices.dtype, sel.indices.device.type) == ((3, 4), torch.int64, "meta")
    assert (sel.scores.shape, sel.scores.dtype) == ((3, 4), torch.float32)


def test_operator_output_shape_is_the_widest_k_for_per_sample_counts() -> None:
    case = clustered(3, 10, 4)
    rule_id, params = idsel.IDSelection().encode()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in case[:2]]
        indices, _ = OP(fake[0], [1, 7, 3], rule_id, params, fake[1])
    assert indices.shape == (3, 7)


def test_eager_call_on_plain_tensors_does_not_cross_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels import ops

    def refuse(*args: object) -> None:
        raise AssertionError("the operator was called")

    monkeypatch.setattr(ops, "select", refuse)
    case = clustered(1, 20, 8)
    idsel.select(**case.inputs(), k=3)
    with torch.no_grad():
        idsel.select(**case.inputs(), k=3)


def test_validate_and_errors_work_inside_a_compiled_function() -> None:
    def pick(features: torch.Tensor, importance: torch.Tensor) -> idsel.Selection:
        return idsel.select(features, 2, importance=importance, validate=True)

    compiled = torch.compile(pick, fullgraph=True, backend="aot_eager")
    case = clustered(1, 10, 4)
    assert _same(compiled(*case[:2]), pick(*case[:2]))
    case.importance[0, 3] = float("nan")
    with pytest.raises(ValueError, match="importance must be finite, got a NaN or infinity in token 3 of sample 0"):
        compiled(*case[:2])

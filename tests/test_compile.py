"""Programs that are compiled or exported once, for every size."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

import idsel_kernels as idsel

Tensors = tuple[torch.Tensor, ...]

# N of LLaVA-1.5, SigLIP, LLaVA-NeXT and others; batch and k change with each.
SIZES = [(2 + i % 5, n, 40 + i) for i, n in enumerate((576, 577, 600, 729, 1000, 1024, 2304, 2880, 3000, 3100))]


def kept(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    out = idsel.prune(hidden, k, idsel.MMR(), importance)
    return out.hidden, out.counts, out.keep_mask(hidden.shape[1])


def with_positions(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    out = idsel.prune(hidden, k, idsel.MMR(), importance, order="pick", position_ids=positions)
    return out.hidden, out.position_ids  # type: ignore[return-value]


def merged(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    out = idsel.prune(hidden, k, idsel.MMR(), importance, merge="weighted")
    return out.hidden, out.sizes  # type: ignore[return-value]


def protected(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    out = idsel.prune(hidden, k, idsel.MMR(), importance, protect=importance > 0.99)
    return out.hidden, out.indices


def share(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    return (idsel.prune(hidden, rule=idsel.MMR(), importance=importance, keep_ratio=0.1).hidden,)


def on_the_device(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    counts = torch.full((hidden.shape[0],), 12, device=hidden.device)
    return (idsel.prune(hidden, counts, idsel.MMR(), importance, k_max=k).hidden,)


def by_hand(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    sel = idsel.select(hidden, k, idsel.MMR(), importance)
    return sel.gather(hidden), *sel.sorted()


def paired(hidden: torch.Tensor, importance: torch.Tensor, k: int) -> Tensors:
    kept, receivers = idsel.bipartite_pairing(hidden, 5)
    return idsel.merge(hidden, kept, receivers=receivers)


PROGRAMS = [kept, with_positions, merged, protected, share, on_the_device, by_hand, paired]
on_programs = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)


def _inputs(batch: int, tokens: int) -> Tensors:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn((batch, tokens, 8), generator=generator), torch.rand((batch, tokens), generator=generator)


def _compiled(program: Callable[..., Any], dynamic: bool | None) -> tuple[Callable[..., Any], list[Any]]:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def keep_graph(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    return torch.compile(program, fullgraph=True, dynamic=dynamic, backend=keep_graph), graphs


@pytest.mark.parametrize("dynamic", [None, True])
@on_programs
def test_ten_sizes_take_at_most_two_graphs(program: Callable[..., Tensors], dynamic: bool | None) -> None:
    compiled, graphs = _compiled(program, dynamic)
    for batch, tokens, k in SIZES:
        inputs = _inputs(batch, tokens)
        assert all(map(torch.equal, compiled(*inputs, k), program(*inputs, k)))
    assert 1 <= len(graphs) <= 2


@pytest.mark.parametrize("dynamic", [None, True])
def test_ten_ragged_batches_take_at_most_two_graphs(dynamic: bool | None) -> None:
    def program(hidden: torch.Tensor, importance: torch.Tensor, cu_seqlens: torch.Tensor, k: int) -> Tensors:
        out = idsel.prune(hidden, k, idsel.MMR(), importance, cu_seqlens=cu_seqlens, merge="mean", max_seqlen=400)
        return out.hidden, out.cu_seqlens, out.sizes  # type: ignore[return-value]

    compiled, graphs = _compiled(program, dynamic)
    for i in range(10):
        case = idsel.inputs.ragged([100 + i, *[150 + 7 * i] * (i + 2), 3], 8)
        inputs = case.features, case.importance, case.cu_seqlens, 20 + i
        assert all(map(torch.equal, compiled(*inputs), program(*inputs)))  # type: ignore[arg-type]
    assert 1 <= len(graphs) <= 2


class _Module(torch.nn.Module):
    def __init__(self, program: Callable[..., Any], k: int) -> None:
        super().__init__()
        self.program, self.k = program, k

    def forward(self, hidden: torch.Tensor, importance: torch.Tensor) -> Any:
        return self.program(hidden, importance, self.k)


@on_programs
def test_an_exported_program_takes_other_sizes(program: Callable[..., Tensors]) -> None:
    axes = {0: Dim("batch", min=1, max=64), 1: Dim("tokens", min=16, max=4096)}
    exported = torch.export.export(_Module(program, 12), _inputs(2, 576), dynamic_shapes=(axes, axes))
    for batch, tokens in ((1, 16), (3, 577), (5, 1000)):
        inputs = _inputs(batch, tokens)
        assert all(map(torch.equal, exported.module()(*inputs), program(*inputs, 12)))


def test_an_exported_program_takes_other_ragged_batches_and_returns_what_prune_does() -> None:
    class Ragged(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, importance: torch.Tensor, cu_seqlens: torch.Tensor) -> idsel.Pruned:
            return idsel.prune(
                hidden, 4, "mmr", importance, cu_seqlens=cu_seqlens, merge="mean", max_seqlen=64,
                protect=importance > 0.9,
            )  # fmt: skip

    tokens, offsets = Dim("tokens", min=40, max=4096), Dim("offsets", min=3, max=64)
    example, other = (idsel.inputs.ragged(lengths, 8) for lengths in ((30, 20), (60, 0, 7, 33)))
    shapes = ({0: tokens}, {0: tokens}, {0: offsets})
    exported = torch.export.export(Ragged(), tuple(example), dynamic_shapes=shapes)  # type: ignore[arg-type]
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    given, wanted = torch.export.load(file).module()(*other), Ragged()(*other)  # type: ignore[arg-type]
    assert isinstance(given, idsel.Pruned)
    assert torch.equal(given.hidden, wanted.hidden) and torch.equal(given.indices, wanted.indices)


def test_an_exported_program_takes_other_budgets() -> None:
    class Budgeted(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, importance: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return idsel.prune(hidden, k, idsel.MMR(), importance, k_max=12).hidden

    batch, tokens = Dim("batch", min=1, max=64), Dim("tokens", min=2, max=4096)
    shapes = ({0: batch, 1: tokens}, {0: batch, 1: tokens}, {0: batch})
    exported = torch.export.export(Budgeted(), (*_inputs(2, 576), torch.tensor([3, 4])), dynamic_shapes=shapes)
    inputs = _inputs(3, 600)
    wanted = idsel.prune(*inputs[:1], [12, 0, 5], idsel.MMR(), inputs[1]).hidden
    assert torch.equal(exported.module()(*inputs, torch.tensor([12, 0, 5])), wanted)


def test_a_loaded_program_needs_the_package() -> None:
    """torch does not say which package an operator comes from; the quickstart says to import it."""
    exported = torch.export.export(_Module(kept, 12), _inputs(2, 30))
    file = io.BytesIO()
    torch.export.save(exported, file)
    code = (
        "import io, sys, torch; {imports}; data = io.BytesIO(sys.stdin.buffer.read())\n"
        "print(torch.export.load(data).module()(torch.randn(2, 30, 8), torch.rand(2, 30))[0].shape)"
    )
    for imports, works in (("import idsel_kernels", True), ("pass", False)):
        command = [sys.executable, "-c", code.format(imports=imports)]
        done = subprocess.run(command, input=file.getvalue(), capture_output=True, check=False)
        assert (done.returncode == 0) is works, done.stderr.decode()
        assert works is (b"torch.Size([2, 12, 8])" in done.stdout)
        assert works or b"idsel" in done.stderr

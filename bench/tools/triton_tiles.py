"""Searches for the tiles of idsel_kernels/triton_impl/config.py on the GPU at hand.

    python -m bench.tools.triton_tiles [--dtypes bfloat16 float32] [--dims 64 1024 3584]
                                       [--tokens 576 2880] [--batches 1 32]

For every dtype and D it times replays of a CUDA graph of one call with each candidate tile, several replays between two
events so that their own cost disappears, in rounds that go through all candidates, so that a change of the clock meets
every one. It prints median, 20th and 80th percentile in microseconds, and ends with rows for the table `_TILES`: for
each the tile with the smallest sum of medians over N and batch, relative to the best of each, and what is not told
apart from it: a candidate whose percentiles overlap. A candidate that does not compile or picks wrongly is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable

import torch

CANDIDATES = [
    (block_m, block_k, stages) for block_m in (32, 64, 128) for block_k in (16, 32, 64, 128) for stages in (2, 3, 4)
]
ROUNDS = 12
REPLAYS = 20  # between two events

Times = dict[tuple[int, int, int], list[list[float]]]  # of a candidate, for each shape


def _graph(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A call captured once it has run."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    """The mean of some replays."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / REPLAYS


def summary(times: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    median, low, high = torch.tensor(times).quantile(torch.tensor([0.5, 0.2, 0.8])).tolist()
    return median, low, high


def ranking(times: Times) -> tuple[tuple[int, int, int], list[tuple[int, int, int]]]:
    """The best candidate, and those that the times do not tell apart from it in any shape."""
    shapes = range(len(next(iter(times.values()))))
    medians = {candidate: [summary(values)[0] for values in of] for candidate, of in times.items()}
    least = [min(of[shape] for of in medians.values()) for shape in shapes]
    best = min(medians, key=lambda candidate: sum(medians[candidate][shape] / least[shape] for shape in shapes))

    def overlaps(candidate: tuple[int, int, int], shape: int) -> bool:
        (_, low, high), (_, best_low, best_high) = summary(times[candidate][shape]), summary(times[best][shape])
        return low <= best_high and best_low <= high

    alike = [other for other in times if other != best and all(overlaps(other, shape) for shape in shapes)]
    return best, alike


def _graphs(
    dtype: torch.dtype, dim: int, shapes: list[tuple[int, int]]
) -> dict[tuple[int, int, int], list[torch.cuda.CUDAGraph]]:
    """For each candidate that works a graph for each shape."""
    import idsel_kernels as idsel
    from idsel_kernels.testing import check_selection, clustered
    from idsel_kernels.triton_impl import config

    graphs: dict[tuple[int, int, int], list[torch.cuda.CUDAGraph]] = {}
    cases = [clustered(*shape, dim, dtype=dtype).inputs() for shape in shapes]
    inputs = [{name: value.cuda() for name, value in case.items()} for case in cases]
    table = config.tile_for
    try:
        for candidate in CANDIDATES:
            tile = config.Tile(*candidate)
            config.tile_for = lambda arch, itemsize, dim, tile=tile: tile
            _forget_plans()
            try:
                of_shapes = []
                for given in inputs:
                    sel = idsel.select(**given, k=64, backend="triton")
                    check_selection(sel, **given).assert_ok()
                    of_shapes.append(_graph(lambda given=given: idsel.select(**given, k=64, backend="triton")))
            except Exception as error:  # out of shared memory, no such layout, wrong picks
                print(f"{dtype} D={dim} {candidate}: {type(error).__name__}: {str(error)[:80]}")
                torch.cuda.synchronize()
                continue
            graphs[candidate] = of_shapes
    finally:
        config.tile_for = table
        _forget_plans()
    return graphs


def _forget_plans() -> None:
    """They are of another tile."""
    from idsel_kernels import calls
    from idsel_kernels.triton_impl import launch

    launch.make_plan.cache_clear()
    calls.forget()


def _search(
    dtype: torch.dtype, dim: int, tokens: list[int], batches: list[int]
) -> tuple[tuple[int, int, int], list[tuple[int, int, int]]] | None:
    shapes = list(itertools.product(batches, tokens))
    graphs = _graphs(dtype, dim, shapes)
    times: Times = {candidate: [[] for _ in shapes] for candidate in graphs}
    for _ in range(ROUNDS):
        for candidate, of_shapes in graphs.items():
            for values, graph in zip(times[candidate], of_shapes, strict=True):
                values.append(_replay_us(graph))
    for candidate, of in times.items():
        for shape, values in zip(shapes, of, strict=True):
            median, low, high = summary(values)
            print(f"{dtype} D={dim} B,N={shape} {candidate}: {median:.1f} us ({low:.1f} to {high:.1f})", flush=True)
    return ranking(times) if times else None


def main(arguments: list[str] | None = None) -> int:
    """Searches, or says what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dtypes", nargs="+", choices=["bfloat16", "float16", "float32"], default=["bfloat16", "float32"]
    )
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 1024, 3584])
    parser.add_argument("--tokens", nargs="+", type=int, default=[576, 2880])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("triton_tiles times kernels: it needs a CUDA or HIP device, and found none", file=sys.stderr)
        return 1
    properties = torch.cuda.get_device_properties(0)
    arch = 0 if torch.version.hip else properties.major * 10 + properties.minor
    print(f"{properties.name}, torch {torch.__version__}")
    for name, dim in itertools.product(options.dtypes, options.dims):
        dtype = getattr(torch, name)
        if (found := _search(dtype, dim, options.tokens, options.batches)) is not None:
            best, alike = found
            print(f"    (({arch}, {arch}), {dtype.itemsize}, {dim}, Tile{best}),  # {name} on {properties.name}")
            print(f"    # not told apart from it: {', '.join(map(str, alike)) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

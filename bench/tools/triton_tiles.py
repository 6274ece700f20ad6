"""Searches for the tiles of idsel_kernels/triton_impl/config.py on the GPU at hand.

    python -m bench.tools.triton_tiles [--dtypes bfloat16 float32] [--dims 64 1024 3584]
                                       [--tokens 576 2880] [--batches 1 32]

For every dtype and D it times whole calls with each candidate tile, prints median, 20th and 80th percentile in
microseconds, and ends with rows for the table `_TILES`: for each the tile with the smallest sum of medians over N and
batch, relative to the best of each. A candidate that spills, does not fit, or picks wrongly is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import torch

CANDIDATES = [
    (block_m, block_k, stages) for block_m in (32, 64, 128) for block_k in (16, 32, 64, 128) for stages in (2, 3, 4)
]
REPEATS = 60


def _time_us(call: Any) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile of one call."""
    for _ in range(5):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = torch.tensor([begin.elapsed_time(end) * 1e3 for begin, end in events])
    median, low, high = times.quantile(torch.tensor([0.5, 0.2, 0.8])).tolist()
    return median, low, high


def _search(dtype: torch.dtype, dim: int, tokens: list[int], batches: list[int]) -> tuple[int, int, int] | None:
    import idsel_kernels as idsel
    from idsel_kernels.testing import check_selection, clustered
    from idsel_kernels.triton_impl import config, launch

    medians: dict[tuple[int, int, int], list[float]] = {}
    shapes = list(itertools.product(batches, tokens))
    cases = {shape: clustered(*shape, dim, dtype=dtype) for shape in shapes}
    table = config.tile_for
    try:
        for candidate in CANDIDATES:
            tile = config.Tile(*candidate)
            config.tile_for = lambda arch, itemsize, dim, tile=tile: tile
            launch.make_plan.cache_clear()
            times = []
            for shape in shapes:
                inputs = {name: value.cuda() for name, value in cases[shape].inputs().items()}

                def call(inputs: dict[str, torch.Tensor] = inputs) -> idsel.Selection:
                    return idsel.select(**inputs, k=64, backend="triton")

                try:
                    check_selection(call(), **inputs).assert_ok()
                    median, low, high = _time_us(call)
                except AssertionError as error:
                    print(f"{dtype} D={dim} B,N={shape} {candidate}: WRONG: {error}")
                    break
                except Exception as error:  # out of shared memory, no such layout
                    print(f"{dtype} D={dim} B,N={shape} {candidate}: {type(error).__name__}")
                    break
                print(f"{dtype} D={dim} B,N={shape} {candidate}: {median:.1f} us ({low:.1f} to {high:.1f})", flush=True)
                times.append(median)
            if len(times) == len(shapes):
                medians[candidate] = times
    finally:
        config.tile_for = table
        launch.make_plan.cache_clear()
    if not medians:
        return None
    best = [min(times[i] for times in medians.values()) for i in range(len(shapes))]
    return min(medians, key=lambda candidate: sum(t / b for t, b in zip(medians[candidate], best, strict=True)))


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
        best = _search(dtype, dim, options.tokens, options.batches)
        print(f"    (({arch}, {arch}), {dtype.itemsize}, {dim}, Tile{best}),  # {name} on {properties.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

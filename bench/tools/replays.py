"""Times the package by graph replays, back to back on one input: `python bench/tools/replays.py [FILE] [ENGINES]`.

The figures of docs/performance.md: a warm cache, no host. Run by its path it takes whatever `idsel_kernels` the
interpreter finds, so that an older build is timed in the same minute: `PYTHONPATH=OLD python bench/tools/replays.py`.
FILE gets a line of JSON for each figure.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import idsel_kernels as idsel
from idsel_kernels.testing import clustered

RULES = {
    "IDSelection": idsel.IDSelection(),
    "MMR": idsel.MMR(),
    "HardSuppress": idsel.HardSuppress(),
    "MaxMin(start=0)": idsel.MaxMin(start=0),
    "MaxMin": idsel.MaxMin(),
    "DPP": idsel.DPP(),
    "Coverage": idsel.Coverage(),
    "TopK": idsel.TopK(),
}
ROUNDS = 9


class Work(NamedTuple):
    """One figure."""

    batch: int
    tokens: int
    dim: int
    k: int
    rule: str = "IDSelection"
    dtype: torch.dtype = torch.bfloat16
    ragged: bool = False


def works() -> Iterator[Work]:
    """All figures."""
    for dim in (1024, 4096):
        for k in (1, 16, 64, 192):
            yield Work(1, 576, dim, k)
    for rule in list(RULES)[1:]:
        yield Work(1, 576, 1024, 64, rule)
    yield from (Work(1, 2880, 4096, k) for k in (1, 64, 288))
    yield from (Work(batch, 576, 1024, 64) for batch in (2, 4, 8, 16, 32, 128))
    yield Work(1, 576, 1024, 64, dtype=torch.float32)
    yield Work(1, 576, 1024, 64, dtype=torch.float16)
    yield Work(16, 1440, 3584, 64, ragged=True)
    yield Work(16, 2304, 3584, 64)
    yield Work(1, 16384, 3584, 64)


def inputs_of(work: Work) -> dict[str, torch.Tensor]:
    """Its tensors on the GPU; of a ragged batch, lengths between 0.4 and 1.6 times `tokens`."""
    if not work.ragged:
        case = clustered(work.batch, work.tokens, work.dim, seed=1, dtype=work.dtype)
        return {name: tensor.to("cuda") for name, tensor in case.inputs().items()}
    lengths = [round(work.tokens * (0.4 + 1.2 * b / (work.batch - 1))) for b in range(work.batch)]
    case = clustered(1, sum(lengths), work.dim, seed=1, dtype=work.dtype)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    flat = {name: tensor[0].to("cuda") for name, tensor in case.inputs().items()}
    return {**flat, "cu_seqlens": ends.to("cuda")}


def replay_us(call: Callable[[], object], calls: int) -> float:
    """The median over replays of a graph of `calls` calls, in µs a call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(ROUNDS + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times[1:])


def measured(work: Work, engine: str) -> dict[str, Any]:
    """One line of the table."""
    inputs = inputs_of(work)
    if work.rule.startswith("MaxMin"):
        inputs.pop("importance")
    k = [work.k] * work.batch if work.ragged else work.k
    calls = 20 if work.batch * work.tokens < 10_000 else 3
    rule = RULES[work.rule]
    try:
        us = replay_us(lambda: idsel.select(**inputs, k=k, rule=rule, backend=engine), calls)
    except Exception as error:  # an engine that cannot run one figure can run the others
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    return {"us": round(us, 2)}


def main() -> None:
    """Prints the table."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    engines = sys.argv[2].split(",") if len(sys.argv) > 2 else ["cuda"]
    lines = []
    for work in works():
        for engine in engines:
            line = {**work._asdict(), "dtype": str(work.dtype)[6:], "engine": engine, **measured(work, engine)}
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    if file is not None:
        file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""`prune` beside `select` and one gather by hand, and `merge` beside the plain torch of VisionZip's repository.

    python -m bench.tools.after_picks [--device cuda] [--shape 8 576 1024] [--k 64]

All by turns in one process, on the same input. On a GPU once more as replays of a CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

import idsel_kernels as idsel

from ..harness import Budget, interleave, interleave_graphs


def by_hand(features: torch.Tensor, k: int, importance: torch.Tensor) -> torch.Tensor:
    """What `prune` saves its caller from writing, where no sample is padded."""
    indices = idsel.select(features, k, "id", importance, sort=True).indices
    return features.gather(1, indices[..., None].expand(-1, -1, features.shape[-1]))


def one_hot_merge(hidden: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Merging as pruners write it: a similarity matrix, a one-hot matrix and its product with the hidden states."""
    unit = torch.nn.functional.normalize(hidden.float(), dim=-1)
    kept = unit.gather(1, indices[..., None].expand(-1, -1, unit.shape[-1]))
    owner = (unit @ kept.mT).argmax(-1)
    matrix = torch.nn.functional.one_hot(owner, indices.shape[1]).to(hidden.dtype).mT
    return (matrix @ hidden) / matrix.sum(-1, keepdim=True).clamp(min=1)


def calls(shape: tuple[int, int, int], k: int, device: torch.device) -> dict[str, list[Callable[[], object]]]:
    """What is timed, by name."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    case = idsel.inputs.clustered(*shape, dtype=dtype)
    features, importance = case.features.to(device), case.importance.to(device)
    sel = idsel.select(features, k, "id", importance, sort=True)
    return {
        "select, gather by hand": [lambda: by_hand(features, k, importance)],
        "select": [lambda: idsel.select(features, k, "id", importance, sort=True)],
        "prune": [lambda: idsel.prune(features, k, "id", importance)],
        "merge by one-hot product": [lambda: one_hot_merge(features, sel.indices)],
        "merge": [lambda: idsel.merge(features, sel)],
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints medians, and how many times as long as the call by hand each takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--shape", nargs=3, type=int, default=(8, 576, 1024), metavar=("B", "N", "D"))
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args(arguments)
    timed = calls(tuple(options.shape), options.k, options.device)
    timers = {"eager": interleave, "graph replay": interleave_graphs}
    for name in ("eager",) if options.device.type == "cpu" else timers:
        found = timers[name](timed, options.device, Budget(repeats=30, seconds=options.seconds))
        print(f"{name}, {tuple(options.shape)}, k={options.k}, {options.device}")
        for pair, base in ((("select, gather by hand", "select", "prune"), "select, gather by hand"),
                           (("merge by one-hot product", "merge"), "merge by one-hot product")):  # fmt: skip
            for call in pair:
                if call in found:  # a capture may have been refused
                    took = found[call].median_us
                    print(f"  {call:26} {took:9.1f} us  {took / found[base].median_us:6.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which tiles and blocks the kernel runs with: a frozen table, no search at run time.

The tile of the Gram depends on architecture, dtype and D, never on N: in a ragged batch N differs from sample to
sample, and a similarity must not change its bits with the batch it travels in. N chooses the block of the greedy loop,
which adds nothing up, and the warps. `bench/tools/triton_tiles.py` searches for better entries on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COVER_BLOCK", "LARGEST_RESIDENT", "Config", "Tile", "choose", "tile_for"]

# Above this many tokens the loop's values would not fit into the registers of one program without spilling: 4096
# tokens over 8 warps are 16 of each value per thread, and four values and a 64-bit key are alive at once.
LARGEST_RESIDENT = 4096

# Block of the loop where its values stay in memory: enough loads in flight, few enough registers for any rule.
_STREAMED_BLOCK = 2048

# (i, j) block in which Coverage adds up gains. One for every N, and with one number of warps: the order of the
# additions follows from it. 128 neighbouring floats of a row are four full cache lines.
COVER_BLOCK = (32, 128)
_COVERAGE_WARPS = 8


class Tile(NamedTuple):
    """How a tile of dot products is computed."""

    block_m: int
    block_k: int
    num_stages: int


class Config(NamedTuple):
    """All compile-time sizes of a launch."""

    tile: Tile
    block_n: int
    resident: bool
    num_warps: int
    max_registers: int | None


# (first, last) architecture as Triton numbers them (compute capability * 10; 0 for HIP), bytes per element, least D.
# The first row that fits is taken. None of these was timed on a GPU yet: they follow from shared memory and registers.
_TILES: tuple[tuple[tuple[int, int], int, int, Tile], ...] = (
    # HIP: 64 KiB of local memory and no asynchronous copies to keep a third stage filled.
    ((0, 0), 4, 1, Tile(64, 16, 2)),
    ((0, 0), 2, 1, Tile(64, 64, 2)),
    # float32 goes through the FMA units with its operands in registers: a longer K spills.
    ((80, 999), 4, 1, Tile(64, 16, 2)),
    # Below this D has fewer blocks than three stages would hold.
    ((80, 999), 2, 193, Tile(64, 64, 3)),
    ((80, 999), 2, 1, Tile(64, 32, 2)),
    # Before Ampere: no asynchronous copies.
    ((1, 79), 4, 1, Tile(64, 16, 2)),
    ((1, 79), 2, 1, Tile(64, 32, 2)),
)


def tile_for(arch: int, itemsize: int, dim: int) -> Tile:
    """The tile for an architecture (0: HIP), bytes per feature element and D."""
    for (first, last), size, least_dim, tile in _TILES:
        if first <= arch <= last and size == itemsize and dim >= least_dim:
            return tile
    raise ValueError(f"no tile for arch {arch}, {itemsize} bytes per element, D = {dim}")


def _max_registers(
    arch: int, itemsize: int, num_warps: int, coverage: bool, history: bool, nearest_first: bool
) -> int | None:
    """The limit to compile for; None leaves it to the assembler.

    Left alone, the assembler rounds its limit down to raise the number of programs per multiprocessor, and now and then
    spills a few bytes for it. These are the limits at which nothing spilled (`bench/tools/triton_resources.py`).
    """
    if arch < 80:
        return None
    if itemsize == 4:
        if coverage:
            return 128
        return None if nearest_first or num_warps != 4 else 224
    if num_warps != 4 or 90 <= arch < 120:
        return None
    # Three programs of 128 threads with 168 registers fit into the register file, or two with 255.
    return 168 if arch >= 120 and not (history or nearest_first) else 255


def choose(
    arch: int,
    itemsize: int,
    tokens: int,
    dim: int,
    *,
    streamed: bool = False,
    coverage: bool = False,
    history: bool = False,
    nearest_first: bool = False,
) -> Config:
    """The configuration of a call.

    Args:
        arch: compute capability * 10 (90 for Hopper), 0 for HIP.
        itemsize: bytes per feature element.
        tokens: N, or T of a ragged batch.
        dim: D.
        streamed: the loop must keep its values in memory, whatever N.
        coverage: the rule adds up the whole Gram per pick.
        history: the rule keeps a row per pick.
        nearest_first: tiles also find each token's nearest other.
    """
    tile = tile_for(arch, itemsize, dim)
    resident = not streamed and tokens <= LARGEST_RESIDENT
    block_n = max(64, 1 << (tokens - 1).bit_length()) if resident else _STREAMED_BLOCK
    # One pick waits for its slowest warp: more warps only where a thread would hold more than 8 tokens.
    num_warps = _COVERAGE_WARPS if coverage or block_n > 1024 else 4
    max_registers = _max_registers(arch, itemsize, num_warps, coverage, history, nearest_first)
    return Config(tile, block_n, resident, num_warps, max_registers)

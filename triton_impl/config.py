"""Which tiles and blocks the kernel runs with: a frozen table, no search at run time.

The tile of the Gram depends on architecture, dtype and D, never on N: in a ragged batch N differs from sample to
sample, and a similarity must not change its bits with the batch it travels in. N chooses the block of the greedy loop,
which adds nothing up, and the warps. `bench/tools/triton_tiles.py` searches for better entries on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COVER_BLOCK", "FEW_TILES", "LARGEST_RESIDENT", "Config", "Tile", "choose", "parts_of", "tile_for"]

# Above this many tokens the loop's values would not fit into the registers of one program without spilling: 4096
# tokens over 8 warps are 16 of each value per thread.
LARGEST_RESIDENT = 4096

# Block of the loop where its values stay in memory: enough loads in flight, few enough registers. A smaller one has a
# whole sample where those of a ragged batch are short on average, and leaves registers for rows of DPP's history.
_STREAMED_BLOCK = 2048
_SMALL_STREAMED_BLOCK = 1024

# Coverage: candidates whose gains are summed together, tokens of a step of the sum, tokens of a candidate's class that
# are looked at together. One for every N, and with one number of warps: the order of the additions follows from it.
COVER_BLOCK = (16, 256, 64)

# D is cut into parts of about this length, which different programs may add up, where a sample has so few tiles (as
# 1024 tokens have) that they would leave most of a GPU without work. Shorter parts would take less time than the
# second arrival costs.
_PART = 1024
_MOST_PARTS = 8
FEW_TILES = 136


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


def parts_of(tiles: int, dim: int) -> int:
    """How many parts D is cut into. It is a function of the sample alone: a similarity's bits follow from it.

    Args:
        tiles: of the upper triangle of the sample's Gram.
        dim: D.
    """
    return max(1, min(dim // _PART, _MOST_PARTS)) if tiles <= FEW_TILES else 1


# (first, last) architecture as Triton numbers them (compute capability * 10; 0 for HIP), bytes per element, least D.
# The first row that fits is taken. None of these was timed on a GPU yet: they follow from shared memory and registers.
_TILES: tuple[tuple[tuple[int, int], int, int, Tile], ...] = (
    # HIP: 64 KiB of local memory and no asynchronous copies to keep a third stage filled.
    ((0, 0), 4, 1, Tile(64, 16, 2)),
    ((0, 0), 2, 1, Tile(64, 64, 2)),
    # float32 goes through the FMA units with its operands in registers: a longer K spills.
    ((80, 999), 4, 1, Tile(64, 16, 2)),
    # Below this D has fewer k-tiles than the stages would hold. Four: a k-tile takes the matrix units a tenth of the
    # time that it takes to arrive, and one sample has hardly more tiles than a GPU has multiprocessors.
    ((80, 999), 2, 193, Tile(64, 64, 4)),
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
    arch: int, itemsize: int, dim: int, num_warps: int, streamed: bool, history: bool, norms: bool
) -> int | None:
    """The limit to compile for; None leaves it to the assembler.

    Left alone, the assembler rounds its limit down to raise the number of programs per multiprocessor, and now and then
    spills a few bytes for it. These are the limits at which nothing spilled (`bench/tools/triton_resources.py`), and
    shared memory allows no more programs.
    """
    if arch < 80:
        return None
    if num_warps == 4:
        return 168 if 90 <= arch < 120 and dim < 2 * _PART else 255
    if itemsize == 4 or norms or history:
        return 255
    return 128 if arch >= 120 and not streamed else None


def choose(
    arch: int,
    itemsize: int,
    tokens: int,
    dim: int,
    *,
    streamed: bool = False,
    short: bool = False,
    history: bool = False,
    norms: bool = False,
    products: bool = True,
) -> Config:
    """The configuration of a call.

    Args:
        arch: compute capability * 10 (90 for Hopper), 0 for HIP.
        itemsize: bytes per feature element.
        tokens: N, or T of a ragged batch.
        dim: D.
        streamed: the loop must keep its values in memory, whatever N.
        short: samples have few tokens on average, whatever `tokens` is.
        history: the rule keeps a row per pick.
        norms: tiles also multiply their tokens with themselves, or gains are summed.
        products: tiles multiply features; not where similarities are given.
    """
    tile = tile_for(arch, itemsize, dim)
    if norms and tile.block_k == 64 and not 90 <= arch < 120:
        # Operands in registers, which three products want at once.
        tile = tile._replace(block_k=32)
    # Rows of DPP's history are in flight besides.
    resident = not streamed and tokens <= (LARGEST_RESIDENT // 2 if history else LARGEST_RESIDENT)
    block_n = _SMALL_STREAMED_BLOCK if short or history else _STREAMED_BLOCK
    if resident:
        block_n = max(64, 1 << (tokens - 1).bit_length())
    # One pick waits for its slowest warp: more warps only where a thread would hold more than 8 tokens, three tiles of
    # sums, or operands of float32. Coverage counts as having norms, so one number of warps adds up its gains.
    operands = itemsize == 4 and products
    num_warps = 8 if norms or operands or block_n > 1024 or (history and not resident) else 4
    max_registers = _max_registers(arch, itemsize, dim, num_warps, streamed, history, norms)
    return Config(tile, block_n, resident, num_warps, max_registers)

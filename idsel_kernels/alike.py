"""Which rows of a tensor are the same, found in O(n log n) and without waiting for a device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["differ_early", "first_alike", "first_equal"]

# Numbers looked at together: what is computed of them needs memory like so many, not like all. On a CPU they stay in
# its cache, on a GPU each part is several launches.
_PART_NUMBERS = {"cpu": 2**17}
_PART_NUMBERS_ELSEWHERE = 2**24

# As many numbers of a row as tell rows of floats apart, unless they are equal.
_EARLY = 16

# The multipliers of SplitMix64 and its step, as signed integers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def first_alike(rows: torch.Tensor) -> torch.Tensor:
    """The lowest index of a row that equals each row.

    Rows that the hash takes for the same are compared, so a collision can only miss an equal row, never invent one.

    Args:
        rows: (..., n, D) floating point, compared by value: -0.0 equals 0.0, and a row with a NaN no other.

    Returns:
        (..., n) int64; a row without an equal at a lower index gives its own.
    """
    flat = rows.flatten(0, -2)
    candidate = first_equal(_hashes(flat).view(rows.shape[:-1]))
    tokens = torch.arange(rows.shape[-2], device=rows.device).expand_as(candidate)
    begins = torch.arange(flat.shape[0], device=rows.device).view(candidate.shape) - tokens
    at = (candidate + begins).flatten()
    equal = torch.empty(flat.shape[0], dtype=torch.bool, device=rows.device)
    for part in _parts(flat):
        equal[part] = (flat[part] == flat.index_select(0, at[part])).all(-1)
    return torch.where(equal.view(candidate.shape), candidate, tokens)


def differ_early(rows: torch.Tensor) -> bool:
    """Whether the first few numbers of rows (n, D) tell all of them apart, so that none is alike to another.

    It saves the look at all of D where that is so, and waits for the device.
    """
    tokens = torch.arange(len(rows), device=rows.device)
    return bool((first_equal(_hashes(rows[:, :_EARLY])) == tokens).all())


def first_equal(keys: torch.Tensor) -> torch.Tensor:
    """The lowest index of a key that equals each key: (..., n) int64 to (..., n) int64."""
    ordered, order = keys.sort(stable=True)  # so that the lowest index comes first among equals
    return order.gather(-1, torch.searchsorted(ordered, keys))


def _hashes(rows: torch.Tensor) -> torch.Tensor:
    """(m, D) to (m,) int64, equal for equal rows."""
    # Integers wrap around and so add up to the same in any order, unlike floats. 64 bits, because numbers of few digits
    # differ in their upper bits only, which products of 32 bits would lose.
    word = torch.int16 if rows.element_size() == 2 else torch.int32
    weights = _weights(rows.shape[-1] * rows.element_size() // word.itemsize, rows.device)
    hashes = torch.empty(rows.shape[0], dtype=torch.int64, device=rows.device)
    for part in _parts(rows):
        # Zeros lose their sign; adding 0.0 would do that too, but a compiler may leave it out.
        words = torch.where(rows[part] == 0, 0.0, rows[part]).contiguous().view(word)
        hashes[part] = (words * weights).sum(-1)
    return hashes


def _parts(rows: torch.Tensor) -> Iterator[slice]:
    """Rows are looked at in parts, and results put where they belong: small ones kept in between would stop the
    allocator from using memory again."""
    if torch.compiler.is_compiling():
        yield slice(None)  # how many parts there are depends on a size, which a program must not
        return
    numbers = _PART_NUMBERS.get(rows.device.type, _PART_NUMBERS_ELSEWHERE)
    step = max(1, numbers // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        yield slice(begin, begin + step)


def _weights(count: int, device: torch.device) -> torch.Tensor:
    """Fixed odd numbers that look random, (count,) int64: SplitMix64, with arithmetic shifts."""
    z = (torch.arange(count, device=device) + 1) * _STEP
    z = (z ^ (z >> 30)) * _MIX[0]
    z = (z ^ (z >> 27)) * _MIX[1]
    return (z ^ (z >> 31)) | 1

"""What the workspace of a launch holds.

float32: first dot products (raw, without norms), or how well channels are covered, then the partial sums of tiles whose
D is shared out, then arrays of `scratch_width` elements, one element per token of the batch, in the order of the
constants below.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["ARRAYS", "NO_ROWS", "PANEL", "WHOLE", "padded"]

# Squared norms; when all scales are known, the tokens that `loops.choose` found.
SQUARES = tl.constexpr(0)
CHOSEN = tl.constexpr(0)
# 1 / norm.
SCALE = tl.constexpr(1)
# The importance of a token that takes part, -inf for one that is unusable, NaN for one that is not there.
STANDING = tl.constexpr(2)
# As `rules.ranked` makes them; Coverage keeps gains in their place.
PRIORITY = tl.constexpr(3)
GAIN = tl.constexpr(3)
STATE = tl.constexpr(4)
# Scores per token, to sort them; until then the step at which Coverage last summed a gain.
SCORE = tl.constexpr(5)
STAMP = tl.constexpr(5)
COVER = tl.constexpr(6)
# One row per tile row: what a tile says of its tokens before the first pick. One per pick: the history of DPP.
OF_TILES = tl.constexpr(7)
HISTORY = tl.constexpr(7)
ARRAYS = 7

# Where dot products come from: none are needed, every sample has its whole Gram, or a panel where that is too large.
NO_ROWS = tl.constexpr(0)
WHOLE = tl.constexpr(1)
PANEL = tl.constexpr(2)


@triton.jit
def padded(n):
    """Where a row of n elements ends in memory.

    What lies behind n there may be anything until a loop starts. It is read all the same, and belongs to tokens that
    take no part: a mask that ends between multiples of 16 would allow no vector loads.
    """
    return (n + 15) // 16 * 16

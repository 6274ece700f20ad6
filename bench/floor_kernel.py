"""The dependent step of the floor as one Triton program: no launches, no other blocks, nothing but the chain."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _chain_kernel(gram_ptr, out_ptr, tokens, steps, BLOCK_N: tl.constexpr):
    offsets = tl.arange(0, BLOCK_N)
    inside = offsets < tokens
    priority = tl.load(gram_ptr + offsets, mask=inside, other=float("-inf"))
    for _ in range(steps):
        pick = tl.argmax(priority, axis=0)
        row = tl.load(gram_ptr + pick * tokens + offsets, mask=inside, other=float("-inf"))
        priority = tl.minimum(priority, row)
    tl.store(out_ptr + offsets, priority, mask=inside)


def chain(gram: torch.Tensor, out: torch.Tensor, steps: int) -> None:
    """`steps` times: the largest of N priorities, and their minimum with that token's row. gram (N, N), out (N,)."""
    tokens = gram.shape[0]
    _chain_kernel[(1,)](gram, out, tokens, steps, BLOCK_N=triton.next_power_of_2(tokens), num_warps=8)

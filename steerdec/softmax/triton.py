# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The sums of a row's softmax in Triton, for kernels to call."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def load_block(row_ptr, block, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return the columns and the logits of one block of a row, -inf past its end."""
    column = block * BLOCK + tl.arange(0, BLOCK)
    return column, tl.load(row_ptr + column, mask=column < VOCAB, other=-float("inf"))


@triton.jit
def no_floor():
    """Return the floor of a row whose tokens are all kept."""
    return tl.full([], -float("inf"), tl.float32)


@triton.jit
def merge(partial_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return the largest logit of a row, the first block that has it, and H; NaN if softmax is undefined.

    From the sums of its blocks, [3, blocks]: the largest logit, sum e and sum e d.
    """
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    block = tl.arange(0, triton.next_power_of_2(blocks))
    inside = block < blocks
    tops = tl.load(partial_ptr + block, mask=inside, other=_LOWEST).to(tl.float64)
    partitions = tl.load(partial_ptr + blocks + block, mask=inside, other=0.0).to(tl.float64)
    weighteds = tl.load(partial_ptr + 2 * blocks + block, mask=inside, other=0.0).to(tl.float64)
    top = tl.max(tops, 0)
    d = tops - top
    weights = tl.exp(d)
    partition = tl.sum(weights * partitions, 0)
    weighted = tl.sum(weights * (weighteds + partitions * d), 0)
    # The largest logit alone adds 1, so a smaller sum means that there is none.
    h = tl.where(partition >= 1.0, tl.log(partition) - weighted / partition, float("nan"))
    return top.to(tl.float32), tl.min(tl.where(tops == top, block, blocks), 0), h


@triton.jit
def measure_at(row_ptr, top, temperature, floor, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return H of softmax(z / T) over z >= floor, and dH / d ln T, which is the variance of z / T.

    T may be infinite where there is a floor.
    """
    beta = (1.0 / temperature).to(tl.float32)
    partition = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    squared = tl.zeros([BLOCK], tl.float32)
    for block in range(0, (VOCAB + BLOCK - 1) // BLOCK):
        _, z = load_block(row_ptr, block, VOCAB, BLOCK)
        d = beta * (z - top)
        e = tl.where(z >= floor, tl.exp(d), 0.0)
        partition += e
        weighted += tl.where(e > 0, e * d, 0.0)
        squared += tl.where(e > 0, e * d * d, 0.0)
    total = tl.sum(partition, 0).to(tl.float64)
    mean = tl.sum(weighted, 0).to(tl.float64) / total
    return tl.log(total) - mean, tl.sum(squared, 0).to(tl.float64) / total - mean * mean


@triton.jit
def collision(row_ptr, top, temperature, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return sum e^2 / sum e, e = exp((z - top) / T): how likely two draws agree, over how likely the largest is."""
    beta = (1.0 / temperature).to(tl.float32)
    partition = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for block in range(0, (VOCAB + BLOCK - 1) // BLOCK):
        _, z = load_block(row_ptr, block, VOCAB, BLOCK)
        e = tl.exp(beta * (z - top))
        partition += e
        squares += e * e
    return tl.minimum(tl.sum(squares, 0).to(tl.float64) / tl.sum(partition, 0).to(tl.float64), 1.0)


@triton.jit
def _kept_and_next(row_ptr, floor, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return how many logits are at least `floor`, and the largest of the others."""
    kept = tl.zeros([BLOCK], tl.int32)
    below = tl.full([BLOCK], -float("inf"), tl.float32)
    for block in range(0, (VOCAB + BLOCK - 1) // BLOCK):
        _, z = load_block(row_ptr, block, VOCAB, BLOCK)
        kept += (z >= floor).to(tl.int32)
        below = tl.maximum(below, tl.where(z < floor, z, -float("inf")))
    return tl.sum(kept, 0), tl.max(below, 0)


@triton.jit
def kth_largest(row_ptr, top, k, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return the k-th largest logit, equal ones counted one by one; the smallest finite one if fewer are finite."""
    floor = top
    kept, below = _kept_and_next(row_ptr, floor, VOCAB, BLOCK)
    while (kept < k) & (below > -float("inf")):
        floor = below
        kept, below = _kept_and_next(row_ptr, floor, VOCAB, BLOCK)
    return floor

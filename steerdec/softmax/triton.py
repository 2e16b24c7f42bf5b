# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The sums of a row's softmax in Triton, for kernels to call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(row_ptr, block, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return the columns and the logits of one block of a row, -inf past its end."""
    column = block * BLOCK + tl.arange(0, BLOCK)
    return column, tl.load(row_ptr + column, mask=column < VOCAB, other=-float("inf"))


@triton.jit
def measure_at(row_ptr, top, temperature, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return H of softmax(z / T), and dH / d ln T, which is the variance of z / T."""
    beta = (1.0 / temperature).to(tl.float32)
    partition = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    squared = tl.zeros([BLOCK], tl.float32)
    for block in range(0, (VOCAB + BLOCK - 1) // BLOCK):
        _, z = load_block(row_ptr, block, VOCAB, BLOCK)
        d = beta * (z - top)
        e = tl.exp(d)
        partition += e
        weighted += tl.where(e > 0, e * d, 0.0)
        squared += tl.where(e > 0, e * d * d, 0.0)
    total = tl.sum(partition, 0).to(tl.float64)
    mean = tl.sum(weighted, 0).to(tl.float64) / total
    return tl.log(total) - mean, tl.sum(squared, 0).to(tl.float64) / total - mean * mean

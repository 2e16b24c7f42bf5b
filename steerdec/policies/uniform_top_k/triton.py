# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""uniform_top_k in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.policies.uniform_top_k import fields
from steerdec.softmax.triton import kth_largest

_K = tl.constexpr(fields.K)


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return T' = inf, the factor 0, and the floor of a fork."""
    floor = kth_largest(row_ptr, top, tl.load(f_ptr + _K).to(tl.int32), VOCAB, BLOCK)
    return tl.full([], float("inf"), tl.float64), tl.full([], 0.0, tl.float32), floor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""p_less in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.policies.p_less import fields
from steerdec.softmax.triton import collision, no_floor

_FORK_T, _FORK_FACTOR = tl.constexpr(fields.FORK_T), tl.constexpr(fields.FORK_FACTOR)


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return T' of a fork, the factor T / T', and the floor."""
    temperature = tl.load(f_ptr + _FORK_T).to(tl.float64)
    floor = no_floor()
    if temperature > 0.0:
        floor = (top + temperature * tl.log(collision(row_ptr, top, temperature, VOCAB, BLOCK))).to(tl.float32)
    return temperature, tl.load(f_ptr + _FORK_FACTOR), floor

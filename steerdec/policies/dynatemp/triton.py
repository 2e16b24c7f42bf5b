# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""dynatemp in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.policies.dynatemp import fields
from steerdec.softmax.triton import no_floor
from steerdec.steering import encoding

_REQUEST_T = tl.constexpr(encoding.REQUEST_T)
_LOW, _HIGH, _EXPONENT = tl.constexpr(fields.LOW), tl.constexpr(fields.HIGH), tl.constexpr(fields.EXPONENT)


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return T' of a fork, the factor T / T', and no floor."""
    low, high = tl.load(f_ptr + _LOW).to(tl.float64), tl.load(f_ptr + _HIGH).to(tl.float64)
    share = h / tl.log(tl.full([], VOCAB if VOCAB > 1 else 2, tl.float64))
    temperature = low + (high - low) * tl.exp(tl.load(f_ptr + _EXPONENT).to(tl.float64) * tl.log(share))
    return temperature, (tl.load(f_ptr + _REQUEST_T).to(tl.float64) / temperature).to(tl.float32), no_floor()

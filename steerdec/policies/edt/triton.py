# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""edt in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.policies.edt import fields
from steerdec.softmax.triton import no_floor
from steerdec.steering import encoding

_REQUEST_T = tl.constexpr(encoding.REQUEST_T)
_THETA, _BASE, _LOWEST = tl.constexpr(fields.THETA), tl.constexpr(fields.BASE), tl.constexpr(fields.LOWEST)


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return T' of a fork, the factor T / T', and no floor."""
    t = tl.load(f_ptr + _REQUEST_T).to(tl.float64)
    theta, base = tl.load(f_ptr + _THETA).to(tl.float64), tl.load(f_ptr + _BASE).to(tl.float64)
    temperature = tl.maximum(t * tl.exp(tl.log(base) * (theta / tl.maximum(h, 1e-30))), _LOWEST)
    return temperature, (t / temperature).to(tl.float32), no_floor()

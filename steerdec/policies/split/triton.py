# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""split in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.policies.split import fields
from steerdec.softmax.triton import no_floor

_FORK_T, _FORK_FACTOR = tl.constexpr(fields.FORK_T), tl.constexpr(fields.FORK_FACTOR)


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return T' of a fork, the factor T / T', and no floor."""
    return tl.load(f_ptr + _FORK_T).to(tl.float64), tl.load(f_ptr + _FORK_FACTOR), no_floor()

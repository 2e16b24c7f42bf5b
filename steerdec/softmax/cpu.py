"""The sums of a row's softmax on a CPU.

Compiled by numba into vector instructions. A row is read in blocks that fit the first-level
cache, twice each: for its largest logit, then for sum e and sum e d (d = z - largest, e = exp d).
The blocks' sums are merged in float64 and in order, so that a row's result is always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK: Final = 4096  # logits; 16 KiB of float32, half of the smallest first-level cache in use
PART: Final = 128  # of a block; as much of the next one is prefetched meanwhile
LINE: Final = 64  # bytes of a cache line

# `contract` lets a product and a sum become one instruction; `reassoc` lets a loop keep one partial
# sum per vector lane, in an order fixed at compile time. Nothing here may assume away NaN or inf.
jit: Callable[[Any], Any] = njit(error_model="numpy")
_fused: Callable[[Any], Any] = njit(error_model="numpy", fastmath={"contract"})
_sum: Callable[[Any], Any] = njit(error_model="numpy", fastmath={"contract", "reassoc"})


# exp(d) = 2^n exp(r), n = round(d / ln 2), |r| <= ln(2) / 2. ln 2 comes in two parts, the first
# short enough for n times it to be exact. Relative error 2e-7, without a table or a branch.
_EXP = np.polynomial.Chebyshev.interpolate(np.exp, 6, domain=[-math.log(2) / 2, math.log(2) / 2])
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = _EXP.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)
_LOG2_E: Final = np.float32(1 / math.log(2))
_LN2_HIGH: Final = np.float32(355 / 512)
_LN2_LOW: Final = np.float32(math.log(2) - 355 / 512)
_ROUND: Final = np.float32(1.5 * 2**23)  # adding and subtracting it rounds to the nearest integer
_SMALLEST: Final = np.float32(-87.0)  # exp of less than this is not a normal float32, and is taken as 0
_ZERO: Final = np.float32(0.0)
_LOWEST_KEY: Final = np.int32(-(2**31))
_LOWEST: Final = np.finfo(np.float32).min
_NOTHING: Final = np.float32(-np.inf)
NO_FLOOR: Final = _NOTHING  # of the logits that are kept


@intrinsic  # type: ignore[untyped-decorator]
def wide_vectors(_: Any) -> Any:
    """Compile the loops of the calling function for 512 bits where the processor has them.

    LLVM prefers 256 on Intel, to keep the clock up; the model's layers use 512 anyway.
    llvmlite has no public way to set a function attribute that has a value.
    """

    def generate(c: Any, b: Any, _: Any, __: Any) -> Any:
        set.add(b.function.attributes, '"prefer-vector-width"="512"')
        return c.get_dummy_value()

    return types.none(), generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_: Any, __: Any) -> Any:
    """Prefetch the cache line at an address, which may lie outside the array: a hint, never a fault."""

    def generate(c: Any, b: Any, _: Any, a: Any) -> Any:
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        hint = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch")
        b.call(hint, [b.inttoptr(a[0], pointer), i32(0), i32(2), i32(1)])  # read, into the second-level cache, data
        return c.get_dummy_value()

    return types.none(types.int64), generate


def _ordered(builder: Any, bits: Any) -> Any:
    """Return float32 bits as an integer of the same order, and back: below zero all bits but the sign are flipped."""
    sign = builder.ashr(bits, ir.IntType(32)(31))
    return builder.xor(bits, builder.and_(sign, ir.IntType(32)(0x7FFFFFFF)))


@intrinsic  # type: ignore[untyped-decorator]
def _larger_key(_: Any, __: Any, ___: Any) -> Any:
    """Return the larger of a key and a float32's key, as integers: a vectorized float maximum may lose a NaN."""

    def generate(c: Any, b: Any, _: Any, a: Any) -> Any:
        key = _ordered(b, b.bitcast(a[1], ir.IntType(32)))
        return b.select(b.icmp_signed(">", key, a[0]), key, a[0])

    return types.int32(types.int32, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_key(_: Any, __: Any) -> Any:
    return types.float32(types.int32), lambda c, b, _, a: b.bitcast(_ordered(b, a[0]), ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def _times_power_of_2(_: Any, __: Any, ___: Any) -> Any:
    """Return p 2^n, from p and the sum n + _ROUND, which has n in its lowest bits."""

    def generate(c: Any, b: Any, _: Any, a: Any) -> Any:
        exponent = b.shl(b.bitcast(a[1], ir.IntType(32)), ir.IntType(32)(23))
        return b.fmul(a[0], b.bitcast(b.add(exponent, ir.IntType(32)(127 << 23)), ir.FloatType()))

    return types.float32(types.float32, types.float32), generate


@_fused
def _exp(d: Any) -> Any:
    """Return exp of a float32 from _SMALLEST to 0; NaN for NaN."""
    shifted = d * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (d - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((((_C6 * r + _C5) * r + _C4) * r + _C3) * r) + _C2) * r + _C1) * r + _C0
    return _times_power_of_2(p, shifted)


@jit
def largest(z: Any) -> Any:
    wide_vectors()
    key = _LOWEST_KEY
    for i in range(z.size):
        key = _larger_key(key, z[i])
    return _float_of_key(key)


@_sum
def _sums(z: Any, top: Any) -> Any:
    """Return sum e and sum e d, d = z - top, e = exp d."""
    wide_vectors()
    partition, weighted = _ZERO, _ZERO
    for i in range(z.size):
        d = z[i] - top
        clamped = _SMALLEST if d < _SMALLEST else d  # noqa: FURB136 (max may lose a NaN)
        e = _ZERO if d < _SMALLEST else _exp(clamped)
        partition += e
        weighted += e * clamped
    return partition, weighted


@_sum
def _sums_at(z: Any, top: Any, beta: Any, floor: Any) -> Any:
    """Return sum e, sum e d and sum e d^2 over z >= floor, d = beta (z - top), e = exp d."""
    wide_vectors()
    partition, weighted, squared = _ZERO, _ZERO, _ZERO
    for i in range(z.size):
        d = beta * (z[i] - top)
        left_out = (d < _SMALLEST) | (z[i] < floor)
        clamped = _SMALLEST if left_out else d
        e = _ZERO if left_out else _exp(clamped)
        partition += e
        weighted += e * clamped
        squared += e * clamped * clamped
    return partition, weighted, squared


@_sum
def _sums_of_squares(z: Any, top: Any, beta: Any) -> Any:
    """Return sum e and sum e^2, d = beta (z - top), e = exp d."""
    wide_vectors()
    partition, squares = _ZERO, _ZERO
    for i in range(z.size):
        d = beta * (z[i] - top)
        clamped = _SMALLEST if d < _SMALLEST else d  # noqa: FURB136 (max may lose a NaN)
        e = _ZERO if d < _SMALLEST else _exp(clamped)
        partition += e
        squares += e * e
    return partition, squares


@_sum
def _kept_and_next(z: Any, floor: Any) -> Any:
    """Return how many logits are at least `floor`, and the key of the largest of the others."""
    wide_vectors()
    kept, key = np.int32(0), _LOWEST_KEY
    for i in range(z.size):
        below = z[i] < floor
        kept += np.int32(0) if below else np.int32(1)
        key = _larger_key(key, z[i] if below else _NOTHING)
    return kept, key


@jit
def _sums_of_block(block: Any, top: Any) -> Any:
    """Return `_sums`, and prefetch the next block, which a processor does not always do by itself."""
    partition, weighted = 0.0, 0.0
    for start in range(0, block.size, PART):
        part = block[start : start + PART]
        for line in range(0, 4 * PART, LINE):
            _prefetch(part.ctypes.data + 4 * BLOCK + line)
        s, w = _sums(part, top)
        partition += s
        weighted += w
    return partition, weighted


@jit
def measure(z: Any) -> Any:
    """Return the largest logit of a row and its H; NaN if softmax is undefined."""
    top, partition, weighted = np.float64(_LOWEST), 0.0, 0.0
    for start in range(0, z.size, BLOCK):
        block = z[start : start + BLOCK]
        block_top = largest(block)
        if block_top == -np.inf:
            block_top = _LOWEST  # the block adds nothing, but it may hold a NaN of negative sign
        s, w = _sums_of_block(block, block_top)
        new_top = max(top, np.float64(block_top))
        old_weight, weight = math.exp(top - new_top), math.exp(block_top - new_top)
        weighted = old_weight * (weighted + partition * (top - new_top)) + weight * (w + s * (block_top - new_top))
        partition = old_weight * partition + weight * s
        top = new_top
    # The largest logit alone adds 1, so a smaller sum means that the row has no softmax.
    return top, math.log(partition) - weighted / partition if partition >= 1.0 else np.nan


@jit
def measure_at(z: Any, top: Any, temperature: Any, floor: Any) -> Any:
    """Return H of softmax(z / T) over z >= floor, and dH / d ln T, which is the variance of z / T.

    T may be infinite where there is a floor.
    """
    partition, weighted, squared = 0.0, 0.0, 0.0
    for start in range(0, z.size, BLOCK):
        s, w, q = _sums_at(z[start : start + BLOCK], np.float32(top), np.float32(1.0 / temperature), floor)
        partition += s
        weighted += w
        squared += q
    mean = weighted / partition
    return math.log(partition) - mean, squared / partition - mean * mean


@jit
def collision(z: Any, top: Any, temperature: Any) -> Any:
    """Return sum e^2 / sum e, e = exp((z - top) / T): how likely two draws agree, over how likely the largest is."""
    partition, squares = 0.0, 0.0
    for start in range(0, z.size, BLOCK):
        s, q = _sums_of_squares(z[start : start + BLOCK], np.float32(top), np.float32(1.0 / temperature))
        partition += s
        squares += q
    return min(squares / partition, 1.0)


@jit
def kth_largest(z: Any, top: Any, k: Any) -> Any:
    """Return the k-th largest logit, equal ones counted one by one; the smallest finite one if fewer are finite."""
    floor = np.float32(top)
    while True:
        kept, key = _kept_and_next(z, floor)
        below = _float_of_key(key)
        if kept >= k or below == _NOTHING:
            return floor
        floor = below

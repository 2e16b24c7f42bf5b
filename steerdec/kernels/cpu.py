"""Steering on a CPU: a row is read once from memory, by one of the threads that torch already has.

Compiled by numba, so that no C compiler is needed where it runs. Only a row that is steered is
touched again, while it is still in the second-level cache. One thread does the whole of a row, so
that its outcome depends neither on its neighbours nor on the number of threads.

The threads are torch's: those of a second pool, such as numba's own, would compete with OpenMP
threads still spinning after the model's last layer, and know neither the cores nor the number of
threads that torch was given.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic
from torch import Tensor

from steerdec.kernels.cpu_softmax import jit, largest, measure, measure_at, target_temperature, wide_vectors
from steerdec.kernels.reference import Outcome
from steerdec.steering import encoding as rows

# What a call works on, all int64. Addresses are of contiguous arrays, but for `logits`, whose rows lie `row_stride`
# apart. `taken` counts the rows that threads have taken; `bad_slot`, where it is not -1, is why nothing was done.
FIELDS: Final = (
    *("logits", "row_stride", "rows", "vocab", "floats", "ints", "table_slots", "slots", "positions", "in_scope"),
    *("entropy_nats", "selected", "temperature", "probe_entropy_nats", "taken", "bad_slot"),
)
TASK: Final = np.dtype([(name, np.int64) for name in FIELDS])
TAKEN, BAD_SLOT = FIELDS.index("taken"), FIELDS.index("bad_slot")
# Filled by ctypes: after a forward pass nothing of numpy is in the processor's caches, and the same cost 0.15 ms more.
_Task = ctypes.c_int64 * len(FIELDS)


@intrinsic  # type: ignore[untyped-decorator]
def _address(_: Any, __: Any) -> Any:
    """The pointer that an integer is."""
    return types.voidptr(types.int64), lambda c, b, _, a: b.inttoptr(a[0], c.get_value_type(types.voidptr))


@intrinsic  # type: ignore[untyped-decorator]
def _take(_: Any, __: Any) -> Any:
    """The integer at an address, which is one more for whoever asks next, on whatever thread."""
    return types.int64(types.int64), lambda c, b, _, a: b.atomic_rmw(
        "add", b.inttoptr(a[0], ir.IntType(64).as_pointer()), ir.IntType(64)(1), "monotonic"
    )


@jit
def _hash(key: Any, position: Any) -> Any:
    """`reference.placebo_hash`."""
    x = (np.uint64(key) + np.uint64(position) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & np.uint64(0xFFFFFFFF)
    return np.int64((x ^ (x >> np.uint64(16))) >> np.uint64(8))


@jit
def _steered(z: Any, top: Any, h: Any, f: Any, kind: Any) -> Any:
    """T' of a selected row, and the factor that steers it there."""
    if kind == rows.SPLIT:
        return np.float64(f[rows.FORK_T]), f[rows.FORK_FACTOR]
    t = np.float64(f[rows.REQUEST_T])
    a, b, c = np.float64(f[rows.PARAM_A]), np.float64(f[rows.PARAM_B]), np.float64(f[rows.PARAM_C])
    if kind == rows.ENTROPY_TARGET:
        steered = target_temperature(z, top, t, a, b, c)
    elif kind == rows.DYNATEMP:
        steered = a + (b - a) * (h / math.log(z.size)) ** c if z.size > 1 else a
    else:
        steered = max(t * b ** (a / h), 0.01) if h > 0 else 0.01
    return steered, np.float32(t / steered)


@jit
def _keep_first_largest(z: Any) -> Any:
    """Leave -inf everywhere but at the first largest logit."""
    top = largest(z)
    found = False
    for i in range(z.size):
        if z[i] == top and not found:
            found = True
        else:
            z[i] = -np.inf


@jit
def _scale(z: Any, factor: Any) -> Any:
    wide_vectors()
    for i in range(z.size):
        z[i] *= factor


@jit
def _probed(z: Any, top: Any, probe_t: Any, steered: Any) -> Any:
    """`reference.probe_entropy_nats` of a row with an H."""
    at = steered if probe_t == rows.APPLIED else probe_t
    if at > 0.0:
        return measure_at(z, top, at)[0]
    return 0.0 if at == 0.0 else np.nan  # NaN: no probe asked for


@jit
def _steer_row(z: Any, f: Any, i: Any, position: Any, in_scope: Any) -> Any:
    """H, whether the row is selected, T', and the probed entropy; `z` is steered in place."""
    top, measured = measure(z)
    h = np.float64(np.float32(measured))  # what is reported is what was decided on
    request_t, probe_t = np.float64(f[rows.REQUEST_T]), np.float64(f[rows.PROBE_T])
    if np.isnan(h):
        return h, False, request_t, np.nan
    if not in_scope:
        return h, False, request_t, _probed(z, top, probe_t, request_t)
    selected = (
        i[rows.SELECT] == rows.ALWAYS
        or (i[rows.SELECT] == rows.BY_ENTROPY and h > f[rows.THRESHOLD])
        or (i[rows.SELECT] == rows.BY_HASH and _hash(i[rows.KEY], position) < i[rows.CUTOFF])
        or (i[rows.SELECT] == rows.BY_POSITION and position < i[rows.CUTOFF])
    )
    temperature, factor = np.float64(f[rows.OTHER_T]), f[rows.OTHER_FACTOR]
    if selected:
        temperature, factor = _steered(z, top, h, f, i[rows.KIND])
    probed = _probed(z, top, probe_t, temperature)
    if temperature == 0.0:
        _keep_first_largest(z)
    elif factor != 1.0:
        _scale(z, factor)
    return h, selected, temperature, probed


def _work(address: Any) -> None:
    """Steer rows until none is left; any number of threads may do so at once."""
    tasks = carray(address, 1, TASK)
    task, taken = tasks[0], tasks.ctypes.data + 8 * TAKEN
    n, vocab = task["rows"], task["vocab"]
    slots, positions = carray(_address(task["slots"]), n, np.int64), carray(_address(task["positions"]), n, np.int64)
    for slot in slots:
        if slot >= task["table_slots"]:
            task["bad_slot"] = slot
            return
    entropy_nats = carray(_address(task["entropy_nats"]), n, np.float32)
    selected = carray(_address(task["selected"]), n, np.bool_)
    temperature = carray(_address(task["temperature"]), n, np.float32)
    probe_entropy_nats = carray(_address(task["probe_entropy_nats"]), n, np.float32)
    while True:
        r = _take(taken)
        if r >= n:
            return
        slot = slots[r]
        if slot < 0:
            entropy_nats[r], selected[r], temperature[r], probe_entropy_nats[r] = np.nan, False, np.nan, np.nan
            continue
        z = carray(_address(task["logits"] + 4 * r * task["row_stride"]), vocab, np.float32)
        f = carray(_address(task["floats"] + 4 * slot * rows.FLOATS), rows.FLOATS, np.float32)
        i = carray(_address(task["ints"] + 4 * slot * rows.INTS), rows.INTS, np.int32)
        in_scope = task["in_scope"] == 0 or carray(_address(task["in_scope"]), n, np.bool_)[r]
        h, fork, steered, probed = _steer_row(z, f, i, positions[r], in_scope)
        entropy_nats[r], selected[r], temperature[r], probe_entropy_nats[r] = h, fork, steered, probed


@cache
def _worker() -> Any:
    """`_work` as a C function of one pointer; compiled at the first call (seconds)."""
    return cfunc(types.void(types.voidptr), error_model="numpy")(_work)


@cache
def _on_torch_threads() -> Callable[[Any, Any, int, int], None] | None:
    """GOMP_parallel(function, argument, threads, 0) of the OpenMP that torch has loaded; None if it is another kind."""
    try:
        run = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return run


def steer_(
    logits: Tensor, floats: Tensor, ints: Tensor, slots: Tensor, positions: Tensor, in_scope: Tensor | None = None
) -> Outcome:
    """`reference.steer_` for float32 logits whose rows are contiguous; see `steerdec.kernel`."""
    n, vocab = logits.shape
    # Not torch's default type and device, which are the caller's: the compiled code writes what stands here.
    h, temperature, probe_h = (torch.empty(n, dtype=torch.float32, device="cpu") for _ in range(3))
    outcome = Outcome(h, torch.empty(n, dtype=torch.bool, device="cpu"), temperature, probe_h)
    floats, ints = floats.contiguous(), ints.contiguous()
    slots, positions = slots.to(torch.int64).contiguous(), positions.to(torch.int64).contiguous()
    in_scope = None if in_scope is None else in_scope.contiguous()
    task = _Task(
        *(logits.data_ptr(), logits.stride(0), n, vocab, floats.data_ptr(), ints.data_ptr(), len(floats)),
        *(slots.data_ptr(), positions.data_ptr(), 0 if in_scope is None else in_scope.data_ptr()),
        *(outcome.entropy_nats.data_ptr(), outcome.selected.data_ptr(), outcome.temperature.data_ptr()),
        *(outcome.probe_entropy_nats.data_ptr(), 0, -1),
    )
    task_address = ctypes.addressof(task)
    threads = min(n, torch.get_num_threads())
    run = _on_torch_threads()
    if run is None or threads < 2:
        _worker().ctypes(task_address)
    else:
        run(_worker().address, task_address, threads, 0)
    if task[BAD_SLOT] >= 0:
        raise IndexError(f"slots: {task[BAD_SLOT]} is past the {len(floats)} slots of the tables")
    return outcome

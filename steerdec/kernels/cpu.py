"""Steering on a CPU: each row is read once from memory, by one of torch's own threads.

Compiled by numba, so that running it needs no C compiler. Only a row that is steered is
touched again, while it is still in the second-level cache. One thread does a whole row, so
that its outcome depends neither on its neighbors nor on the number of threads.

The threads are torch's. Those of a second pool, such as numba's own, would compete with OpenMP
threads still spinning after the model's last layer, and would ignore the cores and the number of
threads that torch is configured with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from steerdec.kernels.compiled import compiled
from steerdec.kernels.cpu_memory import remembered
from steerdec.kernels.reference import Outcome
from steerdec.policies import registry
from steerdec.softmax.cpu import NO_FLOOR, jit, largest, measure, measure_at, wide_vectors
from steerdec.steering import encoding
from steerdec.steering.memory import WORDS

# The task of a call, all int64. Addresses are of contiguous arrays, except `logits`, whose rows lie `row_stride`
# apart. `memory` is 0 without one, as are `stopped` and `threshold_nats` then. `taken` counts the rows that threads
# have taken; `bad_slot`, where it is not -1, is why nothing was done.
FIELDS: Final = (
    *("logits", "row_stride", "rows", "vocab", "floats", "ints", "table_slots", "slots", "positions", "in_scope"),
    *("memory", "memory_words", "entropy_nats", "selected", "temperature", "probe_entropy_nats"),
    *("stopped", "threshold_nats", "taken", "bad_slot"),
)
TASK: Final = np.dtype([(name, np.int64) for name in FIELDS])
TAKEN, BAD_SLOT = FIELDS.index("taken"), FIELDS.index("bad_slot")
# Filled by ctypes: after a forward pass nothing of numpy is in the processor's caches, and numpy took 0.15 ms.
_Task = ctypes.c_int64 * len(FIELDS)


@intrinsic  # type: ignore[untyped-decorator]
def _address(_: Any, __: Any) -> Any:
    """Cast an int64 address to `void *`."""
    return types.voidptr(types.int64), lambda c, b, _, a: b.inttoptr(a[0], c.get_value_type(types.voidptr))


@intrinsic  # type: ignore[untyped-decorator]
def _take(_: Any, __: Any) -> Any:
    """Return the integer at an address and increment it, atomically."""
    return types.int64(types.int64), lambda c, b, _, a: b.atomic_rmw(
        "add", b.inttoptr(a[0], ir.IntType(64).as_pointer()), ir.IntType(64)(1), "monotonic"
    )


@jit
def _hash(key: Any, position: Any) -> Any:
    """Compute `reference.placebo_hash`."""
    x = (np.uint64(key) + np.uint64(position) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & np.uint64(0xFFFFFFFF)
    return np.int64((x ^ (x >> np.uint64(16))) >> np.uint64(8))


@jit
def _no_policy(z: Any, top: Any, h: Any, f: Any, kind: Any) -> Any:
    return np.nan, np.float32(1.0), NO_FLOOR


def _or_else(kind: int, steered: Any, others: Any) -> Any:
    """Return a compiled function that calls `steered` for one kind of policy and `others` for the rest."""

    @jit
    def decide(z: Any, top: Any, h: Any, f: Any, asked: Any) -> Any:
        if asked == kind:
            return steered(z, top, h, f)
        return others(z, top, h, f, asked)

    return decide


# T' of a selected row, the factor that steers it there, and the floor: a chain of comparisons, since numba could not
# inline what it calls through a table.
_steered: Any = _no_policy
for _kind, _step in reversed(registry.steps("cpu")):
    _steered = _or_else(_kind, _step, _steered)


@jit
def _keep_first_largest(z: Any) -> Any:
    """Set everything to -inf except the first largest logit."""
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
def _scale_above(z: Any, factor: Any, floor: Any) -> Any:
    """Scale the logits that are at least `floor`, and remove the others."""
    wide_vectors()
    for i in range(z.size):
        scaled = z[i] * factor
        z[i] = scaled if z[i] >= floor else -np.float32(np.inf)


@jit
def _probed(z: Any, top: Any, probe_t: Any, steered: Any, floor: Any) -> Any:
    """Compute `reference.probe_entropy_nats` of a row that has an H."""
    at = steered if probe_t == encoding.APPLIED else probe_t
    if at > 0.0:
        return measure_at(z, top, at, floor if probe_t == encoding.APPLIED else NO_FLOOR)[0]
    return 0.0 if at == 0.0 else np.nan


@jit
def _steer_row(z: Any, f: Any, i: Any, position: Any, in_scope: Any, memory: Any, memory_words: Any) -> Any:
    """Steer `z` in place.

    Return H, whether the row is selected, T', the probed entropy, whether the guard has stopped, and the threshold.
    """
    top, measured = measure(z)
    h = np.float64(np.float32(measured))  # decide on the same float32 that is reported
    request_t, probe_t = np.float64(f[encoding.REQUEST_T]), np.float64(f[encoding.PROBE_T])
    threshold = np.float64(f[encoding.THRESHOLD])
    high, stopped = h > threshold, False
    if memory != 0 and i[encoding.MEMORY] >= 0:
        ring = memory + 4 * memory_words * i[encoding.MEMORY]
        words, numbers = (
            carray(_address(ring), memory_words, np.int32),
            carray(_address(ring), memory_words, np.float32),
        )
        threshold, high, stopped = remembered(words, numbers, f, position, h)
    if np.isnan(h):
        return h, False, request_t, np.nan, stopped, threshold
    if not in_scope or stopped:
        return h, False, request_t, _probed(z, top, probe_t, request_t, NO_FLOOR), stopped, threshold
    selected = (
        i[encoding.SELECT] == encoding.ALWAYS
        or (i[encoding.SELECT] == encoding.BY_ENTROPY and high)
        or (i[encoding.SELECT] == encoding.BY_HASH and _hash(i[encoding.KEY], position) < i[encoding.CUTOFF])
        or (i[encoding.SELECT] == encoding.BY_POSITION and position < i[encoding.CUTOFF])
    )
    temperature, factor, floor = np.float64(f[encoding.OTHER_T]), f[encoding.OTHER_FACTOR], NO_FLOOR
    if selected:
        temperature, factor, floor = _steered(z, top, h, f, i[encoding.KIND])
    probed = _probed(z, top, probe_t, temperature, floor)
    if temperature == 0.0:
        _keep_first_largest(z)
    elif floor != NO_FLOOR:
        _scale_above(z, factor, floor)
    elif factor != 1.0:
        _scale(z, factor)
    return h, selected, temperature, probed, stopped, threshold


def _work(address: Any) -> None:
    """Steer rows until none is left; any number of threads may run this at once."""
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
    memory, memory_words = task["memory"], task["memory_words"]
    while True:
        r = _take(taken)
        if r >= n:
            return
        slot = slots[r]
        if slot < 0:
            entropy_nats[r], selected[r], temperature[r], probe_entropy_nats[r] = np.nan, False, np.nan, np.nan
            if memory != 0:
                carray(_address(task["stopped"]), n, np.bool_)[r] = False
                carray(_address(task["threshold_nats"]), n, np.float32)[r] = np.nan
            continue
        f = carray(_address(task["floats"] + 4 * slot * encoding.FLOATS), encoding.FLOATS, np.float32)
        i = carray(_address(task["ints"] + 4 * slot * encoding.INTS), encoding.INTS, np.int32)
        last = r
        if memory != 0 and i[encoding.MEMORY] >= 0:  # its rows, in order, by the thread that took the first
            if r > 0 and slots[r - 1] == slot:
                continue
            while last + 1 < n and slots[last + 1] == slot:
                last += 1
        for row in range(r, last + 1):
            z = carray(_address(task["logits"] + 4 * row * task["row_stride"]), vocab, np.float32)
            in_scope = task["in_scope"] == 0 or carray(_address(task["in_scope"]), n, np.bool_)[row]
            h, fork, steered, probed, stopped, threshold = _steer_row(
                z, f, i, positions[row], in_scope, memory, memory_words
            )
            entropy_nats[row], selected[row], temperature[row], probe_entropy_nats[row] = h, fork, steered, probed
            if memory != 0:
                carray(_address(task["stopped"]), n, np.bool_)[row] = stopped
                carray(_address(task["threshold_nats"]), n, np.float32)[row] = threshold


@cache
def _worker() -> Any:
    """Return `_work` as a C function of one pointer. Takes seconds if it has not been compiled before."""
    return compiled(_work)


@cache
def _on_torch_threads() -> Callable[[Any, Any, int, int], None] | None:
    """Return GOMP_parallel(function, argument, threads, 0) of torch's OpenMP; None if that is not GNU's."""
    try:
        run = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return run


def steer_(
    logits: Tensor,
    floats: Tensor,
    ints: Tensor,
    slots: Tensor,
    positions: Tensor,
    in_scope: Tensor | None = None,
    memory: Tensor | None = None,
) -> Outcome:
    """Do `reference.steer_` for float32 logits whose rows are contiguous; see `dispatch.steer_`."""
    n, vocab = logits.shape
    # Types and device are explicit because the caller may change torch's defaults, and the compiled code needs these.
    h, temperature, probe_h = (torch.empty(n, dtype=torch.float32, device="cpu") for _ in range(3))
    stopped = threshold = None
    if memory is not None:
        stopped = torch.empty(n, dtype=torch.bool, device="cpu")
        threshold = torch.empty(n, dtype=torch.float32, device="cpu")
    outcome = Outcome(h, torch.empty(n, dtype=torch.bool, device="cpu"), temperature, probe_h, stopped, threshold)
    floats, ints = floats.contiguous(), ints.contiguous()
    slots, positions = slots.to(torch.int64).contiguous(), positions.to(torch.int64).contiguous()
    in_scope = None if in_scope is None else in_scope.contiguous()
    task = _Task(
        *(logits.data_ptr(), logits.stride(0), n, vocab, floats.data_ptr(), ints.data_ptr(), len(floats)),
        *(slots.data_ptr(), positions.data_ptr(), _pointer(in_scope)),
        *(_pointer(memory), 0 if memory is None else memory.shape[1] * WORDS),
        *(outcome.entropy_nats.data_ptr(), outcome.selected.data_ptr(), outcome.temperature.data_ptr()),
        *(outcome.probe_entropy_nats.data_ptr(), _pointer(stopped), _pointer(threshold), 0, -1),
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


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

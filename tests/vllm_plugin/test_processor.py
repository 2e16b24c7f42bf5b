"""The processor under both of vLLM's interfaces, built by vLLM's own loaders and driven by its own batch state.

Random episodes (requests come, finish, are preempted and resumed, swapped, condensed) are compared, row by
row, with a mirror rebuilt from nothing but each request's own history.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, build_custom_logits_processors
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from steerdec.kernels import dispatch
from steerdec.processor import EntropySteering
from steerdec.steering import encoding
from steerdec.steering.memory import Rule
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.settings import Settings
from tests.support.memory_episodes import ring_after

VOCAB = 97
MAX_REQS = 12
MAX_LEN = 64
OPEN, CLOSE = 5, 6  # delimiters of the thinking block
NAMED = "steerdec.processor:EntropySteering"


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(MAX_LEN, max_lanes=65) as file:
        yield file


@pytest.fixture(scope="module")
def vllm_config(weights: Path, lane_file: telemetry.LaneFile) -> VllmConfig:
    config = EngineArgs(model=str(weights), max_model_len=256, enforce_eager=True).create_engine_config()
    config.additional_config = {"steerdec": {"lanes": asdict(lane_file)}}
    return config


class Record(NamedTuple):
    """What one token's record must say."""

    h: float
    fork: bool
    temperature: float
    stopped: bool


@dataclass
class Live:
    """One request of an episode, with everything the mirror may know of it."""

    name: str
    params: SamplingParams
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    lane: telemetry.Lane | None = None
    recorded: list[Record] = field(default_factory=list)  # by token


def random_request(rng: random.Random, name: str, pool: telemetry.LanePool) -> Live:
    prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
    temperature = rng.choice([0.0, 0.01, 0.6, 1.0, 1.7])
    seed = rng.randrange(2**40)
    if temperature == 0.0 or rng.random() < 0.25:
        return Live(name, SamplingParams(temperature=temperature, seed=seed), prompt)
    steering: dict[str, Any] = rng.choice(
        [
            {"fork_temperature": 1.3},
            {"fork_temperature": 0.0, "threshold_nats": 2.0},
            {"other_temperature": 0, "fork_temperature": 2},
            {"fork_temperature": temperature, "other_temperature": temperature},
            {"select": "random", "fork_rate": 0.4, "fork_temperature": 0.5},
            {"select": "first", "first_tokens": 3, "fork_temperature": 1.9},
            {"select": "all", "fork_temperature": 0.7},
            {"policy": "entropy_target", "delta_nats": -0.3, "threshold_nats": 1.0},
            {"policy": "dynatemp"},
            {"policy": "edt", "theta": 0.3},
            {"policy": "p_less", "fork_temperature": 1.4, "other_temperature": 0.8, "threshold_nats": 1.0},
            {"policy": "uniform_top_k", "k": 3, "threshold_nats": 1.0},
            {"select": "quantile", "fork_temperature": 1.3},
            {"select": "quantile", "quantile": 0.5, "hysteresis": 0.4, "fork_temperature": 0.0, "threshold_nats": 2.0},
            {"policy": "p_less", "hysteresis": 0.6, "threshold_nats": 1.5},
            {"select": "all", "fork_temperature": 0.7, "guard_mean_entropy_nats": 1.6, "guard_window_tokens": 5},
            {"select": "quantile", "fork_temperature": 2, "guard_mean_entropy_nats": 1.8, "guard_window_tokens": 8},
        ]
    )
    if rng.random() < 0.4:
        steering = steering | {
            "scope": rng.choice(["thinking", "answer"]),
            "thinking_start_id": OPEN,
            "thinking_end_id": CLOSE,
        }
    extra: dict[str, Any] = {"steering": steering}
    lane = None
    if rng.random() < 0.7 and pool.lent < pool.count:
        (lane,) = pool.lend(1)
        extra[request.LANES_ARG] = [lane.index, lane.generation]
        extra[request.BASE_SEED_ARG] = seed
    params = SamplingParams(temperature=temperature, seed=seed, extra_args=extra)
    EntropySteering.validate_params(params)
    return Live(name, params, prompt, lane=lane)


def mirrored(live: Live, logits: Tensor, fed: list[int]) -> tuple[Tensor, Record | None]:
    """What one row [vocab] must become, from the request's whole history; `fed`: drafts after its output.

    For a request with a memory, `live.recorded` has the entropies of all tokens before, drafts included.
    """
    asked = request.unpacked(live.params, Settings())
    if asked is None:
        return logits.clone(), None
    tokens = live.prompt + live.output + fed
    opened = max((i for i, t in enumerate(tokens) if t == OPEN), default=-1)
    closed = max((i for i, t in enumerate(tokens) if t == CLOSE), default=-1)
    inside = {0: True, 1: opened > closed, 2: closed > opened}[asked.scope]
    row, position = logits.clone()[None], len(live.output) + len(fed)
    ints, ring = torch.tensor([asked.ints], dtype=torch.int32), None
    if asked.identity is not None:
        ints[0, encoding.MEMORY] = 0
        ring = ring_after(Rule.of(asked.floats), [record.h for record in live.recorded[:position]])
    outcome = dispatch.steer_(
        row,
        torch.tensor([asked.floats]),
        ints,
        torch.tensor([0]),
        torch.tensor([position]),
        torch.tensor([inside]),
        ring,
        backend="reference",
    )
    stopped = outcome.stopped is not None and bool(outcome.stopped.item())
    fork = bool(outcome.selected.item())
    return row[0], Record(outcome.entropy_nats.item(), fork, outcome.temperature.item(), stopped)


def random_logits(rows: int, generator: torch.Generator) -> Tensor:
    """Rows from nearly certain to nearly flat, some with masked tokens, one in eight fully masked or with NaN."""
    scale = torch.rand(rows, 1, generator=generator) * 6
    logits = torch.randn(rows, VOCAB, generator=generator) * scale
    logits[torch.rand(rows, VOCAB, generator=generator) < 0.2] = -torch.inf
    for r in torch.nonzero(torch.rand(rows, generator=generator) < 0.125)[:, 0].tolist():
        logits[r] = -torch.inf if r % 2 else torch.nan
    return logits


def temperature_rtol(live: Live) -> float:
    """How far T' may be off when H is right to 1e-5: not at all, but for two policies.

    entropy_target is solved to 1e-3 nats, which leaves T' open where H hardly depends on it; edt's
    base^(theta / H) amplifies the last digits of a small H.
    """
    return 2e-2 if any(policy in str(live.params.extra_args) for policy in ("entropy_target", "edt")) else 1e-5


def assert_same_row(actual: Tensor, expected: Tensor, before: Tensor, live: Live, where: str) -> None:
    if torch.equal(torch.nan_to_num(expected), torch.nan_to_num(before)):
        assert torch.equal(actual.view(torch.int32), before.view(torch.int32)), (
            f"{where}: must be untouched bit for bit"
        )
        return
    assert torch.equal(actual == -torch.inf, expected == -torch.inf), where
    torch.testing.assert_close(actual, expected, rtol=temperature_rtol(live), atol=1e-5, msg=where)


def assert_recorded(live: Live) -> None:
    assert live.lane is not None
    records = live.lane.read(0, len(live.recorded))
    for i, (h, fork, temperature, stopped) in enumerate(live.recorded):
        at = f"{live.name} token {i}"
        assert records.entropy_nats[i] == pytest.approx(h, abs=1e-5, rel=1e-5, nan_ok=True), at
        assert bool(records.fork[i]) == fork, at
        assert bool(records.stopped[i]) == stopped, at
        assert records.temperature[i] == pytest.approx(temperature, rel=temperature_rtol(live)), at


@pytest.mark.parametrize("seed", range(4))
def test_v1_follows_every_request_through_random_episodes(
    vllm_config: VllmConfig, lane_file: telemetry.LaneFile, seed: int
) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pool = telemetry.LanePool(lane_file)
    # Found by its entry point and named as well: two instances, of which one may act.
    processors = build_logitsprocs(vllm_config, torch.device("cpu"), False, False, (NAMED,))
    ours = [p for p in processors.non_argmax_invariant if isinstance(p, EntropySteering)]
    assert [p.acting for p in ours] == [False, True]
    batch = InputBatch(MAX_REQS, MAX_LEN, MAX_LEN, torch.device("cpu"), VOCAB, [16], [4], logitsprocs=processors)
    running: dict[str, Live] = {}
    preempted: list[Live] = []
    steered_rows = 0
    for step in range(90):
        for name in [n for n in running if rng.random() < 0.12]:
            batch.remove_request(name)
            live = running.pop(name)
            if rng.random() < 0.4:
                preempted.append(live)
            elif live.lane is not None:
                assert_recorded(live)
                pool.take_back([live.lane], aborted=False)
        while len(running) < MAX_REQS and rng.random() < 0.6:
            resume = preempted and rng.random() < 0.5
            live = preempted.pop(0) if resume else random_request(rng, f"{step}-{len(running)}", pool)
            running[live.name] = live
            state = CachedRequestState(live.name, live.prompt, [], live.params, None, ([0],), 0, live.output)
            batch.add_request(state)
        batch.condense()
        if len(running) > 2 and rng.random() < 0.3:
            batch.swap_states(*rng.sample(range(len(running)), 2))
        batch.refresh_metadata()
        if not running:
            continue
        before = random_logits(len(running), generator)
        logits = before.clone()
        for processor in ours:
            logits = processor.apply(logits)
        for row, name in enumerate(batch.req_ids):
            live = running[name]
            expected, record = mirrored(live, before[row], [])
            assert_same_row(
                logits[row], expected, before[row], live, f"seed {seed} step {step} row {row} {live.params}"
            )
            if record is not None:
                live.recorded.append(record)
                steered_rows += 1
            live.output.append(rng.choice([OPEN, CLOSE, 7, 8, 9]))
        for name in [n for n, live in running.items() if len(live.prompt + live.output) >= MAX_LEN - 1]:
            batch.remove_request(name)
            live = running.pop(name)
            if live.lane is not None:
                assert_recorded(live)
                pool.take_back([live.lane], aborted=False)
    assert steered_rows > 200


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> RequestState:
    """vLLM's own request state. Without CUDA there is no pinned memory to map: vLLM's fallback copies instead."""
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
    return RequestState(MAX_REQS, MAX_LEN, MAX_LEN, 3, VOCAB, torch.device("cpu"))


def v2_enter(states: RequestState, processor: EntropySteering, live: Live) -> int:
    """vLLM's own slot allocation; its staged writes go through a Triton kernel, so they are carried over by hand."""
    tokens = live.prompt + live.output
    states.add_request(live.name, len(live.prompt), tokens, 0, MAX_LEN)
    slot = states.req_id_to_index[live.name]
    processor.add_request(slot, live.params)
    states.all_token_ids.gpu[slot] = -7  # what a recycled slot may hold
    states.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    states.total_len.gpu[slot] = len(tokens)
    for tensor in (states.all_token_ids, states.total_len, states.num_computed_tokens):
        tensor.clear_staged_writes()
    return slot


def v2_flush(states: RequestState, processor: EntropySteering) -> None:
    states.prompt_len.copy_to_uva()
    states.prefill_len.copy_to_uva()
    processor.apply_staged_writes()


@pytest.mark.parametrize("seed", range(4))
def test_v2_follows_every_request_through_random_episodes(
    vllm_config: VllmConfig, lane_file: telemetry.LaneFile, states: RequestState, seed: int
) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pool = telemetry.LanePool(lane_file)
    vllm_config.speculative_config = type("Speculative", (), {"num_speculative_tokens": 3})()
    try:
        processors = build_custom_logits_processors(vllm_config, states, False, (NAMED,))
    finally:
        vllm_config.speculative_config = None
    ours = [p for p in processors if isinstance(p, EntropySteering)]
    assert [p.acting for p in ours] == [False, True]
    processor = ours[1]
    running: dict[str, Live] = {}
    preempted: list[Live] = []
    steered_rows = 0
    for step in range(90):
        for name in [n for n in running if rng.random() < 0.12]:
            states.remove_request(name)
            live = running.pop(name)
            if rng.random() < 0.4:
                preempted.append(live)
            elif live.lane is not None:
                assert_recorded(live)
                pool.take_back([live.lane], aborted=False)
        entered = set()
        while len(running) < MAX_REQS and rng.random() < 0.6:
            resume = preempted and rng.random() < 0.5
            live = preempted.pop(0) if resume else random_request(rng, f"{step}-{len(running)}", pool)
            running[live.name] = live
            entered.add(live.name)
            v2_enter(states, processor, live)
        v2_flush(states, processor)

        # This step's layout: requests in any order, some prefilled in part, some with drafts.
        order = rng.sample(sorted(running), len(running))
        if not order:
            continue
        layout: list[tuple[Live, list[int], bool]] = []  # request, drafts fed before the row, is the row real
        columns: dict[str, list[int]] = {"slot": [], "pos": [], "local_pos": [], "input_id": []}
        for name in order:
            live, slot = running[name], states.req_id_to_index[name]
            tokens = live.prompt + live.output
            part = name in entered and len(tokens) > 2 and rng.random() < 0.3
            drafts = [] if part or name in entered else [rng.choice([OPEN, CLOSE, 7]) for _ in range(rng.randint(0, 3))]
            last = len(tokens) - 2 if part else len(tokens) - 1
            for j, fed in enumerate([tokens[last], *drafts]):
                columns["slot"].append(slot)
                columns["pos"].append(last + j)
                columns["local_pos"].append(j)
                columns["input_id"].append(fed)
                layout.append((live, drafts[:j], not part))
        before = random_logits(len(layout), generator)
        logits = before.clone()
        for some in np.array_split(np.arange(len(order)), 2 if len(order) > 3 else 1):  # several calls a step
            names = [order[i] for i in some]
            rows = [r for r, (live, _, _) in enumerate(layout) if live.name in names]
            chunk = logits[rows].contiguous()
            slots = torch.tensor([states.req_id_to_index[n] for n in names], dtype=torch.int32)
            pick = {k: torch.tensor([v[r] for r in rows]) for k, v in columns.items()}
            ctx = LogitsContext(
                expanded_idx_mapping=pick["slot"].int(),
                idx_mapping=slots,
                idx_mapping_np=slots.numpy(),
                expanded_local_pos=pick["local_pos"].int(),
                input_ids=pick["input_id"].int(),
                pos=pick["pos"],
                seq_lens_upper_bound_np=np.zeros(len(names), np.int32),
            )
            for p in ours:
                chunk = p.apply(chunk, ctx)
            logits[rows] = chunk
        for row, (live, drafts, real) in enumerate(layout):
            if not real:
                continue  # a prefill in parts: what is sampled from it is thrown away
            expected, record = mirrored(live, before[row], drafts)
            where = f"seed {seed} step {step} row {row} drafts {drafts} {live.params}"
            assert_same_row(logits[row], expected, before[row], live, where)
            if record is not None:
                live.recorded[len(live.output) + len(drafts) :] = [record]
                steered_rows += 1
        # Accept some drafts, then one more token, as the rejection sampler would.
        for name in order:
            live, slot = running[name], states.req_id_to_index[name]
            fed = [drafts for one, drafts, real in layout if one is live and real]
            if not fed:
                states.prefill_len.np[slot] = len(live.prompt + live.output)  # next step completes it
                continue
            accepted = fed[-1][: rng.randint(0, len(fed[-1]))]
            new = [*accepted, rng.choice([OPEN, CLOSE, 8, 9])]
            start = len(live.prompt + live.output)
            live.output += new
            del live.recorded[len(live.output) :]
            states.all_token_ids.gpu[slot, start : start + len(new)] = torch.tensor(new, dtype=torch.int32)
            states.total_len.gpu[slot] = start + len(new)
        for name in [n for n, live in running.items() if len(live.prompt + live.output) >= MAX_LEN - 5]:
            states.remove_request(name)
            live = running.pop(name)
            if live.lane is not None:
                assert_recorded(live)
                pool.take_back([live.lane], aborted=False)
    assert steered_rows > 200

"""The awkward cases of a batch, each under both of vLLM's interfaces, and what V1's own sampler then draws from.

One step at a time, with vLLM's loaders, batch and slots, as in test_processor.py, whose episodes mix them all.
Whatever stands in a row, its neighbors are answered as if it were not there.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, build_custom_logits_processors
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from steerdec.kernels import dispatch, reference
from steerdec.policies import registry
from steerdec.processor import EntropySteering
from steerdec.steering import encoding, scope
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.settings import CONFIG_KEY
from tests.vllm_plugin.test_processor import (
    CLOSE,
    MAX_LEN,
    MAX_REQS,
    NAMED,
    OPEN,
    VOCAB,
    Live,
    mirrored,
    v2_enter,
    v2_flush,
)

HOT = {"fork_temperature": 1.7, "other_temperature": 0.5, "threshold_nats": 1.0}
PROMPT = [3, 1, 4]


@pytest.fixture(scope="module")
def vllm_config(weights: Path) -> VllmConfig:
    return EngineArgs(model=str(weights), max_model_len=256, enforce_eager=True).create_engine_config()


class OnV1:
    """V1's batch: row r is request r."""

    def __init__(self, config: VllmConfig) -> None:
        self.processors = build_logitsprocs(config, torch.device("cpu"), False, False, (NAMED,))
        self.batch = InputBatch(
            MAX_REQS, MAX_LEN, MAX_LEN, torch.device("cpu"), VOCAB, [16], [4], logitsprocs=self.processors
        )

    def enter(self, live: Live) -> None:
        state = CachedRequestState(live.name, live.prompt, [], live.params, None, ([0],), 0, live.output)
        self.batch.add_request(state)

    def leave(self, live: Live) -> None:
        self.batch.remove_request(live.name)
        self.batch.condense()

    def apply(self, logits: Tensor) -> Tensor:
        self.batch.refresh_metadata()
        for processor in self.processors.non_argmax_invariant:
            if isinstance(processor, EntropySteering):
                logits = processor.apply(logits)
        return logits


class OnV2:
    """V2's slots: a row a request, in the order they came; more rows than requests are padding."""

    def __init__(self, config: VllmConfig) -> None:
        self.states = RequestState(MAX_REQS, MAX_LEN, MAX_LEN, 0, VOCAB, torch.device("cpu"))
        loaded = build_custom_logits_processors(config, self.states, False, (NAMED,))
        self.processors = [p for p in loaded if isinstance(p, EntropySteering)]
        self.running: list[Live] = []

    def enter(self, live: Live) -> None:
        v2_enter(self.states, self.processors[-1], live)  # the one that acts
        self.running.append(live)

    def leave(self, live: Live) -> None:
        self.states.remove_request(live.name)
        self.running.remove(live)

    def apply(self, logits: Tensor) -> Tensor:
        slots = [self.states.req_id_to_index[live.name] for live in self.running]
        padding = [-1] * (len(logits) - len(slots))
        tokens = [live.prompt + live.output for live in self.running]
        rows = torch.tensor([*slots, *padding][: len(logits)], dtype=torch.int32)
        context = LogitsContext(
            expanded_idx_mapping=rows,
            idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping_np=np.array(slots, np.int32),
            expanded_local_pos=torch.zeros(len(rows), dtype=torch.int32),
            input_ids=torch.tensor([*(t[-1] for t in tokens), *padding][: len(logits)], dtype=torch.int32),
            pos=torch.tensor([*(len(t) - 1 for t in tokens), *padding][: len(logits)], dtype=torch.int64),
            seq_lens_upper_bound_np=np.zeros(len(slots), np.int32),
        )
        for processor in self.processors:
            v2_flush(self.states, processor)
            logits = processor.apply(logits, context)
        return logits


Runner = OnV1 | OnV2


@pytest.fixture(params=[OnV1, OnV2], ids=["v1", "v2"])
def on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[VllmConfig], Runner]:
    """Without CUDA there is no pinned memory to map for V2: vLLM's fallback copies instead."""
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
    made: Callable[[VllmConfig], Runner] = request.param
    return made


_numbers = itertools.count()


def asked(steering: dict[str, Any] | None, temperature: float = 0.8, **more: Any) -> Live:
    extra = None if steering is None else {"steering": steering}
    sampling = SamplingParams(temperature=temperature, seed=7, extra_args=extra, **more)
    EntropySteering.validate_params(sampling)
    return Live(f"request {next(_numbers)}", sampling, list(PROMPT))


def admitted(config: VllmConfig, *lives: Live) -> None:
    """Call `validate_params` as the engine with this configuration does."""

    class InputProcessor:
        vllm_config = config

        def validate(self) -> None:
            for live in lives:
                EntropySteering.validate_params(live.params)

    InputProcessor().validate()


def random_row(seed: int, spread: float = 3.0) -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def stepped(runner: Runner, lives: list[Live], logits: Tensor) -> Tensor:
    for live in lives:
        runner.enter(live)
    return runner.apply(logits.clone())


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


# What may stand in a row --------------------------------------------------------------------------


def one_token_left() -> Tensor:
    row = torch.full((VOCAB,), -torch.inf)
    row[11] = -3.0
    return row


ODD_ROWS: dict[str, Callable[[], Tensor]] = {
    "fully masked": lambda: torch.full((VOCAB,), -torch.inf),
    "NaN everywhere": lambda: torch.full((VOCAB,), torch.nan),
    "NaN beside masked tokens": lambda: torch.cat((torch.full((5,), -torch.inf), torch.full((VOCAB - 5,), torch.nan))),
    "one NaN": lambda: random_row(1).index_fill(0, torch.tensor([4]), torch.nan),
    "plus infinity": lambda: random_row(1).index_fill(0, torch.tensor([4]), torch.inf),
}


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_a_row_without_a_distribution_stays_as_it_is_and_harms_no_other(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner], odd: str
) -> None:
    lives = [asked(HOT) for _ in range(3)]
    logits = torch.stack((random_row(1), ODD_ROWS[odd](), random_row(2)))
    after = stepped(on(vllm_config), lives, logits)
    assert same_bits(after[1], logits[1])
    for row in (0, 2):
        torch.testing.assert_close(after[row], mirrored(lives[row], logits[row], [])[0], rtol=1e-5, atol=1e-5)
        assert not same_bits(after[row], logits[row])


def test_one_token_left_is_the_one_that_is_drawn(vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner]) -> None:
    lives = [asked(HOT), asked(HOT | {"other_temperature": 0}), asked({"select": "all", "fork_temperature": 2.0})]
    after = stepped(on(vllm_config), lives, torch.stack([one_token_left()] * 3))
    for row in after:
        assert torch.isfinite(row).nonzero().tolist() == [[11]]
        assert torch.softmax(row / 0.8, -1)[11] == 1.0


def test_masked_tokens_stay_masked_and_count_for_nothing(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner]
) -> None:
    """A grammar, bad words, allowed ids: by the time steering is called they are all rows of -inf."""
    live, logits = asked(HOT), random_row(5)
    few = logits.clone()
    few[9:] = -torch.inf
    after = stepped(on(vllm_config), [live], few[None])[0]
    assert torch.equal(after == -torch.inf, few == -torch.inf)
    h = torch.distributions.Categorical(logits=few[:9].double()).entropy()
    t = 1.7 if h > 1.0 else 0.5
    torch.testing.assert_close(after[:9].double(), few[:9].double() * 0.8 / t, rtol=1e-6, atol=1e-6)


# What may be asked --------------------------------------------------------------------------------


def test_a_greedy_request_is_untouched_by_its_neighbors_steering_and_by_a_default(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    default = {"default": registry.parse(HOT).model_dump(exclude_none=True)}
    monkeypatch.setattr(vllm_config, "additional_config", {CONFIG_KEY: default})
    logits = torch.stack([random_row(i) for i in range(3)])
    lives = [asked(None, 0.0), asked(HOT), asked(None, 0.9)]
    admitted(vllm_config, *lives)
    after = stepped(on(vllm_config), lives, logits)
    assert same_bits(after[0], logits[0])
    assert not same_bits(after[1], logits[1])
    torch.testing.assert_close(after[2], mirrored(asked(HOT, 0.9), logits[2], [])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.005])
def test_the_coldest_request_is_steered_to_the_temperature_asked_for(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner], temperature: float
) -> None:
    """vLLM raises temperatures below 0.01 to it, and divides by that."""
    live, logits = asked({"select": "all", "fork_temperature": 1.0}, temperature), random_row(3)
    after = stepped(on(vllm_config), [live], logits[None])[0]
    torch.testing.assert_close(after / live.params.temperature, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_are_steered_where_they_come_first_and_not_where_they_come_after(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner], penalty: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request like that gets as far as V1's worker only by a server-wide default, or unvalidated."""
    live, logits = asked(HOT, **{penalty: 1.5}), random_row(3)
    runner = on(vllm_config)
    with caplog.at_level(logging.ERROR, "vllm.steerdec"):
        after = stepped(runner, [live], logits[None])[0]
    if isinstance(runner, OnV1):
        assert same_bits(after, logits)
    else:
        torch.testing.assert_close(after, mirrored(live, logits, [])[0], rtol=1e-5, atol=1e-5)


# What a batch may look like -----------------------------------------------------------------------


def test_nothing_is_launched_where_nobody_is_steered(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    steer = dispatch.steer_
    runner = on(vllm_config)
    monkeypatch.setattr(dispatch, "steer_", lambda *given: launched.append(given) or steer(*given))
    logits = torch.stack([random_row(i) for i in range(3)])
    plain = [asked(None, t) for t in (0.0, 0.7, 1.3)]
    assert same_bits(stepped(runner, plain, logits), logits)
    assert launched == []
    steered = asked(HOT)
    stepped(runner, [steered], torch.stack([random_row(i) for i in range(4)]))
    assert len(launched) == 1
    runner.leave(steered)
    assert same_bits(runner.apply(logits.clone()), logits)
    assert len(launched) == 1


def test_no_rows_are_no_error(vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner]) -> None:
    runner = on(vllm_config)
    assert stepped(runner, [], torch.zeros(0, VOCAB)).shape == (0, VOCAB)
    runner.enter(asked(HOT))
    assert runner.apply(torch.zeros(0, VOCAB)).shape == (0, VOCAB)


def test_sequences_of_one_request_have_a_lane_and_a_placebo_each(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM hands all n of them the same extra arguments, and sequence i the seed base + i; they come in any order."""
    base, tokens, rate = 50, 8, 0.5
    with telemetry.created(MAX_LEN, max_lanes=8) as file:
        monkeypatch.setattr(vllm_config, "additional_config", {CONFIG_KEY: {"lanes": asdict(file)}})
        runner, lanes = on(vllm_config), telemetry.LanePool(file).lend(3)
        extra = {
            "steering": {"select": "random", "fork_rate": rate, "fork_temperature": 1.7},
            request.LANES_ARG: [word for lane in lanes for word in (lane.index, lane.generation)],
            request.BASE_SEED_ARG: base,
        }
        order = [2, 0, 1]
        parent = SamplingParams(n=3, temperature=0.8, seed=base, extra_args=extra)
        EntropySteering.validate_params(parent)
        lives = []
        for i in order:  # as vLLM's ParentRequest makes them
            child = copy(parent)
            child.n, child.seed = 1, base + i
            lives.append(Live(f"{i} of one", child, list(PROMPT)))
            runner.enter(lives[-1])
        steps = [torch.stack([random_row(10 * token + i) for i in order]) for token in range(tokens)]
        for logits in steps:
            runner.apply(logits.clone())
            for live in lives:
                live.output.append(1)
        for row, i in enumerate(order):
            told, key = lanes[i].read(0, tokens), encoding.placebo_key(base + i)
            assert told.fork.tolist() == [reference.placebo_hash(key, at) < rate * 2**24 for at in range(tokens)]
            expected = [torch.distributions.Categorical(logits=step[row].double()).entropy() for step in steps]
            np.testing.assert_allclose(told.entropy_nats, expected, atol=1e-5, rtol=1e-5)


def test_under_asynchronous_scheduling_v1_s_scope_follows_tokens_that_come_late(vllm_config: VllmConfig) -> None:
    """Where vLLM schedules ahead, on a GPU, a request's newest token is -1 until just before the processors are called.

    Its CPU platform never does, so its own batch is driven here as its runner drives it; the event stands for CUDA's.
    """
    runner = OnV1(vllm_config)
    runner.batch.logitsprocs_need_output_token_ids = True  # as for a processor that is named
    thinking = {"scope": "thinking", "thinking_start_id": OPEN, "thinking_end_id": CLOSE}
    live, logits = asked({"select": "all", "fork_temperature": 2.0} | thinking), random_row(1)
    runner.enter(live)
    inside = []
    for token in (1, OPEN, 2, 3, CLOSE, 4):
        runner.batch.refresh_metadata()
        runner.batch.update_async_output_token_ids()
        inside.append(not same_bits(runner.apply(logits.clone()[None])[0], logits))
        live.output.append(-1)
        runner.batch.prev_req_id_to_index = {live.name: 0}
        runner.batch.set_async_sampled_token_ids(torch.tensor([[token]]), SimpleNamespace(synchronize=lambda: None))
    assert inside == [False, False, True, True, True, False]
    assert live.output == [1, OPEN, 2, 3, CLOSE, -1]


def test_a_delimiter_that_vllm_takes_back_no_longer_counts() -> None:
    """As after a failure to load a cache from elsewhere, where it shortens a request's own list."""
    tracker, ids = scope.Tracker(scope.THINKING, OPEN, CLOSE, [1, OPEN]), [2]
    assert tracker.contains_next(ids)
    ids.append(CLOSE)
    assert not tracker.contains_next(ids)
    del ids[1:]
    assert tracker.contains_next(ids)
    ids += [3, CLOSE]
    assert not tracker.contains_next(ids)


def test_a_place_that_is_taken_again_has_nothing_of_the_last_one(
    vllm_config: VllmConfig, on: Callable[[VllmConfig], Runner]
) -> None:
    runner, logits = on(vllm_config), random_row(6)
    first, second, third = asked(HOT), asked(None), asked({"select": "all", "fork_temperature": 0.3})
    assert not same_bits(stepped(runner, [first], logits[None])[0], logits)
    runner.leave(first)
    assert same_bits(stepped(runner, [second], logits[None])[0], logits)
    runner.leave(second)
    after = stepped(runner, [third], logits[None])[0]
    torch.testing.assert_close(after, mirrored(third, logits, [])[0], rtol=1e-5, atol=1e-5)


def test_padding_rows_are_left_alone(vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """V2 marks rows that belong to nobody with a slot below 0."""
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
    logits = torch.stack([random_row(i) for i in range(4)])
    after = stepped(OnV2(vllm_config), [asked(HOT), asked(HOT)], logits)
    assert same_bits(after[2:], logits[2:])
    assert not same_bits(after[:2], logits[:2])


# V1's own sampler ---------------------------------------------------------------------------------


def truncated(logits: Tensor, temperature: float, min_p: float, top_k: int, top_p: float) -> Tensor:
    """[vocab] probabilities: divide by T, min-p, then top-k, then top-p, in float64."""
    p = torch.softmax(logits.double() / temperature, -1)
    p[p < min_p * p.max()] = 0.0
    p[p < p.sort(descending=True).values[top_k - 1]] = 0.0
    p /= p.sum()
    ordered, order = p.sort(descending=True)
    p[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
    return p / p.sum()


def told_by_sampler(runner: OnV1, logits: Tensor, mode: Any) -> Tensor:
    """[rows, vocab] what V1's sampler reports in this mode: its columns are the sampled token, then all by rank."""
    runner.batch.refresh_metadata()
    told = Sampler(mode)(logits.clone(), runner.batch.sampling_metadata).logprobs_tensors
    return torch.zeros_like(logits).scatter(1, told.logprob_token_ids.long(), told.logprobs)


TRUNCATIONS = {
    "min-p": {"min_p": 0.1},
    "top-k": {"top_k": 9},
    "top-p": {"top_p": 0.7},
    "all three": {"min_p": 0.02, "top_k": 20, "top_p": 0.8},
}


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("steering", [HOT, {"select": "all", "fork_temperature": 0.7}], ids=["hot", "cold"])
def test_truncation_sees_the_steered_distribution(
    vllm_config: VllmConfig, truncation: str, steering: dict[str, Any]
) -> None:
    given, temperature = TRUNCATIONS[truncation], 0.8
    runner, logits = OnV1(vllm_config), torch.stack([random_row(i, 1.2) for i in range(4)])
    for _ in logits:
        runner.enter(asked(steering, temperature, logprobs=-1, **given))
    p = told_by_sampler(runner, logits, "processed_logprobs").exp()
    everything: dict[str, Any] = {"min_p": 0.0, "top_k": VOCAB, "top_p": 1.0}
    for row, before in enumerate(logits):
        steered, _ = mirrored(asked(steering, temperature), before, [])
        expected = truncated(steered, temperature, **(everything | given))
        assert 1 < int((expected > 0).sum()) < VOCAB
        torch.testing.assert_close(p[row].double(), expected, rtol=1e-4, atol=1e-6)
        unsteered = truncated(before, temperature, **(everything | given))
        assert (p[row].double() - unsteered).abs().max() > 1e-3, "the check above could not fail"


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"])
def test_log_probabilities_are_the_models_or_the_steered_ones_as_their_mode_says(
    vllm_config: VllmConfig, mode: Any
) -> None:
    runner, logits = OnV1(vllm_config), torch.stack([random_row(i) for i in range(3)])
    lives = [asked(HOT, logprobs=-1), asked(None, logprobs=-1), asked({"select": "all", "fork_temperature": 2.0})]
    for live in lives:
        runner.enter(live)
    told = told_by_sampler(runner, logits, mode)
    for row, live in enumerate(lives):
        expected = logits[row] if mode.startswith("raw") else mirrored(live, logits[row], [])[0] / 0.8
        if mode.endswith("logprobs"):
            expected = expected.log_softmax(-1)
        torch.testing.assert_close(told[row], expected, rtol=1e-5, atol=1e-5)


# Beside others ------------------------------------------------------------------------------------

PLUGIN = """
from vllm.v1.sample.logits_processor.interface import LogitsProcessor
class OnlyV1(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory): pass
    def is_argmax_invariant(self): return True
    def update_state(self, batch_update): pass
    def apply(self, logits): return logits
"""


@pytest.fixture
def v1_only_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another vendor's plugin, installed: a module and its entry point."""
    (tmp_path / "other_vendor.py").write_text(PLUGIN)
    (tmp_path / "other_vendor-1.0.dist-info").mkdir()
    (tmp_path / "other_vendor-1.0.dist-info" / "METADATA").write_text("Name: other-vendor\nVersion: 1.0\n")
    points = "[vllm.logits_processors]\nother_vendor = other_vendor:OnlyV1\n"
    (tmp_path / "other_vendor-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    return "other_vendor"


def test_another_plugin_for_v1_only_runs_beside_ours_on_v1_and_is_named_where_it_stops_v2(
    vllm_config: VllmConfig, v1_only_plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
    runner, logits = OnV1(vllm_config), random_row(6)
    assert "OnlyV1" in {type(p).__name__ for p in runner.processors.all}
    assert not same_bits(stepped(runner, [asked(HOT)], logits[None])[0], logits)
    with pytest.raises(ValueError, match=f"{v1_only_plugin} is not a subclass .* not supported by the V2 model runner"):
        OnV2(vllm_config)

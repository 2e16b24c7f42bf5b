"""vLLM's whole V2 engine in this process, in Triton's interpreter, and what every row of its logits should become.

Imported before triton and vLLM, in a process of its own. The scheduler, the KV cache, the V2 runner, its sampler, its
drafting, and our Triton kernels are the real ones; the model is a random llama with a vocabulary of bytes.
"""

from __future__ import annotations

import itertools
import os

os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import tests.conftest
import tests.support.interpreted  # noqa: F401

# isort: split
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.v1.sample.ops import topk_topp_triton

from steerdec.kernels import dispatch, reference
from steerdec.policies import registry
from steerdec.processor import EntropySteering
from steerdec.steering import encoding
from steerdec.steering.memory import Rule
from steerdec.steering.params import PAPER_THRESHOLD_NATS
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.runner_v2 import LAYOUT_DTYPES
from tests.support.memory_episodes import ring_after
from tests.support.tiny_lm import tiny_lm

dispatch.BACKEND_OF_DEVICE["cpu"] = "triton"
topk_topp_triton.num_compute_units = lambda *_: 128  # a program for each row, as on a GPU; a CPU has one for all rows

CAPACITY = 256
OPEN, CLOSE = 5, 6  # the tokens that open and close the thinking block
CLOSE_NATS = 1e-4


def started(folder: Path, lanes: telemetry.LaneFile, **overrides: Any) -> LLM:
    """A random llama; `overrides` are vLLM's engine arguments."""
    arguments: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": CAPACITY,
        "max_num_seqs": 16,
        "gpu_memory_utilization": 0.1,
        "max_logprobs": -1,
        "additional_config": {"steerdec": {"lanes": asdict(lanes)}},
        "logits_processors": ["steerdec.processor:EntropySteering"],
    }
    llm = LLM(str(tiny_lm(folder, context_tokens=CAPACITY, head_dim=32)), **(arguments | overrides))
    assert llm.llm_engine.vllm_config.use_v2_model_runner
    return llm


def runner(llm: LLM) -> Any:
    """vLLM's model runner."""
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.model_executor.driver_worker.worker.model_runner


class Expected(NamedTuple):
    """What one token should have been."""

    h: float
    fork: bool
    temperature: float
    stopped: bool
    threshold_nats: float


@dataclass
class Asked:
    """One request: its steering and lane, what it returned, and what each of its tokens should have been."""

    name: str
    prompt: list[int]
    sampling: SamplingParams
    steering: dict[str, Any] | None = None
    lane: telemetry.Lane | None = None
    tokens: list[int] = field(default_factory=list)
    finished: str | None = None
    expected: dict[int, Expected] = field(default_factory=dict)  # by position

    @cached_property
    def encoded(self) -> encoding.EncodedRequest:
        """Its steering in numbers, parsed again from the object."""
        assert self.steering is not None
        return encoding.encode(registry.parse(self.steering), self.sampling.temperature, PAPER_THRESHOLD_NATS)

    @property
    def tolerance(self) -> float:
        """How far a logit may be off, relative: an entropy target is solved to 1e-3 nats, not to the last bit of T'."""
        return 3e-4 if (self.steering or {}).get("policy") == "entropy_target" else 2e-5

    def in_scope(self, before: list[int]) -> bool:
        """Whether the token after `before` (prompt included) is steered."""
        scope = (self.steering or {}).get("scope", "all")
        marks = [token for token in before if token in (OPEN, CLOSE)]
        return scope == "all" or (bool(marks) and marks[-1] == (OPEN if scope == "thinking" else CLOSE))


class Engine:
    """The engine, stepped by hand."""

    def __init__(self, llm: LLM, lanes: telemetry.LaneFile) -> None:
        self.llm, self.pool = llm, telemetry.LanePool(lanes)
        self.asked: dict[str, Asked] = {}
        self._names = itertools.count()
        self.rows = self.wrong_rows = 0

    def ask(
        self, prompt: list[int], steering: dict[str, Any] | None, *, seed: int = 0, record: bool = True, **sampling: Any
    ) -> Asked:
        name = f"v2 {next(self._names)}"
        extra: dict[str, Any] = {} if steering is None else {request.STEERING_ARG: steering}
        lane = None
        if steering is not None and record:
            (lane,) = self.pool.lend(1)
            extra |= {request.LANES_ARG: [lane.index, lane.generation], request.BASE_SEED_ARG: seed}
        given = {"temperature": 0.8, "seed": seed, "ignore_eos": True, "detokenize": False} | sampling
        params = SamplingParams(extra_args=extra or None, **given)
        self.asked[name] = one = Asked(name, prompt, params, steering, lane)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return one

    def step(self) -> None:
        for output in self.llm.llm_engine.step():
            one = self.asked[output.request_id]
            one.tokens = list(output.outputs[0].token_ids)
            one.finished = output.outputs[0].finish_reason

    def run(self) -> None:
        while self.llm.llm_engine.has_unfinished_requests():
            self.step()

    def abort(self, one: Asked) -> None:
        self.llm.llm_engine.abort_request([one.name])
        one.finished = "abort"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hold every row of logits to the reference, by the request that vLLM says it belongs to and its own tokens."""
        states, original = runner(self.llm).req_states, EntropySteering.apply

        def apply(processor: EntropySteering, logits: Tensor, ctx: Any = None) -> Tensor:
            if not processor.acting:
                return original(processor, logits, ctx)
            before = logits.clone()
            after = original(processor, logits, ctx)
            self._hold(states, before, after, ctx)
            return after

        EntropySteering.apply = apply  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            EntropySteering.apply = original  # type: ignore[method-assign, assignment]

    def _hold(self, states: Any, before: Tensor, after: Tensor, ctx: Any) -> None:
        layout = ctx.expanded_idx_mapping, ctx.pos, ctx.expanded_local_pos, ctx.input_ids
        assert tuple(tensor.dtype for tensor in layout) == LAYOUT_DTYPES, "Triton would compile while serving"
        slots, pos = ctx.expanded_idx_mapping.tolist(), ctx.pos.tolist()
        local, fed = ctx.expanded_local_pos.tolist(), ctx.input_ids.tolist()
        rows: list[int] = []
        owners: list[Asked] = []
        positions: list[int] = []
        in_scope: list[bool] = []
        for r in range(len(before)):
            name = states.index_to_req_id.get(slots[r]) if slots[r] >= 0 else None
            one = self.asked.get(str(name).partition("-")[0]) if name is not None else None
            if one is None or one.steering is None:
                self.wrong_rows += not same_bits(before[r], after[r])
                continue
            position = pos[r] + 1 - len(one.prompt)
            if position < 0:  # a part of the prompt
                continue
            if one.encoded.remembers and pos[r] + 1 < states.prefill_len.np[slots[r]]:
                continue  # of tokens that are computed again: what is decided there is for nothing
            drafts = fed[r - local[r] + 1 : r + 1] if local[r] else []
            known = states.all_token_ids.gpu[slots[r], : pos[r] + 1 - len(drafts)]
            rows.append(r)
            owners.append(one)
            positions.append(position)
            in_scope.append("scope" not in one.steering or one.in_scope(known.tolist() + drafts))
        if not rows:
            return
        expected, actual = before[rows].clone(), after[rows]
        ints = torch.tensor([one.encoded.ints(one.sampling.seed) for one in owners])
        outcome = reference.steer_(
            *(expected, torch.tensor([one.encoded.floats for one in owners]), ints),
            *(torch.arange(len(rows)), torch.tensor(positions), torch.tensor(in_scope)),
            _rings(owners, positions, ints),
        )
        masked = expected.isneginf()
        kept = expected.isfinite()
        allowed = 1e-5 + torch.tensor([one.tolerance for one in owners])[:, None] * expected.abs()
        near = torch.where(kept, (expected - actual).abs() <= allowed, masked == actual.isneginf())
        self.rows += len(rows)
        self.wrong_rows += int((~near).any(1).sum())
        assert outcome.stopped is not None
        assert outcome.threshold_nats is not None
        columns = (outcome.entropy_nats, outcome.selected, outcome.temperature, outcome.stopped, outcome.threshold_nats)
        told = zip(*(column.tolist() for column in columns), strict=True)
        for one, position, values in zip(owners, positions, told, strict=True):
            one.expected[position] = Expected(*values)

    def wrong_records(self, one: Asked) -> list[str]:
        """What its telemetry says wrongly about the tokens that it returned, one line each."""
        assert one.lane is not None
        records, wrong = one.lane.read(0, len(one.tokens)), []
        for i in range(len(one.tokens)):
            h, fork, t, stopped, threshold = one.expected[i]
            lower = threshold * one.encoded.floats[encoding.LOWER_SHARE]
            near = min(abs(h - threshold), abs(h - lower)) < CLOSE_NATS
            told = float(records.entropy_nats[i]), bool(records.fork[i]), float(records.temperature[i])
            if not np.isclose(told[0], h, atol=CLOSE_NATS) or (not near and told[1] != fork):
                wrong.append(f"request {one.name} token {i}: {told}, not {(h, fork, t)}")
            elif bool(records.stopped[i]) != stopped:
                wrong.append(f"request {one.name} token {i}: stopped is not {stopped}")
            elif not near and not np.isclose(told[2], t, rtol=2e-3):
                wrong.append(f"request {one.name} token {i}: T' {told[2]}, not {t}")
        return wrong


def _rings(owners: list[Asked], positions: list[int], ints: Tensor) -> Tensor:
    """What each request's own tokens leave before its first row of a step, [requests, ring, words]; names it in `ints`.

    The reference goes through the rows in order, and remembers those before each.
    """
    rings: dict[str, Tensor] = {}
    for r, (one, position) in enumerate(zip(owners, positions, strict=True)):
        if one.encoded.remembers:
            if one.name not in rings:
                rule = Rule.of(one.encoded.floats)
                rings[one.name] = ring_after(rule, [one.expected[i].h for i in range(position)])
            ints[r, encoding.MEMORY] = [*rings].index(one.name)
    return torch.cat([*rings.values(), ring_after(Rule.of(owners[0].encoded.floats), [])])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))

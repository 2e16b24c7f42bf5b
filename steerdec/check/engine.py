"""The engine that `steerdec serve` would start with these flags, in this process, so that its logits can be read.

Three things differ from what is served: log-probabilities of the whole vocabulary are allowed, scheduling is
synchronous (a step's time is then its own), and the processor is one that can be made idle for a step.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs

from steerdec.benchmarks.engine.overhead import TakingTurns
from steerdec.check.counting import compilations
from steerdec.check.part import Settings
from steerdec.kernels import dispatch
from steerdec.processor import EntropySteering
from steerdec.server.launch.command import Launch, plan
from steerdec.server.launch.errors import LaunchUsageError
from steerdec.server.launch.flags import parse
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.settings import PROCESSOR

MOST_REQUESTS = 256  # at once
RANDOM_PROMPTS = 256
FEWEST_RANDOM_PROMPTS = 16
ENTRIES = 4_000_000  # log-probabilities taken out of the engine at once, each a Python object
EVERY_LOGPROB: dict[str, Any] = {"logprobs": -1, "flat_logprobs": True, "detokenize": False}
TELLING_NATS = (0.8, 4.5)  # entropies of a next token that tell much about a temperature
TEXTS = (
    "I have been asked many times which of all the creatures in the world I like best, and my favorite animal is the",
    "Once upon a time there was a",
    "Q: Tom has 3 boxes with 4 apples each. How many apples does he have? A: Let us think step by step. First,",
    "The three most interesting facts about the city of Paris are that",
    "def fibonacci(n):",
    "Dear Sir or Madam, I am writing to you because",
)

Watcher = Callable[[Tensor, Tensor, Any], None]  # [rows, vocab] before, after, and V2's context


@dataclass(frozen=True)
class Engine:
    """The engine, and the lanes its telemetry goes to."""

    llm: LLM
    pool: telemetry.LanePool
    prompts_used: list[Any] = field(default_factory=list)  # the best one first
    compiled_late: list[str] = field(default_factory=list)  # kernels that a request had to wait for

    @property
    def config(self) -> Any:
        """VLLM's configuration of the engine."""
        return self.llm.llm_engine.vllm_config

    @property
    def v1(self) -> bool:
        """Whether the model runner is V1."""
        return not self.config.use_v2_model_runner

    @property
    def compiles(self) -> bool:
        """Whether steering runs compiled Triton kernels in this process."""
        on_triton = dispatch.BACKEND_OF_DEVICE.get(self.config.device_config.device_type) == "triton"
        return on_triton and not self.elsewhere and os.environ.get("TRITON_INTERPRET") != "1"

    @property
    def elsewhere(self) -> str:
        """Why its logits cannot be read from this process; empty where they can."""
        world = self.config.parallel_config.world_size
        return f"the {world} workers are processes of their own; check with one GPU as well" if world > 1 else ""

    @property
    def at_once(self) -> int:
        """How many requests it runs at once, as far as the check is concerned."""
        return int(min(MOST_REQUESTS, self.config.scheduler_config.max_num_seqs))

    def generate(self, prompts: list[Any], params: list[SamplingParams]) -> list[Any]:
        """Return the first sequence of every request."""
        return [done.outputs[0] for done in self.llm.generate(prompts, params, use_tqdm=False)]

    def prompts(self, n: int) -> list[Any]:
        """Return `n` prompts, the same ones again where there are fewer."""
        return [self.prompts_used[i % len(self.prompts_used)] for i in range(n)]

    def choose_prompts(self) -> None:
        """Find prompts whose next token is uncertain: texts, or random tokens where texts mean nothing to the model."""
        chosen = self._telling([*TEXTS])
        if len(chosen) < len(TEXTS) // 2:
            vocab = self.config.model_config.get_vocab_size()
            n = int(np.clip(ENTRIES // vocab, FEWEST_RANDOM_PROMPTS, RANDOM_PROMPTS))
            ids = np.random.default_rng(0).integers(0, vocab, n).tolist()
            chosen += self._telling([{"prompt_token_ids": [token]} for token in ids])
        self.prompts_used[:] = chosen or [*TEXTS]

    def _telling(self, prompts: list[Any]) -> list[Any]:
        """Return the prompts whose next token has an entropy that tells, the middle of the range first."""
        sampling = SamplingParams(max_tokens=1, temperature=1.0, seed=0, **EVERY_LOGPROB)
        found: list[tuple[float, int, Any]] = []
        for prompt, output in zip(prompts, self.generate(prompts, [sampling] * len(prompts)), strict=True):
            h = float(entropies_nats(output.logprobs)[0])
            if TELLING_NATS[0] <= h <= TELLING_NATS[1]:
                found.append((abs(h - sum(TELLING_NATS) / 2), len(found), prompt))
        return [prompt for _, _, prompt in sorted(found, key=lambda one: one[:2])]

    def steered(self, steering: dict[str, Any], **sampling: Any) -> SamplingParams:
        """Return the parameters of a steered request without telemetry."""
        return SamplingParams(extra_args={request.STEERING_ARG: steering}, **sampling)

    def recorded(self, steering: dict[str, Any], **sampling: Any) -> tuple[SamplingParams, telemetry.Lane]:
        """Return the parameters of a steered request, and the lane of its records."""
        (lane,) = self.pool.lend(1)
        extra = {request.STEERING_ARG: steering, **request.lane_arguments([lane], sampling.get("seed"))}
        return SamplingParams(extra_args=extra, **sampling), lane

    @contextmanager
    def watching(self, watcher: Watcher) -> Iterator[None]:
        """Call `watcher` with the logits before and after every step that may steer."""
        original = EntropySteering.apply

        def watched(processor: EntropySteering, logits: Tensor, ctx: Any = None) -> Tensor:
            if not processor.acting:
                return original(processor, logits, ctx)
            before = logits.clone()
            after = original(processor, logits, ctx)
            watcher(before, after, ctx)
            return after

        EntropySteering.apply = watched  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            EntropySteering.apply = original  # type: ignore[method-assign]


def entropies_nats(flat: Any) -> NDArray[np.float64]:
    """Return H of every step, [tokens], from its full log-probabilities, asked for with `EVERY_LOGPROB`."""
    found = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        # By token, since the sampled one is there twice.
        by_token = dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
        logp = np.array(list(by_token.values()), np.float64)
        p = np.exp(logp)
        found.append(float(-(p[p > 0] * logp[p > 0]).sum()))
    return np.array(found)


def bits(logits: Tensor) -> Tensor:
    """Return the bits of float32 logits, so that NaN equals itself."""
    return logits.float().contiguous().view(torch.int32)


@contextmanager
def started(settings: Settings) -> Iterator[Engine]:
    """Start the engine.

    Raises:
        LaunchUsageError: the flags cannot be used.
    """
    flags = parse(settings.vllm_flags)
    server = plan(Launch(settings.model, vllm_flags=settings.vllm_flags), flags, on_cpu=_is_cpu_build())
    with telemetry.created(server.capacity_tokens, max_lanes=MOST_REQUESTS * 2) as lanes:
        args = _engine_args(server.folder, server.engine_flags(lanes))
        if args.data_parallel_size and args.data_parallel_size > 1:
            raise LaunchUsageError("--data-parallel-size: check one engine; leave it out, as all are alike")
        args.logits_processors = [TakingTurns if p == PROCESSOR else p for p in args.logits_processors or []]
        args.max_logprobs = -1
        args.async_scheduling = False
        args.disable_log_stats = True
        engine = Engine(LLM.from_engine_args(args), telemetry.LanePool(lanes))
        engine.choose_prompts()
        with compilations(engine.compiled_late) if engine.compiles else nullcontext():
            yield engine


def _is_cpu_build() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _engine_args(folder: str, flags: list[str]) -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is untyped to mypy here
        def error(self, message: str) -> NoReturn:
            unknown = message.removeprefix("unrecognized arguments: ")
            if unknown != message:
                raise LaunchUsageError(f"{unknown}: not a flag of vLLM's engine, which is all that check starts")
            raise LaunchUsageError(message.removeprefix("argument "))

    parser = EngineArgs.add_cli_args(Parser(add_help=False))
    namespace: argparse.Namespace = parser.parse_args(["--model", folder, *flags])
    return EngineArgs.from_cli_args(namespace)

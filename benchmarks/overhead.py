"""What steering costs from end to end: tokens per second of one vLLM engine, with and without it.

    python -m steerdec.benchmarks.overhead --json overhead.json

One engine decodes the same prompts in every arm, each arm once a round in a new order, so that whatever
else the machine does falls on all alike. Without the plugin means that it is taken out of the engine's
own list of processors for that while; idle, that it is there and no request is steered. Every request
generates the same number of tokens, and all are in the batch from the first step to the last. A round's
speed is that of its median decoding step (scheduling, forward pass, sampling, output), which a hiccup of
the machine does not move. Reported is the mean over the rounds of the logarithm of that speed over the
one without the plugin, with its 95% t-interval, both back as ratios; beside it the tokens/s of whole rounds,
and the share of the engine's time that passes inside the plugin's own methods, which on a CPU is all that it
costs directly, and steadier than a difference of two speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The engine must be in this process for its processors to be reached.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from vllm import LLM, SamplingParams

from steerdec import models, request, telemetry
from steerdec.benchmarks import kernel
from steerdec.processor import EntropySteering

ARMS = ("no plugin", "idle", "steering", "steering and telemetry")
FEWEST_ROUNDS = 3
METHODS = ("update_state", "apply", "add_request", "apply_staged_writes")  # of either interface
STEERING = {"fork_temperature": 1.2, "other_temperature": 0.9, "threshold_nats": 0.672}
PROMPT = "Question {i}: a farmer has {i} boxes with {j} apples in each. Think step by step, then answer."


@dataclass(frozen=True)
class Throughput:
    """One arm: medians over the rounds, and the ratio of decoding speeds to the engine without the plugin."""

    arm: str
    rounds: int
    tokens_per_s: float  # of whole rounds, prefill included
    decode_tokens_per_s: float
    ratio: float
    ratio_ci95: tuple[float, float]
    share_inside: float  # of the engine's time, in the plugin's methods
    share_inside_ci95: tuple[float, float]


class Engine:
    """vLLM with the plugin in it, and the plugin's place in the engine's lists."""

    def __init__(self, model: str, dtype: str, requests: int, tokens: int, lanes: telemetry.LaneFile) -> None:
        on_cpu = {"enforce_eager": True, "gpu_memory_utilization": 0.3} if not torch.cuda.is_available() else {}
        self.llm = LLM(
            model=str(models.fetch(model)),
            dtype=dtype,
            max_model_len=tokens + 128,
            max_num_seqs=requests,
            max_num_batched_tokens=max(8192, tokens + 128),
            enable_chunked_prefill=False,
            additional_config={request.CONFIG_KEY: {"lanes": asdict(lanes)}},
            logits_processors=["steerdec.processor:EntropySteering"],
            **on_cpu,
        )
        core: Any = self.llm.llm_engine.engine_core
        runner = core.engine_core.model_executor.driver_worker.worker.model_runner
        self._batch = getattr(runner, "input_batch", None)  # V1
        self._processors: list[Any] = (
            runner.sampler.logits_processors if self._batch is None else self._batch.logitsprocs.non_argmax_invariant
        )
        self._ours = [p for p in self._processors if isinstance(p, EntropySteering)]
        if not self._ours:
            raise RuntimeError("the engine has not loaded steerdec's processor")
        self.inside_s = 0.0
        for processor in self._ours:
            for name in METHODS:
                if hasattr(processor, name):
                    setattr(processor, name, self._timed(getattr(processor, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.inside_s += time.perf_counter() - begin

        return timed

    @contextmanager
    def without_plugin(self) -> Iterator[None]:
        """The engine as it would be if the plugin had never been named."""
        kept = list(self._processors)
        self._processors[:] = [p for p in kept if p not in self._ours]
        needed = getattr(self._batch, "logitsprocs_need_output_token_ids", None)
        if self._batch is not None:
            self._batch.logitsprocs_need_output_token_ids = False  # which vLLM asks for only with custom processors
        try:
            yield
        finally:
            self._processors[:] = kept
            if self._batch is not None:
                self._batch.logitsprocs_need_output_token_ids = needed


def sampling(arm: str, n: int, tokens: int, pool: telemetry.LanePool) -> tuple[list[SamplingParams], list[Any]]:
    """The parameters of `n` requests under an arm, and the lanes they hold."""
    lanes = pool.lend(n) if arm == "steering and telemetry" else []
    made = []
    for i in range(n):
        extra: dict[str, Any] = {"steering": STEERING} if arm.startswith("steering") else {}
        if lanes:
            extra |= {request.LANES_ARG: [lanes[i].index, lanes[i].generation], request.BASE_SEED_ARG: 0}
        made.append(SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, extra_args=extra or None))
    return made, lanes


# Arm -> of every round its tokens/s, those of its median decoding step, and the share of time inside the plugin.
Speeds = dict[str, list[tuple[float, float, float]]]


def generated(engine: LLM, prompts: list[str], asked: list[SamplingParams], name: str) -> tuple[int, list[float]]:
    """Tokens that came, and the seconds of every step of the engine."""
    for i, (prompt, one) in enumerate(zip(prompts, asked, strict=True)):
        engine.llm_engine.add_request(f"{name}-{i}", prompt, one)
    made, steps_s = 0, []
    while engine.llm_engine.has_unfinished_requests():
        begin = time.perf_counter()
        outputs = engine.llm_engine.step()
        steps_s.append(time.perf_counter() - begin)
        made += sum(len(o.outputs[0].token_ids) for o in outputs if o.finished)
    return made, steps_s


def measure(engine: Engine, pool: telemetry.LanePool, n: int, tokens: int, rounds: int, console: Console) -> Speeds:
    """What every arm did in every round; the first round warms up and is not counted."""
    prompts = [PROMPT.format(i=i, j=1 + i % 9) for i in range(n)]
    speeds: Speeds = {arm: [] for arm in ARMS}
    generator = np.random.default_rng(0)

    def one(arm: str, name: str) -> tuple[float, float, float]:
        asked, lanes = sampling(arm, n, tokens, pool)
        engine.inside_s = 0.0
        made, steps_s = generated(engine.llm, prompts, asked, name)
        if made != n * tokens:
            raise RuntimeError(f"{arm}: {made} tokens came, not {n * tokens}")
        for lane in lanes:
            if lane.recorded_tokens() != tokens:
                raise RuntimeError(f"{arm}: {lane.recorded_tokens()} of {tokens} tokens are recorded")
        pool.take_back(lanes, aborted=False)
        return made / sum(steps_s), n / float(np.median(steps_s)), engine.inside_s / sum(steps_s)

    for r in range(-1, rounds):
        begin = time.perf_counter()
        for arm in generator.permutation(ARMS):
            if arm == "no plugin":
                with engine.without_plugin():
                    speed = one(arm, f"{r}-{arm}")
            else:
                speed = one(arm, f"{r}-{arm}")
            if r >= 0:
                speeds[arm].append(speed)
        left_s = (rounds - 1 - r) * (time.perf_counter() - begin)
        console.print(f"round {r + 1} of {rounds}, {left_s:.0f} s left", highlight=False)
    return speeds


def compared(speeds: Speeds) -> list[Throughput]:
    """Every arm's ratio to the engine without the plugin, paired within rounds."""
    base = np.array(speeds[ARMS[0]])
    results = []
    for arm, values in speeds.items():
        rounds = np.array(values)  # [rounds, 3]
        whole, decode, _ = np.median(rounds, axis=0)
        ratio, ratio_ci95 = mean_ci95(np.log(rounds[:, 1] / base[:, 1]))
        share, share_ci95 = mean_ci95(rounds[:, 2])
        low, high = np.exp(ratio_ci95)
        results.append(
            Throughput(
                *(arm, len(rounds), float(whole), float(decode)),
                *(float(np.exp(ratio)), (float(low), float(high)), share, share_ci95),
            )
        )
    return results


def mean_ci95(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """Mean of [rounds] values, with its 95% t-interval."""
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return mean, (mean - half, mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.overhead", description=__doc__)
    parser.add_argument("--model", default=models.SMOLLM2.name, help="name or folder, as of `steerdec model fetch`")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=64, help="in the batch at once")
    parser.add_argument("--tokens", type=int, default=64, help="generated by every request")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    asked = parser.parse_args()
    if asked.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds: is {asked.rounds}, must be at least {FEWEST_ROUNDS}")
    console = Console(width=110)
    with telemetry.created(asked.tokens + 128, max_lanes=asked.requests + 1) as lanes:
        engine = Engine(asked.model, asked.dtype, asked.requests, asked.tokens, lanes)
        speeds = measure(engine, telemetry.LanePool(lanes), asked.requests, asked.tokens, asked.rounds, console)
    results = compared(speeds)
    about = kernel.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    about |= {"model": asked.model, "dtype": asked.dtype, "requests": asked.requests, "tokens": asked.tokens}
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    table = Table(box=None)
    for heading in ("", "rounds", "tokens/s", "decoding", "ratio to no plugin, 95%", "inside, 95%"):
        table.add_column(heading, no_wrap=True)
    for t in results:
        table.add_row(
            *(t.arm, str(t.rounds), f"{t.tokens_per_s:.1f}", f"{t.decode_tokens_per_s:.1f}"),
            "{:.4f} ({:.4f} to {:.4f})".format(t.ratio, *t.ratio_ci95),
            "{:.2%} ({:.2%} to {:.2%})".format(t.share_inside, *t.share_inside_ci95),
        )
    console.print(table)
    if asked.json:
        data = {"machine": about, "arms": [asdict(t) for t in results], "tokens_per_s": speeds}
        asked.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()

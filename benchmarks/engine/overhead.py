"""What steering costs from end to end: the decoding steps of one vLLM engine, with and without it.

    python -m steerdec.benchmarks.engine.overhead --json overhead.json

One engine decodes one batch, and the arms take turns at its steps: of every four steps in a row each arm
has one, in a newly drawn order, so that other load on the machine and the cost of the growing context
affect all alike. "Without the plugin" means that it is not in the engine's own list of processors for that
step; "idle", that it is there and has no steered request. A step is scheduling, forward pass, sampling
and output; the engine schedules synchronously, so that a step's time is its own and the plugin's cannot
hide behind the next one's. All requests are in the batch from the first step to the last; the first, which
reads the prompts, is not counted.

For each batch the median over its turns of log(time without the plugin / time of the arm) is taken, which a
hiccup of the machine does not move. The report has the mean over the batches with its 95% t-interval, both
converted back to ratios of tokens/s, the share of a step spent inside the plugin's `apply`, and,
below the table, the one-time cost of a steered request: its validation, and its entry in the plugin's tables.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The engine must be in this process for its processors to be reached.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from vllm import LLM, SamplingParams

from steerdec import models
from steerdec.processor import EntropySteering
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.runner_v1 import BatchRows
from steerdec.vllm_plugin.runner_v2 import SlotRows
from steerdec.vllm_plugin.settings import CONFIG_KEY, Settings

from . import kernel

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

ARMS = ("no plugin", "idle", "steering", "steering and telemetry")
FEWEST_BATCHES = 3
STEERING = {"fork_temperature": 1.2, "other_temperature": 0.9, "threshold_nats": 0.672}
PROMPT = "Question {i}: a farmer has {i} boxes with {j} apples in each. Think step by step, then answer."


@dataclass(frozen=True)
class Cost:
    """One arm: medians of its steps, and the ratio of its tokens/s to those of the engine without the plugin."""

    arm: str
    steps: int
    step_s: float
    tokens_per_s: float
    ratio: float
    ratio_ci95: tuple[float, float]
    share_inside: float  # of the step, in the plugin's `apply`
    share_inside_ci95: tuple[float, float]


class TakingTurns(EntropySteering):
    """The plugin, with its state of the batch kept once for every arm; the arm of the step says which is read."""

    arm = "steering and telemetry"  # of the class, as vLLM may hold more than one instance
    inside_s = 0.0
    admission_s = 0.0

    def __init__(
        self, vllm_config: VllmConfig, place: torch.device | LogitsProcRequestState, is_pin_memory: bool = False
    ) -> None:
        super().__init__(vllm_config, place, is_pin_memory)
        settings = Settings.of(vllm_config)
        self._idle_v1, self._bare_v1, self._full_v1 = None, None, self._v1
        self._idle_v2, self._bare_v2, self._full_v2 = None, None, self._v2
        if isinstance(place, torch.device):
            self._idle_v1, self._bare_v1 = (BatchRows(settings, None, place) for _ in range(2))
        else:
            self._idle_v2, self._bare_v2 = (SlotRows(settings, None, vllm_config, place) for _ in range(2))

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        begin = time.perf_counter()
        super().validate_params(sampling_params)
        TakingTurns.admission_s += time.perf_counter() - begin

    def _read(self, arm: str) -> None:
        """Make the methods of the plugin see `arm`."""
        self._v1 = {"idle": self._idle_v1, "steering": self._bare_v1}.get(arm, self._full_v1)
        self._v2 = {"idle": self._idle_v2, "steering": self._bare_v2}.get(arm, self._full_v2)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self._read("steering")
        super().update_state(batch_update)
        self._read("steering and telemetry")
        begin = time.perf_counter()
        super().update_state(batch_update)
        TakingTurns.admission_s += time.perf_counter() - begin

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._read("steering")
        super().add_request(req_idx, sampling_params)
        self._read("steering and telemetry")
        begin = time.perf_counter()
        steered = super().add_request(req_idx, sampling_params)
        TakingTurns.admission_s += time.perf_counter() - begin
        return steered

    def apply_staged_writes(self) -> None:
        for arm in ARMS[1:]:
            self._read(arm)
            super().apply_staged_writes()

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        self._read(self.arm)
        begin = time.perf_counter()
        logits = super().apply(logits, ctx)
        TakingTurns.inside_s += time.perf_counter() - begin
        return logits


def started(model: str, dtype: str, requests: int, tokens: int, lanes: telemetry.LaneFile) -> LLM:
    """Start vLLM with the plugin in it."""
    on_cpu = {"enforce_eager": True, "gpu_memory_utilization": 0.3} if not torch.cuda.is_available() else {}
    return LLM(
        model=str(models.fetch(model)),
        dtype=dtype,
        max_model_len=tokens + 128,
        max_num_seqs=requests,
        max_num_batched_tokens=max(8192, requests * 128),
        enable_chunked_prefill=False,
        async_scheduling=False,
        additional_config={CONFIG_KEY: {"lanes": asdict(lanes)}},
        logits_processors=[TakingTurns],
        **on_cpu,
    )


class Engine:
    """vLLM with the plugin loaded, whose arm is chosen step by step."""

    def __init__(self, llm: LLM) -> None:
        """Reach into `llm`, which was started with TakingTurns and without asynchronous scheduling."""
        self.llm = llm
        core: Any = llm.llm_engine.engine_core
        runner = core.engine_core.model_executor.driver_worker.worker.model_runner
        self._batch = getattr(runner, "input_batch", None)  # V1
        self._processors: list[Any] = (
            runner.sampler.logits_processors if self._batch is None else self._batch.logitsprocs.non_argmax_invariant
        )
        self._sampler = runner.sampler
        self._others = [p for p in self._processors if not isinstance(p, EntropySteering)]
        self._all = list(self._processors)
        if not any(isinstance(p, TakingTurns) for p in self._all):
            raise RuntimeError("the engine has not loaded steerdec's processor")

    def step(self, arm: str) -> tuple[float, float, int]:
        """Run one step under an arm: its seconds, those inside the plugin, and the tokens of finished requests."""
        TakingTurns.arm, TakingTurns.inside_s = arm, 0.0
        self._processors[:] = self._others if arm == "no plugin" else self._all
        if self._batch is not None:  # V1 hands the tokens so far to its sampler only for a custom processor
            metadata = self._batch.sampling_metadata
            metadata.output_token_ids = [] if arm == "no plugin" else self._batch.req_output_token_ids
        else:  # V2 leaves out its copy of the logits where neither a request nor a processor needs one
            self._sampler.needs_logits_processing[:] = arm in ARMS[2:]
        begin = time.perf_counter()
        outputs = self.llm.llm_engine.step()
        took_s = time.perf_counter() - begin
        self._processors[:] = self._all
        return took_s, TakingTurns.inside_s, sum(len(o.outputs[0].token_ids) for o in outputs if o.finished)


# Of one batch, [turns, arms, 2]: the seconds of the step, and of those the ones inside the plugin.
Turns = NDArray[np.float64]


def batch_of_turns(
    engine: Engine, pool: telemetry.LanePool, name: str, n: int, tokens: int, generator: np.random.Generator
) -> Turns:
    """Decode one batch from its prompts to its last token."""
    lanes = pool.lend(n)
    for i, lane in enumerate(lanes):
        extra = {request.STEERING_ARG: STEERING, **request.lane_arguments([lane], None)}
        parameters = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, extra_args=extra)
        engine.llm.llm_engine.add_request(f"{name}-{i}", PROMPT.format(i=i, j=1 + i % 9), parameters)
    turns = np.empty(((tokens - 1) // len(ARMS), len(ARMS), 2))
    rest = tokens - turns.shape[0] * len(ARMS)  # the step that reads the prompts, and the steps too few for a turn
    for _ in range(rest):
        *_, made = engine.step(ARMS[-1])
    for turn in turns:
        for a in generator.permutation(len(ARMS)):
            *turn[a], made = engine.step(ARMS[a])
    if engine.llm.llm_engine.has_unfinished_requests() or made != n * tokens:
        raise RuntimeError(
            f"{name}: {made} tokens were generated instead of {n * tokens}: "
            "some requests were not in the batch throughout"
        )
    for lane in lanes:
        recorded = int(np.isfinite(lane.read(0, tokens).entropy_nats).sum())
        if recorded != rest + len(turns):
            raise RuntimeError(f"{name}: {recorded} tokens were recorded instead of {rest + len(turns)}")
    pool.take_back(lanes, aborted=False)
    return turns


def measure(
    engine: Engine, pool: telemetry.LanePool, n: int, tokens: int, batches: int, console: Console
) -> tuple[list[Turns], float]:
    """Return the turns of every batch, and the seconds of a request's admission; the first batch warms up."""
    generator = np.random.default_rng(0)
    done: list[Turns] = []
    for b in range(-1, batches):
        begin = time.perf_counter()
        turns = batch_of_turns(engine, pool, f"batch {b + 1}", n, tokens, generator)
        if b >= 0:
            done.append(turns)
        else:
            TakingTurns.admission_s = 0.0
        left_s = (batches - 1 - b) * (time.perf_counter() - begin)
        console.print(f"batch {b + 1} of {batches}, {left_s:.0f} s left", highlight=False)
    return done, TakingTurns.admission_s / (batches * n)


def compared(batches: list[Turns], requests: int) -> list[Cost]:
    """Return every arm's ratio to the engine without the plugin, paired within turns."""
    results = []
    for a, arm in enumerate(ARMS):
        logs = np.array([np.median(np.log(turns[:, 0, 0] / turns[:, a, 0])) for turns in batches])
        ratio, ratio_ci95 = mean_ci95(logs)
        share, share_ci95 = mean_ci95(np.array([np.median(turns[:, a, 1] / turns[:, a, 0]) for turns in batches]))
        steps_s = np.concatenate([turns[:, a, 0] for turns in batches])
        step_s = float(np.median(steps_s))
        low, high = np.exp(ratio_ci95)
        results.append(
            Cost(
                *(arm, len(steps_s), step_s, requests / step_s),
                *(float(np.exp(ratio)), (float(low), float(high)), share, share_ci95),
            )
        )
    return results


def mean_ci95(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """Return the mean of [n] values with its 95% t-interval."""
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return mean, (mean - half, mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.engine.overhead", description=__doc__)
    parser.add_argument("--model", default=models.SMOLLM2.name, help="name or folder, as of `steerdec model fetch`")
    parser.add_argument("--dtype", help="default: float32 without a GPU, as a bench run has it; else the model's own")
    parser.add_argument("--requests", type=int, default=64, help="in the batch at once")
    parser.add_argument("--tokens", type=int, default=129, help="generated by every request")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    dtype = options.dtype or ("auto" if torch.cuda.is_available() else "float32")
    if options.batches < FEWEST_BATCHES:
        parser.error(f"--batches: is {options.batches}, must be at least {FEWEST_BATCHES}")
    if options.tokens <= len(ARMS):
        parser.error(f"--tokens: is {options.tokens}, must be at least {len(ARMS) + 1}, one turn of every arm")
    console = Console(width=110)
    with telemetry.created(options.tokens + 128, max_lanes=options.requests + 1) as lanes:
        engine = Engine(started(options.model, dtype, options.requests, options.tokens, lanes))
        pool = telemetry.LanePool(lanes)
        batches, admission_s = measure(engine, pool, options.requests, options.tokens, options.batches, console)
    results = compared(batches, options.requests)
    about = kernel.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    about |= {"model": options.model, "dtype": dtype, "requests": options.requests, "tokens": options.tokens}
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    table = Table(box=None)
    for heading in ("", "steps", "ms per step", "tokens/s", "tokens/s to no plugin, 95%", "inside, 95%"):
        table.add_column(heading, no_wrap=True)
    for t in results:
        table.add_row(
            *(t.arm, str(t.steps), f"{1e3 * t.step_s:.2f}", f"{t.tokens_per_s:.1f}"),
            "{:.4f} ({:.4f} to {:.4f})".format(t.ratio, *t.ratio_ci95),
            "{:.2%} ({:.2%} to {:.2%})".format(t.share_inside, *t.share_inside_ci95),
        )
    console.print(table)
    console.print(f"admission of a steered request: {1e3 * admission_s:.3f} ms", highlight=False)
    if options.json:
        data = {"machine": about, "arms": [asdict(t) for t in results], "admission_s": admission_s}
        data["turns_s"] = [turns.tolist() for turns in batches]
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()

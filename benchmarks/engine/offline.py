"""What `SteeredLLM` costs from end to end: its tokens/s as a share of those of vLLM's own `LLM.generate`.

    python -m steerdec.benchmarks.engine.offline --json offline.json

One engine, in a process of its own as vLLM has it by default, answers the same batch under every arm in each round, in
a newly drawn order, so that other load on the machine affects all alike. "vLLM" is `LLM.generate` without steering, on
the engine without our wrapper; "wrapper, plain" is `SteeredLLM.generate` without steering. The processor is loaded
throughout; what it costs by itself is measured by overhead.py. Every answer has the same number of tokens.

The report has the mean over rounds of log(time of vLLM / time of the arm), with its 95% t-interval, converted back to a
ratio of tokens/s. `--lanes` below `--requests` shows what waiting for lanes costs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # which overhead.py would turn off

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from vllm import LLM, SamplingParams

from steerdec import models
from steerdec.offline import SteeredLLM
from steerdec.vllm_plugin.request import STEERING_ARG

from . import kernel
from .overhead import PROMPT, STEERING, mean_ci95

ARMS: Final = ("vLLM", "vLLM, steered", "wrapper, plain", "wrapper, steered")
FEWEST_ROUNDS: Final = 3


@dataclass(frozen=True)
class Share:
    """One arm: the median of its rounds, and its tokens/s as a share of vLLM's."""

    arm: str
    tokens_per_s: float
    share: float
    share_ci95: tuple[float, float]


def shares(times_s: NDArray[np.float64], tokens: int) -> list[Share]:
    """Return each arm's share of the tokens/s of the first; `times_s` [rounds, arms] is paired within rounds."""
    found = []
    for a, arm in enumerate(ARMS):
        mean, (low, high) = mean_ci95(np.log(times_s[:, 0] / times_s[:, a]))
        ci95 = float(np.exp(low)), float(np.exp(high))
        found.append(Share(arm, tokens / float(np.median(times_s[:, a])), float(np.exp(mean)), ci95))
    return found


def measure(llm: SteeredLLM, prompts: list[str], tokens: int, rounds: int, console: Console) -> NDArray[np.float64]:
    """Return the seconds of every arm in every round, [rounds, arms]; a first round, which is not counted, warms up.

    Raises:
        RuntimeError: an answer has another number of tokens, or a steered one too few records.
    """
    calls: dict[str, Callable[[], list[Any]]] = {
        "vLLM": lambda: _by_vllm(llm, prompts, _params(tokens)),
        "vLLM, steered": lambda: _by_vllm(llm, prompts, _params(tokens, {STEERING_ARG: STEERING})),
        "wrapper, plain": lambda: llm.generate(prompts, _params(tokens), use_tqdm=False),
        "wrapper, steered": lambda: llm.generate(prompts, _params(tokens), steering=STEERING, use_tqdm=False),
    }
    generator = np.random.default_rng(0)
    times_s = np.empty((rounds + 1, len(ARMS)))
    for r in range(rounds + 1):
        for a in generator.permutation(len(ARMS)):
            begin = time.perf_counter()
            outputs = calls[ARMS[a]]()
            times_s[r, a] = time.perf_counter() - begin
            _check(ARMS[a], outputs, tokens)
        console.print(f"round {r} of {rounds}, {times_s[r].sum() * (rounds - r):.0f} s left", highlight=False)
    return times_s[1:]


def _params(tokens: int, extra: dict[str, Any] | None = None) -> SamplingParams:
    return SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, extra_args=extra)


def _by_vllm(llm: SteeredLLM, prompts: list[str], params: SamplingParams) -> list[Any]:
    """Generate with vLLM's own method, on vLLM's own engine."""
    wrapped = llm.llm_engine
    llm.llm_engine = wrapped.engine
    try:
        return list(LLM.generate(llm, prompts, params, use_tqdm=False))
    finally:
        llm.llm_engine = wrapped


def _check(arm: str, outputs: list[Any], tokens: int) -> None:
    for output in outputs:
        (one,) = output.outputs
        records = tokens if arm != ARMS[-1] else int(np.isfinite(one.steering.entropy_nats).sum())
        if len(one.token_ids) != tokens or records != tokens:
            raise RuntimeError(f"{arm}: {len(one.token_ids)} tokens and {records} records instead of {tokens}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.engine.offline", description=__doc__)
    parser.add_argument("--model", default=models.SMOLLM2.name, help="name or folder, as of `steerdec model fetch`")
    parser.add_argument("--dtype", help="default: float32 without a GPU, as a bench run has it; else the model's own")
    parser.add_argument("--requests", type=int, default=64, help="in the batch at once")
    parser.add_argument("--tokens", type=int, default=64, help="generated by every request")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--lanes", type=int, default=1024, help="steered requests beyond this number wait")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    dtype = options.dtype or ("auto" if torch.cuda.is_available() else "float32")
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds: is {options.rounds}, must be at least {FEWEST_ROUNDS}")
    on_cpu = {"enforce_eager": True, "gpu_memory_utilization": 0.3} if not torch.cuda.is_available() else {}
    llm = SteeredLLM(
        str(models.fetch(options.model)),
        telemetry_lanes=options.lanes,
        dtype=dtype,
        max_model_len=options.tokens + 128,
        max_num_seqs=options.requests,
        max_num_batched_tokens=max(8192, options.requests * 128),
        enable_chunked_prefill=False,
        **on_cpu,
    )
    console = Console(width=110)
    prompts = [PROMPT.format(i=i, j=1 + i % 9) for i in range(options.requests)]
    times_s = measure(llm, prompts, options.tokens, options.rounds, console)
    found = shares(times_s, options.requests * options.tokens)
    about = kernel.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    about |= {name: getattr(options, name) for name in ("model", "requests", "tokens", "rounds", "lanes")}
    about["dtype"] = dtype
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    table = Table("", "tokens/s", "share of vLLM's, 95%", box=None)
    for one in found:
        share = "{:.4f} ({:.4f} to {:.4f})".format(one.share, *one.share_ci95)
        table.add_row(one.arm, f"{one.tokens_per_s:.1f}", share)
    console.print(table)
    if options.json is not None:
        data = {"machine": about, "arms": [asdict(one) for one in found], "times_s": times_s.tolist()}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()

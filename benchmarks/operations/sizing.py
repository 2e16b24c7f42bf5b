"""Estimate tokens, hours and money of a study before any GPU is rented.

    python -m steerdec.benchmarks.operations.sizing --gpus 1 8 64

A model of decoding, not a measurement: a step reads the weights and the running requests' KV cache once, and memory
bandwidth is its limit. Every assumption is a field with its default below. A measured throughput replaces
the model: `steerdec bench plan --tokens-per-s`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The size of a model. Defaults: Qwen3-8B in bfloat16, by its config.json."""

    parameters: float = 8.19e9
    layers: int = 36
    kv_heads: int = 8
    head_size: int = 128
    bytes_per_value: int = 2

    @property
    def weight_bytes(self) -> float:
        return self.parameters * self.bytes_per_value

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of a key and a value for each layer and KV head."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.bytes_per_value


@dataclass(frozen=True)
class Gpu:
    """One GPU. Defaults: an H100 SXM, by its data sheet; the price is an assumption."""

    memory_bytes: float = 80e9
    bandwidth_bytes_per_s: float = 3.35e12
    memory_share: float = 0.9  # vLLM's --gpu-memory-utilization
    reserved_bytes: float = 4e9  # of that, for activations and CUDA graphs
    bandwidth_share: float = 0.7  # of the data sheet's, reached over a whole decoding step
    usd_per_hour: float = 2.5


@dataclass(frozen=True)
class Study:
    """The study to estimate. Defaults: figure 3 of arXiv 2506.01939, AIME'24 and '25 under the arm set `figure3`.

    The paper does not state its samples per problem. Answers of `runaway_arms` (other tokens at temperature 2 or more)
    degenerate into noise and run to the limit.
    """

    problems: int = 60
    samples: int = 16
    arms: int = 16
    runaway_arms: int = 3
    prompt_tokens: float = 200.0
    mean_tokens: float = 15_000.0  # of an answer in the other arms
    sd_tokens: float = 7_500.0
    max_tokens: int = 28_672

    @property
    def answers(self) -> int:
        return self.problems * self.samples * self.arms

    @property
    def tokens_per_answer(self) -> float:
        usual = self.arms - self.runaway_arms
        return (usual * self.mean_tokens + self.runaway_arms * self.max_tokens) / self.arms

    @property
    def context_tokens(self) -> float:
        """Return the tokens of a request in the KV cache, averaged over time and over the running requests.

        Long answers run longer, and on average a running answer is half done: the prompt plus E[L^2] / (2 E[L]), L the
        length.
        """
        usual = self.arms - self.runaway_arms
        squares = usual * (self.mean_tokens**2 + self.sd_tokens**2) + self.runaway_arms * self.max_tokens**2
        return self.prompt_tokens + squares / self.arms / (2 * self.tokens_per_answer)


@dataclass(frozen=True)
class Cost:
    """What a study takes on `gpus` servers of one GPU each."""

    gpus: int
    running: float  # requests at once on each
    tokens_per_s: float  # of all together
    tokens: float
    hours: float
    usd: float


def step_s(model: Model, gpu: Gpu, running: float, context_tokens: float) -> float:
    """Return the seconds of one decoding step: the bytes it reads over the bandwidth reached."""
    read = model.weight_bytes + running * context_tokens * model.kv_bytes_per_token
    return read / (gpu.bandwidth_bytes_per_s * gpu.bandwidth_share)


def cost(
    study: Study, gpus: int, *, model: Model | None = None, gpu: Gpu | None = None, start_s: float = 600.0
) -> Cost:
    """Return what `study` takes.

    Concurrent requests: as many as the KV cache holds, or as there are. Hours: starting the servers (`start_s`:
    weights, compilation), the tokens at full load, and a tail in which one longest answer is decoded alone.

    Raises:
        ValueError: no GPU, nothing to do, or a GPU that does not hold the weights and one whole request.
    """
    model, gpu = model or Model(), gpu or Gpu()
    for name, count in (("gpus", gpus), ("samples", study.samples), ("problems", study.problems), ("arms", study.arms)):
        if count < 1:
            raise ValueError(f"{name} is {count}; at least 1 is allowed")
    free = gpu.memory_bytes * gpu.memory_share - gpu.reserved_bytes - model.weight_bytes
    if free < (study.prompt_tokens + study.max_tokens) * model.kv_bytes_per_token:
        raise ValueError(
            f"{gpu.memory_bytes / 1e9:g} GB cannot hold the weights and a request of {study.max_tokens} tokens"
        )
    held = free // (study.context_tokens * model.kv_bytes_per_token)
    running = min(held, study.answers / gpus)
    tokens_per_s = gpus * running / step_s(model, gpu, running, study.context_tokens)
    tokens = study.answers * study.tokens_per_answer
    tail_s = study.max_tokens * step_s(model, gpu, 1, study.max_tokens / 2)
    hours = (start_s + tokens / tokens_per_s + tail_s) / 3600
    return Cost(gpus, running, tokens_per_s, tokens, hours, hours * gpus * gpu.usd_per_hour)


def rows(gpus: Sequence[int], samples: Sequence[int]) -> list[list[str]]:
    """Return the table, cells as text: samples, answers, tokens, GPUs, tokens/s, hours, dollars."""
    found = []
    for k in samples:
        study = Study(samples=k)
        for n in gpus:
            c = cost(study, n)
            size = [str(k), f"{study.answers:,}", f"{c.tokens / 1e6:,.0f} M"]
            found.append([*size, str(n), f"{c.tokens_per_s:,.0f}", f"{c.hours:,.1f}", f"{c.usd:,.0f}"])
    return found


HEAD = ["samples per problem", "answers", "tokens", "GPUs", "tokens/s", "hours", "US dollars"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What figure 3 of arXiv 2506.01939 takes on Qwen3-8B.")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 48])
    options = parser.parse_args()
    try:
        table = [HEAD, *rows(options.gpus, options.samples)]
    except ValueError as e:
        parser.error(str(e))
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()

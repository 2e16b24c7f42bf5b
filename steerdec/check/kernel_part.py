"""The kernel by itself: against the reference on this device, and its speed beside a copy or a softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from steerdec.check import parity
from steerdec.check.part import Reporter
from steerdec.check.results import Result, Skip, at_least, at_most

CHECKS: Final = {
    "parity": ("kernel: as the reference", "kernel: other rows untouched"),
    "speed": ("kernel: speed",),
}
LEAST_OF_COPY: Final = 0.8  # share of a copy's bandwidth, on a GPU
MOST_OF_SOFTMAX: Final = 1.2  # on a CPU
ROWS: Final = {"cuda": 256, "cpu": 64}
ROUNDS: Final = 40
PAPER_VOCAB: Final = 151_936
LEAST_VOCAB: Final = 49_152  # with fewer logits a call's own overhead is what is timed


def run(reporter: Reporter) -> None:
    """Make the checks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reporter.about(triton_interpreted=reporter.settings.interpreted)
    vocab = _vocabulary(reporter.settings.model)
    reporter.run(CHECKS["parity"], lambda: parity.results(reporter, device, vocab))
    reporter.run(CHECKS["speed"], lambda: _speed(reporter, device, vocab))


def _vocabulary(model: str | None) -> int:
    """Return the size of the model's vocabulary; that of Qwen3 where its folder is not on this machine yet."""
    import json

    from steerdec import models

    folder = models.fetch(None) if model is None or model == models.SMOLLM2.name else Path(model)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return PAPER_VOCAB
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or PAPER_VOCAB)


def _speed(reporter: Reporter, device: torch.device, vocab: int) -> Iterator[Result]:
    if reporter.settings.interpreted:
        raise Skip("Triton's interpreter runs the kernels, and its speed says nothing")
    from steerdec.benchmarks.engine import kernel

    rows = ROWS[device.type]
    vocab = max(vocab, LEAST_VOCAB)
    reporter.progress(f"timing the kernel on {rows} x {vocab:,} logits")
    rounds = kernel.FEWEST_ROUNDS if reporter.settings.quick else ROUNDS
    timings = {t.contender: t for t in kernel.measure(rows, vocab, rounds, device, tries=3)}
    steer, copy = timings["steer"], timings["copy"]
    figures = {"rows": rows, "vocab": vocab, "steer_s": steer.median_s, "copy_s": copy.median_s}
    noisy = ", other work on the machine counted" if steer.disturbed else ""
    if device.type == "cuda":
        share = steer.gigabytes / copy.gigabytes
        middle, low, high = (share / t for t in (steer.over_copy, *reversed(steer.over_copy_ci95)))
        yield Result(
            check=CHECKS["speed"][0],
            measured=f"{middle:.0%} of a copy's bandwidth ({low:.0%} to {high:.0%}) at {rows} x {vocab:,}{noisy}",
            limit=f"at least {LEAST_OF_COPY:.0%}",
            status=at_least(LEAST_OF_COPY, (low, high)),
            figures=figures | {"share_of_copy": middle, "share_of_copy_ci95": [low, high]},
        )
        return
    low, high = steer.over_softmax_ci95
    status = at_most(MOST_OF_SOFTMAX, (low, high))
    yield Result(
        check=CHECKS["speed"][0],
        measured=f"{steer.over_softmax:.2f} of a softmax ({low:.2f} to {high:.2f}) at {rows} x {vocab:,}{noisy}",
        limit=f"at most {MOST_OF_SOFTMAX:g}",
        # Where every round was disturbed the interval says what the machine did, not what the kernel takes.
        status="undecided" if steer.disturbed and status == "FAIL" else status,
        figures=figures | {"over_softmax": _finite(steer.over_softmax), "over_softmax_ci95": [low, high]},
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

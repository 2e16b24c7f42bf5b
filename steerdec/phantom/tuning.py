"""Tune phantoms with many seeds, and compare what `steerdec tune` advises with what is exactly true.

    python -m steerdec.phantom.tuning --kind null-varied --seeds 20 --out build/phantom-tuning

The phantom is served once. Each seed divides its problems anew and is a search of its own, in a folder of its own;
after any stop, the same command continues. On a phantom on which no setting helps, at most one search in twenty may
advise one; on any other, each has to advise a setting whose exact score is above the baseline's, and that raises (or
lowers) the entropy where raising (or lowering) that of forks helps. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from steerdec.benchmarks.run.local_server import ServerError, local_server
from steerdec.phantom.folder import MAX_TOKENS, PhantomError, kind_named, truth_of, write_phantom
from steerdec.phantom.truth import Truth

START_TIMEOUT_S: Final = 900.0  # of a server on a machine that is busy with other work
FALSE_ALARMS: Final = 0.05
WITHOUT_EFFECT: Final = ("null", "null-varied")


class TuningError(Exception):
    """A search failed; the message is one plain line."""


@dataclass(frozen=True)
class Tuned:
    """What one search advised. Scores and gains are fractions; `exact_gain` is of the steered finalist."""

    seed: int
    advice: str
    setting: str
    exact_gain: float
    measured_gain: float | None
    entropy_shift_nats: float | None
    tokens: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune, print the table, and return the exit status."""
    options = _options(arguments)
    try:
        kind = kind_named(options.kind)
        folder = options.out / kind.name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "phantom").exists():
            write_phantom(kind, folder / "phantom")
        found = _tuned(folder, truth_of(kind), options)
    except (PhantomError, ServerError, TuningError, OSError) as e:
        print(f"steerdec.phantom.tuning: {e}", file=sys.stderr)
        return 1
    side = None if kind.name in WITHOUT_EFFECT else {"holds": 1, "reversed": -1}.get(kind.claims[1], 0)
    print_table(found)
    wrong = wrong_searches(found, side)
    print(f"{len(found)} searches of {kind.name}; {len(wrong)} advised wrongly {wrong or ''}".rstrip())
    return int(len(wrong) > (FALSE_ALARMS * len(found) if side is None else 0))


def wrong_searches(found: Sequence[Tuned], side: int | None) -> list[int]:
    """Return the seeds whose advice is wrong.

    `side` None: nothing helps, so any setting is wrong. Else none is wrong, or one that does not help, or, where
    raising (1) or lowering (-1) the entropy of forks helps, one that does not move the entropy that way.
    """
    if side is None:
        return [one.seed for one in found if one.advice != "nothing"]
    return [one.seed for one in found if one.advice != "steer" or not one.exact_gain > 0 or not _moved(one, side)]


def _moved(one: Tuned, side: int) -> bool:
    return side == 0 or (one.entropy_shift_nats is not None and side * one.entropy_shift_nats > 0)


def _tuned(folder: Path, truth: Truth, options: argparse.Namespace) -> list[Tuned]:
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    missing = [seed for seed in seeds if not (_of_seed(folder, seed) / "result.json").exists()]
    if missing:
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1"}
        with local_server(
            str(folder / "phantom"), folder / "server.log", environment=environment, start_timeout_s=START_TIMEOUT_S
        ) as url:
            for seed in missing:
                _tune(folder, seed, url, options)
                done = _read(folder, seed, truth)
                print(f"seed {seed}: {done.advice}, {done.setting}", file=sys.stderr, flush=True)
    return [_read(folder, seed, truth) for seed in seeds]


def _of_seed(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _tune(folder: Path, seed: int, url: str, options: argparse.Namespace) -> None:
    command = [
        *(sys.executable, "-m", "steerdec.common.tether", os.getpid()),  # it would go on asking a server that is gone
        *(sys.executable, "-m", "steerdec", "tune", "--endpoint", url),
        *("--problems", folder / "phantom" / "problems.jsonl", "--max-tokens", MAX_TOKENS, "--seed", seed),
        *("--candidates", options.candidates, "--samples", options.samples, "--out", _of_seed(folder, seed)),
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise TuningError(f"seed {seed}: steerdec tune ended with status {done.returncode}: {last}")


def _read(folder: Path, seed: int, truth: Truth) -> Tuned:
    result: dict[str, Any] = json.loads((_of_seed(folder, seed) / "result.json").read_text("utf-8"))
    steered = result["steered"]
    gain = next(claim for claim in result["claims"] if (claim["arm"], claim["baseline"]) == ("tuned", "B"))
    return Tuned(
        seed=seed,
        advice=result["advice"],
        setting=steered["name"],
        exact_gain=exact_gain(truth, steered["steering"]),
        measured_gain=gain["diff"],
        entropy_shift_nats=result["entropy_shift_nats"],
        tokens=sum(result["cost"].values()),
    )


def exact_gain(truth: Truth, steering: Mapping[str, Any]) -> float:
    """Return the exact score under a steering that states its threshold, minus the baseline's."""
    asked = {name: value for name, value in steering.items() if name not in ("threshold_nats", "telemetry")}
    threshold_nats = float(steering["threshold_nats"])
    return truth.arm(asked, threshold_nats).score - truth.arm(None, threshold_nats).score


def print_table(found: Sequence[Tuned]) -> None:
    """Print one line for each search."""
    table = Table(box=None, pad_edge=False)
    for column in ("seed", "advice", "best steering", "exact gain", "measured", "entropy shift, nats", "tokens"):
        table.add_column(column, no_wrap=True)
    for one in found:
        measured = "" if one.measured_gain is None else f"{100 * one.measured_gain:+.1f}"
        shift = "" if one.entropy_shift_nats is None else f"{one.entropy_shift_nats:+.3f}"
        exact = f"{100 * one.exact_gain:+.1f}"
        table.add_row(str(one.seed), one.advice, one.setting, exact, measured, shift, f"{one.tokens:,}")
    console = Console()
    Console(width=console.width if console.is_terminal else 140).print(table)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m steerdec.phantom.tuning", description=__doc__.split("\n")[0])
    parser.add_argument("--kind", default="null-varied", help="kind of phantom (default: null-varied)")
    parser.add_argument("--seeds", type=int, default=20, help="searches (default: 20)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first (default: 0)")
    parser.add_argument("--candidates", type=int, default=18, help="steered settings to try (default: 18)")
    parser.add_argument("--samples", type=int, default=8, help="samples of each held-out problem in each arm")
    parser.add_argument("--out", type=Path, required=True, help="folder to keep everything in")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

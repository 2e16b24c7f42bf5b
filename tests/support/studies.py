"""Hundreds of runs whose truth is planted, each judged as a run is: `samples.jsonl` in, summary out.

    python -m tests.support.studies --studies 400

The samples are drawn here and written as a run writes them; everything after that is the product. (`planted` makes
whole runs against a scripted endpoint, and is far slower.) Every study has problems of its own, so both populations are
tried.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, SCOPES, THESE_PROBLEMS
from steerdec.benchmarks.stats.looks import plan_looks
from steerdec.benchmarks.verdicts import claims
from steerdec.benchmarks.verdicts.summary import read_run_data
from steerdec.benchmarks.verdicts.summary_rows import comparison_rows
from steerdec.records.summary import ClaimSummary, Comparison, Population

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ARMS: list[dict[str, Any]] = [
    {"name": "B", "role": "baseline", "temperature": 1.0, "steering": None},
    {"name": "A/A", "role": "identity", "temperature": 1.0, "steering": {"fork_temperature": 1.0}},
    {"name": "B-again", "role": "replicate", "temperature": 1.0, "steering": None},
    {"name": "B-other", "role": "replica", "temperature": 1.0, "steering": None},
    {"name": "F-up", "role": "treatment", "temperature": 1.0, "steering": {"fork_temperature": 2.0}},
    {"name": "N-up", "role": "treatment", "temperature": 1.0, "steering": {"other_temperature": 2.0}},
]


FAILED: dict[str, Any] = {
    "text": None,
    "answer": None,
    "grade": "ungraded",
    "grade_path": "error",
    "finish_reason": None,
    "completion_tokens": None,
    "forks": None,
    "mean_entropy_nats": None,
    "mean_sampled_entropy_nats": None,
    "error": "ReadTimeout",
}


@dataclass(frozen=True)
class Truth:
    """What is planted.

    `effect`: of F-up on the chance of a right answer, mean over all problems there could be; `effect_sd` its spread
    between them. `shared`: the share of samples that an arm draws with the luck of the baseline's, sample by sample.
    `gains`, `losses`: share of problems that F-up alone always solves, or never.
    `bias`: of A/A. `engine_noise`: share of samples that the engine draws anew in A/A and
    B-again. `lost`: share of F-up's wrong answers that fail, so are ungraded.
    """

    n_problems: int = 60
    samples: int = 16
    arms: tuple[str, ...] = ("B", "A/A", "F-up")
    effect: float = 0.0
    effect_sd: float = 0.0
    shared: float = 0.0
    gains: float = 0.0
    losses: float = 0.0
    bias: float = 0.0
    engine_noise: float = 0.0
    lost: float = 0.0
    delta: float = 0.02
    looks: bool = False


@dataclass(frozen=True)
class Study:
    """One study: the true effect of F-up on its own problems, and what was found."""

    effect_here: float
    comparisons: tuple[Comparison, ...]
    claim: ClaimSummary  # that F-up is better
    instrument: str

    def row(self, population: Population) -> Comparison:
        return next(row for row in self.comparisons if (row.arm, row.scope) == ("F-up", population))

    def verdict(self, population: Population) -> str:
        return str(self.claim.verdict if population == PROBLEMS_LIKE_THESE else self.claim.verdict_these_problems)


def study(truth: Truth, seed: int) -> Study:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        here = write_study(truth, Path(folder), seed)
        data = read_run_data(folder)  # as for a summary, without the descriptions that decide nothing
        instrument = claims.judge_instruments(data)
        judged = claims.judge(data, instrument)
        claim = next(row for row in judged.rows if row.id == "F-up")
        return Study(here, comparison_rows(data, judged.claimed), claim, instrument.verdict)


def write_study(truth: Truth, folder: Path, seed: int) -> float:
    """Write run.json and samples.jsonl; returns the mean effect of F-up on the problems drawn."""
    rng = np.random.default_rng([seed, truth.n_problems, truth.samples])
    n, k = truth.n_problems, truth.samples
    right, here = _draw(truth, rng)
    ids = [f"p{i}" for i in range(n)]
    names = [arm for arm in ARMS if arm["name"] in right]
    directions = ("higher", "lower")
    claimed = [name for name in right if name in ("F-up", "N-up")]
    declared = [
        {"id": arm, "statement": f"{arm} is better.", "arm": arm, "baseline": "B", "direction": directions[i]}
        for i, arm in enumerate(claimed)
    ]
    arm_set = {"name": "study", "baseline": "B", "delta": truth.delta, "arms": names, "claims": declared}
    run: dict[str, Any] = {"arms": arm_set, "problems": {"ids": ids, "n": n, "name": "p"}, "samples": k, "seed": seed}
    if truth.looks:
        run["looks"] = [look.samples for look in plan_looks(k)]
    (folder / "run.json").write_text(json.dumps(run))
    lost = rng.random((n, k)) < truth.lost
    with (folder / "samples.jsonl").open("w") as file:
        for name, table in right.items():
            failed = lost & ~table[0] if name == "F-up" else np.zeros((n, k), dtype=bool)
            file.writelines(_lines(name, ids, *table, failed))
    return here


def _draw(truth: Truth, rng: np.random.Generator) -> tuple[dict[str, tuple[Bools, NDArray[np.int64]]], float]:
    """By arm, [n, k] right or wrong and the number of the text: equal numbers at one sample are equal texts."""
    n, k = truth.n_problems, truth.samples
    p = 0.25 + 0.5 * rng.beta(0.6, 0.6, n)
    shift = truth.effect + truth.effect_sd * np.sqrt(3) * rng.uniform(-1, 1, n)
    kind = rng.random(n)
    gains, losses = kind < truth.gains, (kind >= truth.gains) & (kind < truth.gains + truth.losses)
    p = np.where(gains, 0.0, np.where(losses, 1.0, p))
    shift = np.where(gains, 1.0, np.where(losses, -1.0, shift))
    luck = rng.random((n, k))
    base = luck < p[:, None]
    drawn: dict[str, tuple[Bools, NDArray[np.int64]]] = {"B": (base, np.zeros((n, k), dtype=np.int64))}
    for number, name in enumerate(truth.arms[1:], start=1):
        if name in ("A/A", "B-again"):
            anew = rng.random((n, k)) < truth.engine_noise
            chance = p + (truth.bias if name == "A/A" else 0.0)
        elif name == "B-other":
            anew, chance = np.ones((n, k), dtype=bool), p
        else:
            anew = rng.random((n, k)) >= truth.shared
            chance = p + (shift if name == "F-up" else 0.0)
        own = np.where(anew, rng.random((n, k)), luck)
        text = np.where(anew, number, 0) if name != "F-up" else np.full((n, k), number)
        drawn[name] = (own < np.clip(chance, 0, 1)[:, None], text)
    return drawn, float(np.mean(shift))


def _lines(arm: str, ids: Sequence[str], right: Bools, text: NDArray[np.int64], failed: Bools) -> list[str]:
    steered = arm not in ("B", "B-again", "B-other")
    shared: dict[str, Any] = {
        "arm": arm,
        "forks": 20 if steered else None,
        "mean_entropy_nats": 0.3 if steered else None,
        "mean_sampled_entropy_nats": (0.3 if arm == "A/A" else 0.4) if steered else None,
        "grade_path": "boxed-int",
        "finish_reason": "stop",
        "completion_tokens": 100,
        "error": None,
    }
    lines = []
    for i, name in enumerate(ids):
        for s in range(right.shape[1]):
            word = "correct" if right[i, s] else "incorrect"
            own = {"text": f"{word} {text[i, s]}", "answer": "7" if right[i, s] else "8", "grade": word}
            line = shared | {"problem_id": name, "sample": s, "seed": 1000 * i + s + 10**6 * (arm == "B-other")} | own
            lines.append(json.dumps(line | FAILED if failed[i, s] else line) + "\n")
    return lines


def studies(truth: Truth, count: int) -> list[Study]:
    return [study(truth, seed) for seed in range(count)]


def true_effect(one: Study, truth: Truth, population: Population) -> float:
    """Of F-up: on all problems there could be, or on those of the study."""
    if population == THESE_PROBLEMS:
        return one.effect_here
    return truth.effect * (1 - truth.gains - truth.losses) + truth.gains - truth.losses


def coverage(done: Sequence[Study], truth: Truth, population: Population) -> float:
    """Share of the 95% intervals of F-up - B that hold the truth."""
    hits = []
    for one in done:
        ci95 = one.row(population).ci95
        hits.append(ci95 is not None and ci95[0] <= true_effect(one, truth, population) <= ci95[1])
    return float(np.mean(hits))


def verdicts(done: Sequence[Study], truth: Truth, population: Population) -> dict[str, float]:
    """How often the claim that F-up is better got each verdict, and how often that was false."""
    counted: Counter[str] = Counter()
    for one in done:
        verdict, true = one.verdict(population), true_effect(one, truth, population)
        counted[verdict] += 1
        false = {
            "holds": true <= 0,
            "reversed": true >= 0,
            "no effect": abs(true) >= truth.delta - 1e-9,
        }
        counted["false"] += false.get(verdict, False)
    names = ("holds", "reversed", "no effect", "undecided", "false")
    return {name: counted[name] / len(done) for name in names}


def instruments(done: Sequence[Study]) -> dict[str, float]:
    counted = Counter(one.instrument for one in done)
    return {verdict: count / len(done) for verdict, count in counted.items()}


SHARED = (0.0, 0.5, 0.8)
NOISY = ("B", "A/A", "B-again", "F-up")
STEERED = ("B", "F-up")


def kinds() -> dict[str, Truth]:
    """The studies by name, the most telling first."""
    found = {}
    for n in (30, 60):
        for shared in SHARED:
            truth = Truth(n, 8, STEERED, effect=0.05, effect_sd=0.1, shared=shared)
            found[f"coverage, n {n}, shared {shared:.0%}"] = truth
        found[f"A/A loses 3 points, n {n}"] = Truth(n, 16, NOISY, bias=-0.03, engine_noise=0.95)
        found[f"null, planned looks, n {n}"] = Truth(n, 8, STEERED, looks=True)
        for effect in (-0.1, 0.0, 0.1):
            truth = Truth(n, 4, STEERED, effect=effect, shared=0.5, lost=0.7)
            found[f"70% of the wrong answers lost, effect {100 * effect:+.0f}, n {n}"] = truth
    for n in (150, 200, 250, 300):
        found[f"2% of problems lost, delta 2, n {n}"] = Truth(n, 2, STEERED, shared=1.0, losses=0.02)
    for n in (60, 150, 300):
        found[f"1% lost and 1% gained, n {n}"] = Truth(n, 2, STEERED, shared=1.0, losses=0.01, gains=0.01)
    for n in (150, 300):
        found[f"2% lost among noise, delta 2, n {n}"] = Truth(n, 8, STEERED, shared=0.8, losses=0.02)
        found[f"effect of delta, 5 points, n {n}"] = Truth(n, 8, STEERED, effect=0.05, shared=0.8, delta=0.05)
    for n in (30, 60):
        for shared in SHARED:
            found[f"null, n {n}, shared {shared:.0%}"] = Truth(n, 8, STEERED, shared=shared)
        found[f"null with spread, n {n}, shared 50%"] = Truth(n, 8, STEERED, effect_sd=0.1, shared=0.5)
        found[f"null with spread, planned looks, n {n}"] = Truth(n, 8, STEERED, effect_sd=0.1, looks=True)
        found[f"A/A is sound, n {n}"] = Truth(n, 16, NOISY, engine_noise=0.95)
    return found


def _study_in_pool(truth: Truth, seed: int) -> Study:
    gc.freeze()
    return study(truth, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.processes) as pool:
        for name, truth in kinds().items():
            if chosen.only in name:
                done = list(pool.map(partial(_study_in_pool, truth), range(chosen.studies), chunksize=10))
                print(f"{name}, {len(done)} studies", *_figures(done, truth), sep="\n  ", flush=True)


def _figures(done: Sequence[Study], truth: Truth) -> list[str]:
    if truth.engine_noise:
        return [_shares("instrument", instruments(done))]
    covered = {population: coverage(done, truth, population) for population in SCOPES}
    return [
        _shares("95% intervals that hold the truth", covered),
        *(_shares(population, verdicts(done, truth, population)) for population in SCOPES),
    ]


def _shares(title: str, values: Mapping[str, float]) -> str:
    return f"{title}: " + ", ".join(f"{name} {100 * value:.1f}%" for name, value in values.items())


if __name__ == "__main__":
    main()

"""Studies whose truth is planted: how often the benchmark finds it. `python -m tests.support.planted`, some minutes.

A study is a whole run against the scripted endpoint, whose chance of a right answer is known for every problem and
arm: probes, requests, answers, grading, journal and summary are the real ones. Only the sockets are left out, for 400
studies are hundreds of thousands of requests; `tests/benchmarks/stats/test_planted.py` shows that the samples are the
same over HTTP.

Every study has problems of its own, so that both scopes of inference are tried: "problems like these" by the mean
effect over all problems that could have been drawn, "these problems" by the mean over those that were.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.endpoints import Endpoint
from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, THESE_PROBLEMS
from steerdec.benchmarks.verdicts.summary import summarize
from tests.support.scripted_endpoint import Body, Script, about, answer, models

Summary = dict[str, Any]

BASE, UP, ELSEWHERE = 0.6, 1.0, 0.9
ARMS: dict[str, dict[str, Any]] = {
    "B": {"role": "baseline"},
    "A/A": {"role": "identity", "steering": {"fork_temperature": BASE, "other_temperature": BASE}},
    "B-again": {"role": "replicate"},
    "B-other": {"role": "replica"},
    "F-up": {"role": "treatment", "steering": {"fork_temperature": UP}},
    "N-up-m": {"role": "matched", "steering": {"other_temperature": ELSEWHERE}, "matched": "F-up"},
}
_ARM_OF = {(UP, None): "F-up", (None, ELSEWHERE): "N-up-m"}
CLAIMS = {
    "helps": {"statement": "Raising the forks helps.", "arm": "F-up", "baseline": "B", "direction": "higher"},
    "place": {"statement": "It is the place.", "arm": "F-up", "baseline": "N-up-m", "direction": "higher"},
}


@dataclass(frozen=True)
class Truth:
    """What is planted in studies of one kind.

    `effects`: mean effect of an arm on the chance of a right answer, 0 where none is given. `effect_sd`: how much an
    effect varies over problems. `noise`: how often the engine answers otherwise than the seed says, in every arm.
    """

    n_problems: int
    samples: int
    arms: tuple[str, ...]
    effects: Mapping[str, float] = field(default_factory=dict)
    effect_sd: float = 0.0
    noise: float = 0.0
    delta: float = 0.02


@dataclass(frozen=True)
class Study:
    """One study: its truth on the problems that were drawn, and what the benchmark says."""

    effects: Mapping[str, float]  # mean over the problems drawn
    summary: Summary

    def row(self, arm: str, against: str, scope: str) -> Summary:
        (row,) = (
            r for r in self.summary["comparisons"] if (r["arm"], r["baseline"], r["scope"]) == (arm, against, scope)
        )
        return cast(Summary, row)

    def verdict(self, claim: str) -> str:
        return next(str(c["verdict"]) for c in self.summary["claims"] if c["id"] == claim)


class _Direct(Endpoint):
    """The scripted endpoint, asked without a socket."""

    def __init__(self, script: Script) -> None:
        self.script, self.url, self.connections = script, "http://scripted", 16

    async def get_json(self, path: str) -> dict[str, Any]:
        return {"/v1/models": models, "/v1/steering": about}[path](self.script)

    async def post(self, path: str, body: dict[str, Any], *, max_bytes: int) -> bytes:
        if path == "/tokenize":
            return json.dumps({"tokens": []}).encode()
        return json.dumps(answer(self.script, body)).encode()

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class _DirectTarget(Target):
    script: Script = field(default_factory=lambda: Script({}))

    @asynccontextmanager
    async def opened(self, urls: tuple[str, ...]) -> AsyncIterator[list[Endpoint]]:
        yield [_Direct(self.script)]


@dataclass(frozen=True)
class Planned:
    """A study before it is run."""

    truth: Truth
    folder: Path
    script: Script
    request: session.RunRequest
    effects: Mapping[str, float]

    def run(self, target: Target | None = None) -> Study:
        """Over HTTP at `target`, else directly."""
        target = target or _DirectTarget(
            endpoints=("http://scripted",),
            model=None,
            dtype=None,
            concurrency=16,
            timeout_s=60.0,
            api_key=None,
            script=self.script,
        )
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            finished = session.run(self.request, target, self.folder / "run", Retry())
        assert finished.failed == 0
        return Study(self.effects, summarize(self.folder / "run").model_dump(mode="json"))


def plan(truth: Truth, folder: Path, seed: int) -> Planned:
    """Draw the problems of study `seed` and write what its run needs into `folder`."""
    rng = np.random.default_rng([seed, truth.n_problems])
    # Accuracies that stay inside (0, 1), so that the mean effect over all problems is exactly the one planted.
    base = 0.2 + 0.55 * rng.beta(0.4, 0.4, truth.n_problems)
    shifts = {
        arm: effect + truth.effect_sd * np.sqrt(3) * rng.uniform(-1, 1, truth.n_problems)
        for arm, effect in truth.effects.items()
    }
    texts = [f"Problem {seed}-{i}: what is {i} times {seed}?" for i in range(truth.n_problems)]
    answers = {text: str((7 * i + seed) % 997) for i, text in enumerate(texts)}
    folder.mkdir()
    with (folder / "problems.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"id": f"p{i}", "problem": text, "answer": answers[text]}) + "\n" for i, text in enumerate(texts)
        )
    arm_set = {
        "name": "planted",
        "baseline": "B",
        "temperature": BASE,
        "threshold_nats": 0.672,
        "delta": truth.delta,
        "arms": [{"name": name} | ARMS[name] for name in truth.arms],
        "claims": [
            {"id": name} | claim for name, claim in CLAIMS.items() if {claim["arm"], claim["baseline"]} <= {*truth.arms}
        ],
    }
    (folder / "arms.yaml").write_text(yaml.safe_dump(arm_set))
    request = session.read_request(
        str(folder / "problems.jsonl"),
        str(folder / "arms.yaml"),
        limit=None,
        prompt=None,
        thinking=None,
        samples=truth.samples,
        seed=seed,
        temperature=None,
        max_tokens=32,
        threshold=None,
        force=False,
    )
    script = Script(answers, probability=_chances(truth, {text: i for i, text in enumerate(texts)}, base, shifts, rng))
    return Planned(truth, folder, script, request, {arm: float(np.mean(shift)) for arm, shift in shifts.items()})


def _chances(
    truth: Truth,
    index: Mapping[str, int],
    base: NDArray[np.float64],
    shifts: Mapping[str, NDArray[np.float64]],
    rng: np.random.Generator,
) -> Callable[[str, Body], float]:
    """The script's chance of a right answer.

    A steered arm other than A/A draws anew (a chance of 0 or 1, for the script's coin is the seed's): on a real model
    a steered text soon has nothing in common with the one it was to be, and independent arms are the harder case.
    """

    def chance(text: str, body: Body) -> float:
        steering = body.get("steering") or {}
        arm = _ARM_OF.get((steering.get("fork_temperature"), steering.get("other_temperature")))
        i = index[text]
        p = float(base[i] + (shifts[arm][i] if arm in shifts else 0.0))
        if arm is not None or rng.random() < truth.noise:
            return float(rng.random() < p)
        return p

    return chance


def study(truth: Truth, seed: int) -> Study:
    with tempfile.TemporaryDirectory() as folder:
        return plan(truth, Path(folder) / "study", seed).run()


def studies(truth: Truth, count: int) -> list[Study]:
    return [study(truth, seed) for seed in range(count)]


WITH_FLOOR = ("B", "A/A", "B-again", "B-other", "F-up")
MATCHED = ("B", "A/A", "F-up", "N-up-m")
EFFECT = 0.05
WORDS = ("holds", "reversed", "no effect", "undecided", "not applied")
COVERAGE = {f"{n} problems": Truth(n, 8, WITH_FLOOR, {"F-up": EFFECT}, effect_sd=0.1, noise=0.03) for n in (30, 60)}
# delta is 12 points where a verdict is to be reached: with the usual 2, an equivalence would take hundreds of problems.
VERDICTS = {
    "place": Truth(60, 16, MATCHED, {"F-up": 0.12}, delta=0.12),
    "dose": Truth(60, 16, MATCHED, {"F-up": 0.12, "N-up-m": 0.12}, delta=0.12),
    "nothing": Truth(60, 16, MATCHED, delta=0.12),
    "nothing, too few to tell": Truth(20, 4, MATCHED),
}


@dataclass(frozen=True)
class Found:
    """What the studies of one `COVERAGE` truth say, by scope where there are two."""

    bias: float  # of the estimated effect, mean over studies
    bias_se: float
    coverage: Mapping[str, float]  # of the 95% intervals
    false_alarms: Mapping[str, float]  # B-other against B, p < .05: two arms that do not differ
    invalid: float  # A/A called a broken instrument on an engine that is as noisy alone


def found(done: list[Study]) -> Found:
    rows = [(study, study.row("F-up", "B", PROBLEMS_LIKE_THESE)) for study in done]
    errors = np.array([row["diff"] - study.effects["F-up"] for study, row in rows])
    covered, alarms = {}, {}
    for scope in (PROBLEMS_LIKE_THESE, THESE_PROBLEMS):
        hits = []
        for study in done:
            truth = EFFECT if scope == PROBLEMS_LIKE_THESE else study.effects["F-up"]
            low, high = study.row("F-up", "B", scope)["ci95"]
            hits.append(low <= truth <= high)
        covered[scope] = float(np.mean(hits))
        alarms[scope] = float(np.mean([study.row("B-other", "B", scope)["p"] < 0.05 for study in done]))
    invalid = float(np.mean([study.summary["instrument"] == "invalid" for study in done]))
    spread = float(np.std(errors, ddof=1) / np.sqrt(len(errors)))
    return Found(float(np.mean(errors)), spread, covered, alarms, invalid)


def verdicts(done: list[Study]) -> dict[str, Counter[str]]:
    """How often each claim got each verdict."""
    return {
        claim: Counter(study.verdict(claim) for study in done)
        for claim in ("helps", "place-not-dose:place", "dose-not-place:place")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=400)
    count = parser.parse_args().studies
    with ProcessPoolExecutor() as pool:
        _print(count, lambda truth: list(pool.map(partial(study, truth), range(count), chunksize=5)))


def _print(count: int, made: Callable[[Truth], list[Study]]) -> None:
    table = Table(title=f"{count} studies each, true effect {100 * EFFECT:g} points")
    for column in ("", "bias, points", "its SE", "scope", "95% interval covers", "false alarms", "A/A called invalid"):
        table.add_column(column)
    for name, truth in COVERAGE.items():
        it = found(made(truth))
        for scope in it.coverage:
            shares = (f"{100 * share:.1f}%" for share in (it.coverage[scope], it.false_alarms[scope], it.invalid))
            table.add_row(name, f"{100 * it.bias:+.2f}", f"{100 * it.bias_se:.2f}", scope, *shares)
    Console(width=140).print(table)
    table = Table(title=f"verdicts of {count} studies each")
    for column in ("planted", "claim", *WORDS):
        table.add_column(column)
    for name, truth in VERDICTS.items():
        for claim, given in verdicts(made(truth)).items():
            table.add_row(name, claim, *(str(given[verdict]) for verdict in WORDS))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

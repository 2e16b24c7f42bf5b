"""A synthetic run folder, seeded, written by the code that writes real ones, with the cases that break reports."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.design.resolving import resolve
from steerdec.benchmarks.verdicts.summary import write_summary
from steerdec.problems.sets import ProblemSet
from steerdec.records.arms import Arm, ArmSet
from steerdec.records.run import ProblemsUsed, Settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample, SampleJournal

HOSTILE = (
    "</script><script>alert('pwned')</script><img src=x onerror=alert(1)> | `x` ``` & \u202e \U0001f642 \u4e2d\u6587"
)

_FORKS = ("Wait", "However", "So", "Since", "Alternatively", "Maybe", "Suppose", "Let", "Now", "Thus", "But", "Hmm")
_CLAUSES = (
    " we can factor the left side as (x - 3)(x + 5) = 0",
    " the number of ways is \\binom{8}{3} = 56",
    " the remainder of 2^{10} modulo 7 is 2",
    " triangle ABC is isosceles, so the two base angles are equal",
    " each term is twice the one before it",
    " that counts every pair twice, and we divide by 2",
    " n = 14 gives 14 \\cdot 15 / 2 = 105",
    " I should check the case x < 0 as well",
)


def make_run(
    directory: Path,
    *,
    arm_set: str = "quick",
    n_problems: int = 60,
    k: int = 8,
    seed: int = 0,
    traces: int = 3,
    problems: ProblemSet | None = None,
) -> Path:
    """Write run.json, samples.jsonl and summary.json as a run does; the first `traces` problems keep their tokens.

    Without `problems`, the run is of a set that cannot be loaded again, one of whose ids is hostile.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = load_arm_set(arm_set)
    base, threshold_nats = wanted.temperature or 0.6, wanted.threshold_nats or 0.6
    solved = {arm.name: round(base * (1.4 if "up" in arm.name else 0.55), 3) for arm in wanted.arms}
    arms = resolve(wanted, temperature=base, threshold_nats=threshold_nats, fork_rate=0.18, solved=solved)
    if problems is None:
        ids = [f"embedded-{i:03d}" for i in range(n_problems - 1)] + [f"<b>{HOSTILE[:9]}</b>|é"]
    else:
        ids = [problem.id for problem in problems.problems]
    journal = SampleJournal(directory / SAMPLES)
    for sample in _samples(arms, ids, k, base, seed, traces):
        journal.append(sample)
    journal.close()
    written = settings(arms, ids, k=k, seed=seed, temperature=base, threshold_nats=threshold_nats)
    if problems is not None:
        used = written.problems.model_copy(update={"sha256": problems.sha256, "limit": len(ids)})
        written = written.model_copy(update={"problems": used, "prompt": problems.prompt})
    written.write(directory)
    write_summary(directory)
    return directory


def settings(arms: ArmSet, ids: list[str], *, k: int, seed: int, temperature: float, threshold_nats: float) -> Settings:
    """Return what a run.json holds."""
    return Settings(
        steerdec="0.1.0",
        created="2025-01-02T03:04:05+00:00",
        versions={"python": "3.11.7", "torch": "2.13.0"},
        model="Qwen/Qwen3-0.6B",
        model_info={"max_model_len": 4096, "revision": "c1899de289a04d12100db370d81485cdf75e47ca"},
        launch=None,
        endpoints=("http://127.0.0.1:8000",),
        server={"steerdec": "0.1.0", "vllm": "0.32.0", "runner": "v1", "dtype": "float32", "processor": True},
        problems=ProblemsUsed(
            name="embedded",
            source="embedded",
            limit=None,
            sha256="9f86d081884c7d659a2feaa0c55ad015",
            n=len(ids),
            ids=tuple(ids),
        ),
        prompt="aime",
        thinking=None,
        arms=arms,
        samples=k,
        seed=seed,
        temperature=temperature,
        max_tokens=1024,
        sampling={"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        threshold_nats=threshold_nats,
        threshold_origin="calibration on svamp, 80th percentile",
    )


def _effect(arm: Arm, base: float) -> tuple[float, float, float]:
    """(shift of the logit of being right, fork rate, mean entropy in nats) under `arm`."""
    steering = arm.steering or {}
    fork = float(str(steering.get("fork_temperature", arm.temperature)))
    other = float(str(steering.get("other_temperature", arm.temperature)))
    up, side = math.log(max(fork, 0.05) / base), math.log(max(other, 0.05) / base)
    logit = (0.15 if up > 0 else 0.45) * up - 0.35 * up * up - (3.5 * side * side if side > 0 else 0.05 * side * side)
    return logit, min(0.9, max(0.02, 0.16 + 0.05 * up + 0.05 * side)), max(0.02, 0.31 + 0.12 * up + 0.04 * side)


def _samples(arms: ArmSet, ids: list[str], k: int, base: float, seed: int, traces: int) -> Iterator[Sample]:
    ability = np.random.default_rng(seed).normal(-0.1, 1.8, len(ids))
    for a, arm in enumerate(arms.arms):
        undisturbed = arm.role in ("baseline", "identity", "replicate")
        for i, problem_id in enumerate(ids):
            for s in range(k):
                shared = np.random.default_rng([seed, i, s])  # common random numbers: one stream for all arms
                own = shared if undisturbed else np.random.default_rng([seed, i, s, a])
                sample = _sample(arm, base, ability[i] + shared.logistic(), own)
                sample = replace(sample, problem_id=problem_id, sample=s, seed=(i * 7919 + s) % 2**31)
                if arm.name == arms.arms[-1].name and i < 3 and s < 2:
                    yield _failed(sample)
                elif i < traces and s == 0 and arm.steering is not None:
                    yield _with_tokens(sample, arm, arms.threshold_nats or 0.6, i)
                else:
                    yield sample


def _sample(arm: Arm, base: float, aptitude: float, rng: np.random.Generator) -> Sample:
    logit, fork_rate, entropy_nats = _effect(arm, base)
    right = bool(aptitude + (0.0 if logit == 0 else rng.logistic(scale=0.5)) + logit > 0)
    tokens = int(np.clip(rng.lognormal(5.6, 0.5), 40, 1024))
    answer = "204" if right else str(int(rng.integers(0, 999)))
    plain = arm.steering is None
    noise = float(rng.normal(0, 0.02))
    return Sample(
        problem_id="",
        arm=arm.name,
        sample=0,
        text=f"\\boxed{{{answer}}} {HOSTILE}",
        answer=answer,
        grade="correct" if right else "incorrect",
        grade_path="boxed-int",
        finish_reason="length" if tokens == 1024 else "stop",
        completion_tokens=tokens,
        forks=None if plain else int(tokens * fork_rate),
        mean_entropy_nats=None if plain else round(entropy_nats + noise, 4),
        mean_sampled_entropy_nats=None if plain else round(0.9 * entropy_nats + noise, 4),
        endpoint="http://127.0.0.1:8000",
    )


def _failed(sample: Sample) -> Sample:
    return Sample(
        problem_id=sample.problem_id,
        arm=sample.arm,
        sample=sample.sample,
        seed=sample.seed,
        grade="ungraded",
        grade_path="error",
        endpoint=sample.endpoint,
        error="ReadTimeout after 600 s",
    )


def _with_tokens(sample: Sample, arm: Arm, threshold_nats: float, index: int) -> Sample:
    """Add tokens that agree between arms up to a point and then differ; one of them hostile."""
    shared = np.random.default_rng(index)
    own = np.random.default_rng([index, len(arm.name), arm.name.encode()[0]])
    tokens = ["<think>", "\n", HOSTILE, "\n"]
    entropies: list[float | None] = [0.0, 0.001, 1.9, 0.02]
    for sentence in range(28):
        rng = shared if sentence < 7 or arm.role == "identity" else own
        words = [str(rng.choice(_FORKS)), *re.findall(r"\s?\w+|\s?[^\w\s]", str(rng.choice(_CLAUSES))), ".\n"]
        tokens += words
        entropies += [float(rng.gamma(3.0, 0.5))]
        entropies += [
            float(h) for h in np.where(rng.random(len(words) - 1) < 0.08, rng.gamma(2, 0.6), rng.exponential(0.04))
        ]
    entropies[9] = None  # a NaN of the engine, null in JSON
    return replace(
        sample,
        token_text=tokens,
        entropy_nats=[None if h is None else round(h, 4) for h in entropies],
        fork=[h is not None and h > threshold_nats for h in entropies],
    )

"""The progress of a run, without any score: this may be looked at while the run is under way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steerdec.records.arms import Arm

from .index import Index, Seen


@dataclass(frozen=True)
class ArmProgress:
    """The numbers of one arm so far; None where nothing is known yet."""

    name: str
    asks: str  # its temperatures, or its policy, in a few words
    about: str
    planned: int
    made: int
    failed: int
    not_needed: bool  # dropped at a planned look
    mean_tokens: float | None
    median_tokens: float | None
    longest_tokens: int | None
    truncation_rate: float | None
    fork_rate: float | None
    mean_entropy_nats: float | None
    mean_sampled_entropy_nats: float | None
    planned_dose_nats: float | None  # change of the mean entropy, from the calibration


@dataclass(frozen=True)
class Progress:
    arms: list[ArmProgress]
    kept_tokens: int  # samples that kept their tokens
    idle_s: float | None  # since the last sample; None before the first
    finished: bool

    @property
    def planned(self) -> int:
        return sum(arm.planned for arm in self.arms)

    @property
    def made(self) -> int:
        return sum(arm.made for arm in self.arms)

    @property
    def share(self) -> float:
        """The samples that exist, of those planned."""
        return self.made / self.planned if self.planned else 0.0


def progress_of(index: Index) -> Progress:
    """Count the samples of a run, by arm."""
    by_arm: dict[str, list[Seen]] = {arm: [] for arm in index.arms}
    for one in index.seen.values():
        by_arm[one.arm].append(one)
    arms = [_arm(index, arm, by_arm[arm.name]) for arm in index.settings.arms.arms]
    idle_s = None if index.last_s is None else max(0.0, time.time() - index.last_s)
    return Progress(arms, sum(one.kept_tokens for one in index.seen.values()), idle_s, index.finished)


def _arm(index: Index, arm: Arm, seen: Sequence[Seen]) -> ArmProgress:
    lengths = [one.tokens for one in seen if one.tokens is not None]
    dose = index.settings.doses.get(arm.name)
    return ArmProgress(
        name=arm.name,
        asks=asks(arm, index.settings.threshold_nats),
        about=arm.about,
        planned=index.planned_each,
        made=len(seen),
        failed=len(seen) - len(lengths),
        not_needed=arm.name in index.not_needed,
        mean_tokens=statistics.fmean(lengths) if lengths else None,
        median_tokens=statistics.median(lengths) if lengths else None,
        longest_tokens=max(lengths, default=None),
        truncation_rate=sum(one.truncated for one in seen) / len(lengths) if lengths else None,
        fork_rate=per_token(seen, lambda one: None if one.forks is None or not one.tokens else one.forks / one.tokens),
        mean_entropy_nats=per_token(seen, lambda one: one.entropy_nats),
        mean_sampled_entropy_nats=per_token(seen, lambda one: one.sampled_entropy_nats),
        planned_dose_nats=None if dose is None else dose.dose_nats,
    )


def per_token(seen: Sequence[Seen], value: Callable[[Seen], float | None]) -> float | None:
    """Return the mean of a number over tokens: samples weigh by their length, those without the number are left out."""
    total = tokens = 0.0
    for one in seen:
        known = value(one)
        if known is not None and one.tokens:
            total += known * one.tokens
            tokens += one.tokens
    return total / tokens if tokens else None


def asks(arm: Arm, run_threshold_nats: float) -> str:
    """Return what an arm asks for, in a few words; a threshold only where it is not the run's."""
    steering = dict(arm.steering or {})
    if arm.steering is None:
        return f"T {arm.temperature}"
    policy, select = steering.pop("policy", "split"), steering.pop("select", None)
    steering.pop("telemetry", None)
    if steering.get("threshold_nats") == run_threshold_nats:
        del steering["threshold_nats"]
    parts = [f"{name.replace('_', ' ')}\N{NO-BREAK SPACE}{value}" for name, value in steering.items()]
    named = [str(policy)] if policy != "split" else []
    return ", ".join([*named, *([f"select {select}"] if select else []), *parts]) or f"T {arm.temperature}"

"""The progress of a run, without any score: this may be looked at while the run is under way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from steerdec.records.folder import load_run
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample


@dataclass
class ArmProgress:
    """Counts over the existing samples of one arm."""

    name: str
    planned: int
    made: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0
    steered_tokens: int = 0  # of samples with telemetry
    forks: int = 0
    entropy_nats: float = 0.0  # summed over `steered_tokens`

    @property
    def mean_tokens(self) -> float | None:
        answered = self.made - self.failed
        return self.tokens / answered if answered else None

    @property
    def truncation_rate(self) -> float | None:
        answered = self.made - self.failed
        return self.truncated / answered if answered else None

    @property
    def fork_rate(self) -> float | None:
        return self.forks / self.steered_tokens if self.steered_tokens else None

    @property
    def mean_entropy_nats(self) -> float | None:
        return self.entropy_nats / self.steered_tokens if self.steered_tokens else None

    def count(self, sample: Sample) -> None:
        """Add one sample."""
        self.made += 1
        if sample.error is not None:
            self.failed += 1
            return
        tokens = sample.completion_tokens or 0
        self.tokens += tokens
        self.truncated += sample.finish_reason == "length"
        if sample.forks is not None and sample.mean_entropy_nats is not None:
            self.steered_tokens += tokens
            self.forks += sample.forks
            self.entropy_nats += sample.mean_entropy_nats * tokens


@dataclass(frozen=True)
class Traced:
    """A sample that kept its tokens."""

    problem_id: str
    sample: int
    arms: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    arms: list[ArmProgress]
    traced: list[Traced]  # those under the most arms first
    idle_s: float  # since the last sample
    reading_s: float  # how long it took to read the samples

    @property
    def planned(self) -> int:
        return sum(arm.planned for arm in self.arms)

    @property
    def made(self) -> int:
        return sum(arm.made for arm in self.arms)

    @property
    def finished(self) -> bool:
        return self.made >= self.planned


def read_progress(folder: Path) -> Progress:
    """Count the samples of a run, by arm.

    Raises:
        SettingsError, JournalError: the run cannot be read.
    """
    began_s = time.monotonic()
    run = load_run(folder)
    planned = run.settings.samples * run.settings.problems.n
    arms = {arm.name: ArmProgress(arm.name, planned) for arm in run.settings.arms.arms}
    traced: dict[tuple[str, int], Traced] = {}
    path = folder / SAMPLES
    if path.exists():
        for sample in run.samples():
            arms[sample.arm].count(sample)
            if sample.token_text:
                key = (sample.problem_id, sample.sample)
                traced.setdefault(key, Traced(*key)).arms.append(sample.arm)
    idle_s = time.time() - path.stat().st_mtime if path.exists() else 0.0
    most_arms_first = sorted(traced.values(), key=lambda one: -len(one.arms))
    return Progress(list(arms.values()), most_arms_first, idle_s, time.monotonic() - began_s)

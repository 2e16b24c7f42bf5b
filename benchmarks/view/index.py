"""What a run has so far, in numbers: read once per change of the file, so that pages can be opened while it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steerdec.records.folder import load_run
from steerdec.records.run import Settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample

from ..run.looks import arms_still_needed


@dataclass(frozen=True)
class Seen:
    """The numbers of one sample: no text, and nothing that reveals its score."""

    problem_id: str
    arm: str
    sample: int
    tokens: int | None  # None: it failed
    forks: int | None
    entropy_nats: float | None  # mean over its tokens
    sampled_entropy_nats: float | None  # of the distributions that they were drawn from
    truncated: bool
    kept_tokens: bool

    @property
    def failed(self) -> bool:
        return self.tokens is None


@dataclass(frozen=True)
class Index:
    """All samples that exist; of several lines for one sample the last counts."""

    settings: Settings
    seen: dict[tuple[str, str, int], Seen]  # by (problem_id, arm, sample), in order of arrival
    not_needed: frozenset[str]  # arms that were dropped at a planned look
    last_s: float | None  # when the last sample came, seconds since the epoch; None before the first
    reading_s: float  # how long it took to read the samples

    @property
    def arms(self) -> list[str]:
        return [arm.name for arm in self.settings.arms.arms]

    @property
    def planned_each(self) -> int:
        """Samples of one arm, as planned."""
        return self.settings.samples * self.settings.problems.n

    @property
    def finished(self) -> bool:
        """Return whether no arm that is still needed lacks a sample."""
        made = self.made_by_arm
        return all(made[arm] >= self.planned_each or arm in self.not_needed for arm in self.arms)

    @property
    def made_by_arm(self) -> dict[str, int]:
        return _made_by_arm(self.settings, self.seen)

    def of_problem(self, problem_id: str) -> Iterator[Seen]:
        """Yield the samples of one problem."""
        return (one for one in self.seen.values() if one.problem_id == problem_id)


class Reader:
    """Reads a run folder again only if `samples.jsonl` or `run.json` has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: tuple[object, Index] | None = None

    def index(self) -> Index:
        """Return the samples that exist now.

        Raises:
            SettingsError, JournalError: a file of the run cannot be read.
        """
        state = [_state(self._folder / name) for name in (SAMPLES, "run.json")]
        if self._read is None or self._read[0] != state:
            self._read = (state, _read(self._folder))
        return self._read[1]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _read(folder: Path) -> Index:
    began_s = time.monotonic()
    run = load_run(folder)
    path = folder / SAMPLES
    seen: dict[tuple[str, str, int], Seen] = {}
    if path.exists():
        for sample in run.samples():
            seen[sample.key] = _seen(sample)
    not_needed = _not_needed(folder, run.settings, seen)
    last_s = path.stat().st_mtime if seen else None
    return Index(run.settings, seen, not_needed, last_s, time.monotonic() - began_s)


def _seen(sample: Sample) -> Seen:
    return Seen(
        problem_id=sample.problem_id,
        arm=sample.arm,
        sample=sample.sample,
        tokens=None if sample.error is not None else sample.completion_tokens or 0,
        forks=sample.forks,
        entropy_nats=sample.mean_entropy_nats,
        sampled_entropy_nats=sample.mean_sampled_entropy_nats,
        truncated=sample.finish_reason == "length",
        kept_tokens=bool(sample.token_text),
    )


def _made_by_arm(settings: Settings, seen: dict[tuple[str, str, int], Seen]) -> dict[str, int]:
    made = {arm.name: 0 for arm in settings.arms.arms}
    for one in seen.values():
        made[one.arm] += 1
    return made


def _not_needed(folder: Path, settings: Settings, seen: dict[tuple[str, str, int], Seen]) -> frozenset[str]:
    """Return the arms that a planned look has dropped.

    Judging takes seconds, so it is done only where every arm that lacks samples stands exactly at a look.
    """
    made = _made_by_arm(settings, seen)
    lacking = {arm for arm, n in made.items() if n < settings.samples * settings.problems.n}
    at_looks = {look.samples * (look.problems or settings.problems.n) for look in settings.planned_looks[:-1]}
    if not lacking or any(made[arm] not in at_looks for arm in lacking):
        return frozenset()
    return frozenset(lacking - set(arms_still_needed(folder)))

"""Sample a model at its base temperature and store the entropies of each token's distribution in a resumable file.

Every sample requests the entropy of each token's own distribution, softmax(z), and optionally that of softmax(z / T) at
one further temperature T. The answers are appended to a journal beside the calibration, so a stopped calibration can be
resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from steerdec.common.errors import InvalidInputError, SteerdecError
from steerdec.common.files import FileError
from steerdec.common.journal import Journal, Record, read_records, repair
from steerdec.common.progress import RunProgress
from steerdec.common.seeds import sample_seed
from steerdec.problems.sets import Problem
from steerdec.records.arms import Arm

from ..design.plan import PlannedSample
from ..run.answers import Answer, Failure, parse_answer
from ..run.dispatch import Outcome, dispatch
from ..run.endpoint_health import Retry
from ..run.endpoints import Endpoint
from ..run.sample_requests import Prompting, max_answer_bytes, requested_steering, sample_request

MAX_FAILED_SHARE = 0.1  # of the samples of a round
MAX_FAILED = 100  # more than answers, before a round is stopped
SETTINGS = "calibration"  # the field of the journal's first line

Floats = NDArray[np.float32]


class TooFewTokensError(SteerdecError):
    """There are too few tokens to measure anything."""

    resumable = True


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The tokens of one answer; lists are [tokens], without tokens whose entropy was not recorded.

    `round` counts the passes of a calibration: 0 for the quantiles, 1 and up to check solved temperatures.
    """

    problem_id: str
    sample: int
    round: int
    entropy_nats: Floats
    probe_temperature: float | None = None
    probe_nats: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sample to measure, with its probe temperature."""

    problem: Problem
    sample: int
    round: int
    probe_temperature: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How all samples of one calibration are taken."""

    endpoints: Sequence[Endpoint]
    prompting: Prompting
    temperature: float
    max_tokens: int
    seed: int
    retry: Retry
    journal: Path

    def arm(self, probe_temperature: float | None) -> Arm:
        """Return the arm to sample: steering at the base temperatures changes nothing, and makes the server measure."""
        steering: dict[str, JsonValue] = {
            "fork_temperature": self.temperature,
            "other_temperature": self.temperature,
            "telemetry": "tokens",
        }
        if probe_temperature is not None:
            steering["probe_temperature"] = probe_temperature
        return Arm(name="calibration", role="identity", temperature=self.temperature, steering=steering)

    async def take(self, requests: Iterable[Request], keep: Callable[[Measured], None], progress: RunProgress) -> None:
        """Take the samples; `keep` is called with each once it is in the journal.

        Raises:
            TooFewTokensError: too many failed.
            NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
            JournalError: the journal cannot be written.
        """
        errors: list[str] = []
        taken = 0

        def planned() -> Iterator[tuple[Request, PlannedSample]]:
            for number, request in enumerate(requests):
                seed = sample_seed(self.seed, request.problem.id, request.sample)
                yield (
                    request,
                    PlannedSample(
                        number=number,
                        problem=request.problem,
                        arm=self.arm(request.probe_temperature),
                        sample=request.sample,
                        seed=seed,
                    ),
                )

        async def send(endpoint: Endpoint, work: tuple[Request, PlannedSample]) -> Answer:
            path, body = sample_request(work[1], self.prompting, max_tokens=self.max_tokens, per_token=True)
            raw = await endpoint.post(path, body, max_bytes=max_answer_bytes(self.max_tokens, per_token=True))
            steering = requested_steering(work[1].arm, per_token=True)
            return parse_answer(raw, max_tokens=self.max_tokens, steering=steering)

        journal = Journal(self.journal)

        async def done(work: tuple[Request, PlannedSample], endpoint: Endpoint, outcome: Outcome) -> None:
            nonlocal taken
            if isinstance(outcome, Failure):
                errors.append(outcome.reason)
                if len(errors) > MAX_FAILED + taken:
                    raise TooFewTokensError(f"{len(errors)} samples failed, the last: {errors[-1]}")
                return
            taken += 1
            measured = _measured(work[0], outcome)
            journal.append(_record(measured))
            keep(measured)
            tokens = len(measured.entropy_nats)
            progress.advance(tokens, tokens)

        try:
            await dispatch(planned(), self.endpoints, send, done, self.retry)
        finally:
            journal.close()
        if len(errors) > MAX_FAILED_SHARE * (taken + len(errors)):
            raise TooFewTokensError(f"{len(errors)} of {taken + len(errors)} samples failed, the last: {errors[-1]}")


def _measured(request: Request, answer: Answer) -> Measured:
    own = np.array(answer.entropy_nats or [], dtype=np.float32)  # None, an entropy that was not recorded, becomes NaN
    known = ~np.isnan(own)
    probe = None
    if request.probe_temperature is not None:
        probe = np.array(answer.probe_entropy_nats or [], dtype=np.float32)
        known &= ~np.isnan(probe)
    return Measured(
        problem_id=request.problem.id,
        sample=request.sample,
        round=request.round,
        entropy_nats=own[known],
        probe_temperature=request.probe_temperature,
        probe_nats=None if probe is None else probe[known],
    )


def open_journal(path: Path, settings: dict[str, Any]) -> list[Measured]:
    """Start a journal under these settings, or return the samples of a stopped calibration's journal.

    Raises:
        InvalidInputError: the file belongs to a calibration under other settings, or is not a journal.
        JournalError: it cannot be read or written.
    """
    repair(path, lambda record: True)
    records = read_records(path)
    first = next(records, None)
    if first is None:
        journal = Journal(path)
        journal.append({SETTINGS: settings})
        journal.close()
        return []
    old = first.get(SETTINGS)
    if not isinstance(old, dict):
        raise InvalidInputError(f"{path} exists and is not the journal of a calibration; move it, or change --out")
    for name in {**old, **settings}:
        if old.get(name) != settings.get(name):
            raise InvalidInputError(
                f"{path} holds a stopped calibration under other settings: {name}: {old.get(name)} -> "
                f"{settings.get(name)}; give the same settings, remove the file, or change --out"
            )
    try:
        return [_of(record) for record in records]
    except (KeyError, TypeError, ValueError) as e:
        raise FileError(f"{path} has a line that is not a measurement ({e}); remove the file") from None


def _record(measured: Measured) -> Record:
    probe = measured.probe_nats
    return {
        "problem_id": measured.problem_id,
        "sample": measured.sample,
        "round": measured.round,
        "probe_temperature": measured.probe_temperature,
        "entropy_nats": _digits(measured.entropy_nats),
        "probe_nats": None if probe is None else _digits(probe),
    }


def _digits(values: Floats) -> list[float]:
    return [float(f"{value:.9g}") for value in values.tolist()]  # float32, exactly


def _of(record: Record) -> Measured:
    probe = record["probe_nats"]
    return Measured(
        problem_id=str(record["problem_id"]),
        sample=int(record["sample"]),
        round=int(record["round"]),
        entropy_nats=np.array(record["entropy_nats"], dtype=np.float32),
        probe_temperature=record["probe_temperature"],
        probe_nats=None if probe is None else np.array(probe, dtype=np.float32),
    )

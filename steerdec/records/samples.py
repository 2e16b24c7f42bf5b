"""`samples.jsonl`: one line per sample of a run. Every reader and writer of it is here.

The file holds at most one line per sample of the plan: samples that failed (`error`) are dropped when the run is
resumed, and sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from steerdec.common import journal
from steerdec.common.journal import JournalError
from steerdec.common.validation import shown

NAME: Final = "samples.jsonl"
GradeName = Literal["correct", "incorrect", "ungraded"]
MAX_SAMPLES: Final = 100_000  # of one problem under one arm
Index = Annotated[int, Field(strict=True, ge=0, lt=MAX_SAMPLES)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Nats = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of one problem under one arm. A failed one has an `error`, no text, and is ungraded, never wrong."""

    problem_id: str
    arm: str
    sample: Index
    seed: Seed = 0
    text: str | None = None
    answer: str | None = None
    grade: GradeName
    grade_path: str | None = None  # which rule graded it; see `steerdec.grading`
    finish_reason: str | None = None
    completion_tokens: Count | None = None
    forks: Count | None = None  # tokens steered as forks; None where nothing was steered
    mean_entropy_nats: Nats | None = None  # of the model's own distributions
    mean_sampled_entropy_nats: Nats | None = None  # of the distributions that the tokens were drawn from
    guard_token: Count | None = None  # the first that was not steered because of the guard
    endpoint: str | None = None
    error: str | None = None
    # If the response continues a recorded prefix, `text` is the whole response and `completion_tokens` counts from
    # `position` on.
    position: Count | None = None
    replayed_arm: str | None = None
    replayed_sample: Index | None = None
    # One entry per generated token, for the few samples that keep their tokens.
    entropy_nats: list[Nats | None] | None = None
    fork: list[Annotated[bool, Field(strict=True)]] | None = None
    token_text: list[str] | None = None
    # The response without the token that ended it, of the samples that a branching arm continues.
    token_ids: list[Count] | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Return (problem_id, arm, sample)."""
        return self.problem_id, self.arm, self.sample

    @property
    def where(self) -> str:
        """Name the sample in a message."""
        return f"problem {self.problem_id}, arm {self.arm}, sample {self.sample}"


_ONLY_WHERE_PRESENT = (
    *("guard_token", "position", "replayed_arm", "replayed_sample"),
    *("entropy_nats", "fork", "token_text", "token_ids"),
)
_ADAPTER = TypeAdapter(Sample)


def to_record(sample: Sample) -> journal.Record:
    """Return the JSON object of a sample."""
    record = asdict(sample)
    for name in _ONLY_WHERE_PRESENT:
        if record[name] is None:
            del record[name]
    return record


def _from_record(record: journal.Record, place: str) -> Sample:
    try:
        return _ADAPTER.validate_python(record)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "missing" else f" (it is {shown(first['input'])})"
        raise JournalError(f"{place} is not a sample: {field}: {first['msg']}{given}") from None


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples in the file in the order they arrived; a torn end is left out.

    Raises:
        JournalError: a line is not a sample, or the file cannot be read.
    """
    for number, record in enumerate(journal.read_records(path), start=1):
        yield _from_record(record, f"{path} line {number}")


def rewrite_samples(path: Path, change: Callable[[Sample], Sample]) -> None:
    """Replace every sample by the return value of `change`. All or nothing.

    Raises:
        JournalError: the file cannot be read or rewritten; it is unchanged.
    """

    def changed(record: journal.Record) -> journal.Record:
        old = _from_record(record, str(path))
        new = change(old)
        return record if new == old else record | to_record(new)

    journal.rewrite(path, changed)


def repair_samples(path: Path, keep: Callable[[Sample], None]) -> None:
    """Cut off a torn end and drop the failed samples; `keep` is called with each of the others.

    Raises:
        JournalError: a line is not a sample, or the file cannot be read or rewritten.
    """

    def kept(record: journal.Record) -> bool:
        sample = _from_record(record, str(path))
        if sample.error is None:
            keep(sample)
        return sample.error is None

    journal.repair(path, kept)


class SampleJournal:
    """`samples.jsonl` open for appending. Call `append` from one thread; `sync` may run in another."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            JournalError: it cannot be opened.
        """
        self._journal = journal.Journal(path)
        self.sync, self.close = self._journal.sync, self._journal.close

    def append(self, sample: Sample) -> None:
        """Write one sample; after that, killing this process cannot lose it. Raises JournalError."""
        self._journal.append(to_record(sample))

"""`samples.jsonl` as numbers: one pass, line by line, without keeping a text.

A sample becomes about 80 bytes (its text a 63-bit fingerprint), so a million samples of any length need well under
1 GiB.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steerdec.common.errors import InvalidInputError
from steerdec.records.samples import Sample
from steerdec.records.samples import read_samples as read_lines

from .estimators import Counts, Floats, Ints

Bools = NDArray[np.bool_]
GRADE_INDEX = {"ungraded": 0, "incorrect": 1, "correct": 2}
BOX_INDEX = {"unknown": 0, "none": 1, "boxed": 2}
MISSING = -1
_INTEGERS = (
    *("problem", "arm", "sample", "seed", "grade", "answer", "text"),
    *("failed", "truncated", "box", "tokens", "forks"),
)


class SampleError(InvalidInputError):
    """A line of samples.jsonl that is not a sample of this run; one line that names it."""


@dataclass(frozen=True)
class Tally:
    """The samples of a run, columns of shape [n_samples], sorted by arm, problem and sample.

    `problem`, `arm`: index into `problems`, `arms`. `answer`: equal numbers are equal answers, -1 for no answer.
    `text`: equal numbers are equal completions (chance of error 1e-19 per pair). `tokens`, `forks`: -1 if not reported.
    """

    problems: tuple[str, ...]
    arms: tuple[str, ...]
    problem: Ints
    arm: Ints
    sample: Ints
    seed: Ints
    grade: Ints  # of GRADE_INDEX
    answer: Ints
    text: Ints
    failed: Bools  # the request never gave a text (transport error)
    truncated: Bools
    box: Ints  # of BOX_INDEX
    tokens: Ints
    forks: Ints
    entropy_nats: Floats  # mean over the tokens of the sample, NaN if not reported
    sampled_entropy_nats: Floats  # the same of the distributions drawn from
    repeated: int  # lines replaced by a later one of the same sample

    @property
    def graded(self) -> Bools:
        graded: Bools = self.grade != GRADE_INDEX["ungraded"]
        return graded

    @property
    def correct(self) -> Bools:
        correct: Bools = self.grade == GRADE_INDEX["correct"]
        return correct

    def of(self, arm: str) -> Bools:
        """Return the rows of one arm, [n_samples]."""
        rows: Bools = self.arm == self.arms.index(arm)
        return rows

    def by_problem(self, rows: Bools) -> Ints:
        """Return how many of `rows` each problem has, [n_problems]."""
        return np.bincount(self.problem[rows], minlength=len(self.problems)).astype(np.int64)

    def counts(self, arm: str, rows: Bools | None = None) -> Counts:
        """Return the correct and graded samples of an arm by problem; with `rows`, only of these."""
        own = self.of(arm) & self.graded if rows is None else self.of(arm) & self.graded & rows
        return Counts(self.by_problem(own & self.correct), self.by_problem(own))

    def differing(self, arm: str, against: str) -> Counts:
        """Count, by problem, the samples that both arms drew with one seed and whose texts differ (as `correct`)."""
        mine, theirs = (np.flatnonzero(self.of(name) & ~self.failed) for name in (arm, against))
        width = int(self.sample.max(initial=0)) + 1
        key = self.problem * width + self.sample
        _, a, b = np.intersect1d(key[mine], key[theirs], assume_unique=True, return_indices=True)
        a, b = mine[a], theirs[b]
        same_seed = self.seed[a] == self.seed[b]
        a, b = a[same_seed], b[same_seed]
        n = len(self.problems)
        other = self.text[a] != self.text[b]
        return Counts(np.bincount(self.problem[a][other], minlength=n), np.bincount(self.problem[a], minlength=n))


def read_samples(path: Path, problems: Sequence[str], arms: Sequence[str]) -> Tally:
    """Read the samples of a run. Of several lines for one sample the last counts: a second request replaced the first.

    Raises:
        SampleError: a line has an arm or problem that the run does not have.
        JournalError: the file cannot be read, or a line is not a sample.
    """
    columns = {name: array("q") for name in _INTEGERS}
    entropy, sampled = array("d"), array("d")
    at_problem, at_arm = ({name: i for i, name in enumerate(known)} for known in (problems, arms))
    answers: dict[str, int] = {}
    for number, sample in enumerate(read_lines(path), start=1):
        place = f"{path.name} line {number}"
        columns["problem"].append(_index(at_problem, place, "problem_id", sample.problem_id))
        columns["arm"].append(_index(at_arm, place, "arm", sample.arm))
        columns["grade"].append(GRADE_INDEX[sample.grade])
        columns["sample"].append(sample.sample)
        columns["seed"].append(sample.seed & (2**63 - 1))
        entropy.append(_nats(sample.mean_entropy_nats))
        sampled.append(_nats(sample.mean_sampled_entropy_nats))
        columns["tokens"].append(_count(sample.completion_tokens))
        columns["forks"].append(_count(sample.forks))
        answer = sample.answer
        columns["answer"].append(MISSING if answer is None else answers.setdefault(answer, len(answers)))
        columns["text"].append(_fingerprint(sample))
        columns["failed"].append(sample.error is not None)
        columns["truncated"].append(sample.finish_reason == "length")
        columns["box"].append(BOX_INDEX[_box(sample.grade_path)])
    every: dict[str, Ints] = {name: np.array(column, dtype=np.int64) for name, column in columns.items()}
    last = _last_of_each(every["arm"], every["problem"], every["sample"])
    kept = {name: column[last] for name, column in every.items()}
    failed, truncated = kept.pop("failed") != 0, kept.pop("truncated") != 0
    return Tally(
        tuple(problems),
        tuple(arms),
        **kept,
        failed=failed,
        truncated=truncated,
        entropy_nats=np.array(entropy, dtype=np.float64)[last],
        sampled_entropy_nats=np.array(sampled, dtype=np.float64)[last],
        repeated=len(entropy) - len(last),
    )


def _index(known: dict[str, int], place: str, field: str, name: str) -> int:
    index = known.get(name)
    if index is None:
        allowed = ", ".join(known)
        raise SampleError(
            f'{place}: {field} "{name[:60]}" is not of this run; allowed: {allowed[:60]}{"..." * (len(allowed) > 60)}'
        )
    return index


def _box(grade_path: str | None) -> str:
    """Return whether the answer was boxed, by the path of its grade; unknown where grading did not get that far."""
    if grade_path is None:
        return "unknown"
    if grade_path.startswith("boxed-"):
        return "boxed"
    return "none" if grade_path in ("no-answer", "hashes", "answer-is") else "unknown"


def _fingerprint(sample: Sample) -> int:
    """Return a number for what was generated.

    Two token sequences can spell one text; the number of tokens tells most of those apart.
    """
    text = f"{sample.completion_tokens} {sample.finish_reason} {sample.text}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _nats(value: float | None) -> float:
    return math.nan if value is None else value


def _count(value: int | None) -> int:
    return MISSING if value is None else value


def _last_of_each(arm: Ints, problem: Ints, sample: Ints) -> Ints:
    """Return the rows of the last line of each (arm, problem, sample), sorted by these."""
    order = np.lexsort((np.arange(len(arm)), sample, problem, arm))
    keys = np.stack([arm, problem, sample])[:, order]
    ends = np.append(np.any(keys[:, 1:] != keys[:, :-1], axis=0), True)[: len(order)]
    last: Ints = order[ends]
    return last

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.common import journal

from .estimators import Counts, Floats, Ints

Bools = NDArray[np.bool_]
GRADE_INDEX = {"ungraded": 0, "incorrect": 1, "correct": 2}
MISSING = -1
_INTEGERS = (
    *("problem", "arm", "sample", "seed", "grade", "answer", "text"),
    *("failed", "truncated", "tokens", "forks"),
)


class SampleError(ValueError):
    """A line of samples.jsonl that is no sample of this run; one line that names it."""


@dataclass(frozen=True)
class Tally:
    """The samples of a run, columns of shape [n_samples], sorted by arm, problem and sample.

    `problem`, `arm`: index into `problems`, `arms`. `answer`: equal numbers are equal answers, -1 none was found.
    `text`: equal numbers are equal completions (chance of error 1e-19 a pair). `tokens`, `forks`: -1 not told.
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
    tokens: Ints
    forks: Ints
    entropy_nats: Floats  # mean over the tokens of the sample, NaN not told
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
        """Rows of one arm; [n_samples]."""
        rows: Bools = self.arm == self.arms.index(arm)
        return rows

    def by_problem(self, rows: Bools) -> Ints:
        """How many of `rows` each problem has; [n_problems]."""
        return np.bincount(self.problem[rows], minlength=len(self.problems)).astype(np.int64)

    def counts(self, arm: str, rows: Bools | None = None) -> Counts:
        """Correct and graded samples of an arm by problem, of `rows` only if given."""
        own = self.of(arm) & self.graded if rows is None else self.of(arm) & self.graded & rows
        return Counts(self.by_problem(own & self.correct), self.by_problem(own))

    def differing(self, arm: str, against: str) -> Counts:
        """Of the samples both arms drew with one seed, by problem, how many have another text (as `correct`)."""
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
        SampleError: a line lacks something, or is of an arm or problem the run does not have.
        JournalError: the file, or a line before the last, cannot be read.
    """
    columns = {name: array("q") for name in _INTEGERS}
    entropy, sampled = array("d"), array("d")
    at_problem, at_arm = ({name: i for i, name in enumerate(known)} for known in (problems, arms))
    answers: dict[str, int] = {}
    for number, line in enumerate(journal.read_samples(path), start=1):
        place = f"{path.name} line {number}"
        try:
            columns["problem"].append(_index(at_problem, "problem_id", line["problem_id"]))
            columns["arm"].append(_index(at_arm, "arm", line["arm"]))
            columns["grade"].append(_index(GRADE_INDEX, "grade", line["grade"]))
            columns["sample"].append(int(line["sample"]))
            columns["seed"].append(int(line.get("seed") or 0) & (2**63 - 1))
            entropy.append(_nats(line.get("mean_entropy_nats")))
            sampled.append(_nats(line.get("mean_sampled_entropy_nats")))
            columns["tokens"].append(_count(line.get("completion_tokens")))
            columns["forks"].append(_count(line.get("forks")))
        except KeyError as e:
            raise SampleError(f"{place} is no sample: it has no {e}") from None
        except (TypeError, ValueError, OverflowError) as e:
            raise SampleError(f"{place} is no sample of this run: {e}") from None
        answer = line.get("answer")
        columns["answer"].append(MISSING if answer is None else answers.setdefault(str(answer), len(answers)))
        columns["text"].append(_fingerprint(line))
        columns["failed"].append(line.get("error") is not None)
        columns["truncated"].append(line.get("finish_reason") == "length")
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


def _index(known: dict[str, int], field: str, name: object) -> int:
    index = known.get(str(name))
    if index is None:
        allowed = ", ".join(known)
        raise ValueError(
            f'{field} "{str(name)[:60]}" is not known; allowed: {allowed[:60]}{"..." * (len(allowed) > 60)}'
        )
    return index


def _fingerprint(line: dict[str, Any]) -> int:
    """Of what was generated. Two token sequences can spell one text; the number of tokens catches most of those."""
    text = f"{line.get('completion_tokens')} {line.get('finish_reason')} {line.get('text')}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _nats(value: Any) -> float:
    return math.nan if value is None else float(value)


def _count(value: Any) -> int:
    return MISSING if value is None else int(value)


def _last_of_each(arm: Ints, problem: Ints, sample: Ints) -> Ints:
    """Rows of the last line of each (arm, problem, sample), sorted by these."""
    order = np.lexsort((np.arange(len(arm)), sample, problem, arm))
    keys = np.stack([arm, problem, sample])[:, order]
    ends = np.append(np.any(keys[:, 1:] != keys[:, :-1], axis=0), True)[: len(order)]
    last: Ints = order[ends]
    return last

"""Grade the samples of a finished or stopped run again, without generating anything."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from steerdec.common import journal
from steerdec.common.journal import FolderLock, JournalError, Sample
from steerdec.grading.grade import Grade
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import Problem
from steerdec.records.run import NAME as RUN_JSON

from .session import repeated_request

BATCH = 256  # samples graded at once; no more texts than these are held


@dataclass(frozen=True)
class Regraded:
    samples: int
    changed: int


def grade_again(folder: Path) -> Regraded:
    """Replace `samples.jsonl` by one that holds the grades of today; failed samples stay as they are.

    Raises:
        SettingsError, ProblemError: the run or its problems cannot be loaded, or the problems changed.
        JournalError: the samples cannot be read or rewritten; they are as they were.
    """
    request, _ = repeated_request(folder / RUN_JSON)
    problems = {problem.id: problem for problem in request.problem_set.problems}
    path = folder / journal.NAME
    with FolderLock(folder):
        if not path.exists():
            raise JournalError(f"{path} is missing: nothing was sampled yet")
        grades = _grades(path, problems)
        samples = changed = 0

        def regraded(sample: Sample) -> Sample:
            nonlocal samples, changed
            samples += 1
            grade = next(grades)
            if grade is None:
                return sample
            new = sample | {"answer": grade.answer, "grade": grade.grade, "grade_path": grade.path}
            changed += new["grade"] != sample["grade"]
            return sample if new == sample else new

        journal.rewrite(path, regraded)
    return Regraded(samples, changed)


def _grades(path: Path, problems: dict[str, Problem]) -> Iterator[Grade | None]:
    """The grade of each sample in the file's order; None for one that failed and so has no text."""
    samples = journal.read_samples(path)
    with GradingPool() as pool, ThreadPoolExecutor() as threads:

        def grade(sample: Sample) -> Grade | None:
            problem = problems.get(sample["problem_id"])
            if problem is None:
                raise JournalError(f"{path} holds a sample of problem {sample['problem_id']}, which is not of this run")
            if sample.get("error") is not None or not isinstance(sample.get("text"), str):
                return None
            return pool.grade(sample["text"], problem, sample.get("finish_reason"))

        while batch := list(islice(samples, BATCH)):
            yield from threads.map(grade, batch)

"""Grade the samples of a finished or stopped run again, without sampling."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from steerdec.common.files import FileError, FolderLock
from steerdec.grading.grade import Grade
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import Problem
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample, read_samples, rewrite_samples

from .session import repeated_request

BATCH = 256  # samples graded at once, and so the number of texts in memory


@dataclass(frozen=True)
class Regraded:
    samples: int
    changed: int


def grade_again(folder: Path) -> Regraded:
    """Replace `samples.jsonl` by one with current grades; failed samples stay unchanged.

    Raises:
        SettingsError, ProblemError: the run or its problems cannot be loaded, or the problems changed.
        FileError: the samples cannot be read or rewritten; they are unchanged.
    """
    request, _ = repeated_request(folder / RUN_JSON)
    problems = {problem.id: problem for problem in request.problem_set.problems}
    path = folder / SAMPLES
    with FolderLock(folder):
        if not path.exists():
            raise FileError(f"{path} is missing: nothing was sampled yet")
        grades = _grades(path, problems)
        samples = changed = 0

        def regraded(sample: Sample) -> Sample:
            nonlocal samples, changed
            samples += 1
            grade = next(grades)
            if grade is None:
                return sample
            changed += grade.grade != sample.grade
            return replace(sample, answer=grade.answer, grade=grade.grade, grade_path=grade.path)

        rewrite_samples(path, regraded)
    return Regraded(samples, changed)


def _grades(path: Path, problems: dict[str, Problem]) -> Iterator[Grade | None]:
    """Yield the grade of each sample in the file's order; None for one that failed and so has no text."""
    samples = read_samples(path)
    with GradingPool() as pool, ThreadPoolExecutor() as threads:

        def grade(sample: Sample) -> Grade | None:
            problem = problems.get(sample.problem_id)
            if problem is None:
                raise FileError(f"{path} holds a sample that is not of this run: {sample.where}")
            if sample.error is not None or sample.text is None:
                return None
            return pool.grade(sample.text, problem, sample.finish_reason)

        while batch := list(islice(samples, BATCH)):
            yield from threads.map(grade, batch)

"""Read a run folder for the report, without holding the text of every sample.

A run of 60 problems, 64 samples and 12 arms carries gigabytes of reasoning. The report needs the grades and the few
samples that kept their per-token lists, so `samples.jsonl` is read line by line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import FileError
from steerdec.pages.forks import TokenTrace
from steerdec.records.samples import Sample, read_samples

RUN_KEYS = ("steerdec", "created", "model", "problems", "arms", "samples", "seed", "temperature", "threshold_nats")
SUMMARY_KEYS = ("arms", "comparisons", "claims", "instrument")


class ReportError(InvalidInputError):
    """A run folder that cannot be reported; the message is one plain line."""


@dataclass
class Cell:
    """The samples of one problem under one arm. `graded` leaves out the ungraded."""

    correct: int = 0
    graded: int = 0
    ungraded: int = 0


@dataclass(frozen=True)
class RunFolder:
    path: Path
    run: dict[str, Any]
    summary: dict[str, Any]
    cells: dict[tuple[str, str], Cell]  # (problem_id, arm), the problems in the run's order
    traces: list[TokenTrace]  # by problem, sample and arm, each in the run's order
    dropped_traces: int = 0  # samples whose per-token lists disagree in length


def read_run(directory: str | Path) -> RunFolder:
    """Read `run.json`, `summary.json` and `samples.jsonl`.

    Raises:
        ReportError: a file is missing or is not the JSON it should be.
    """
    path = Path(directory)
    run, summary = _read_object(path / "run.json"), _read_object(path / "summary.json")
    for name, value, keys in (("run.json", run, RUN_KEYS), ("summary.json", summary, SUMMARY_KEYS)):
        for key in keys:
            if key not in value:
                raise ReportError(f'{path / name} has no "{key}"')
    grades: dict[tuple[str, str, int], str] = {}  # of several lines for one sample the last counts
    traces: dict[tuple[str, str, int], TokenTrace] = {}
    dropped = 0
    for sample in _samples(path / "samples.jsonl"):
        grades[sample.key] = sample.grade
        if sample.entropy_nats:
            trace = _trace(sample)
            if trace is None:
                dropped += 1
            else:
                traces[sample.key] = trace
    place = _order(run)  # the file's own order is that of arrival, which another run of the same would not have
    grades = dict(sorted(grades.items(), key=lambda item: place(*item[0])))
    shown = [traces[at] for at in sorted(traces, key=lambda at: place(*at))]
    return RunFolder(path, run, summary, _cells(grades), shown, dropped)


def _order(run: Mapping[str, Any]) -> Callable[[str, str, int], tuple[int, int, int]]:
    """The sorting key of (problem_id, arm, sample); what the run does not name comes last."""
    problems = {name: i for i, name in enumerate(run["problems"].get("ids") or ())}
    arms = {arm["name"]: i for i, arm in enumerate(run["arms"]["arms"])}
    return lambda problem, arm, sample: (problems.get(problem, len(problems)), sample, arms.get(arm, len(arms)))


def _samples(path: Path) -> Iterator[Sample]:
    if not path.exists():
        raise ReportError(f"{path} is missing; a report needs run.json, samples.jsonl and summary.json")
    try:
        yield from read_samples(path)
    except FileError as error:
        raise ReportError(str(error)) from None


def _cells(grades: Mapping[tuple[str, str, int], str]) -> dict[tuple[str, str], Cell]:
    cells: dict[tuple[str, str], Cell] = {}
    for (problem_id, arm, _), grade in grades.items():
        cell = cells.setdefault((problem_id, arm), Cell())
        cell.correct += grade == "correct"
        cell.graded += grade != "ungraded"
        cell.ungraded += grade == "ungraded"
    return cells


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} is missing; a report needs run.json, samples.jsonl and summary.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path} holds a JSON {type(value).__name__}; an object is expected")
    return value


def _trace(sample: Sample) -> TokenTrace | None:
    entropy, fork, token_text = sample.entropy_nats or [], sample.fork, sample.token_text
    if fork is None or len(fork) != len(entropy):
        return None
    if token_text is not None and len(token_text) != len(entropy):
        return None
    return TokenTrace(
        problem_id=sample.problem_id,
        arm=sample.arm,
        sample=sample.sample,
        entropy_nats=tuple(entropy),
        fork=tuple(fork),
        token_text=None if token_text is None else tuple(token_text),
        answer=sample.answer,
        grade=sample.grade,
    )

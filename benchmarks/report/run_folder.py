"""A run folder as the report needs it, without holding the text of every sample in memory.

A run of 60 problems, 64 samples and 12 arms has gigabytes of reasoning. The report needs the grades and the few samples
that kept their per-token lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from steerdec.pages.forks import TokenTrace
from steerdec.records.folder import load_run
from steerdec.records.run import Settings
from steerdec.records.samples import Sample
from steerdec.records.summary import NAME as SUMMARY_JSON
from steerdec.records.summary import Summary, read_summary


@dataclass
class Cell:
    """The samples of one problem under one arm. `graded` leaves out the ungraded."""

    correct: int = 0
    graded: int = 0
    ungraded: int = 0


@dataclass(frozen=True)
class RunFolder:
    path: Path
    settings: Settings
    summary: Summary
    cells: dict[tuple[str, str], Cell]  # (problem_id, arm), the problems in the run's order
    traces: list[TokenTrace]  # by problem, sample and arm, each in the run's order
    dropped_traces: int = 0  # samples whose per-token lists disagree in length

    @property
    def model(self) -> str:
        """The last part of the model's path or hub name; the whole name is in the provenance."""
        return last_part(self.settings.model)

    @property
    def problem_set(self) -> str:
        return last_part(self.settings.problems.name)


def last_part(name: str) -> str:
    """Return the last part of a path or a hub name."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def read_run(directory: str | Path, summary: Summary | None = None) -> RunFolder:
    """Read a run folder; read its `summary.json` only if no summary is given.

    Raises:
        SettingsError, JournalError, SummaryFileError: a file is missing or cannot be read; one line.
    """
    path = Path(directory)
    run = load_run(path)
    grades: dict[tuple[str, str, int], str] = {}  # of several lines for one sample the last counts
    traces: dict[tuple[str, str, int], TokenTrace] = {}
    dropped = 0
    for sample in run.samples():
        grades[sample.key] = sample.grade
        if sample.entropy_nats:
            trace = token_trace(sample)
            if trace is None:
                dropped += 1
            else:
                traces[sample.key] = trace
    place = _order(run.settings)  # the file is in order of arrival, which differs in a repeated run
    grades = dict(sorted(grades.items(), key=lambda item: place(*item[0])))
    return RunFolder(
        path=path,
        settings=run.settings,
        summary=summary or read_summary(path / SUMMARY_JSON),
        cells=_cells(grades),
        traces=[traces[key] for key in sorted(traces, key=lambda key: place(*key))],
        dropped_traces=dropped,
    )


def _order(settings: Settings) -> Callable[[str, str, int], tuple[int, int, int]]:
    """Return the sorting key of (problem_id, arm, sample); names that the run does not have come last."""
    problems = {name: i for i, name in enumerate(settings.problems.ids)}
    arms = {arm.name: i for i, arm in enumerate(settings.arms.arms)}
    return lambda problem, arm, sample: (problems.get(problem, len(problems)), sample, arms.get(arm, len(arms)))


def _cells(grades: Mapping[tuple[str, str, int], str]) -> dict[tuple[str, str], Cell]:
    cells: dict[tuple[str, str], Cell] = {}
    for (problem_id, arm, _), grade in grades.items():
        cell = cells.setdefault((problem_id, arm), Cell())
        cell.correct += grade == "correct"
        cell.graded += grade != "ungraded"
        cell.ungraded += grade == "ungraded"
    return cells


def token_trace(sample: Sample) -> TokenTrace | None:
    """Return the per-token lists of a sample; None if it kept none, or if their lengths differ."""
    entropy, fork, token_text = sample.entropy_nats, sample.fork, sample.token_text
    if entropy is None or fork is None or len(fork) != len(entropy):
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

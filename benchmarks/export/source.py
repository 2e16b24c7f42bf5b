"""Read a run as every export needs it: its samples, scores, and problems with the prompts sent for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steerdec.problems.prompts import request_body
from steerdec.problems.sets import Problem, load_problems
from steerdec.records.arms import Arm
from steerdec.records.folder import Run, load_run
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import Settings, SettingsError
from steerdec.records.samples import Sample
from steerdec.records.summary import Summary

from ..verdicts.summary import summarize


@dataclass(frozen=True)
class Source:
    """A run to export. `summary` is computed from the samples, not read from `summary.json`."""

    run: Run
    summary: Summary
    problems: dict[str, Problem]

    @property
    def settings(self) -> Settings:
        return self.run.settings

    def samples_of(self, arm: Arm) -> Iterator[Sample]:
        """Yield the samples of one arm in the order they arrived."""
        return (sample for sample in self.run.samples() if sample.arm == arm.name)

    def prompt(self, problem_id: str) -> str:
        """Return the prompt sent to the model: the user's message of a chat, or the text of a completion."""
        problem = self.problems[problem_id]
        _, body = request_body(self.settings.prompt, problem, thinking=self.settings.thinking)
        return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def read(folder: Path) -> Source:
    """Read a run and load its problems again.

    Raises:
        SettingsError: there is no run, or its problems have changed since.
        ProblemError: the problems are no longer available.
        JournalError, SummaryError: the samples cannot be read.
    """
    run = load_run(folder)
    used = run.settings.problems
    problem_set = load_problems(used.source, limit=used.limit)
    if problem_set.sha256 != used.sha256:
        raise SettingsError(
            f"{folder / RUN_JSON}: the problems {used.source} have changed: sha256 {used.sha256[:12]} -> "
            f"{problem_set.sha256[:12]}"
        )
    return Source(run, summarize(folder), {problem.id: problem for problem in problem_set.problems})

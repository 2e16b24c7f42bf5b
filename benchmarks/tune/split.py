"""Divide problems into those that settings are chosen on and those that the choice is tested on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import write_atomically
from steerdec.common.seeds import hashed_bits
from steerdec.problems.sets import Problem, ProblemSet

FEWEST_TO_TUNE_ON: Final = 8
FEWEST_HELD_OUT: Final = 10  # below it the statistics give no verdict


class SplitError(InvalidInputError):
    """Too few problems to tune on and to test on; the message is one plain line."""


@dataclass(frozen=True)
class Halves:
    tuning: ProblemSet
    held_out: ProblemSet


def divided(problem_set: ProblemSet, share: float, seed: int) -> Halves:
    """Return `share` of the problems to tune on and the others to test on, drawn by a hash of the seed.

    Problems of one group, or with the same text, stay together: a setting must not be tested on what it was chosen on.

    Raises:
        SplitError: one part would have too few independent problems.
    """
    clusters: dict[str, list[Problem]] = {}
    for problem in problem_set.problems:
        clusters.setdefault(_cluster(problem), []).append(problem)
    order = sorted(clusters, key=lambda name: hashed_bits("tune", seed, name))
    chosen = set(order[: round(share * len(order))])
    if len(chosen) < FEWEST_TO_TUNE_ON or len(order) - len(chosen) < FEWEST_HELD_OUT:
        raise SplitError(
            f"--problems: {problem_set.name} has {len(order)} independent problems, of which {len(chosen)} would be to "
            f"tune on and {len(order) - len(chosen)} held out; at least {FEWEST_TO_TUNE_ON} and {FEWEST_HELD_OUT} are "
            "needed"
        )
    tuning = [problem for problem in problem_set.problems if _cluster(problem) in chosen]
    held_out = [problem for problem in problem_set.problems if _cluster(problem) not in chosen]
    return Halves(replace(problem_set, problems=tuple(tuning)), replace(problem_set, problems=tuple(held_out)))


def _cluster(problem: Problem) -> str:
    return f"group {problem.group}" if problem.group is not None else f"text {' '.join(problem.problem.split())}"


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write the problems as JSONL, for runs to be repeated from. Raises FileError."""
    rows = [
        {"id": p.id, "problem": p.problem, "answer": p.answer, "kind": p.kind}
        | ({} if p.group is None else {"group": p.group})
        for p in problems
    ]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

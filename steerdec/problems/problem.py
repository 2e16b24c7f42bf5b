"""A problem and a set of problems."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property

from steerdec.common.errors import InvalidInputError


class ProblemError(InvalidInputError):
    """Problems cannot be used; the message says which, where, and what is allowed."""


@dataclass(frozen=True)
class Problem:
    """One problem. `kind` says how an answer is compared: "integer" (0 to 999), "number", "math" or "gym:TASK?...#I".

    Problems with the same `group` (a template, a story, a subject) are not independent of each other.
    """

    id: str
    problem: str
    answer: str
    kind: str = "integer"
    group: str | None = None

    @property
    def digest(self) -> str:
        """16 hex digits of a SHA-256 over id, problem, answer, and the group if any."""
        return _sha256([_row(self)])[:16]


@dataclass(frozen=True)
class ProblemSet:
    """Problems with distinct ids, and the name of their template in `prompts`.

    `source` is a name that loads the same set from any working directory, with the revision that was fetched.
    """

    name: str
    problems: tuple[Problem, ...]
    prompt: str
    source: str = field(default="", compare=False)

    @property
    def sha256(self) -> str:
        """Return a hex digest over the (id, problem, answer), and the group if any, of every problem, in any order."""
        return _sha256(sorted(map(_row, self.problems)))

    @cached_property
    def repeated_texts(self) -> list[tuple[str, ...]]:
        """Return the ids of problems with equal texts (up to spaces), a tuple per text that occurs more than once."""
        ids: dict[str, list[str]] = {}
        for problem in self.problems:
            ids.setdefault(" ".join(problem.problem.split()), []).append(problem.id)
        return [tuple(same) for same in ids.values() if len(same) > 1]


def _row(p: Problem) -> tuple[str, ...]:
    return (p.id, p.problem, p.answer) if p.group is None else (p.id, p.problem, p.answer, p.group)


def _sha256(rows: list[tuple[str, ...]]) -> str:
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

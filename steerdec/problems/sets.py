"""Problem sets: by name, made on the spot, or from a JSONL file.

Names:

    aime24 aime25 aime26 amc23 math500 gsm8k    from the Hugging Face hub, at run time
    embedded, embedded-calibration              made here, no two problems alike; see `embedded`
    gym:TASK?key=value&...                      made by reasoning_gym; see `gym`
    anything else                               a file, one JSON object a line: `id`, `problem`, `answer`,
                                                optionally `kind` (else the narrowest that all answers
                                                of the file have); other fields are ignored

A set's name goes before a file of the same name; `./aime24` is the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerdec.common.errors import InvalidInputError
from steerdec.common.numerals import read_integer, read_number
from steerdec.problems import embedded, gym, hub

KINDS = ("integer", "number", "math")  # in files
PROMPTS = {"integer": "aime", "number": "number", "math": "math", "gym": "gym"}  # template by kind; see `prompts`


class ProblemError(InvalidInputError):
    """Problems that cannot be used; one line that says which, where, and what is allowed."""


@dataclass(frozen=True)
class Problem:
    """`kind` says how an answer is compared: "integer" (0 to 999), "number", "math" or "gym:TASK?...#INDEX"."""

    id: str
    problem: str
    answer: str
    kind: str = "integer"


@dataclass(frozen=True)
class ProblemSet:
    name: str
    problems: tuple[Problem, ...]
    prompt: str  # the name of a template in `prompts`

    @property
    def sha256(self) -> str:
        """Hex digest over the (id, problem, answer) of every problem, whatever their order."""
        triples = sorted((problem.id, problem.problem, problem.answer) for problem in self.problems)
        return hashlib.sha256(json.dumps(triples, separators=(",", ":")).encode()).hexdigest()


def load_problems(name_or_path: str, *, limit: int | None = None, seed: int = 0) -> ProblemSet:
    """The problem set of that name, or in that file.

    With `limit`, that many of its problems (all, if it has no more), drawn by a hash of `seed` and id, for the first
    problems of AIME are the easy ones. A draw holds the draws with smaller limits; it does not depend on the order of
    the set, and keeps it.

    Raises:
        ProblemError: no such set or file, a bad line, a repeated id, the hub is out of reach.
    """
    if limit is not None and limit < 1:
        raise ProblemError(f"limit is {limit}; it has to be at least 1")
    problems, prompt = _load(name_or_path)
    if limit is not None:
        drawn = {problem.id for problem in sorted(problems, key=lambda problem: _rank(seed, problem))[:limit]}
        problems = [problem for problem in problems if problem.id in drawn]
    return ProblemSet(name_or_path, tuple(problems), prompt)


def _load(name: str) -> tuple[list[Problem], str]:
    """All problems and the prompt template."""
    try:
        if name in hub.SETS:
            problems = _checked((f"{name}, row {i}", row) for i, row in enumerate(hub.load_rows(name)))
            return problems, PROMPTS[hub.SETS[name].kind]
        if name in embedded.SETS:
            return [Problem(**row) for row in embedded.SETS[name]()], "few-shot"
        if name.startswith("gym:"):
            return [Problem(**row) for row in gym.load_gym(name)], PROMPTS["gym"]
    except (hub.HubError, gym.GymError) as e:
        raise ProblemError(str(e)) from None
    path = Path(name)
    if not path.is_file():
        names = ", ".join([*hub.SETS, *embedded.SETS])
        raise ProblemError(f"--problems: {name!r} is neither a file nor a problem set; there are {names}, gym:TASK")
    problems = _checked(_file_rows(path))
    if not problems:
        raise ProblemError(f"{path}: no problems in it; one JSON object a line is needed, with id, problem, answer")
    kinds = {problem.kind for problem in problems}
    return problems, PROMPTS[kinds.pop() if len(kinds) == 1 else "math"]


def _rank(seed: int, problem: Problem) -> bytes:
    return hashlib.sha256(f"{seed}/{problem.id}".encode()).digest()


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(FILE:LINE, object) of every line that is not blank. Raises ProblemError."""
    try:
        lines = (
            path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        )  # not str.splitlines: U+2028 may stand in text
    except OSError as e:
        raise ProblemError(f"{path}: cannot be read ({e.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as e:
            raise ProblemError(f"{where}: not UTF-8 ({e.reason} at byte {e.start + 1} of the line)") from None
        except (ValueError, RecursionError) as e:
            raise ProblemError(f"{where}: not JSON ({e}); one object a line is needed") from None
        if not isinstance(row, dict):
            raise ProblemError(f"{where}: {type(row).__name__} instead of an object with id, problem, answer")
        yield where, row


def _checked(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Problem]:
    """Problems from rows, each with where it stood. Raises ProblemError at the first that is not one."""
    fields: list[tuple[str, dict[str, str]]] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        problem = {name: _text(where, name, row.get(name)) for name in ("id", "problem", "answer")}
        if row.get("kind") is not None:
            problem["kind"] = _text(where, "kind", row["kind"])
        if earlier := seen.get(problem["id"]):
            raise ProblemError(f"{where}: id {problem['id']!r} stands at {earlier} already; ids have to be unique")
        seen[problem["id"]] = where
        fields.append((where, problem))
    default = _kind_of([problem["answer"] for _, problem in fields if "kind" not in problem])
    return [_of_kind(where, Problem(**({"kind": default} | problem))) for where, problem in fields]


def _text(where: str, name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and name != "problem":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        shown = "is missing" if value is None else f"is {json.dumps(value)[:60]}"
        raise ProblemError(f"{where}: {name} {shown}; it has to be a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProblemError(f"{where}: {name} holds half of a surrogate pair, which no request can carry") from None
    return value


def _kind_of(answers: list[str]) -> str:
    """The narrowest kind that all these answers have."""
    if all(_in_aime_range(answer) for answer in answers):
        return "integer"
    return "number" if all(read_number(answer) is not None for answer in answers) else "math"


def _of_kind(where: str, problem: Problem) -> Problem:
    """The problem, if its kind is one and its answer has it. Raises ProblemError."""
    if problem.kind not in KINDS:
        raise ProblemError(f"{where}: kind is {problem.kind!r}; allowed are {', '.join(KINDS)}")
    if problem.kind == "integer" and not _in_aime_range(problem.answer):
        raise ProblemError(f"{where}: answer is {problem.answer!r}; kind integer needs one from 0 to 999")
    if problem.kind == "number" and read_number(problem.answer) is None:
        raise ProblemError(f"{where}: answer is {problem.answer!r}; kind number needs a plain number")
    return problem


def _in_aime_range(answer: str) -> bool:
    integer = read_integer(answer)
    return integer is not None and integer.isdigit() and len(integer) <= 3

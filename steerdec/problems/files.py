"""Problems from a JSONL file: one JSON object per line, gzipped where the name ends in `.gz`.

    id        unique in the file
    problem   the text (or `question`)
    answer    a text or a number
    kind      optional: "integer", "number" or "math"; by default the narrowest that all answers of the file have
    group     optional: the template, story or subject that the problem shares with others

Other fields are ignored.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from steerdec.common.files import read_at_most
from steerdec.common.numerals import read_integer, read_number
from steerdec.common.validation import shown
from steerdec.problems.problem import Problem, ProblemError

KINDS = ("integer", "number", "math")

MAX_BYTES = 1 << 30

Row = Mapping[str, Any]

# What JSON makes of a LaTeX command whose backslash is not doubled: \frac becomes a form feed and "rac".
_BROKEN_LATEX = re.compile(
    r"[\b\f]"
    r"|\t(?=imes|ext|heta|frac|an\b|au\b|riangle|o\b|herefore|ilde)"
    r"|\r(?=ight|ho\b|m\{|angle|floor|ceil|brace)"
    r"|\n(?=eq\b|abla|otin\b|leq\b|geq\b|mid\b|parallel)"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NAMES = {"\b": "a backspace", "\f": "a form feed", "\t": "a tab", "\r": "a carriage return", "\n": "a line break"}
_UNIT = re.compile(
    r"\s*(?:\\[,;! ])*\s*"
    r"(?:\^\\circ|\^\{\\circ\}|°|\\?%|\\(?:text|mathrm|textrm|mbox)\{\s*[A-Za-z ./^0-9]+\}|[A-Za-z]+)\.?$"
)


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (FILE:LINE, object) for every line that is not blank. Raises ProblemError."""
    try:
        content = read_at_most(path, MAX_BYTES, gzipped=path.suffix == ".gz")
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ProblemError(
            f"{path}: cannot be unpacked ({e}); a name with .gz has to be a gzipped JSONL file"
        ) from None
    except OSError as e:
        raise ProblemError(f"{path}: cannot be read ({e.strerror})") from None
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # not str.splitlines: a text may contain U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as e:
            raise ProblemError(f"{where}: not UTF-8 ({e.reason} at byte {e.start + 1} of the line)") from None
        except (ValueError, RecursionError) as e:
            raise ProblemError(f"{where}: not JSON ({e}); one object per line is needed") from None
        if not isinstance(row, dict):
            raise ProblemError(f"{where}: {shown(row)} is not an object with id, problem, answer")
        yield where, row


class _Fields(NamedTuple):
    where: str
    id: str
    problem: str
    answer: str
    kind: str | None
    group: str | None


def problems_of(rows: Iterable[tuple[str, Row]]) -> list[Problem]:
    """Return the problems of rows, each with its place. Raises ProblemError at the first invalid one."""
    fields: list[_Fields] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        one = _fields(where, row)
        if earlier := seen.get(one.id):
            raise ProblemError(f"{where}: id {one.id!r} is also at {earlier}; ids have to be unique")
        seen[one.id] = where
        fields.append(one)
    default = _default_kind([one for one in fields if one.kind is None])
    return [_checked(one, one.kind or default) for one in fields]


def _fields(where: str, row: Row) -> _Fields:
    problem = row.get("problem", row.get("question"))
    if problem is None:
        raise ProblemError(
            f"{where}: problem is missing; a line needs id, problem, answer, this line has {', '.join(row)}"
        )
    return _Fields(
        where=where,
        id=_text(where, "id", row.get("id")),
        problem=_text(where, "problem", problem),
        answer=_without_point(_text(where, "answer", row.get("answer"))),
        kind=None if row.get("kind") is None else _text(where, "kind", row["kind"]),
        group=None if row.get("group") is None else _text(where, "group", row["group"]),
    )


def _text(where: str, name: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and name != "problem":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        shown = "is missing" if value is None else f"is {json.dumps(value)[:60]}"
        raise ProblemError(f"{where}: {name} {shown}; it has to be a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProblemError(f"{where}: {name} has half of a surrogate pair, which no request can carry") from None
    if broken := _BROKEN_LATEX.search(value):
        character, rest = broken[0], value[broken.end() :][:12]
        raise ProblemError(
            f"{where}: {name} has {_NAMES[character]} (U+{ord(character):04X}) before {rest!r}; if that is LaTeX, "
            r"write two backslashes in JSON, as in \\frac"
        )
    if control := _CONTROL.search(value):
        raise ProblemError(f"{where}: {name} has a control character (U+{ord(control[0]):04X}); remove it")
    return value


def _without_point(answer: str) -> str:
    """Return "51" for "51.0"."""
    return answer.rstrip("0").removesuffix(".") if re.fullmatch(r"[-+]?\d+\.0+", answer) else answer


def _default_kind(fields: list[_Fields]) -> str:
    """Return the narrowest kind that all these answers have. Raises ProblemError if only units stand in its way."""
    if all(_in_aime_range(one.answer) for one in fields):
        return "integer"
    others = [one for one in fields if read_number(one.answer) is None]
    if not others:
        return "number"
    if len(others) < len(fields) and all(_number_with_unit(one.answer) for one in others):
        first, numbers = others[0], len(fields) - len(others)
        raise ProblemError(
            f"{first.where}: answer is {first.answer!r}, a number with a unit, where {numbers} of {len(fields)} lines "
            f'have a plain number; write {_number_with_unit(first.answer)}, or give this line "kind": "math"'
        )
    return "math"


def _number_with_unit(answer: str) -> str | None:
    r"""Return the number in "336^\circ" or "5 cm", None for anything else."""
    bare = answer.strip().strip("$").strip()
    without = _UNIT.sub("", bare)
    return without if without != bare and read_number(without) is not None else None


def _checked(one: _Fields, kind: str) -> Problem:
    if kind not in KINDS:
        raise ProblemError(f"{one.where}: kind is {kind!r}; allowed are {', '.join(KINDS)}")
    if kind == "integer" and not _in_aime_range(one.answer):
        raise ProblemError(f"{one.where}: answer is {one.answer!r}; kind integer needs one from 0 to 999")
    if kind == "number" and read_number(one.answer) is None:
        raise ProblemError(f"{one.where}: answer is {one.answer!r}; kind number needs a plain number")
    return Problem(id=one.id, problem=one.problem, answer=one.answer, kind=kind, group=one.group)


def _in_aime_range(answer: str) -> bool:
    integer = read_integer(answer)
    return integer is not None and integer.isdigit() and len(integer) <= 3

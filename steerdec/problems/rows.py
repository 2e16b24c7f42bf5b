r"""Turn the rows of a table, from a file or from the hub, into problems.

    problem   the text (or `question`)
    answer    a text or a number: the final answer, or a solution that ends in `#### ANSWER` or has `\boxed{ANSWER}`
    id        unique; where no row has one, the row's number, from 0
    kind      "integer", "number" or "math"; by default the narrowest that all answers have
    group     the template, story or subject that the problem shares with others

:class:`Columns` says which columns hold them. Other columns are ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from steerdec.common.boxes import last_box
from steerdec.common.numerals import MAX_CHARS, read_integer, read_number
from steerdec.problems.problem import Problem, ProblemError

KINDS = ("integer", "number", "math")
OPTIONS = ("problem", "answer", "id", "group", "kind")  # of a problem set's name; see `Columns.named`

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None: no column. Those in `required` must exist, further ones may."""

    problem: tuple[str, ...] = ("problem", "question")  # the first that there is
    answer: str = "answer"
    id: str | None = "id"
    group: str | None = "group"
    kind: str | None = "kind"
    one_kind: str | None = None  # of all problems
    required: tuple[str, ...] = ()

    def named(self, options: Mapping[str, str]) -> Columns:
        """Return these columns, but with those that `options` name; `kind` names a kind. Raises ProblemError."""
        kind = options.get("kind")
        if kind is not None and kind not in KINDS:
            raise ProblemError(f"--problems: kind is {kind!r}; allowed are {', '.join(KINDS)}")
        return Columns(
            problem=(options["problem"],) if "problem" in options else self.problem,
            answer=options.get("answer", self.answer),
            id=options.get("id", self.id),
            group=options.get("group", self.group),
            kind=None if kind else self.kind,
            one_kind=kind or self.one_kind,
            required=tuple(options[key] for key in ("id", "group") if key in options),
        )

    def found(self, where: str, names: Iterable[str]) -> list[str]:
        """Return those of a table's columns that are used. Raises ProblemError where one is missing."""
        there = list(names)
        problem = next((name for name in self.problem if name in there), None)
        missing = [name for name in (self.answer, *self.required) if name not in there]
        if problem is None:
            missing.insert(0, " or ".join(self.problem))
        if missing:
            raise ProblemError(
                f"{where}: no column {missing[0]}; there are {_listed(there)}. "
                "Name the columns in --problems: ...?problem=COLUMN&answer=COLUMN"
            )
        return [name for name in there if name in {problem, self.answer, self.id, self.group, self.kind}]


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


class _Fields(NamedTuple):
    where: str
    id: str
    problem: str
    answer: str
    kind: str | None
    group: str | None


def problems_of(rows: Iterable[tuple[str, Row]], columns: Columns = Columns()) -> list[Problem]:
    """Return the problems of rows, each with its place. Raises ProblemError at the first invalid one."""
    fields: list[_Fields] = []
    seen: dict[str, str] = {}
    for one in _all_fields(list(rows), columns):
        if earlier := seen.get(one.id):
            raise ProblemError(f"{one.where}: id {one.id!r} is also at {earlier}; ids have to be unique")
        seen[one.id] = one.where
        fields.append(one)
    default = _default_kind([one for one in fields if one.kind is None])
    return [_checked(one, one.kind or default) for one in fields]


def _all_fields(rows: list[tuple[str, Row]], columns: Columns) -> Iterator[_Fields]:
    numbered = columns.id not in columns.required and not any(columns.id in row for _, row in rows)
    for number, (where, row) in enumerate(rows):
        columns.found(where, row)
        problem = next(name for name in columns.problem if name in row)
        optional = [row.get(name) if name else None for name in (columns.kind, columns.group)]
        kind, group = (
            None if value is None else _text(where, name, value)
            for name, value in zip(("kind", "group"), optional, strict=True)
        )
        yield _Fields(
            where=where,
            id=str(number) if numbered else _text(where, "id", row.get(str(columns.id))),
            problem=_text(where, "problem", row[problem]),
            answer=_final(where, _text(where, "answer", row[columns.answer])),
            kind=columns.one_kind or kind,
            group=group,
        )


def _text(where: str, name: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and name != "problem":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        shown = "is missing" if value is None else f"is {json.dumps(value, default=str)[:60]}"
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


def _final(where: str, answer: str) -> str:
    r"""Return the final answer: what follows the last `####`, or is in the last `\boxed{}`, or the whole text."""
    _, marked, after = answer.rpartition("####")
    if marked:
        after = after.strip()
        final = read_number(after) or after  # GSM8K has 1,800 for 1800
    else:
        final = last_box(answer) or answer
    if len(final) > MAX_CHARS or not final:
        what = f"has {len(final)} characters" if final else "has nothing after ####"
        raise ProblemError(
            f"{where}: answer {what}; it has to be a final answer, "
            r"or a solution that ends in #### ANSWER or has \boxed{ANSWER}"
        )
    return final.rstrip("0").removesuffix(".") if re.fullmatch(r"[-+]?\d+\.0+", final) else final  # 51 for 51.0


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


def _listed(names: list[str]) -> str:
    """Return the names as a list that fits on a line."""
    shown = ", ".join(names)
    return shown if len(shown) <= 120 else shown[:120].rpartition(", ")[0] + f", ... ({len(names)} in all)"

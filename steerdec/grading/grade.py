"""Decide whether a response is correct or incorrect, and by which path.

The order of the steps: a truncated response is incorrect, because it might have continued; thinking is dropped; the
answer is extracted from the rest; two integers (or two decimals) are compared as such; only what is left goes to
math-verify or reasoning_gym. Those two may never finish, so :mod:`steerdec.grading.pool` runs them in processes that it
can end; :func:`grade` runs them in place.

Paths (`Grade.path`):

    truncated            finish_reason was "length"
    no-answer            there is no answer where one is expected
    boxed-int            integer in the last box, compared with an integer
    boxed-number         decimal in the last box, compared with a number
    boxed-measure        number with a unit, a base, a ratio or a time of day in the last box (see `measures`)
    boxed-text           the last box equals the reference, character by character
    boxed-incomplete     the last box ends in an operator
    boxed-math-verify    decided by math-verify from the last box
    hashes, answer-is    "#### N" or "the answer is N", compared with a number
    gym, gym-raised      reasoning_gym's score (1.0 or incorrect); its scorer raised (incorrect)
    timeout, crash       the comparison did not end, or killed its process (incorrect)
    error                there is no response, because the request failed (ungraded); set by the caller

A grade is "ungraded" only if there is no response to grade.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from steerdec.common.boxes import last_box
from steerdec.common.numerals import MAX_CHARS, NUMBER, canonical_number, read_integer, read_number
from steerdec.grading import exact
from steerdec.grading.measures import (
    FULL_WIDTH,
    Measure,
    bare,
    is_words,
    plain,
    read_measure,
    without_letter,
    without_unit,
)
from steerdec.problems import gym

Verdict = Literal["correct", "incorrect", "ungraded"]


@dataclass(frozen=True)
class Grade:
    """`answer` is what was found, in one form for all ways to write it, so that equal answers are counted (maj@k)."""

    answer: str | None
    grade: Verdict
    path: str


class Comparison(NamedTuple):
    """An answer that only a computer algebra system, or the task's own scorer, can judge."""

    answer: str
    gold: str
    kind: str


def grade(text: str, problem_answer: str, kind: str, finish_reason: str | None) -> Grade:
    """Grade one response here, without a time limit. Pure.

    Args:
        text: the whole response; thinking may precede the answer, up to `</think>`.
        problem_answer: the reference answer.
        kind: "integer", "number", "math" or "gym:TASK?..." (see `problems.Problem`).
        finish_reason: as the server reported it.
    """
    decided = decide(text, problem_answer, kind, finish_reason)
    return compare(decided) if isinstance(decided, Comparison) else decided


def decide(text: str, problem_answer: str, kind: str, finish_reason: str | None) -> Grade | Comparison:
    """Do everything that is cheap and sure to end: return a grade, or the comparison that remains."""
    if finish_reason == "length":
        return Grade(None, "incorrect", "truncated")
    response = without_thinking(text)
    if kind.startswith("gym:"):
        tagged = last_tagged(response)
        return Grade(None, "incorrect", "no-answer") if tagged is None else Comparison(tagged, problem_answer, kind)
    box = last_box(response)
    if box is not None:
        return _decide_box(box, problem_answer, kind)
    if kind == "number":
        for path, pattern in _MARKED_NUMBERS:
            if marked := list(pattern.finditer(response)):
                return _equal(canonical_number(marked[-1]), read_number(problem_answer), path)
    return Grade(None, "incorrect", "no-answer")


def compare(comparison: Comparison) -> Grade:
    """Judge what :func:`decide` could not. May never finish: see :class:`steerdec.grading.pool.GradingPool`."""
    if comparison.kind.startswith("gym:"):
        try:
            score = gym.score(comparison.kind, comparison.answer)
        except gym.GymError:
            raise
        except Exception:  # whatever a scorer raises for a text that it did not expect
            return Grade(comparison.answer, "incorrect", "gym-raised")
        return _grade(comparison.answer, score == 1.0, "gym")  # a lower score is partial credit
    correct, answer = exact.compare(comparison.answer, comparison.gold)
    return _grade(_counted(comparison.gold) if correct else answer, correct, "boxed-math-verify")


def prepare(kind: str) -> None:
    """Import and build what :func:`compare` needs for this kind, so that this time does not count for an answer."""
    if kind.startswith("gym:"):
        gym.prepare(kind)
    else:
        exact.prepare()


def without_thinking(text: str) -> str:
    """Return what follows the last `</think>`, up to a `<think>` that is not closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def last_tagged(text: str) -> str | None:
    """Return the content of the last `<answer>` ... `</answer>`, or None if it is empty or missing."""
    before, closing, _ = text.rpartition("</answer>")
    _, opening, inside = before.rpartition("<answer>")
    return (inside.strip() or None) if closing and opening else None


# "N" must not start a sum, a product, a ratio, a mixed number, a list, or a time of day: then it is not the
# answer. The group is atomic, so that the 1 of "1 234*2" does not match either.
_ALONE = r"(?!\s*[-+*/xX×÷=^:]\s*[0-9]|[0-9]|,[0-9]|\.[0-9]| +[0-9]+/[0-9])"
# Nor is it the answer where a second number measures the same thing: "2 hours and 30 minutes" is not 2.
_UNITS = (
    r"hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|feet|foot|ft|inch(?:es)?|in|yards?|miles?"
    r"|dollars?|cents?|euros?|pounds?|lbs?|ounces?|oz|km|kilomet(?:er|re)s?|m|met(?:er|re)s?|cm|kg|grams?|g|degrees?"
)
_HALF = rf"(?!\s*(?:{_UNITS})\b[,.]?\s*(?:and\s+|&\s*)?[0-9])"
_NUMBER_ALONE = rf"(?>{NUMBER}){_ALONE}{_HALF}"
_LEAD = r"[\s:=*]*(?:\\\(|\\?\$)?"
# The prompts ask for the box, "####" is GSM8K's own form, and the few-shot examples end with the sentence. They are
# tried in this order, and the last match of each counts.
_MARKED_NUMBERS = (
    ("hashes", re.compile(rf"####{_LEAD}{_NUMBER_ALONE}")),
    ("answer-is", re.compile(rf"\banswer\s+is{_LEAD}{_NUMBER_ALONE}", re.IGNORECASE)),
)
# math-verify drops a final operator and reads "x = 70 +" as 70.
_INCOMPLETE = re.compile(r"(?:[-+*/=^_<>×÷\u2212]|\\(?:times|cdot|div|pm|mp|leq?|geq?|neq|approx))\s*$")


def _decide_box(box: str, gold: str, kind: str) -> Grade | Comparison:
    box = box.translate(FULL_WIDTH)
    integers = read_integer(box), read_integer(gold)
    if None not in integers:
        return _equal(*integers, "boxed-int")
    numbers = read_number(box), read_number(gold)
    if None not in numbers:
        return _equal(*numbers, "boxed-number")
    if len(box) > MAX_CHARS:
        return Comparison(box, gold, kind)
    if bare(plain(box)) == bare(plain(gold)) and plain(box):
        return Grade(_counted(gold), "correct", "boxed-text")
    if _INCOMPLETE.search(box):
        return Grade(box, "incorrect", "boxed-incomplete")
    if is_words(plain(gold)):  # to math-verify letters are factors, and their order does not matter
        answer = bare(plain(box))
        return _grade(answer.casefold(), answer.casefold() == bare(plain(gold)).casefold(), "boxed-text")
    letter, _ = without_letter(plain(box))
    if letter and bare(plain(gold)).strip("()") == letter:
        return Grade(_counted(gold), "correct", "boxed-text")
    measure, of_gold = read_measure(box), read_measure(gold)
    if measure is not None and of_gold is not None and not _percent(measure, of_gold):
        return _grade(str(measure), measure.equals(of_gold), "boxed-measure")
    if any(one is not None and (len(one.numbers) > 1 or one.base) for one in (measure, of_gold)):
        return Grade(bare(plain(box)), "incorrect", "boxed-measure")  # math-verify would take one number of several
    return Comparison(without_unit(box), without_unit(gold), kind)


def _percent(answer: Measure, gold: Measure) -> bool:
    """Return whether one is a percentage and the other is not, and they differ: 50% may stand for 0.5."""
    return (answer.units == ("percent",)) != (gold.units == ("percent",)) and answer.numbers != gold.numbers


def _counted(gold: str) -> str:
    """Return the form in which a right answer is counted, however it was written."""
    measure = read_measure(gold)
    return bare(plain(gold)) if measure is None else str(measure)


def _equal(answer: str | None, gold: str | None, path: str) -> Grade:
    return _grade(answer, answer == gold, path)


def _grade(answer: str | None, correct: bool, path: str) -> Grade:
    return Grade(answer, "correct" if correct else "incorrect", path)

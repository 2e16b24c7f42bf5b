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
from typing import Final, Literal, NamedTuple

from steerdec.common.boxes import last_box
from steerdec.common.numerals import MAX_CHARS, read_integer, read_number
from steerdec.grading import exact
from steerdec.grading.measures import MAX_STATED_CHARS, Measure, read_measure, read_stated, without_unit
from steerdec.grading.spelling import CHARACTERS, bare, is_words, leaves_open, plain, without_label, without_letter
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
            for marked in list(pattern.finditer(response))[: -MAX_STATEMENTS - 1 : -1]:
                if (stated := read_stated(response[marked.end() : marked.end() + MAX_STATED_CHARS])) is not None:
                    return _equal(stated, read_number(problem_answer), path)
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


# The prompts ask for the box, "####" is GSM8K's own form, and the few-shot examples end with the sentence. They are
# tried in this order, and the last one that states a number counts.
_NUMBER_FOLLOWS = r"[\s:=*]*(?:\\\()?(?=[-+\u2212\u2013]? ?(?:\\?[$€£¥₹])? ?[-+\u2212\u2013]?\.?[0-9])"
MAX_STATEMENTS: Final = 10  # a response that states its answer a thousand times takes no longer than another
_MARKED_NUMBERS = (
    ("hashes", re.compile(rf"####{_NUMBER_FOLLOWS}")),
    ("answer-is", re.compile(rf"\banswer\s+is{_NUMBER_FOLLOWS}", re.IGNORECASE)),
)
# math-verify drops a final operator and reads "x = 70 +" as 70.
_INCOMPLETE = re.compile(r"(?:[-+*/=^_<>×÷\u2212]|\\(?:times|cdot|div|pm|mp|leq?|geq?|neq|approx))\s*$")


def _decide_box(box: str, gold: str, kind: str) -> Grade | Comparison:
    box = box.translate(CHARACTERS)
    integers = read_integer(box), read_integer(gold)
    if None not in integers:
        return _equal(*integers, "boxed-int")
    numbers = read_number(box), read_number(gold)
    if None not in numbers:
        return _equal(*numbers, "boxed-number")
    if len(box) > MAX_CHARS:
        return Comparison(box, gold, kind)
    answer, expected = plain(box), plain(gold)
    if not without_label(expected)[0]:  # "Total: 18" is 18, but not where it matters what the label says
        answer = without_label(answer)[1]
    if bare(answer) == bare(expected) and answer:
        return Grade(_counted(gold), "correct", "boxed-text")
    if _INCOMPLETE.search(answer):
        return Grade(box, "incorrect", "boxed-incomplete")
    if is_words(expected):  # to math-verify letters are factors, and their order does not matter
        word = bare(answer).casefold()
        return _grade(word, word == bare(expected).casefold(), "boxed-text")
    letter, _ = without_letter(answer)
    if letter and bare(expected).strip("()") == letter:
        return Grade(_counted(gold), "correct", "boxed-text")
    measure, of_gold = read_measure(answer), read_measure(expected)
    if measure is not None and of_gold is not None and not _percent(measure, of_gold):
        return _grade(str(measure), measure.equals(of_gold), "boxed-measure")
    if any(one is not None and (len(one.numbers) > 1 or one.base) for one in (measure, of_gold)):
        return Grade(bare(answer), "incorrect", "boxed-measure")  # math-verify would take one number of several
    if of_gold is not None and leaves_open(answer):  # math-verify would drop them: "2 and a half" is not 2
        return Grade(bare(answer), "incorrect", "boxed-text")
    return Comparison(without_unit(answer), without_unit(expected), kind)


def _percent(answer: Measure, gold: Measure) -> bool:
    """Return whether one is a percentage and the other is not, and they differ: 50% may stand for 0.5."""
    return (answer.units == ("percent",)) != (gold.units == ("percent",)) and answer.numbers != gold.numbers


def _counted(gold: str) -> str:
    """Return the form in which a right answer is counted, however it was written."""
    measure = read_measure(plain(gold))
    return bare(plain(gold)) if measure is None else str(measure)


def _equal(answer: str | None, gold: str | None, path: str) -> Grade:
    return _grade(answer, answer == gold, path)


def _grade(answer: str | None, correct: bool, path: str) -> Grade:
    return Grade(answer, "correct" if correct else "incorrect", path)

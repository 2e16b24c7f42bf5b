"""From a response to correct or incorrect, and by which path.

The order of the steps: a truncated response is incorrect, for it might have gone on; thinking is dropped; the answer
is cut out of the rest; two integers (or two decimals) are compared as such; only what is left goes to math-verify or
reasoning_gym. Those two may compute for ever, so :mod:`grading_pool` runs them in processes it can end;
:func:`grade` here runs them in place.

Paths (`Grade.path`):

    truncated            finish_reason was "length"
    no-answer            nothing where an answer has to stand
    boxed-int            integer in the last box, compared with an integer
    boxed-number         decimal in the last box, compared with a number
    boxed-text           the last box says the same, character for character
    boxed-incomplete     the last box ends in an operator
    boxed-math-verify    what math-verify says of the last box
    hashes, answer-is    "#### N" or "the answer is N", compared with a number
    gym, gym-raised      reasoning_gym's score (1.0 or incorrect); its scorer raised (incorrect)
    timeout, crash       the comparison did not end, or killed its process (incorrect)

A grade is "ungraded" only where there is no response to grade; that is for whoever made the request to say.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from steerdec.common.numerals import NUMBER, canonical_number, read_integer, read_number
from steerdec.grading.boxes import last_box
from steerdec.problems import gym

Verdict = Literal["correct", "incorrect", "ungraded"]


@dataclass(frozen=True)
class Grade:
    """`answer` is what was found, canonical where it is a number, so that equal answers can be counted (maj@k)."""

    answer: str | None
    grade: Verdict
    path: str


class Comparison(NamedTuple):
    """An answer that takes a computer algebra system, or a task's own scorer, to judge."""

    answer: str
    gold: str
    kind: str


def grade(text: str, problem_answer: str, kind: str, finish_reason: str | None) -> Grade:
    """Grade one response, here and without a time-out. Pure.

    Args:
        text: the whole response; thinking may stand in it up to `</think>`.
        problem_answer: the reference answer.
        kind: "integer", "number", "math" or "gym:TASK?..." (see `problems.Problem`).
        finish_reason: as the server gave it.
    """
    decided = decide(text, problem_answer, kind, finish_reason)
    return compare(decided) if isinstance(decided, Comparison) else decided


def decide(text: str, problem_answer: str, kind: str, finish_reason: str | None) -> Grade | Comparison:
    """Everything that is cheap and sure to end: a grade, or the comparison that is left to do."""
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
    """Judge what :func:`decide` could not. May take for ever: see :class:`grading_pool.GradingPool`."""
    if comparison.kind.startswith("gym:"):
        try:
            score = gym.score(comparison.kind, comparison.answer)
        except gym.GymError:
            raise
        except Exception:  # whatever a scorer meets in a text it did not expect
            return Grade(comparison.answer, "incorrect", "gym-raised")
        return _grade(comparison.answer, score == 1.0, "gym")  # a lower score is partial credit
    return _grade(comparison.answer, _math_verify(comparison.answer, comparison.gold), "boxed-math-verify")


def prepare(kind: str) -> None:
    """Import and make what :func:`compare` needs for this kind, so that its time is not the answer's."""
    if kind.startswith("gym:"):
        gym.prepare(kind)
    else:
        _warm_math_verify()


def without_thinking(text: str) -> str:
    """What follows the last `</think>`, up to a `<think>` that nothing closes."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def last_tagged(text: str) -> str | None:
    """What the last `<answer>` ... `</answer>` encloses, or None where that is nothing."""
    before, closing, _ = text.rpartition("</answer>")
    _, opening, inside = before.rpartition("<answer>")
    return (inside.strip() or None) if closing and opening else None


# "N" must not be the start of a sum, a product, a ratio, a mixed number, a list or a time of day: then it is not the
# answer. Atomic: of "1 234*2" not the 1 either.
_ALONE = r"(?!\s*[-+*/xX×÷=^:]\s*[0-9]|[0-9]|,[0-9]|\.[0-9]| +[0-9]+/[0-9])"
_NUMBER_ALONE = rf"(?>{NUMBER}){_ALONE}"
_LEAD = r"[\s:=*]*(?:\\\(|\\?\$)?"
# The box is what the prompts ask for, "####" is GSM8K's own form, the sentence is what the few-shot examples end with:
# in this order, and of each the last.
_MARKED_NUMBERS = (
    ("hashes", re.compile(rf"####{_LEAD}{_NUMBER_ALONE}")),
    ("answer-is", re.compile(rf"\banswer\s+is{_LEAD}{_NUMBER_ALONE}", re.IGNORECASE)),
)
# math-verify drops an operator at the end and reads "x = 70 +" as 70.
_INCOMPLETE = re.compile(r"(?:[-+*/=^_<>×÷\u2212]|\\(?:times|cdot|div|pm|mp|leq?|geq?|neq|approx))\s*$")


def _decide_box(box: str, gold: str, kind: str) -> Grade | Comparison:
    integers = read_integer(box), read_integer(gold)
    if None not in integers:
        return _equal(*integers, "boxed-int")
    numbers = read_number(box), read_number(gold)
    if None not in numbers and kind == "number":  # elsewhere a decimal may stand for a fraction, rounded
        return _equal(*numbers, "boxed-number")
    if _plain(box) == _plain(gold):
        return Grade(_plain(box), "correct", "boxed-text")
    if _INCOMPLETE.search(box):
        return Grade(box, "incorrect", "boxed-incomplete")
    return Comparison(box, gold, kind)


def _plain(latex: str) -> str:
    """The text without `\\text{}` around its parts and without surplus spaces."""
    return " ".join(re.sub(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", latex).split())


def _math_verify(answer: str, gold: str) -> bool:
    from math_verify import parse, verify  # 2 s: not for runs that never need it

    # It warns that its own time-outs are off. They use SIGALRM, which only a main thread may, and which does not
    # interrupt a long integer power.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        gold_parsed, answer_parsed = (parse(f"\\boxed{{{latex}}}", parsing_timeout=None) for latex in (gold, answer))
        return bool(verify(gold_parsed, answer_parsed, timeout_seconds=None))
    except Exception:  # what cannot be read is not equal
        return False


@cache
def _warm_math_verify() -> None:
    _math_verify(r"\frac{1}{2}", "0.5")  # its parser builds its tables at the first expression


def _equal(answer: str | None, gold: str | None, path: str) -> Grade:
    return _grade(answer, answer == gold, path)


def _grade(answer: str | None, correct: bool, path: str) -> Grade:
    return Grade(answer, "correct" if correct else "incorrect", path)

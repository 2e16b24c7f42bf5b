"""Grading: golden cases, what holds for every text, and a pool that outlives what it grades."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdec.common.boxes import last_box
from steerdec.common.numerals import read_integer, read_number
from steerdec.grading import pool as grading_pool
from steerdec.grading.grade import Comparison, Grade, decide, grade
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import Problem

CASES = [json.loads(line) for line in (Path(__file__).parent / "data/grading_cases.jsonl").read_text().splitlines()]
PATHS = {
    "truncated", "no-answer", "boxed-int", "boxed-number", "boxed-measure", "boxed-text",
    "boxed-incomplete", "boxed-math-verify", "hashes", "answer-is",
}  # fmt: skip
PIECES = [*"\\{}$,.-+= 0179abx\u2212\u00b2", "\\boxed{", "</think>", "<answer>", "</answer>", "####", "answer is "]
LATEX = st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(workers=2, timeout_s=5.0) as pool:
        yield pool


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_case(case: dict[str, Any]) -> None:
    got = grade(case["text"], case["answer"], case["kind"], case["finish_reason"])
    assert got == Grade(case["found"], case["grade"], case["path"])


def test_golden_cases_say_where_they_are_from_and_reach_every_path() -> None:
    assert all(case["source"] for case in CASES)
    assert len({case["name"] for case in CASES}) == len(CASES) >= 1000
    assert {case["path"] for case in CASES} == PATHS


@given(
    st.text() | LATEX,
    st.sampled_from(["integer", "number", "math", "gym:chain_sum#0"]),
    st.sampled_from(["stop", "length", None]),
)
@settings(deadline=None)
def test_what_needs_no_worker_is_decided_on_every_text(text: str, kind: str, finish: str | None) -> None:
    decided = decide(text, "70", kind, finish)
    if isinstance(decided, Grade):
        assert decided.path in PATHS
        assert (decided.grade == "correct") <= (decided.answer is not None)
    else:
        assert decided.answer.strip()


@given(LATEX)
@settings(deadline=None, max_examples=50)
def test_math_verify_never_raises_out_of_grade(box: str) -> None:
    got = grade(f"\\boxed{{{box[:12]}}}", "x+1", "math", "stop")
    assert got.grade in ("correct", "incorrect")


@given(st.integers(0, 999), st.integers(0, 999))
def test_a_boxed_integer_is_right_exactly_when_it_is_the_answer(given_answer: int, answer: int) -> None:
    got = grade(f"Thus \\boxed{{{given_answer}}}.", f"{answer:03d}", "integer", "stop")
    assert got == Grade(str(given_answer), "correct" if given_answer == answer else "incorrect", "boxed-int")


@given(st.integers())
def test_an_integer_reads_back_however_it_is_written(n: int) -> None:
    for written in (f"{n}", f"{n:,}", f"${n}$", f" {n} ", f"{n:,}".replace(",", "{,}"), str(n).replace("-", "\u2212")):
        assert read_integer(written) == str(n)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_decimals_read_the_same_exactly_when_they_are_equal(x: Any) -> None:
    read = read_number(str(x))
    assert read is not None
    assert read == read_number(f"{x:.8f}") == read_number(f"{x:,}")
    assert read != read_number(str(x + 1))


@given(st.text(st.sampled_from("{}ab\\ ")))
def test_a_box_holds_balanced_braces(text: str) -> None:
    found = last_box(text.replace("a", "\\boxed{"))
    if found is not None:
        plain = found.replace("\\{", "").replace("\\}", "")
        assert plain.count("{") == plain.count("}")


WRAPPERS = [
    "{}",
    "\\text{{{}}}",
    "\\textbf{{{}}}",
    "\\mathrm{{{}}}",
    "\\mathbf{{{}}}",
    "\\boldsymbol{{{}}}",
    "\\color{{red}}{{{}}}",
]
UNITS = [
    *("", " eggs", "\\text{ eggs}", "\\text{ cm}", "\\,\\mathrm{kg}", " cm^2", "\\text{ m}^{2}", " km/h"),
    *("^\\circ", "°", "\\text{ degrees}", "^o", "^{\\circ}", "{}^\\circ", "˚", "\\degree", "^\\circ C", "℃"),
    *("\\text{ m/s}", " €", " dollars per hour", " (eggs)", " o'clock", " more than Tom"),
]  # fmt: skip
# What goes on from a number and makes it another one, or a product, a power, a range, a choice.
GOES_ON = [
    *("x", "xy", "ab", " ABC", "^2", "²", "\\pi", " pi", "π", "\\sqrt{3}", " sqrt(3)", "√3", "\\frac{1}{2}", "½"),
    *(" 1/2", " and a half", " or more", "\\text{ or more}", " million", "\\text{ thousand}", " tenths", " squared"),
    *(" plus 2", "!", " to 1000001", " hours and 30 minutes", ", 1000001", " x 10^3", "\\cdot 10^{3}", "e2"),
    *("\\%\\text{ of }7", "-inch and 2"),
]  # fmt: skip
THOUSANDS = [",", "{,}", "\\,", "\\ ", " ", "\u2009"]


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(WRAPPERS),
    st.sampled_from(UNITS),
    st.sampled_from(["", "."]),
    st.sampled_from(THOUSANDS),
)
@settings(deadline=None)
def test_how_a_number_is_written_never_changes_its_grade(
    n: int, wrapper: str, unit: str, period: str, mark: str
) -> None:
    """Thousands marks, a wrapper, a unit and a final period say nothing; another last digit always does."""
    for kind in ("integer", "number", "math"):
        written = "\\boxed{" + wrapper.format(f"{n:,}".replace(",", mark)) + unit + period + "}"
        right = decide(written, str(n), kind, "stop")
        assert isinstance(right, Grade)
        assert (right.answer, right.grade) == (str(n), "correct")
        got = decide(written, str(n + 1), kind, "stop")
        assert isinstance(got, Grade)
        assert got.grade == "incorrect"


@pytest.mark.parametrize("more", GOES_ON)
def test_a_number_that_goes_on_is_not_that_number(more: str) -> None:
    for n in (3, 18, 336):  # not 0 or 1, which some of these leave as they are
        for kind in ("integer", "number", "math"):
            assert grade(f"\\boxed{{{n}{more}}}", str(n), kind, "stop").grade == "incorrect"
        assert grade(f"The answer is {n}{more}.", str(n), "number", "stop").grade == "incorrect"


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6))
@settings(deadline=None)
def test_a_number_that_is_nearly_right_is_wrong(x: Decimal) -> None:
    nearly = x * (1 + Decimal("1e-9")) if x else Decimal("1e-9")
    for kind in ("integer", "number", "math"):
        right, wrong = (decide(f"\\boxed{{{value:f}}}", f"{x:f}", kind, "stop") for value in (x, nearly))
        assert isinstance(right, Grade)
        assert isinstance(wrong, Grade)
        assert (right.grade, wrong.grade) == ("correct", "incorrect")


def test_equal_answers_are_one_vote_however_they_are_written() -> None:
    for gold, spellings in (
        ("70", ("70", "70.0", "\\frac{140}{2}", "70\\text{ cm}", "x = 70", "\\textbf{(C)}\\ 70")),
        ("\\frac{1}{3}", ("\\frac13", "1/3", "\\frac{2}{6}")),
        ("9", ("70.5", "\\frac{141}{2}", "70.50\\text{ cm}")),
        ("x", ("\\sqrt{117}", "3\\sqrt{13}")),
    ):
        assert len({grade(f"\\boxed{{{box}}}", gold, "math", "stop").answer for box in spellings}) == 1


def test_long_repetitive_responses_take_no_longer_than_others() -> None:
    started = time.process_time()
    for loop in (
        "\\boxed{",
        "\\boxed{}",
        "{",
        "}",
        " ",
        "answer is ",
        "#### ",
        "\\boxed{ ",
        "<think>",
        "</think>",
        "1,",
        "%",
        "a ",
        "ab and ",
        "\\text{a}",
        "#### 1",
        "1 1/2 ",
        "√(",
    ):
        for kind in ("integer", "number", "gym:chain_sum#0"):
            decide(loop * 20_000, "70", kind, "stop")
            decide("\\boxed{" + loop * 20_000 + "}", "70", kind, "stop")
    decide("\\boxed{" * 20_000 + "7" + "}" * 20_000, "7", "integer", "stop")
    assert time.process_time() - started < 10


def test_gym_answers_are_cut_from_the_last_tag() -> None:
    text = "<answer>1</answer> no, <answer> 2 \n 3 </answer>."
    assert decide(text, "2", "gym:chain_sum#0", "stop") == Comparison("2 \n 3", "2", "gym:chain_sum#0")
    for text in ("2", "<answer>2", "2</answer>", "<answer> </answer>", "</answer>2<answer>"):
        assert decide(text, "2", "gym:chain_sum#0", "stop") == Grade(None, "incorrect", "no-answer")


def test_the_pool_says_what_grade_says(pool: GradingPool) -> None:
    for case in CASES:
        problem = Problem(case["name"], "?", case["answer"], case["kind"])
        got = pool.grade(case["text"], problem, case["finish_reason"])
        assert got == Grade(case["found"], case["grade"], case["path"])


ENDLESS = [
    "(10^{9})!",
    "\\sum_{k=1}^{10^{9}} \\frac{1}{k}",
    "9^{9^{9}}",
]


@pytest.mark.parametrize("latex", ENDLESS)
def test_an_endless_expression_is_cut_off_and_incorrect(latex: str) -> None:
    problem = Problem("p", "?", "1", "math")
    with GradingPool(workers=1, timeout_s=2.0) as pool:  # shorter than the default of 5 s, to save time
        got = pool.grade(f"\\boxed{{{latex}}}", problem, "stop")
        assert (got.grade, got.path) == ("incorrect", "timeout")
        assert pool.grade("\\boxed{\\frac{2}{2}}", problem, "stop") == Grade("1", "correct", "boxed-math-verify")


def test_a_tower_of_powers_is_incorrect_whether_or_not_it_ends(pool: GradingPool) -> None:
    for latex in ("9^9^9^9^9", "9^{9^{9^{9^{9}}}}"):
        got = pool.grade(f"\\boxed{{{latex}}}", Problem("p", "?", "1", "integer"), "stop")
        assert got.grade == "incorrect"


def _workers() -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "grading.worker"], capture_output=True, text=True)
    return [int(pid) for pid in children.stdout.split()]


def test_a_worker_killed_from_outside_costs_no_sample() -> None:
    with GradingPool(workers=1) as pool:
        problem = Problem("p", "?", "x+1", "math")
        assert pool.grade("\\boxed{1+x}", problem, "stop").grade == "correct"
        (pid,) = _workers()
        os.kill(pid, signal.SIGKILL)
        assert pool.grade("\\boxed{x+2}", problem, "stop") == Grade("x + 2", "incorrect", "boxed-math-verify")
        assert _workers() != [pid]
    assert _workers() == []


def test_a_comparison_that_kills_its_worker_is_given_up_after_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    died = [0]

    class Dying:
        alive = False

        def compare(self, comparison: Comparison, timeout_s: float) -> Grade:
            died[0] += 1
            return Grade(comparison.answer, "incorrect", "crash")

    monkeypatch.setattr(grading_pool, "_Worker", Dying)
    with GradingPool(workers=1) as pool:
        assert pool.grade("\\boxed{x}", Problem("p", "?", "y", "math"), "stop") == Grade("x", "incorrect", "crash")
    assert died == [2]


def test_a_worker_that_cannot_work_is_an_error_and_not_a_grade(pool: GradingPool) -> None:
    with pytest.raises(grading_pool.GradingError, match="no_such_task"):
        pool.grade("<answer>1</answer>", Problem("p", "?", "1", "gym:no_such_task?size=1#0"), "stop")


def test_a_gym_answer_has_to_score_exactly_one(pool: GradingPool) -> None:
    from steerdec.problems.sets import load_problems

    (right,) = load_problems("gym:chain_sum?size=1").problems
    wrong = f"{right.answer} or so"  # reasoning_gym gives this partial credit
    assert pool.grade(f"<answer>{right.answer}</answer>", right, "stop") == Grade(right.answer, "correct", "gym")
    assert pool.grade(f"<answer>{wrong}</answer>", right, "stop") == Grade(wrong, "incorrect", "gym")


def test_a_gym_scorer_that_raises_on_prose_makes_the_answer_incorrect(pool: GradingPool) -> None:
    problem = Problem("p", "?", "2", "gym:prime_factorization?size=1#0")
    got = pool.grade("<answer>the factors are two and three</answer>", problem, "stop")
    assert got == Grade("the factors are two and three", "incorrect", "gym-raised")


def test_ten_thousand_gradings_take_under_two_minutes(pool: GradingPool) -> None:
    """A tenth of them with a different expression each, so that remembered verdicts do not help."""
    texts = [f"\\boxed{{{i % 1000}}}" if i % 10 else f"\\boxed{{\\frac{{{i}}}{{2}}}}" for i in range(10_000)]
    problem = Problem("p", "?", "70", "integer")

    async def grade_all() -> list[Grade]:
        return await asyncio.gather(*(pool(text, problem, "stop") for text in texts))

    started = time.monotonic()
    grades = asyncio.run(grade_all())
    assert time.monotonic() - started < 120
    assert [i for i, got in enumerate(grades) if got.grade == "correct"] == [
        i for i in range(10_000) if (i % 1000 == 70 if i % 10 else i == 140)
    ]


def test_the_pool_may_be_used_from_more_threads_than_it_has_workers(pool: GradingPool) -> None:
    problem = Problem("p", "?", "x+1", "math")
    with ThreadPoolExecutor(8) as threads:
        grades = list(threads.map(lambda i: pool.grade(f"\\boxed{{x+{i}}}", problem, "stop"), range(40)))
    assert [i for i, got in enumerate(grades) if got.grade == "correct"] == [1]

"""Verdicts: the rules one by one."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, THESE_PROBLEMS, DifferenceEstimate
from steerdec.benchmarks.verdicts.verdict import (
    Claim,
    Corrected,
    Ruling,
    explain,
    place_or_dose,
    replaced,
    too_few,
    verdict_of,
)

UP = Claim("up", "F-up is better.", "F-up", "B", "greater")
DOWN = Claim("down", "F-down is worse.", "F-down", "B", "less")
LONGER = Claim("longer", "F-up writes more.", "F-up", "B", "greater", "tokens")


def estimate(value, se, ci95=(-0.03, 0.05), n=60):
    return DifferenceEstimate(value, se, n - 1.0, ci95, 0.5, n, clusters=n)


@pytest.mark.parametrize(
    ("greater", "less", "equal", "up", "down"),
    [
        (0.01, 1.0, 1.0, "holds", "reversed"),
        (1.0, 0.01, 1.0, "reversed", "holds"),
        (0.05, 1.0, 1.0, "undecided", "undecided"),
        (0.5, 1.0, 0.01, "no effect", "no effect"),
        (0.5, 1.0, 0.05, "undecided", "undecided"),
        (0.01, 1.0, 0.01, "holds", "reversed"),  # small, but there
    ],
)
def test_rules(greater, less, equal, up, down):
    corrected = Corrected(greater, less, equal)
    assert (verdict_of("greater", corrected), verdict_of("less", corrected)) == (up, down)


def test_nine_problems_are_too_few_and_ten_groups_are_not():
    assert "9 problems cannot speak for problems like these" in too_few(estimate(0.1, 0.1, n=9), PROBLEMS_LIKE_THESE)
    assert not too_few(estimate(0.1, 0.1, n=10), PROBLEMS_LIKE_THESE)
    assert not too_few(estimate(0.1, 0.1, n=9), THESE_PROBLEMS)
    grouped = DifferenceEstimate(0.1, 0.1, 3.0, (0, 1), 0.5, 60, clusters=4)
    assert too_few(grouped, PROBLEMS_LIKE_THESE).startswith("4 groups of problems cannot speak")


def test_reasons_give_the_numbers():
    # t(.975, 59) = 2.0010; power needs 2.848 standard errors.
    assert explain(UP, "undecided", estimate(0.01, 0.02), Corrected(0.7, 1.0, 1.0), 0.02) == (
        "F-up − B is +1.0 points, 95% CI [−3.0, +5.0], corrected p = 0.700, 60 problems; "
        "the smallest effect seen with 80% power is 5.7 points"
    )
    small = explain(UP, "holds", estimate(0.012, 0.002), Corrected(0.0001, 1.0, 0.01), 0.02)
    assert "corrected p < 0.001" in small
    assert "yet it is within ±2 points" in small
    assert "on the other side than claimed" in explain(
        UP, "reversed", estimate(-0.05, 0.01), Corrected(1.0, 0.001, 1.0), 0.02
    )
    assert "within ±2 points (two one-sided tests, corrected p = 0.010)" in explain(
        UP, "no effect", estimate(0.0, 0.001), Corrected(1.0, 1.0, 0.01), 0.02
    )


def test_lengths_are_told_in_tokens():
    text = explain(LONGER, "holds", estimate(12.0, 3.0, (6.0, 18.0)), Corrected(0.001, 1.0, 1.0), 20.0)
    assert text.startswith("F-up − B in tokens is +12.0 tokens, 95% CI [+6.0, +18.0]")


def test_what_cannot_be_computed_says_so():
    nothing = DifferenceEstimate(np.nan, np.nan, np.nan, (np.nan, np.nan), np.nan, 0, note="no problem has it")
    text = explain(UP, "undecided", nothing, Corrected(1.0, 1.0, 1.0), 0.02)
    assert text == "F-up − B cannot be computed; no problem has it"


UNTOLD = "an effect, but place and dose cannot be told apart"


@pytest.mark.parametrize(
    ("borrowed_from", "effect", "place", "by_place", "by_dose", "words"),
    [
        ("", "holds", "holds", "holds", "reversed", "place, not dose: "),
        ("", "holds", "no effect", "no effect", "holds", "entropy dose, not place: "),
        ("", "holds", "reversed", "reversed", "holds", "entropy dose, not place: "),
        ("", "holds", "undecided", "undecided", "undecided", f"{UNTOLD}: "),
        ("", "no effect", "holds", "no effect", "no effect", "no such effect to explain"),
        ("", "reversed", "holds", "reversed", "reversed", "the effect runs the other way than claimed"),
        ("", "undecided", "holds", "undecided", "undecided", "no effect shown"),
        ("", "undecided", "no effect", "undecided", "undecided", "no effect shown"),
        ("", "holds", "not applied", "not applied", "not applied", "an arm was not steered as requested"),
        # Where the place claim was tested at another dose, that it shows nothing decides nothing.
        ("F-down", "holds", "holds", "holds", "reversed", "place, not dose, at another dose than that of F-down: "),
        ("F-down", "holds", "no effect", "undecided", "undecided", f"{UNTOLD}, for"),
        ("F-down", "holds", "reversed", "undecided", "undecided", f"{UNTOLD}, for"),
        ("F-down", "no effect", "no effect", "no effect", "no effect", "no such effect to explain"),
    ],
)
def test_place_and_dose_are_conjunctions(borrowed_from, effect, place, by_place, by_dose, words):
    found = place_or_dose(Ruling("e", "", effect, ""), Ruling("p", "", place, ""), "N-up-m", borrowed_from)
    assert [ruling.verdict for ruling in found] == [by_place, by_dose]
    assert [ruling.id for ruling in found] == ["place-not-dose:p", "dose-not-place:p"]
    assert all(ruling.reason.startswith(words) for ruling in found)
    assert all(f"e {effect}, p {place}" in ruling.reason for ruling in found)
    assert all("N-up-m" in ruling.statement for ruling in found)


def test_another_verdict_keeps_the_numbers():
    ruling = replaced(Ruling("up", "", "holds", "F-up − B is +5.0 points"), "undecided", "the instrument is invalid")
    assert (ruling.verdict, ruling.reason) == ("undecided", "the instrument is invalid; F-up − B is +5.0 points")

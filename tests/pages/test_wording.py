"""Numbers and verdicts in words."""

from __future__ import annotations

import pytest

from steerdec.pages import wording


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.number(1234.5, 1), "1,234.5"),
        (wording.number(-0.04, 1), "0.0"),
        (wording.number(-0.06, 1), "−0.1"),
        (wording.number(float("nan")), "–"),
        (wording.number(None), "–"),
        (wording.percent(0.4321), "43.2%"),
        (wording.points(-0.031), "−3.1"),
        (wording.points(0.031), "+3.1"),
        (wording.points(0.0), "0.0"),
        (wording.points(-0.0001), "0.0"),
        (wording.points(None), "–"),
        (wording.points_interval([-0.05, 0.01]), "[−5.0, +1.0]"),
        (wording.points_interval(None), "–"),
        (wording.points_interval([None, None]), "–"),
        (wording.percent_interval([0.4, 0.5]), "[40.0, 50.0]"),
        (wording.percent_interval([0.4, None]), "–"),
        (wording.p_value(0.0004), "<0.001"),
        (wording.p_value(0.0496), "0.050"),
        (wording.p_value(None), "–"),
    ],
)
def test_a_number_is_written_as_people_read_it_and_an_unknown_one_as_a_dash(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lowering helps", "Lowering helps."),
        ("F-down loses.", "F-down loses."),
        ("avg@k moves", "avg@k moves."),
        ("is it so?", "Is it so?"),
        ("", ""),
    ],
)
def test_a_sentence_begins_with_a_capital_and_ends_with_a_stop(text: str, expected: str) -> None:
    assert wording.sentence(text) == expected

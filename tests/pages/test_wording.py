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


def test_a_claim_reads_as_a_statement_and_what_the_run_says_of_it() -> None:
    claim = {"statement": "Lowering helps.", "verdict": "fails", "reason": "within ±2 points", "id": "x"}
    assert (
        wording.claim_sentence(claim, "M and S") == "“Lowering helps.” On M and S this claim FAILS: within ±2 points."
    )


def test_another_verdict_over_these_problems_alone_is_told() -> None:
    claim = {"statement": "A", "verdict": "undecided", "reason": "", "id": "x", "verdict_these_problems": "holds"}
    assert wording.claim_sentence(claim).endswith("is UNDECIDED. Asked of these problems alone, it HOLDS.")


@pytest.mark.parametrize("instrument", ["valid", "invalid", "unchecked"])
def test_the_instrument_is_named_and_its_reason_given(instrument: str) -> None:
    sentence = wording.instrument_sentence({"instrument": instrument, "instrument_reason": "3 of 480 texts differ"})
    assert {"valid": "VALID", "invalid": "INVALID", "unchecked": "NOT CHECKED"}[instrument] in sentence
    assert sentence.endswith("3 of 480 texts differ.")


def test_an_instrument_verdict_never_heard_of_counts_as_unchecked() -> None:
    assert "NOT CHECKED" in wording.instrument_sentence({"instrument": "splendid"})

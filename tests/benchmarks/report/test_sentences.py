"""Verdicts and cautions in sentences."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from steerdec.benchmarks.report import sentences
from steerdec.records.summary import ClaimSummary, InstrumentVerdict, Summary, Verdict


def claim(**changes: Any) -> ClaimSummary:
    fields: dict[str, Any] = {
        "id": "x",
        "statement": "Lowering helps.",
        "verdict": "no effect",
        "verdict_these_problems": "no effect",
        "reason": "within ±2 points",
        "scope": "problems like these",
    }
    return ClaimSummary(**fields | changes)


def summary(**changes: Any) -> Summary:
    fields: dict[str, Any] = {"arms": {}, "comparisons": (), "claims": (), "instrument": "valid"}
    return Summary(**fields | changes)


def test_a_claim_reads_as_a_statement_and_what_the_run_says_of_it() -> None:
    said = sentences.claim_sentence(claim(), "M and S")
    assert said == "“Lowering helps.” On M and S this claim shows NO EFFECT: within ±2 points."


def test_another_verdict_over_these_problems_alone_is_said() -> None:
    said = sentences.claim_sentence(claim(verdict="undecided", verdict_these_problems="holds", reason=""))
    assert said.endswith("is UNDECIDED. For these problems alone, it HOLDS.")


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_verdict_has_words(verdict: Verdict) -> None:
    assert verdict.upper().split()[-1][:4] in sentences.claim_sentence(claim(verdict=verdict))


@pytest.mark.parametrize("instrument", get_args(InstrumentVerdict))
def test_the_instrument_is_named_and_its_reason_given(instrument: InstrumentVerdict) -> None:
    said = sentences.instrument_sentence(summary(instrument=instrument, instrument_reason="3 of 480 texts differ"))
    words = {"unchecked": "NOT CHECKED", "not shown": "NOT SHOWN"}
    assert words.get(instrument, instrument.upper()) in said
    assert said.endswith("3 of 480 texts differ.")


def test_warnings_and_an_interim_look_come_before_the_verdicts() -> None:
    assert sentences.cautions(summary()) == []
    said = sentences.cautions(summary(interim=True, interim_reason="look 2 of 4", warnings=("two texts are equal",)))
    assert said == [
        "Interim: look 2 of 4.",
        "Two texts are equal.",
    ]

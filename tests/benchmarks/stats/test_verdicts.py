"""Verdicts: their rules one by one, and how often they are right in studies whose truth is planted."""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest

from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, THESE_PROBLEMS, difference
from steerdec.benchmarks.stats.estimators import Counts, mean_over_problems, student
from steerdec.benchmarks.stats.verdicts import Claim, Ruling, judge, judge_instrument, place_or_dose, voided
from steerdec.common.multiplicity import holm

UP = Claim("up", "F-up is better.", "F-up", "B", "greater")
DOWN = Claim("down", "F-down is worse.", "F-down", "B", "less")
DELTA = 0.02


@pytest.fixture
def many_holms():
    """statsmodels collects garbage at every correction; a frozen heap makes that take no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def estimate(value, se, df=59.0):
    return student(value, se, df, 60, 0)


@pytest.mark.parametrize(
    ("claim", "value", "se", "p_holm", "verdict"),
    [
        (UP, 0.05, 0.01, 0.001, "holds"),
        (DOWN, -0.05, 0.01, 0.001, "holds"),
        (UP, 0.05, 0.01, 0.06, "undecided"),  # significant alone, not among the others
        (UP, 0.05, 0.01, 0.05, "undecided"),
        (UP, -0.05, 0.01, 0.001, "fails"),
        (DOWN, 0.05, 0.01, 0.001, "fails"),
        (UP, -0.05, 0.01, 0.9, "fails"),  # the interval alone counts against a claim
        (UP, -0.05, 0.04, 0.9, "undecided"),
        (UP, -0.018, 0.01, 0.9, "undecided"),  # one-sided p .038: the interval reaches over 0
        (UP, 0.0, 0.005, 1.0, "fails"),  # equivalent
        (UP, 0.0, 0.02, 1.0, "undecided"),  # too few samples for that
        (UP, 0.012, 0.002, 0.001, "holds"),  # small, but there
    ],
)
def test_rules(claim, value, se, p_holm, verdict):
    assert judge(claim, estimate(value, se), p_holm, DELTA).verdict == verdict


def test_a_wider_delta_calls_more_arms_equivalent():
    close = estimate(0.01, 0.01)
    assert [judge(UP, close, 1.0, delta).verdict for delta in (0.02, 0.05)] == ["undecided", "fails"]


def test_reasons_give_the_numbers():
    undecided = judge(UP, estimate(0.01, 0.02), 0.7, DELTA).reason
    # t(.975, 59) = 2.0010, so 1 - 4.002; power needs 2.848 standard errors.
    assert undecided == (
        "F-up − B is +1.0 points, 95% CI [−3.0, +5.0], Holm-adjusted p = 0.700, 60 problems; "
        "the smallest effect seen with 80% power is 5.7 points"
    )
    small = judge(UP, estimate(0.012, 0.002), 0.0001, DELTA).reason
    assert "Holm-adjusted p < 0.001" in small
    assert "yet it is within ±2 points" in small
    assert "other side than claimed" in judge(UP, estimate(-0.05, 0.01), 0.001, DELTA).reason


def test_one_difference_on_every_problem_the_other_way_is_not_called_an_interval():
    ruling = judge(UP, mean_over_problems([-1.0] * 10), 1.0, DELTA)
    assert (ruling.verdict, ruling.reversed) == ("fails", True)
    assert "every problem differs the other way (exact sign-flip p = 0.002)" in ruling.reason  # 2^-9
    assert "interval" not in ruling.reason
    few = judge(UP, mean_over_problems([-1.0] * 5), 1.0, DELTA)
    assert (few.verdict, few.reversed) == ("undecided", False)  # 2^-4


def test_dropped_problems_stand_in_the_reason():
    assert (
        "2 problems (1 left out, nothing graded in an arm)"
        in judge(UP, mean_over_problems([0.1, 0.3, np.nan]), 0.5, DELTA).reason
    )


@pytest.mark.parametrize(("values", "word"), [([], "cannot be computed"), ([0.5], "one problem says nothing")])
def test_too_little_data_leaves_a_claim_undecided_and_says_why(values, word):
    found = mean_over_problems(values)
    ruling = judge(UP, found, holm([found.p])[0], DELTA)
    assert ruling.verdict == "undecided"
    assert word in ruling.reason
    assert "nan" not in ruling.reason


def test_three_problems_nobody_solves_do_not_refute_a_claim():
    nothing = mean_over_problems([0.0, 0.0, 0.0])
    ruling = judge(UP, nothing, nothing.p, DELTA)
    assert ruling.verdict == "undecided"
    assert "all 3 problems show the same value" in ruling.reason


def _arms(rng, n, k, effects, effect_sd=0.0):
    """The baseline and one arm per effect; all effects share the problems, each varies on its own."""
    p = 0.25 + 0.5 * rng.beta(0.5, 0.5, n)
    shifts = [np.zeros(n), *(effect + effect_sd * np.sqrt(3) * rng.uniform(-1, 1, n) for effect in effects)]
    return [Counts(rng.binomial(k, p + shift), np.full(n, k)) for shift in shifts]


def _verdicts(studies, n, k, effect, effect_sd=0.0):
    rng = np.random.default_rng([n, k, round(1000 * effect) % 997])
    found = Counter()
    for _ in range(studies):
        baseline, arm = _arms(rng, n, k, [effect], effect_sd)
        each = difference(arm, baseline, PROBLEMS_LIKE_THESE)
        found[judge(UP, each, each.p, DELTA).verdict] += 1
    return {verdict: count / studies for verdict, count in found.items()}


def test_a_planted_effect_holds():
    assert _verdicts(400, 60, 64, 0.08, effect_sd=0.05)["holds"] > 0.99


def test_a_planted_effect_on_the_other_side_fails():
    assert _verdicts(400, 60, 64, -0.08, effect_sd=0.05)["fails"] > 0.99


def test_a_planted_null_fails_by_equivalence_where_there_are_samples_enough():
    assert _verdicts(400, 60, 1024, 0.0)["fails"] > 0.95  # 2.5% of nulls look like an effect


def test_a_planted_null_is_undecided_where_there_are_few():
    found = _verdicts(1000, 30, 8, 0.0)
    assert found["undecided"] > 0.9
    assert 0.01 <= found["holds"] <= 0.045  # the nominal 2.5% of a two-sided 5% test


def test_a_difference_of_just_delta_is_not_called_equivalent_too_often():
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(1000):
        baseline, arm = _arms(rng, 60, 256, [DELTA])
        each = difference(arm, baseline, PROBLEMS_LIKE_THESE)
        wrong += judge(UP, each, 1.0, DELTA).verdict == "fails"
    assert 0.03 <= wrong / 1000 <= 0.07


@pytest.mark.usefixtures("many_holms")
def test_several_claims_of_no_effect_rarely_hold_together():
    rng, wrong = np.random.default_rng(9), 0
    for _ in range(400):
        baseline, *arms = _arms(rng, 40, 16, [0.0] * 8)
        each = [difference(arm, baseline, PROBLEMS_LIKE_THESE) for arm in arms]
        adjusted = holm([e.p for e in each])
        wrong += any(judge(UP, e, p, DELTA).verdict == "holds" for e, p in zip(each, adjusted, strict=True))
    assert wrong / 400 < 0.07  # uncorrected it would be 1 - .975^8 = .18


@pytest.mark.usefixtures("many_holms")
@pytest.mark.parametrize(
    ("matched", "words", "by_place", "by_dose"),
    [(0.08, "entropy dose, not place", "fails", "holds"), (0.0, "place, not dose", "holds", "fails")],
)
def test_planted_dose_and_planted_place_are_told_apart(matched, words, by_place, by_dose):
    rng, right = np.random.default_rng(10), 0
    against_matched = Claim("over-matched", "F-up beats N-up-m.", "F-up", "N-up-m", "greater")
    for _ in range(200):
        baseline, up, other = _arms(rng, 60, 1024, [0.08, matched])
        effect, place = (difference(up, a, PROBLEMS_LIKE_THESE) for a in (baseline, other))
        p_holm = holm([effect.p, place.p])
        rulings = judge(UP, effect, p_holm[0], DELTA), judge(against_matched, place, p_holm[1], DELTA)
        combined = place_or_dose(*rulings, "N-up-m")
        right += [c.verdict for c in combined] == [by_place, by_dose] and combined[0].reason.startswith(words)
    assert right / 200 > 0.95


UNTOLD = "an effect, but place and dose cannot be told apart"


@pytest.mark.parametrize(
    ("borrowed_from", "effect", "place", "by_place", "by_dose", "words"),
    [
        ("", "holds", "holds", "holds", "fails", "place, not dose: "),
        ("", "holds", "fails", "fails", "holds", "entropy dose, not place: "),
        ("", "holds", "undecided", "undecided", "undecided", f"{UNTOLD}: "),
        ("", "fails", "holds", "fails", "fails", "no such effect to explain"),
        ("", "fails", "undecided", "fails", "fails", "no such effect to explain"),
        ("", "undecided", "holds", "undecided", "fails", "no effect shown"),
        ("", "undecided", "fails", "fails", "undecided", "no effect shown"),
        ("", "undecided", "undecided", "undecided", "undecided", "no effect shown"),
        # Where the place claim was tested at another dose, that it fails decides nothing.
        ("F-down", "holds", "holds", "holds", "fails", "place, not dose, at another dose than that of F-down: "),
        ("F-down", "holds", "fails", "undecided", "undecided", f"{UNTOLD}, for"),
        ("F-down", "holds", "undecided", "undecided", "undecided", f"{UNTOLD}: "),
        ("F-down", "fails", "fails", "fails", "fails", "no such effect to explain"),
        ("F-down", "undecided", "fails", "undecided", "undecided", "no effect shown"),
    ],
)
def test_place_and_dose_are_conjunctions(borrowed_from, effect, place, by_place, by_dose, words):
    found = place_or_dose(Ruling("e", "", effect, ""), Ruling("p", "", place, ""), "N-up-m", borrowed_from)
    assert [ruling.verdict for ruling in found] == [by_place, by_dose]
    assert [ruling.id for ruling in found] == ["place-not-dose:p", "dose-not-place:p"]
    assert all(ruling.reason.startswith(words) for ruling in found)
    assert all(f"e {effect}, p {place}" in ruling.reason for ruling in found)
    assert all("N-up-m" in ruling.statement for ruling in found)


def test_dose_not_place_takes_an_uncorrected_test_and_place_not_dose_does_not():
    effect = judge(UP, estimate(0.06, 0.01), 0.001, DELTA)
    against_matched = Claim("over-matched", "F-up beats N-up-m.", "F-up", "N-up-m", "greater")
    # Of differences with p .043 and Holm-adjusted p .125, the one as claimed decides nothing, the other does.
    behind, ahead = (judge(against_matched, estimate(value, 0.0193), 0.125, DELTA) for value in (-0.04, 0.04))
    assert estimate(0.04, 0.0193).p == pytest.approx(0.043, abs=0.001)
    assert [ruling.verdict for ruling in place_or_dose(effect, behind, "N-up-m")] == ["fails", "holds"]
    assert [ruling.verdict for ruling in place_or_dose(effect, ahead, "N-up-m")] == ["undecided", "undecided"]


def test_dose_not_place_holds_at_the_nominal_rate_where_the_place_adds_just_delta():
    rng, wrong = np.random.default_rng(13), 0
    for _ in range(1000):
        baseline, up, matched = _arms(rng, 60, 256, [0.1, 0.1 - DELTA])
        effect, place = (difference(up, against, PROBLEMS_LIKE_THESE) for against in (baseline, matched))
        rulings = judge(UP, effect, effect.p, DELTA), judge(UP, place, 1.0, DELTA)
        wrong += place_or_dose(*rulings, "N-up-m")[1].verdict == "holds"
    assert 0.03 <= wrong / 1000 <= 0.07


def test_an_effect_the_other_way_round_is_not_called_no_effect():
    p_holm = 0.001
    backwards = judge(UP, estimate(-0.05, 0.01), p_holm, DELTA)
    assert backwards.reversed
    assert not judge(UP, estimate(0.05, 0.01), p_holm, DELTA).reversed
    assert not judge(UP, estimate(-0.01, 0.02), 0.7, DELTA).reversed
    for ruling in place_or_dose(backwards, Ruling("p", "", "holds", ""), "N-up-m"):
        assert ruling.verdict == "fails"
        assert ruling.reason.startswith("the effect runs the other way than claimed")


def differing(values, compared=20, problems=30):
    return Counts(np.broadcast_to(np.asarray(values), (problems,)), np.full(problems, compared))


NOTHING = differing(0, compared=0)
SAME_SCORE = estimate(0.0, 0.01)


@pytest.mark.parametrize(
    ("identity", "floor", "verdict"),
    [
        (NOTHING, NOTHING, "unchecked"),
        (differing(0), NOTHING, "valid"),
        (differing(0), differing(3), "valid"),
        (differing([1] + [0] * 29), NOTHING, "invalid"),  # one text, and no floor to excuse it
        (differing([1] + [0] * 29), differing(0), "invalid"),  # one text, on a deterministic engine
        (differing(5), differing(5), "valid"),
        (differing(3), differing(5), "valid"),
        (differing(7), differing(5), "invalid"),
        (differing(7, problems=1), differing(5, problems=1), "invalid"),
        (differing(20), differing(20), "valid"),
    ],
)
def test_instrument(identity, floor, verdict):
    found = judge_instrument(identity, floor, SAME_SCORE)
    assert found.verdict == verdict
    assert found.reason


def test_a_floor_measured_on_other_problems_does_not_excuse_an_instrument():
    identity = Counts(np.array([3, 3, 0, 0]), np.array([4, 4, 0, 0]))
    floor = Counts(np.array([0, 0, 1, 1]), np.array([0, 0, 4, 4]))
    found = judge_instrument(identity, floor, SAME_SCORE)
    assert found.verdict == "invalid"
    assert found.reason == (
        "A/A differs from the baseline in 6 of 8 texts, the baseline repeated in 2 of 8, on other problems: "
        "how often the engine does so here is not known"
    )


def test_an_instrument_whose_texts_all_differ_is_still_held_to_its_score():
    found = judge_instrument(differing(20), differing(20), estimate(-0.05, 0.01))
    assert found.verdict == "invalid"
    assert "−5.0 points" in found.reason
    assert "only the score" in judge_instrument(differing(20), differing(20), SAME_SCORE).reason


def test_a_score_that_moved_by_whole_problems_leaves_no_p_and_is_no_sound_instrument():
    right, wrong = np.array([4, 4, 0, 0]), np.array([4, 0, 0, 0])
    score = difference(Counts(wrong, np.full(4, 4)), Counts(right, np.full(4, 4)), THESE_PROBLEMS)
    found = judge_instrument(differing(5), differing(5), score)
    assert found.verdict == "invalid"
    assert found.reason.endswith("but A/A scores −25.0 points (p unknown)")


def test_a_sound_instrument_on_a_noisy_engine_is_called_invalid_at_the_nominal_rate():
    rng, false_alarms, found_out = np.random.default_rng(12), 0, 0
    for _ in range(1000):
        noise = rng.beta(2, 3, 40)
        identity, floor, broken = (
            Counts(rng.binomial(16, q), np.full(40, 16)) for q in (noise, noise, np.minimum(1, noise + 0.15))
        )
        p = rng.beta(0.5, 0.5, 40)
        score = difference(*(Counts(rng.binomial(16, p), np.full(40, 16)) for _ in range(2)), THESE_PROBLEMS)
        false_alarms += judge_instrument(identity, floor, score).verdict == "invalid"
        found_out += judge_instrument(broken, floor, score).verdict == "invalid"
    assert 0.03 <= false_alarms / 1000 <= 0.07
    assert found_out / 1000 > 0.99


def test_an_invalid_instrument_decides_nothing():
    ruling = voided(judge(UP, estimate(0.05, 0.01), 0.001, DELTA))
    assert ruling.verdict == "undecided"
    assert ruling.reason.startswith("the instrument is invalid; F-up − B is +5.0 points")

"""The instrument: A/A shown equal, shown different, or neither."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.benchmarks.stats.comparisons import THESE_PROBLEMS, difference, spread_of_samples
from steerdec.benchmarks.stats.estimators import Counts
from steerdec.benchmarks.verdicts.instrument import judge_instrument


def differing(values, compared=20, problems=30):
    return Counts(np.broadcast_to(np.asarray(values), (problems,)), np.full(problems, compared))


def accuracy(rng, n=30, k=20, p=0.5, bias=0.0, noise=1.0):
    """A/A minus baseline, paired by seed; `noise`: share of samples that the engine draws anew."""
    luck = rng.random((n, k))
    own = np.where(rng.random((n, k)) < noise, rng.random((n, k)), luck)
    a, b = (own < p + bias).astype(float), (luck < p).astype(float)
    return difference(spread_of_samples(a, b, by_seed=True, bounded=True), THESE_PROBLEMS)


NOTHING = differing(0, compared=0)
SAME_SCORE = accuracy(np.random.default_rng(0), noise=0.0)


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
def test_verdict(identity, floor, verdict):
    found = judge_instrument(identity, floor, SAME_SCORE, 0.02)
    assert found.verdict == verdict
    assert found.reason


def test_a_floor_measured_on_other_problems_does_not_excuse_an_instrument():
    identity = Counts(np.array([3, 3, 0, 0]), np.array([4, 4, 0, 0]))
    floor = Counts(np.array([0, 0, 1, 1]), np.array([0, 0, 4, 4]))
    found = judge_instrument(identity, floor, SAME_SCORE, 0.02)
    assert found.verdict == "invalid"
    assert "on other problems" in found.reason


def test_too_few_samples_show_neither_and_name_the_bias_that_is_not_excluded():
    found = judge_instrument(differing(20), differing(20), accuracy(np.random.default_rng(1)), 0.02)
    assert found.verdict == "not shown"
    assert found.bias > 0.02
    assert f"a bias of up to {100 * found.bias:.1f} points is not excluded" in found.reason


def test_a_sound_instrument_is_called_invalid_at_the_nominal_rate_and_a_biased_one_is_never_shown_equal():
    rng, invalid, equal = np.random.default_rng(12), 0, 0
    for _ in range(200):
        noise = rng.beta(2, 3, 60)
        identity, floor = (Counts(rng.binomial(16, noise), np.full(60, 16)) for _ in range(2))
        found = judge_instrument(identity, floor, accuracy(rng, 60, 16), 0.02)
        invalid += found.verdict == "invalid"
        biased = judge_instrument(identity, floor, accuracy(rng, 60, 16, bias=-0.03), 0.02)
        equal += biased.verdict == "valid"
    assert invalid / 200 <= 0.1
    assert equal / 200 <= 0.05

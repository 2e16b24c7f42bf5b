"""Doses of arms: from curves of mean entropy, against what the logits themselves give."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from steerdec.benchmarks.calibration.arm_doses import Doses, arm_doses
from steerdec.benchmarks.calibration.matching import Contribution, Means
from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.design.resolving import resolve
from steerdec.records.arms import Arm, ArmSet
from steerdec.records.calibration import Threshold
from steerdec.records.doses import Part, parts_of

BASE, THRESHOLD = 0.6, 0.9
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, RNG.uniform(1, 4, (400, 1)), (400, 30))  # 20 problems of 20 tokens
OWNER = np.repeat(np.arange(20), 20)
CALIBRATIONS = BASE * np.array([0.05, 0.25, 0.333, 0.5, 1.0, 1.5, 1 / BASE, 2.5, 5.0])
DENSE = np.union1d(np.geomspace(0.05, 5.0, 201), [1.0, 0.2 / BASE, 0.7 / BASE, 1.0 / BASE]) * BASE


def log_p(t: float) -> Any:
    return log_softmax(LOGITS / t, axis=1)


def entropy(t: float) -> Any:
    return -np.sum(np.exp(log_p(t)) * log_p(t), axis=1)


def kl(t: float) -> Any:
    """KL(softmax(z / t) || softmax(z / T)) of every token, from the logits; at 0 all mass is on the largest."""
    plain = log_p(BASE)
    if t == 0.0:
        return -plain.max(axis=1)
    return np.sum(np.exp(log_p(t)) * (log_p(t) - plain), axis=1)


FORK = entropy(1.0) > THRESHOLD


def measured(looks: Any, weights: Any = None) -> dict[float, Contribution]:
    w = np.ones(20)[OWNER] if weights is None else weights[OWNER]

    def by_problem(values: Any) -> Any:
        return np.bincount(OWNER, weights=w * values)

    return {
        float(t): Contribution(by_problem(entropy(t) * FORK), by_problem(entropy(t) * ~FORK), by_problem(np.ones(400)))
        for t in looks
    }


@cache
def dense() -> dict[float, Contribution]:
    return measured(DENSE)


@pytest.mark.parametrize("temperature", [0.0, 0.031, 0.2, 0.59, 0.6, 0.61, 1.0, 1.4, 3.0])
def test_the_divergence_follows_from_the_curve_of_the_entropy(temperature: float) -> None:
    means = Means(BASE, dense())
    for part, tokens in (("forks", FORK), ("others", ~FORK), ("all", np.ones(400))):
        direct = float(np.mean(kl(temperature) * tokens))
        assert means.kl_nats(part, temperature) == pytest.approx(direct, rel=5e-3)


def test_the_divergence_is_exactly_zero_at_the_base_temperature() -> None:
    assert Means(BASE, measured(CALIBRATIONS)).kl_nats("all", BASE) == 0.0


@pytest.mark.parametrize("temperature", [0.0, 0.2, 0.4, 0.8, 1.0, 1.5])
def test_a_calibrations_few_temperatures_give_it_to_a_tenth(temperature: float) -> None:
    means = Means(BASE, measured(CALIBRATIONS))
    for part, tokens in (("forks", FORK), ("others", ~FORK)):
        direct = float(np.mean(kl(temperature) * tokens))
        assert means.kl_nats(part, temperature) == pytest.approx(direct, rel=0.1)


def causal(**solved: float) -> ArmSet:
    known = dict.fromkeys(("G-up", "G-down", "N-up-m", "F-down-m"), 0.7) | solved
    return resolve(load_arm_set("causal"), temperature=BASE, threshold_nats=THRESHOLD, fork_rate=0.25, solved=known)


def test_every_arm_of_a_set_has_both_doses() -> None:
    """Random positions take their share of all tokens, whatever these are."""
    few = np.union1d(DENSE[::10], [BASE, 0.2, 0.7, 1.0])
    draws = [measured(few, w) for w in RNG.multinomial(20, np.full(20, 0.05), size=30).astype(float)]
    found = arm_doses(causal(), Doses(BASE, measured(few), draws), THRESHOLD, {"N-up-m": "F-up"})
    assert set(found) == {arm.name for arm in causal().arms}

    def direct(of: Any, forks: float, others: float) -> float:
        return float(np.mean(np.where(FORK, of(forks), of(others))))

    base = direct(entropy, BASE, BASE)
    for name, forks, others in (("F-up", 1.0, BASE), ("N-down", BASE, 0.2), ("G-up", 0.7, 0.7)):
        assert found[name].dose_nats == pytest.approx(direct(entropy, forks, others) - base, abs=1e-5)
        assert found[name].kl_nats == pytest.approx(direct(kl, forks, others), rel=0.01)
        low, high = found[name].kl_ci95 or (0, 0)
        assert 0 < low < found[name].kl_nats < high
    assert found["P-up"].kl_nats == pytest.approx(0.25 * float(np.mean(kl(1.0))), rel=0.01)
    assert found["P-up"].dose_nats == pytest.approx(0.25 * float(np.mean(entropy(1.0) - entropy(BASE))), rel=1e-3)
    for name in ("B", "A/A", "B-again", "B-other"):
        assert (found[name].dose_nats, found[name].kl_nats, found[name].kl_ci95) == (0.0, 0.0, (0.0, 0.0))
    matched = found["N-up-m"]
    assert matched.matched == "F-up"
    missed = direct(entropy, BASE, 0.7) - direct(entropy, 1.0, BASE)
    assert matched.mismatch_nats == pytest.approx(missed, abs=1e-5)
    assert 0 < (matched.mismatch_se_nats or 0) < 0.1
    assert found["F-up"].mismatch_nats is None


def arm(**more: Any) -> Arm:
    return Arm(**({"name": "F", "role": "treatment", "temperature": BASE} | more))


@pytest.mark.parametrize(
    ("steering", "parts"),
    [
        (None, (Part(tokens="all", temperature=BASE),)),
        ({"select": "all", "fork_temperature": 1.0}, (Part(tokens="all", temperature=1.0),)),
        (
            {"fork_temperature": 1.0, "threshold_nats": THRESHOLD},
            (Part(tokens="forks", temperature=1.0), Part(tokens="others", temperature=BASE)),
        ),
        (
            {"fork_temperature": 0.0, "select": "random", "fork_rate": 0.25, "other_temperature": 1.0},
            (Part(tokens="all", share=0.25, temperature=0.0), Part(tokens="all", share=0.75, temperature=1.0)),
        ),
        ({"fork_temperature": 1.0, "threshold_nats": 0.1}, None),
        ({"fork_temperature": 1.0, "threshold_nats": THRESHOLD, "scope": "thinking"}, None),
        ({"fork_temperature": 1.0, "select": "first", "first_tokens": 3}, None),
        ({"policy": "edt"}, None),
        ({"fork_temperature": 1.0, "select": "quantile", "threshold_nats": THRESHOLD}, None),
        ({"fork_temperature": 1.0, "threshold_nats": THRESHOLD, "hysteresis": 0.5}, None),
        ({"fork_temperature": 1.0, "select": "all", "guard_mean_entropy_nats": 2.0}, None),
    ],
)
def test_the_parts_of_the_text(steering: dict[str, Any] | None, parts: Any) -> None:
    role = "replica" if steering is None else "treatment"
    assert parts_of(arm(role=role, steering=steering), THRESHOLD) == parts


def test_an_arm_beyond_the_curves_has_no_dose() -> None:
    arms = (arm(name="B", role="baseline"), arm(steering={"select": "all", "fork_temperature": 3.5}))
    found = arm_doses(ArmSet(name="s", baseline="B", arms=arms), Doses(BASE, measured(CALIBRATIONS), []), 0.0, {})
    assert list(found) == ["B"]
    assert found["B"].kl_ci95 is None


def test_a_run_takes_the_doses_of_arms_that_sample_as_calibrated_ones_do() -> None:
    doses = arm_doses(causal(), Doses(BASE, measured(CALIBRATIONS), []), THRESHOLD, {"N-up-m": "F-up"})
    threshold = Threshold(THRESHOLD, "here", doses=doses, solved_at=BASE)
    assert threshold.doses_of(causal()) == doses
    other = threshold.doses_of(causal(**{"N-up-m": 0.8}))
    assert set(doses) - set(other) == {"N-up-m"}
    renamed = ArmSet(
        name="mine",
        baseline="B",
        temperature=BASE,
        arms=(arm(name="B", role="baseline"), arm(name="mine", steering=dict(causal().arm("F-up").steering or {}))),
    )
    assert threshold.doses_of(renamed) == {"B": doses["B"], "mine": doses["F-up"]}
    assert threshold.doses_of(causal().model_copy(update={"temperature": 1.0})) == {}
    assert Threshold(0.1, "given").doses_of(renamed) == {}

"""What a chi-square test says it would see is what it sees."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.common.chi_square import chi_square, detectable, power

LOGITS = np.random.default_rng(0).normal(0, 2, 300)


def at(temperature: float) -> np.ndarray:
    p = np.exp(LOGITS / temperature)
    return p / p.sum()


@pytest.mark.parametrize("off", [0.0, 0.04, 0.08])
def test_the_power_is_how_often_simulated_draws_are_rejected(off: float) -> None:
    rng, draws, alpha = np.random.default_rng(1), 2_000, 0.05
    p, other = at(1.0), at(1.0 + off)
    rejected = [chi_square(rng.choice(300, draws, p=other), p)[0] < alpha for _ in range(600)]
    assert power(p, other, draws, alpha) == pytest.approx(np.mean(rejected), abs=0.06)


def test_the_detectable_deviation_is_detected_and_half_of_it_is_not() -> None:
    off = detectable(at, 1.0, 5_000)
    assert off is not None
    assert power(at(1.0), at(1.0 + off), 5_000, 1e-3) == pytest.approx(0.9, abs=0.02)
    assert power(at(1.0), at(1.0 + off / 2), 5_000, 1e-3) < 0.5
    assert detectable(at, 1.0, 100_000) < off  # type: ignore[operator]


def test_one_token_tells_nothing_about_a_temperature() -> None:
    certain = np.eye(1, 5)[0]
    assert detectable(lambda t: certain, 1.0, 1_000) is None

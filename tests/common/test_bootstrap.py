"""The one bootstrap over problems."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.common import bootstrap


def test_every_draw_takes_as_many_problems_as_there_are() -> None:
    drawn = bootstrap.weights(7, np.random.default_rng(1), 500)
    assert drawn.shape == (500, 7)
    assert set(drawn.sum(axis=1)) == {7.0}
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)


def test_the_interval_of_a_mean_is_about_that_of_the_normal_law() -> None:
    values = np.random.default_rng(2).normal(size=400)
    interval = bootstrap.mean_interval(values, np.random.default_rng(3))
    assert interval is not None
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap.mean_interval(values[:1], np.random.default_rng(3)) is None


def test_quantiles_of_a_draw_are_those_of_the_values_repeated() -> None:
    rng = np.random.default_rng(4)
    values, groups = rng.normal(size=60), rng.integers(5, size=60)
    drawn = bootstrap.weights(5, rng, 20)
    found = bootstrap.quantiles(values, groups, np.array([0.8]), drawn)[:, 0]
    for weight, own in zip(drawn, found, strict=True):
        repeated = np.repeat(values, weight[groups].astype(int))
        assert own == pytest.approx(np.quantile(repeated, 0.8, method="inverted_cdf"))

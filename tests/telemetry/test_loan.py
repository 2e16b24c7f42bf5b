"""The loan of lanes to one request: what it reads as tokens are returned, and that it ends once."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.policies import registry
from steerdec.steering import encoding
from steerdec.steering.memory import Rule
from steerdec.telemetry import lanes as telemetry
from steerdec.telemetry.lanes import FLAG_BITS, STOPPED, LanePool, LanesExhaustedError
from steerdec.telemetry.loan import Loan


def test_each_part_has_its_own_tokens_and_the_summary_has_all() -> None:
    with telemetry.created(8, max_lanes=3) as file:
        pool, words = LanePool(file), file.open()
        loan = Loan(pool, 1, 0.672, probed=True)
        (lane,) = loan.lanes
        for position, (h, fork) in enumerate([(0.5, 0), (2.0, 1), (float("nan"), 0)]):
            numbers = np.array([h, 0.7, h / 2], np.float32).view(np.int32)
            words[lane.index, position] = [numbers[0], numbers[1], lane.generation << FLAG_BITS | fork, numbers[2]]
        first, rest = loan.following(0, 1), loan.following(0, 3)
        assert first.lists() == {
            "entropy_nats": [0.5], "fork": [False], "temperature": [0.7], "probe_entropy_nats": [0.25],
        }  # fmt: skip
        assert rest.lists()["entropy_nats"] == [2.0, None, None]
        assert rest.lists()["temperature"] == [0.7, 0.7, None]
        assert loan.returned(0).summary() == {
            "tokens": 4, "forks": 1, "fork_rate": 0.25, "mean_entropy_nats": 1.25, "threshold_nats": 0.672,
            "mean_probe_entropy_nats": 0.625,
        }  # fmt: skip


def test_what_was_not_probed_is_not_reported() -> None:
    with telemetry.created(8, max_lanes=3) as file:
        nothing = Loan(LanePool(file), 1, 0.5, probed=False).returned(0)
        assert nothing.summary() == {
            "tokens": 0, "forks": 0, "fork_rate": None, "mean_entropy_nats": None, "threshold_nats": 0.5,
        }  # fmt: skip
        assert nothing.lists() == {"entropy_nats": [], "fork": [], "temperature": []}


@pytest.mark.parametrize("part", [1, 3, 40])
def test_moving_thresholds_and_the_guards_token_are_reported_in_parts_and_as_a_whole(part: int) -> None:
    steering = {"select": "quantile", "threshold_nats": 0.5, "guard_mean_entropy_nats": 1.0}
    rule = Rule.of(encoding.encode(registry.parse(steering), 0.8, 0.672).floats)
    h = np.random.default_rng(1).exponential(1.0, 40).astype(np.float32)
    h[5] = np.nan
    with telemetry.created(64, max_lanes=3) as file:
        pool, words = LanePool(file), file.open()
        loan = Loan(pool, 1, 0.5, probed=False, rule=rule)
        (lane,) = loan.lanes
        for position, number in enumerate(h.view(np.int32)):
            flags = STOPPED if position >= 30 else 0
            words[lane.index, position] = [number, number, lane.generation << FLAG_BITS | flags, 0]
        parts = [loan.following(0, part).lists()["thresholds_nats"] for _ in range(0, 40, part)]
        state, expected = rule.first(), []
        for x in h.tolist():
            expected.append(None if np.isnan(x) else state.threshold_nats)
            state = rule.after(state, x)
        told = [nats for each in parts for nats in each][:40]
        assert [nats is None for nats in told] == [nats is None for nats in expected]
        np.testing.assert_allclose(np.array(told, float), np.array(expected, float), rtol=1e-6)
        loan.returned_tokens[0] = 40
        whole = loan.returned(0)
        assert whole.lists()["thresholds_nats"] == told
        assert whole.summary()["last_threshold_nats"] == pytest.approx(expected[-1])
        assert whole.summary()["guard_token"] == 30
        assert whole.summary()["threshold_nats"] == 0.5


def test_a_guard_that_never_acted_says_so() -> None:
    rule = Rule.of(encoding.encode(registry.parse({"guard_mean_entropy_nats": 2.0}), 0.8, 0.672).floats)
    with telemetry.created(8, max_lanes=3) as file:
        nothing = Loan(LanePool(file), 1, 0.672, probed=False, rule=rule).returned(0)
        assert nothing.summary()["guard_token"] is None
        assert "last_threshold_nats" not in nothing.summary()
        assert "thresholds_nats" not in nothing.lists()


def test_a_loan_ends_once() -> None:
    with telemetry.created(8, max_lanes=5) as file:
        pool = LanePool(file)
        with pytest.raises(LanesExhaustedError, match="5 telemetry lanes requested, 4 of 4 are free"):
            Loan(pool, 5, 0.5, probed=False)
        loan, other = Loan(pool, 2, 0.5, probed=False), Loan(pool, 1, 0.5, probed=False)
        assert pool.lent == 3
        loan.give_back(aborted=False)
        loan.give_back(aborted=True)
        assert pool.lent == 1
        other.give_back(aborted=False)
        assert len(pool.lend(4)) == 4


def test_a_loan_without_a_pool_has_no_lanes() -> None:
    loan = Loan(None, 3, 0.5, probed=False)
    assert loan.lanes == []
    loan.give_back(aborted=True)


def test_the_next_resting_lane_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    with telemetry.created(4, max_lanes=3) as file:
        pool = LanePool(file)
        assert pool.rest_s == 0
        for _ in range(2):
            pool.take_back(pool.lend(1), aborted=True)
            now += 1.0
        assert pool.rest_s == telemetry.REST_AFTER_ABORT_S - 2.0
        now += 100.0
        assert pool.rest_s == 0

"""The rule of a steering with memory, by what it is for: the quantile it finds, runs of forks, the guard."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steerdec.policies import registry
from steerdec.steering import encoding
from steerdec.steering.memory import LEAST_NATS, Rule, State
from steerdec.steering.params import SteeringError


def rule(**steering: Any) -> Rule:
    encoded = encoding.encode(registry.parse(steering), 0.8, 0.672)
    assert encoded.remembers
    assert registry.parse(steering).remembers
    return Rule.of(encoded.floats)


def states(rule: Rule, entropies_nats: list[float] | NDArray[np.float64]) -> list[State]:
    """The state after each token."""
    found = [rule.first()]
    for h in entropies_nats:
        found.append(rule.after(found[-1], float(h)))
    return found[1:]


def entropies(n: int, seed: int) -> NDArray[np.float64]:
    """Half of the tokens nearly certain, the others uncertain in all degrees, as in a chain of thought."""
    rng = np.random.default_rng(seed)
    certain, open_ = np.exp(rng.normal(-6, 1.5, n)), np.exp(rng.normal(-0.6, 1.0, n))
    return np.minimum(np.where(rng.random(n) < 0.5, certain, open_), 6.0)


@pytest.mark.parametrize("quantile", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("off", [1 / 3, 1.0, 3.0])
def test_a_share_of_the_tokens_is_above_the_moving_threshold_wherever_it_began(quantile: float, off: float) -> None:
    true = float(np.quantile(entropies(10**5, 0), quantile))
    late = []
    for seed in range(1, 9):
        found = states(rule(select="quantile", quantile=quantile, threshold_nats=off * true), entropies(1200, seed))
        late.append(np.mean([state.high for state in found[200:]]))
    assert np.mean(late) == pytest.approx(1 - quantile, abs=0.02)


def test_the_moving_threshold_knows_no_scale() -> None:
    h = entropies(300, 3)
    one = states(rule(select="quantile", threshold_nats=0.5), h)
    ten = states(rule(select="quantile", threshold_nats=5.0), 10 * h)
    assert [state.high for state in one] == [state.high for state in ten]
    assert [state.threshold_nats for state in ten] == pytest.approx([10 * s.threshold_nats for s in one], rel=1e-4)


def test_a_step_is_the_one_that_is_documented() -> None:
    first, second = states(rule(select="quantile", quantile=0.8, threshold_nats=1.0), [2.0, 0.5])
    assert first.threshold_nats == pytest.approx(math.exp(8 / 16 * 0.8), rel=1e-6)
    assert second.threshold_nats == pytest.approx(first.threshold_nats * math.exp(-8 / 17 * 0.2), rel=1e-6)
    late = states(rule(select="quantile", quantile=0.8, threshold_nats=1.0), [0.0] * 112 + [9.0])
    assert late[-1].threshold_nats == pytest.approx(late[-2].threshold_nats * math.exp(0.8 / 16), rel=1e-6)


def test_a_token_is_compared_with_the_threshold_that_the_tokens_before_it_made() -> None:
    (state,) = states(rule(select="quantile", threshold_nats=1.0), [1.1])
    assert state.high, "1.1 is above 1.0, though not above where the threshold goes"
    assert state.threshold_nats > 1.1


def test_certain_tokens_never_bring_the_threshold_to_where_it_could_not_rise_from() -> None:
    found = states(rule(select="quantile", threshold_nats=LEAST_NATS), [0.0] * 500)
    assert found[-1].threshold_nats == pytest.approx(LEAST_NATS, rel=1e-6)


def test_a_fixed_threshold_stays_with_hysteresis_and_a_guard() -> None:
    found = states(rule(hysteresis=0.3, guard_mean_entropy_nats=2.0, threshold_nats=0.7), entropies(100, 1))
    assert {state.threshold_nats for state in found} == {float(np.float32(0.7))}


def test_a_run_of_forks_begins_above_the_threshold_and_ends_below_the_lower_level() -> None:
    found = states(rule(hysteresis=0.5, threshold_nats=1.0), [0.8, 1.2, 0.8, 0.6, 0.5, 0.8, 1.1, 0.4])
    assert [state.high for state in found] == [False, True, True, True, False, False, True, False]


def test_the_guard_stops_at_the_token_that_takes_the_mean_above_the_cap_and_for_good() -> None:
    guard = rule(guard_mean_entropy_nats=1.0, guard_window_tokens=4)
    found = states(guard, [3.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0])
    means = [3.0, 1.5, 1.0, 0.75]  # plain
    for h in (1.0, 2.0, 3.0, 0.0, 0.0, 0.0):
        means.append(means[-1] + (h - means[-1]) / 4)  # then exponential
    assert [state.mean_nats for state in found] == pytest.approx(means, rel=1e-6)
    first = next(i for i, mean in enumerate(means) if i >= 3 and mean > 1.0)
    assert [state.stopped for state in found] == [i >= first for i in range(len(found))]
    assert means[-1] < 1.0, "the mean came back, steering did not"


def test_a_few_uncertain_tokens_at_the_beginning_do_not_stop_anything() -> None:
    assert not any(state.stopped for state in states(rule(guard_mean_entropy_nats=1.0), [5.0] * 12 + [0.0] * 100))


def test_an_unknown_entropy_changes_nothing() -> None:
    one = rule(select="quantile", hysteresis=0.5, guard_mean_entropy_nats=1.0)
    h = [0.1, math.nan, 2.0, math.nan, math.nan, 0.6]
    assert states(one, h)[-1] == states(one, [x for x in h if not math.isnan(x)])[-1]


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ({"quantile": 0.8}, 'steering.quantile: goes with select "quantile" only, not with "entropy"'),
        ({"select": "quantile", "quantile": 1.0}, "steering.quantile: 1.0 must be less than 1"),
        ({"select": "quantile", "quantile": 0}, "steering.quantile: 0 must be greater than 0"),
        (
            {"select": "all", "hysteresis": 0.1},
            'steering.hysteresis: goes with select "entropy" or "quantile" only, not with "all"',
        ),
        ({"hysteresis": 1}, "steering.hysteresis: 1 must be less than 1"),
        (
            {"policy": "edt", "hysteresis": 0.1},
            'steering.hysteresis: goes with select "entropy" or "quantile" only, not with "all"',
        ),
        ({"guard_mean_entropy_nats": -1}, "steering.guard_mean_entropy_nats: -1 must be greater than or equal to 0"),
        (
            {"guard_window_tokens": 8},
            "steering.guard_window_tokens: goes with guard_mean_entropy_nats only, which is not given",
        ),
        ({"guard_mean_entropy_nats": 1, "guard_window_tokens": 0}, "steering.guard_window_tokens: 0 must be greater"),
        (
            {"select": "quantile", "threshold_nats": 0},
            "steering.threshold_nats: 0 is below 0.0001, from where a threshold cannot move",
        ),
        ({"select": "quantile", "fork_rate": 0.2}, 'steering.fork_rate: goes with select "random" only'),
    ],
)
def test_fields_that_make_no_sense_together_are_refused_in_one_line(steering: dict[str, Any], message: str) -> None:
    with pytest.raises(SteeringError) as refused:
        registry.parse(steering)
    assert str(refused.value).startswith(message)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("steering", [{}, {"hysteresis": 0}, {"select": "first", "first_tokens": 2}])
def test_a_request_without_these_fields_remembers_nothing(steering: dict[str, Any]) -> None:
    assert not registry.parse(steering).remembers
    assert not encoding.encode(registry.parse(steering), 0.8, 0.672).remembers


def test_what_is_remembered_survives_the_encoding() -> None:
    steering = {"select": "quantile", "quantile": 0.7, "hysteresis": 0.25, "guard_mean_entropy_nats": 1.5}
    encoded = encoding.encode(registry.parse(steering), 0.8, 0.672)
    assert encoding.EncodedRequest.unpacked(encoded.packed()) == encoded
    expected = [0.672, 0.7, 0.75, 1.5, 64.0]
    assert list(Rule.of(encoded.floats)) == pytest.approx(expected, rel=1e-6)

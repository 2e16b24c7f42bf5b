"""The arithmetic of the measuring programs: they could otherwise report anything, and no test would know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from steerdec.benchmarks.engine import draws, offline, overhead, served

# draws -------------------------------------------------------------------------------------------

LOGITS = torch.from_numpy(np.random.default_rng(0).normal(0, 2, 500))


def drawn(p: np.ndarray[Any, np.dtype[np.float64]], n: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).choice(len(p), size=n, p=p / p.sum())


def test_draws_from_the_expected_distribution_pass_at_the_nominal_rate() -> None:
    p = draws.expected(LOGITS, draws.HOT, 0.8)
    p_values = [draws.chi_square(drawn(p, 5_000, seed), p)[0] for seed in range(200)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["unsteered", "hot", "cold", "hot-top-p"])
def test_draws_from_a_neighboring_temperature_do_not_pass(name: str) -> None:
    case = draws.CASES[name]
    right = draws.expected(LOGITS, case.steering, case.temperature, case.top_p)
    wrong = draws.expected(LOGITS, case.steering, case.temperature * 1.15, case.top_p)
    if case.steering is not None:
        warmer = case.steering | {"fork_temperature": case.steering["fork_temperature"] * 1.15}
        wrong = draws.expected(LOGITS, warmer, case.temperature, case.top_p)
    assert draws.chi_square(drawn(wrong, 20_000, 1), right)[0] < 1e-6


def test_a_token_that_cannot_be_drawn_fails_at_once() -> None:
    p = draws.expected(LOGITS, None, 1.0, allowed=[3, 4])
    assert p[[3, 4]].sum() == pytest.approx(1.0)
    assert draws.chi_square(np.array([3, 4] * 50 + [5]), p) == (0.0, 0)


def test_unsteered_is_softmax_and_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    z = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64))
    np.testing.assert_allclose(draws.expected(z, None, 1.0), [0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(draws.expected(z, None, 1.0, top_p=0.75), [0.625, 0.375, 0.0, 0.0])


def test_rare_tokens_share_a_bin() -> None:
    p = np.array([0.5, 0.498, *[0.0002] * 10])
    assert draws.chi_square(drawn(p, 10_000, 0), p)[1] == 3


# overhead ----------------------------------------------------------------------------------------


def test_a_drift_that_hits_all_arms_alike_cancels() -> None:
    generator = np.random.default_rng(0)
    slower = np.array([1.0, 1.0, 1.02, 1.03])
    step_s = 0.1 * np.linspace(1.0, 2.0, 20 * 32).reshape(20, 32, 1) * slower
    step_s = step_s * np.exp(generator.normal(0, 0.002, step_s.shape))
    step_s[:, 3] *= np.array([1.0, 1.0, 5.0, 1.0])  # a hiccup
    for t in overhead.compared([np.stack([batch, 0.01 * batch], -1) for batch in step_s], requests=64):
        low, high = t.ratio_ci95
        assert t.ratio == pytest.approx(1 / slower[overhead.ARMS.index(t.arm)], abs=5e-4)
        assert low <= t.ratio <= high < low + 0.003
        assert t.share_inside == pytest.approx(0.01)
        assert t.tokens_per_s == pytest.approx(64 / t.step_s)


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(1).normal(3, 1, 12)
    mean, ci95 = overhead.mean_ci95(values)
    assert mean == pytest.approx(values.mean())
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ci95 == pytest.approx((expected.low, expected.high))


# offline -----------------------------------------------------------------------------------------


def test_a_load_that_hits_all_arms_of_a_round_alike_cancels() -> None:
    generator = np.random.default_rng(0)
    slower = np.array([1.0, 1.01, 1.0, 1.02])
    times_s = 3.0 * generator.uniform(1, 4, (12, 1)) * slower * np.exp(generator.normal(0, 0.002, (12, 4)))
    for a, one in enumerate(offline.shares(times_s, tokens=3000)):
        low, high = one.share_ci95
        assert one.arm == offline.ARMS[a]
        assert one.share == pytest.approx(1 / slower[a], abs=3e-3)
        assert low <= one.share <= high < low + 0.01
        assert one.tokens_per_s == pytest.approx(3000 / np.median(times_s[:, a]))


# served ------------------------------------------------------------------------------------------

ANSWER = {"id": "a", "created": 1, "choices": [{"text": "x", "logprob": -0.5}], "usage": {"completion_tokens": 1}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"id": "b", "created": 2}, True),
        ({"choices": [{"text": "x", "logprob": -0.500001}]}, True),
        ({"choices": [{"text": "x", "logprob": -0.51}]}, False),
        ({"choices": [{"text": "y", "logprob": -0.5}]}, False),
        ({"choices": []}, False),
        ({"steering": None}, False),
    ],
)
def test_answers_are_compared_field_by_field(change: dict[str, Any], same: bool) -> None:
    assert served.equal(ANSWER, ANSWER | change) is same
    assert (served.differences([ANSWER], [ANSWER | change]) == []) is same


def stream(*texts: str, usage: int = 2) -> list[Any]:
    chunks = [{"id": "s", "choices": [{"index": 0, "text": text}]} for text in texts]
    return [*chunks, {"id": "s", "choices": [], "usage": {"completion_tokens": usage}}, "[DONE]"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (stream("a", "b"), True),
        (stream("ab"), True),  # where a stream is cut depends on the moment
        (stream("a", "c"), False),
        (stream("a", "b", usage=3), False),
        ([{**stream("a")[0], "steering": {}}, *stream("a", "b")[1:]], False),
    ],
)
def test_streams_are_compared_by_what_they_say(other: list[Any], same: bool) -> None:
    assert (served.differences([stream("a", "b")], [other]) == []) is same


def test_the_requests_of_a_round_are_of_every_kind() -> None:
    asked = served.bodies("m", 30, 8)
    assert {path for path, _ in asked} == {"/v1/completions", "/v1/chat/completions"}
    assert len({body["seed"] for _, body in asked}) == 30
    assert any(body.get("stream") for _, body in asked)
    assert any("logprobs" in body for _, body in asked)
    assert not any("steering" in body for _, body in asked)

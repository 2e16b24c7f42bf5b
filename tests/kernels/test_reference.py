"""The specification itself, against closed forms and SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from steerdec.kernels import reference
from steerdec.policies import registry
from steerdec.policies.entropy_target.reference import target_temperature
from steerdec.policies.steered import Steered
from steerdec.steering import encoding, params

T = 0.6


def tables(steering: dict[str, Any], temperature: float = T, seed: int = 0) -> tuple[Tensor, Tensor]:
    row = encoding.encode(registry.parse(steering), temperature, params.PAPER_THRESHOLD_NATS)
    return torch.tensor([row.floats]), torch.tensor([row.ints(seed)], dtype=torch.int32)


def steer(logits: Tensor, steering: dict[str, Any], **kwargs: Any) -> tuple[Tensor, reference.Outcome]:
    """A steered copy of `logits`, every row the request's, at positions 0, 1, ..."""
    n = len(logits)
    steered = logits.clone()
    slots, positions = torch.zeros(n, dtype=torch.int64), torch.arange(n)
    return steered, reference.steer_(steered, *tables(steering), slots, positions, **kwargs)


def random_logits(n: int, vocab: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.normal(size=(n, vocab)) * generator.uniform(0.5, 8, size=(n, 1)))


def test_entropy_of_a_uniform_row_is_the_log_of_its_size() -> None:
    for vocab in (1, 2, 1000):
        assert reference.entropy_nats(torch.full((1, vocab), 3.0)).item() == pytest.approx(math.log(vocab), abs=1e-12)


def test_entropy_agrees_with_scipy() -> None:
    z = random_logits(20, 500)
    expected = scipy.stats.entropy(np.exp(z.numpy()), axis=-1)
    np.testing.assert_allclose(reference.entropy_nats(z).numpy(), expected, rtol=1e-12)


def test_masked_tokens_add_nothing_to_the_entropy() -> None:
    z = random_logits(5, 100)
    masked = torch.full((5, 300), -math.inf, dtype=torch.float64)
    masked[:, 7:107] = z
    torch.testing.assert_close(reference.entropy_nats(masked), reference.entropy_nats(z), rtol=1e-12, atol=0)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
@pytest.mark.parametrize("where", [slice(0, 1), slice(9, 10), slice(None)])
def test_a_row_with_nan_or_inf_is_measured_as_nan_and_left_alone(fill: float, where: slice) -> None:
    z = random_logits(1, 10)
    z[0, where] = fill
    steered, outcome = steer(z, {"select": "all", "fork_temperature": 2.0})
    assert torch.equal(steered.view(torch.int64), z.view(torch.int64))
    assert math.isnan(outcome.entropy_nats[0])
    assert not outcome.selected[0]
    assert outcome.temperature[0] == pytest.approx(T)


def test_a_fully_masked_row_is_measured_as_nan_and_left_alone() -> None:
    steered, outcome = steer(torch.full((1, 10), -math.inf), {"select": "all", "fork_temperature": 0.0})
    assert math.isnan(outcome.entropy_nats[0])
    assert not outcome.selected[0]
    assert steered.isneginf().all()


def test_the_sampler_gets_the_temperatures_asked_for_at_forks_and_elsewhere() -> None:
    z = random_logits(40, 200)
    threshold = reference.entropy_nats(z).quantile(0.7).item()
    steering = {"threshold_nats": threshold, "fork_temperature": 1.5, "other_temperature": 0.3}
    steered, outcome = steer(z, steering)
    assert torch.equal(outcome.selected, reference.entropy_nats(z) > np.float32(threshold))
    assert 0 < outcome.selected.sum() < 40
    wanted = torch.where(outcome.selected, 1.5, 0.3)[:, None]
    torch.testing.assert_close(torch.softmax(steered / T, -1), torch.softmax(z / wanted, -1), rtol=1e-5, atol=1e-9)


def test_a_threshold_above_every_entropy_changes_nothing() -> None:
    z = random_logits(10, 50)
    steered, outcome = steer(z, {"threshold_nats": 4.0, "fork_temperature": 2.0})
    assert torch.equal(steered, z)
    assert not outcome.selected.any()


def test_a_token_at_the_threshold_is_not_a_fork() -> None:
    certain = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])  # H = 0 exactly, and ln 2
    _, outcome = steer(certain, {"threshold_nats": 0.0, "fork_temperature": 2.0})
    assert outcome.selected.tolist() == [False, True]


def test_greedy_keeps_the_first_largest_logit_alone() -> None:
    z = torch.tensor([[1.0, 5.0, 5.0, -2.0]])
    steered, _ = steer(z, {"select": "all", "fork_temperature": 0.0})
    assert steered.tolist() == [[-math.inf, 5.0, -math.inf, -math.inf]]


def test_rows_without_a_slot_and_out_of_scope_are_left_alone() -> None:
    z = random_logits(3, 20)
    steered = z.clone()
    outcome = reference.steer_(
        steered,
        *tables({"select": "all", "fork_temperature": 2.0}),
        torch.tensor([-1, 0, 0]),
        torch.arange(3),
        torch.tensor([True, False, True]),
    )
    assert torch.equal(steered[:2], z[:2])
    assert not torch.equal(steered[2], z[2])
    assert outcome.selected.tolist() == [False, False, True]
    assert outcome.entropy_nats.isnan().tolist() == [True, False, False]
    assert outcome.temperature.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("delta", [-1.0, -0.2, 0.0, 0.3, 1.5])
def test_entropy_target_reaches_the_entropy_it_names(delta: float) -> None:
    z = random_logits(12, 300, seed=1)
    steering = {"policy": "entropy_target", "select": "all", "delta_nats": delta}
    steered, outcome = steer(z, steering)
    before, after = reference.entropy_nats(z / T), reference.entropy_nats(steered / T)
    low, high = (outcome.temperature == x for x in (np.float64(np.float32(0.05)), 5.0))
    torch.testing.assert_close(after[~low & ~high], (before + delta)[~low & ~high], rtol=0, atol=1e-6)
    assert (after[low] >= (before + delta)[low]).all()
    assert (after[high] <= (before + delta)[high]).all()
    assert (~low & ~high).sum() >= 3


def test_dynatemp_goes_from_its_minimum_to_its_maximum() -> None:
    z = torch.zeros(3, 64, dtype=torch.float64)
    z[0, 1:] = -math.inf  # H = 0
    z[1, 8:] = -math.inf  # H = ln 8 = half of ln 64
    steering = {"policy": "dynatemp", "min_temperature": 0.5, "max_temperature": 1.5, "exponent": 2.0}
    _, outcome = steer(z, steering)
    np.testing.assert_allclose(outcome.temperature, [0.5, 0.75, 1.5], rtol=1e-12)
    _, of_one_token = steer(z[:1, :1], steering)  # ln N = 0
    assert of_one_token.temperature.tolist() == [0.5]
    _, of_two = steer(z[2:, :2], steering)
    np.testing.assert_allclose(of_two.temperature, [1.5], rtol=1e-12)


def test_edt_is_the_papers_formula_and_never_below_a_hundredth() -> None:
    z = torch.zeros(3, 64, dtype=torch.float64)
    z[0, 1:] = -math.inf
    z[1, 2:] = -math.inf
    _, outcome = steer(z, {"policy": "edt", "theta": 0.1, "base": 0.8})
    of_two, of_all = (T * 0.8 ** (0.1 / math.log(n)) for n in (2, 64))
    np.testing.assert_allclose(outcome.temperature, [0.01, of_two, of_all], rtol=1e-6)


@pytest.mark.parametrize("fork_temperature", [None, 0.5, 2.0])
def test_p_less_keeps_the_tokens_at_least_as_likely_as_two_draws_are_to_agree(fork_temperature: float | None) -> None:
    z = random_logits(40, 30, seed=2)
    asked = {"policy": "p_less", "select": "all", "probe_temperature": "applied"}
    steered, outcome = steer(z, asked | ({} if fork_temperature is None else {"fork_temperature": fork_temperature}))
    t = fork_temperature or float(np.float32(T))
    p = torch.softmax(z / t, -1)
    kept = p >= (p * p).sum(-1, keepdim=True) * (1 - 1e-12)  # of a sure row both round to 1
    assert torch.equal(steered > -math.inf, kept)
    assert 1 <= int(kept.sum(-1).min()) < int(kept.sum(-1).max()) < 30
    torch.testing.assert_close(steered[kept], z[kept] * float(np.float32(T)) / t, rtol=1e-12, atol=0)
    sampled = torch.where(kept, p, 0.0) / torch.where(kept, p, 0.0).sum(-1, keepdim=True)
    np.testing.assert_allclose(outcome.probe_entropy_nats, scipy.stats.entropy(sampled, axis=-1), atol=1e-9)
    assert (outcome.temperature == t).all()


def test_p_less_keeps_every_one_of_equal_tokens_and_at_temperature_0_the_first() -> None:
    for n in (1, 3, 63, 1000):
        z = torch.full((1, n), 0.1)
        assert steer(z, {"policy": "p_less", "select": "all"})[0].isfinite().all()
        greedy, _ = steer(z, {"policy": "p_less", "select": "all", "fork_temperature": 0})
        assert greedy.isfinite().nonzero().tolist() == [[0, 0]]


def test_uniform_top_k_makes_the_k_largest_equal_and_removes_the_rest() -> None:
    z = torch.tensor(
        [[1.0, 4.0, -2.0, 3.0, 0.0], [1.0, 4.0, 1.0, 3.0, 0.0], [-math.inf, 4.0, -math.inf, 3.0, -math.inf]]
    )
    asked = {"policy": "uniform_top_k", "k": 3, "select": "all", "probe_temperature": "applied"}
    steered, outcome = steer(z, asked)
    off = -math.inf
    assert steered.tolist() == [[0.0, 0.0, off, 0.0, off], [0.0, 0.0, 0.0, 0.0, off], [off, 0.0, off, 0.0, off]]
    assert outcome.temperature.isinf().all()
    np.testing.assert_allclose(outcome.probe_entropy_nats, np.log([3, 4, 2]), rtol=1e-12)
    _, probed = steer(z[:1], asked | {"probe_temperature": 2.0})
    np.testing.assert_allclose(probed.probe_entropy_nats, entropies_at(z[:1], 2.0), rtol=1e-6)


def test_what_is_not_a_fork_keeps_all_of_its_tokens() -> None:
    z = random_logits(20, 40)
    for policy in ("p_less", "uniform_top_k"):
        steered, outcome = steer(z, {"policy": policy, "threshold_nats": 2.0, "other_temperature": 0.3})
        others = ~outcome.selected
        assert 0 < int(others.sum()) < 20
        assert steered[others].isfinite().all()
        assert not steered[~others].isfinite().all(-1).any()
        np.testing.assert_allclose(outcome.temperature[others], 0.3, rtol=1e-6)


def test_the_placebo_hash_is_murmurs_finaliser() -> None:
    # MurmurHash3_x86_32 of the empty string is the finaliser of its seed; published values.
    assert reference.placebo_hash(0, 0) == 0
    assert reference.placebo_hash(1, 0) == 0x514E28B7 >> 8
    assert reference.placebo_hash(-1, 0) == 0x81F16F39 >> 8
    # Positions go up in steps of the golden ratio of 2^32, from the key.
    assert reference.placebo_hash(7, 3) == reference.placebo_hash(7 + 3 * 0x9E3779B9, 0)
    assert reference.placebo_hash(7, 3) != reference.placebo_hash(7 - 3 * 0x9E3779B9, 0)


def test_the_placebo_takes_its_share_of_the_tokens_and_the_same_ones_again() -> None:
    z = random_logits(4000, 2)
    steering = {"select": "random", "fork_rate": 0.2, "fork_temperature": 1.0}
    _, first = steer(z, steering)
    _, again = steer(z.flip(-1), steering)
    assert torch.equal(first.selected, again.selected)
    assert scipy.stats.binomtest(int(first.selected.sum()), 4000, 0.2).pvalue > 1e-3
    correlation = scipy.stats.pearsonr(first.selected[:-1].double(), first.selected[1:].double())
    assert correlation.pvalue > 1e-3


def test_the_first_tokens_are_those_before_that_position_whatever_their_entropy() -> None:
    z = random_logits(6, 20)
    _, outcome = steer(z, {"select": "first", "first_tokens": 2, "fork_temperature": 1.5, "other_temperature": 0.25})
    assert outcome.selected.tolist() == [True, True, False, False, False, False]
    np.testing.assert_allclose(outcome.temperature, [1.5, 1.5, 0.25, 0.25, 0.25, 0.25])
    floats, ints = tables({"select": "first", "first_tokens": 2**31 - 1, "fork_temperature": 1.5})
    ends = torch.tensor([2**31 - 2, 2**31 - 1])
    outcome = reference.steer_(z[:2].clone(), floats, ints, torch.zeros(2).int(), ends)
    assert outcome.selected.tolist() == [True, False]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"select": "first"}, 'steering.first_tokens: is required with select "first"'),
        ({"select": "random", "fork_rate": 0.1, "first_tokens": 1}, 'goes with select "first" only, not with "random"'),
        ({"select": "first", "first_tokens": 1, "fork_rate": 0.1}, 'goes with select "random" only, not with "first"'),
        ({"select": "first", "first_tokens": 0}, "steering.first_tokens: 0 must be greater than or equal to 1"),
        ({"select": "first", "first_tokens": 2**31}, "steering.first_tokens: 2147483648 must be less than"),
        ({"select": "first", "first_tokens": 1.0}, "steering.first_tokens: 1.0 must be a valid integer"),
        ({"select": "first", "first_tokens": True}, "steering.first_tokens: true must be a valid integer"),
    ],
)
def test_a_selector_takes_its_own_field_and_no_other(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(params.SteeringError) as e:
        registry.parse(asked)
    assert told in str(e.value)


def entropies_at(z: Tensor, temperature: float) -> Any:
    return scipy.stats.entropy(scipy.special.softmax(z.numpy() / temperature, axis=-1), axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 0.75, 3.0])
def test_the_probe_is_the_entropy_at_the_temperature_it_names(temperature: float) -> None:
    z = random_logits(6, 50)
    _, outcome = steer(z, {"select": "all", "fork_temperature": 1.5, "probe_temperature": temperature})
    np.testing.assert_allclose(outcome.probe_entropy_nats, entropies_at(z, temperature), rtol=1e-9)


def test_a_probe_of_what_is_applied_follows_each_rows_own_temperature() -> None:
    z = random_logits(40, 200)
    steering = {"fork_temperature": 1.5, "other_temperature": 0.25, "probe_temperature": "applied"}
    _, outcome = steer(z, steering | {"threshold_nats": reference.entropy_nats(z).quantile(0.7).item()})
    expected = np.where(outcome.selected, entropies_at(z, 1.5), entropies_at(z, 0.25))
    np.testing.assert_allclose(outcome.probe_entropy_nats, expected, rtol=1e-9)


def test_a_probe_is_taken_out_of_scope_too_and_is_0_where_sampling_is_greedy() -> None:
    z = random_logits(2, 20)
    asked = tables({"select": "all", "fork_temperature": 0.0, "probe_temperature": "applied"}, temperature=0.5)
    slots, in_scope = torch.tensor([0, 0]), torch.tensor([True, False])
    outcome = reference.steer_(z.clone(), *asked, slots, torch.arange(2), in_scope)
    np.testing.assert_allclose(outcome.probe_entropy_nats, [0.0, entropies_at(z, 0.5)[1]], rtol=1e-9)


def test_there_is_no_probe_where_none_is_asked_for_or_no_entropy_is_known() -> None:
    z = random_logits(2, 20)
    _, outcome = steer(z, {"fork_temperature": 1.5})
    assert outcome.probe_entropy_nats.isnan().all()
    z[0, 3] = math.nan
    _, outcome = steer(z, {"fork_temperature": 1.5, "probe_temperature": 1.0})
    assert outcome.probe_entropy_nats.isnan().tolist() == [True, False]


def test_a_target_that_an_end_of_the_range_just_reaches_is_that_end() -> None:
    z = random_logits(1, 50)[0]
    for low, high in ((0.5, 2.0), (0.25, 0.5)):
        ends = [reference.entropy_nats(z[None] / t).item() for t in (low, high)]
        assert [target_temperature(z, target, low, high) for target in ends] == [low, high]


@pytest.mark.parametrize(("rate", "selected"), [(0.0, False), (1.0, True)])
def test_the_placebo_at_its_ends_takes_none_or_all(rate: float, selected: bool) -> None:
    floats, ints = tables({"select": "random", "fork_rate": rate, "fork_temperature": 1.0})
    for key in (0, -1, 12345):  # key 0 at position 0 has the smallest hash, 0
        ints[0, encoding.KEY] = key
        outcome = reference.steer_(random_logits(1, 4), floats, ints, torch.zeros(1).int(), torch.zeros(1).int())
        assert outcome.selected.tolist() == [selected]


def test_greedy_sampling_gives_no_probe_where_no_entropy_is_known() -> None:
    assert math.isnan(reference.probe_entropy_nats(torch.tensor([math.nan, 0.0]), math.nan, 0.0, Steered(1.0)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_greedy_leaves_the_largest_logit_as_it_was_in_every_format(dtype: torch.dtype) -> None:
    z = torch.tensor([[1.0, 3.0, 2.0]], dtype=dtype)
    steered, _ = steer(z, {"select": "all", "fork_temperature": 0.0})
    assert steered.tolist() == [[-math.inf, 3.0, -math.inf]]

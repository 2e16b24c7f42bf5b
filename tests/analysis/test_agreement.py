"""Agreement of two scores: closed forms, a slow version by pairs of tokens, and what chance does at nominal rates."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from steerdec.analysis.agreement import CERTAIN_NATS, auroc, compare, over_problems, top_mask
from steerdec.analysis.lenses import matrix as lens_matrix
from steerdec.analysis.lenses import names as lens_names
from steerdec.analysis.lenses import words as lens_words
from steerdec.analysis.lenses.matrix import Pair, Table
from steerdec.analysis.lenses.nulls import circular_shift_test, class_shuffle_test, position_free, shifted_auroc

Floats = NDArray[np.float64]


# Measures ----------------------------------------------------------------------------------------


def test_a_score_agrees_fully_with_itself_and_not_at_all_with_its_negative() -> None:
    x = np.random.default_rng(0).normal(size=50)
    same, opposed = compare(x, x, np.ones(50)), compare(x, -x, np.ones(50))
    for name, value in same.items():
        assert value == pytest.approx(1), name
    for name in ("auroc_of_first", "auroc_of_second", "overlap", "jaccard"):
        assert opposed[name] == 0, name
    assert opposed["kappa"] == pytest.approx(-0.25)  # (0.6 - 0.68) / 0.32, the least that two fifths allow
    assert opposed["spearman"] == opposed["spearman_uncertain"] == pytest.approx(-1)


@pytest.mark.parametrize("n", [4, 5, 23, 60])
def test_measures_equal_a_count_over_pairs_of_tokens(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = np.round(rng.normal(size=(2, n)), 1)  # with ties
    entropy = rng.choice([0.0, 1.0], size=n)
    found = compare(x, y, entropy)
    count = max(1, round(0.2 * n))
    first, second = top_mask(x, seed=1), top_mask(y, seed=2)
    assert first.sum() == second.sum() == count
    for mask, scores in ((first, x), (second, y)):
        assert min(scores[mask]) >= max(scores[~mask])

    def by_pairs(mask: NDArray[np.bool_], scores: Floats) -> float:
        wins = [(a > b) + 0.5 * (a == b) for a in scores[mask] for b in scores[~mask]]
        return float(np.mean(wins))

    assert found["auroc_of_first"] == pytest.approx(by_pairs(first, y))
    assert found["auroc_of_second"] == pytest.approx(by_pairs(second, x))
    assert found["overlap"] == np.sum(first & second) / count
    assert found["jaccard"] == np.sum(first & second) / np.sum(first | second)
    agree = np.mean(first == second)
    by_chance = np.mean(first) * np.mean(second) + np.mean(~first) * np.mean(~second)
    assert found["kappa"] == pytest.approx((agree - by_chance) / (1 - by_chance))
    if n > 5:
        assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        unsure = entropy > CERTAIN_NATS
        assert found["spearman_uncertain"] == pytest.approx(scipy.stats.spearmanr(x[unsure], y[unsure]).statistic)


def test_units_without_a_score_are_left_out_and_too_few_say_nothing() -> None:
    x, y = np.array([1, 2, 3, 4, 5, np.nan]), np.array([np.nan, 2, 3, 5, 4, 9])
    assert compare(x, y) == pytest.approx(compare(x[1:5], y[1:5]), nan_ok=True)
    assert all(np.isnan(value) for value in compare(x[:4], y[:4]).values())
    assert np.isnan(auroc([True, True], [1, 2]))
    assert np.isnan(auroc([False, False], [1, 2]))


def test_ties_are_not_decided_by_position() -> None:
    masks = np.array([top_mask(np.zeros(10), seed=seed) for seed in range(400)])
    assert masks.sum(axis=1).tolist() == [2] * 400
    assert masks.mean(axis=0) == pytest.approx(np.full(10, 0.2), abs=0.08)


def test_chance_gives_what_the_table_says() -> None:
    rng = np.random.default_rng(3)
    rows = [compare(*rng.normal(size=(2, 100))) for _ in range(400)]
    for name, chance in (("auroc_of_first", 0.5), ("overlap", 0.2), ("jaccard", 1 / 9), ("kappa", 0), ("spearman", 0)):
        values = [row[name] for row in rows]
        assert np.mean(values) == pytest.approx(chance, abs=4 * np.std(values) / 20), name


# Over problems -----------------------------------------------------------------------------------


def test_the_mean_is_over_problems_whatever_the_number_of_their_traces() -> None:
    found = over_problems([1.0, 1.0, 1.0, 0.0, np.nan], ["a", "a", "a", "b", "c"], seed=0)
    assert (found.mean, found.n_problems) == (0.5, 2)
    one = over_problems([0.25], ["a"], seed=0)
    assert one.mean == 0.25
    assert np.isnan([one.low, one.high]).all()
    assert over_problems([np.nan], ["a"], seed=0).n_problems == 0


def test_intervals_over_problems_cover_the_truth_and_single_tokens_would_not() -> None:
    """Traces of one problem move together; 30 problems with 3 traces each."""
    rng, inside = np.random.default_rng(5), 0
    for seed in range(300):
        values = np.repeat(rng.normal(size=30), 3) + 0.1 * rng.normal(size=90)
        found = over_problems(values.tolist(), [str(i // 3) for i in range(90)], seed=seed)
        inside += found.low <= 0 <= found.high
    assert 0.9 < inside / 300 < 0.98


# Chance ------------------------------------------------------------------------------------------


def rhythm(rng: np.random.Generator, n: int, slow: float) -> Floats:
    """Noise of variance 1 in which neighbors correlate by `slow`."""
    x = rng.normal(size=n)
    for t in range(1, n):
        x[t] = slow * x[t - 1] + np.sqrt(1 - slow**2) * x[t]
    return x


def rates(*, slow: float = 0.0, common: float = 0.0, kind: float = 0.0, trend: float = 0.0) -> tuple[float, float]:
    """Share of 200 studies (10 traces of 30 to 50 tokens) that each null rejects at 5%: (shifts, shuffles)."""
    rejected = np.zeros(2)
    for study in range(200):
        rng = np.random.default_rng([study, 7])
        first, second, kinds = [], [], []
        for _ in range(10):
            n = int(rng.integers(30, 51))
            classes, shared, at = rng.integers(0, 3, n), rhythm(rng, n, slow), np.arange(n) / n
            for scores in (first, second):
                scores.append(common * shared + rhythm(rng, n, slow) + kind * classes + trend * at)
            kinds.append([str(c) for c in classes])
        problems = [str(i) for i in range(10)]
        by_shift = circular_shift_test(first, second, problems, seed=study, draws=199)
        by_shuffle = class_shuffle_test(first, second, kinds, problems, seed=study, draws=199)
        rejected += [by_shift.p <= 0.05, by_shuffle.p <= 0.05]
    return float(rejected[0] / 200), float(rejected[1] / 200)


def nominal(rate: float) -> bool:
    """Whether 200 studies rejecting at 5% give such a rate."""
    return bool(scipy.stats.binomtest(round(200 * rate), 200, 0.05).pvalue > 0.01)


@pytest.mark.thorough
def test_independent_scores_are_rejected_at_the_nominal_rate_by_both_nulls() -> None:
    shift, shuffle = rates()
    assert nominal(shift)
    assert nominal(shuffle)


def test_planted_agreement_is_found_by_both_nulls() -> None:
    shift, shuffle = rates(common=0.7, slow=0.5)
    assert shift > 0.9
    assert shuffle > 0.9


@pytest.mark.thorough
def test_a_trend_in_both_is_no_agreement_to_the_shifts() -> None:
    assert nominal(rates(trend=2.0)[0])


@pytest.mark.thorough
def test_the_same_kind_of_token_is_no_agreement_to_the_shuffles_alone() -> None:
    shift, shuffle = rates(kind=1.5)
    assert shift > 0.9
    assert nominal(shuffle)


@pytest.mark.thorough
def test_slow_rhythms_are_no_agreement_to_the_shifts_which_shuffles_take_them_for() -> None:
    shift, shuffle = rates(slow=0.8)
    assert shift < 0.11  # the ends that are joined cost a little
    assert shuffle > shift


def test_a_turned_score_is_the_score_turned() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(2, 17))
    turned = shifted_auroc(x, y)
    mask_x, mask_y = top_mask(x, seed=1), top_mask(y, seed=2)
    for s in range(17):
        slow = (auroc(mask_y, np.roll(x, s)) + auroc(np.roll(mask_x, s), y)) / 2
        assert turned[s] == pytest.approx(slow)


def test_position_free_scores_have_no_trend_left() -> None:
    rng = np.random.default_rng(10)
    traces = [10 * np.arange(n) / n + rng.normal(size=n) for n in (40, 55, 70, 41)]
    free = position_free(traces)
    assert [len(one) for one in free] == [40, 55, 70, 41]
    trend = [scipy.stats.spearmanr(np.arange(len(one)), one).statistic for one in free]
    assert abs(np.mean(trend)) < 0.1
    assert position_free([]) == []


def test_p_values_are_never_zero_and_nothing_to_test_has_none() -> None:
    scores = [np.arange(20.0)] * 3
    found = class_shuffle_test(scores, scores, [["a"] * 20] * 3, ["1", "2", "3"], seed=0, draws=99)
    assert found.p == pytest.approx(2 / 100)
    assert found.observed == 1
    nothing = circular_shift_test([np.array([np.nan] * 5)], [np.arange(5.0)], ["1"], seed=0)
    assert np.isnan(nothing.p)
    assert nothing.n_problems == 0


# The matrix --------------------------------------------------------------------------------------


def planted(agree: float, seed: int) -> Table:
    """12 traces in which entropy and HSIC share a part, and all else is noise."""
    rng = np.random.default_rng(seed)
    names = [x.name for x in (*lens_names.TOKEN_LENSES, *lens_names.VARIANTS, *lens_names.BASELINES)]
    traces = []
    for _ in range(12):
        scores = {name: rng.normal(size=40) for name in names}
        traces.append(scores | {"hsic": agree * scores["entropy"] + scores["hsic"]})
    classes = [[str(k) for k in rng.integers(0, 3, 40)] for _ in range(12)]
    return Table([str(i) for i in range(12)], traces, classes, [{} for _ in range(12)], 0)


@pytest.fixture(scope="module")
def pairs() -> dict[tuple[str, str], Pair]:
    return {(pair.first, pair.second): pair for pair in lens_matrix.token_pairs(planted(1.0, 1))}


def test_of_the_declared_pairs_the_planted_one_alone_is_significant(pairs: dict[tuple[str, str], Pair]) -> None:
    signs = {pair: lens_words.sign(pairs[pair]) for pair in lens_names.PAIRS}
    assert signs == {pair: int(pair == ("entropy", "hsic")) for pair in lens_names.PAIRS}
    opposed = {(pair.first, pair.second): pair for pair in lens_matrix.token_pairs(planted(-1.0, 2))}
    assert lens_words.sign(opposed["entropy", "hsic"]) == -1


def test_every_two_scores_are_compared_once_and_the_declared_ones_tested(pairs: dict[tuple[str, str], Pair]) -> None:
    names = [x.name for x in (*lens_names.TOKEN_LENSES, *lens_names.VARIANTS, *lens_names.BASELINES)]
    assert len(pairs) == len(names) * (len(names) - 1) / 2
    tested = [pair for pair, found in pairs.items() if found.shift is not None and found.shuffle is not None]
    assert tested == list(lens_names.PAIRS)
    assert all(found.shift_holm is None for pair, found in pairs.items() if pair not in tested)


def test_holm_is_over_the_declared_pairs_within_a_null(pairs: dict[tuple[str, str], Pair]) -> None:
    for null, adjusted in (("shift", "shift_holm"), ("shuffle", "shuffle_holm")):
        ordered = sorted((getattr(pairs[pair], null).p, getattr(pairs[pair], adjusted)) for pair in lens_names.PAIRS)
        steps = [min(1.0, (6 - i) * p) for i, (p, _) in enumerate(ordered)]
        assert [holm for _, holm in ordered] == pytest.approx(np.maximum.accumulate(steps))

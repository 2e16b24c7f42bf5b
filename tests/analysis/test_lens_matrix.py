"""From records to tables, and from tables to verdicts: by hand, on small records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from steerdec.analysis.agreement import MEASURES, Interval
from steerdec.analysis.lenses import matrix as lens_matrix
from steerdec.analysis.lenses import names as lens_names
from steerdec.analysis.lenses import words as lens_words
from steerdec.analysis.lenses.anchors import head_kurtosis, receiver_heads
from steerdec.analysis.lenses.matrix import Pair
from steerdec.analysis.lenses.nulls import DRAWS, NullTest

HEADS, SPANS = 24, [[0, 3], [3, 7], [7, 9], [9, 14], [14, 20], [20, 24]]


def record(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    names = [x.name for x in (*lens_names.TOKEN_LENSES, *lens_names.BASELINES)]
    received = rng.gamma(0.3, size=(HEADS, 6))
    received[:, -1] = np.nan  # nothing follows the last
    return {
        "problem_id": f"p{seed}",
        "scores": {name: rng.normal(size=24).tolist() for name in names},
        "classes": ["digit"] * 24,
        "spans": SPANS,
        "sentences": {
            "forced_answer": rng.normal(size=6).tolist(),
            "suppression": [*rng.normal(size=5).tolist(), None],
        },
        "received": [[None if np.isnan(v) else v for v in head] for head in received.tolist()],
        "answer_variance": {
            name: rng.gamma(1, size=3).tolist()
            for name in ("sigma_nats", "even_nats", "odd_nats", "entropy_nats", "surprisal_nats")
        },
    }


RECORDS = [record(seed) for seed in range(9)]
SKIPPED = {"problem_id": "none", "skipped": "no sample reasons"}


def test_sentences_get_lifted_tokens_and_the_mean_of_the_most_concentrated_heads() -> None:
    table = lens_matrix.read([RECORDS[0], SKIPPED, *RECORDS[1:]])
    assert table.problems == [f"p{i}" for i in range(9)]
    kurtosis = np.array([head_kurtosis(np.array(r["received"], dtype=np.float64)) for r in RECORDS])
    heads = receiver_heads(kurtosis)
    assert table.heads == len(heads) == 20
    for found, one in zip(table.sentences, RECORDS, strict=True):
        for i, (a, b) in enumerate(SPANS):
            assert found["hsic.max"][i] == max(one["scores"]["hsic"][a:b])
            assert found["hsic.mean"][i] == pytest.approx(np.mean(one["scores"]["hsic"][a:b]))
            assert found["sentence_tokens"][i] == b - a
        received = np.array(one["received"], dtype=np.float64)[heads].mean(axis=0)
        assert found["receiver"] == pytest.approx(received, nan_ok=True)
        assert np.isnan(found["suppression"][-1])
        even = np.array(one["received"], dtype=np.float64)[receiver_heads(kurtosis[::2])].mean(axis=0)
        assert found["receiver@even"] == pytest.approx(even, nan_ok=True)


def test_all_declared_sentence_pairs_are_tested_where_both_scores_are_known() -> None:
    pairs = lens_matrix.sentence_pairs(lens_matrix.read(RECORDS))
    tested = {(pair.first, pair.second): pair for pair in pairs if pair.shift is not None}
    assert tuple(tested) == lens_names.SENTENCE_PAIRS
    assert all(pair.shift is not None and pair.shift.n_problems == 9 for pair in tested.values())
    assert not any(lens_words.sign(pair) for pair in tested.values())  # all of it is noise
    beside = [(pair.first, pair.second) for pair in pairs if pair.shift is None]
    assert beside == [(a.name, b.name) for a in lens_names.SENTENCE_LENSES for b in lens_names.SENTENCE_BASELINES]


def test_holm_can_reject_a_single_pair_with_the_draws_there_are() -> None:
    with_resampling = lens_names.sentence_pairs(resampled=True)
    for pairs, draws in ((lens_names.PAIRS, DRAWS), (with_resampling, lens_matrix.SENTENCE_DRAWS)):
        assert len(pairs) * 2 / (draws + 1) < lens_words.ALPHA / 2


def resampled(record: dict[str, Any], seed: int) -> dict[str, Any]:
    """With both of the lenses that need rollouts."""
    rng = np.random.default_rng(seed)
    scores = {
        f"{name}{half}": rng.random(6).tolist()
        for name in ("resampled", "counterfactual")
        for half in ("", "@even", "@odd")
    }
    scores["counterfactual"][2] = None  # no rollout said something else there
    return record | {"sentences": record["sentences"] | scores}


def test_where_rollouts_were_asked_for_two_more_lenses_are_tested_but_not_with_each_other() -> None:
    table = lens_matrix.read([resampled(one, i) for i, one in enumerate(RECORDS)])
    pairs = lens_matrix.sentence_pairs(table)
    tested = {(pair.first, pair.second): pair for pair in pairs if pair.shift is not None}
    assert tuple(tested) == lens_names.sentence_pairs(resampled=True)
    assert tuple(tested)[:27] == lens_names.SENTENCE_PAIRS
    assert len(set(tested)) == 27 + 2 * (3 + 8)
    assert ("resampled", "counterfactual") not in tested
    assert all(pair.shift is not None and pair.shift.n_problems == 9 for pair in tested.values())
    beside = {(pair.first, pair.second) for pair in pairs if pair.shift is None}
    assert beside == {
        (a.name, b.name) for a in lens_names.sentence_lenses(resampled=True) for b in lens_names.SENTENCE_BASELINES
    }
    assert set(lens_matrix.ceilings(table)) - set(lens_matrix.ceilings(lens_matrix.read(RECORDS))) == {
        "resampled",
        "counterfactual",
    }
    told = lens_words.claims(lens_matrix.token_pairs(table), pairs, lens_matrix.answers(RECORDS))
    assert "of 40 pairs" in next(claim["reason"] for claim in told if claim["id"] == "sentences")


def test_what_rollouts_came_to_is_a_mean_over_problems() -> None:
    def with_rollouts(i: int, resampled: list[float], counterfactual: list[float | None]) -> dict[str, Any]:
        sentences = {
            "resampled": resampled,
            "resampled_error": [0.2] * 2,
            "counterfactual": counterfactual,
            "counterfactual_error": [0.2, 0.3],
            "differing": [4, 1],
        }
        about = {"rollouts": 10, "right": [0.1 * i, 0.5, 1.0], "unanswered": [0.3, 0.0, 0.0], "sentences": sentences}
        return {"problem_id": f"p{i}", "resampling": about}

    records = [with_rollouts(0, [0.5, -0.1], [None, -0.6]), with_rollouts(1, [-0.3, 0.3], [None, None]), SKIPPED]
    found = {name: one.mean for name, one in lens_matrix.resampling(records).items()}
    assert found == pytest.approx(
        {
            "right_before": 0.05,
            "right_after": 1.0,
            "unanswered": 0.1,
            "differing": 0.25,
            "resampled_size": 0.3,
            "resampled_beyond": 0.25,  # 0.5 is beyond 1.96 x 0.2, of two sentences, in one of two problems
            "counterfactual_size": 0.6,
            "counterfactual_beyond": 1.0,  # the problem that has none does not count
        }
    )
    assert lens_matrix.resampling([RECORDS[0], SKIPPED]) == {}


def test_rollout_variance_is_compared_in_the_answers_tokens_of_all_problems_together() -> None:
    found = lens_matrix.answers([*RECORDS, SKIPPED])

    def pooled(name: str) -> list[float]:
        return [value for one in RECORDS for value in one["answer_variance"][name]]

    for name, (a, b) in {"entropy": ("sigma_nats", "entropy_nats"), "split": ("even_nats", "odd_nats")}.items():
        assert found[name].mean == pytest.approx(scipy.stats.spearmanr(pooled(a), pooled(b)).statistic)
        assert found[name].low < found[name].mean < found[name].high
    place = scipy.stats.spearmanr(pooled("sigma_nats"), [0, 1, 2] * 9).statistic
    assert found["place"].mean == pytest.approx(place)


def test_a_single_problem_has_no_intervals_and_no_verdict() -> None:
    table = lens_matrix.read(RECORDS[:1])
    pairs, sentences = lens_matrix.token_pairs(table), lens_matrix.sentence_pairs(table)
    told = lens_words.claims(pairs, sentences, lens_matrix.answers(RECORDS[:1]))
    assert {claim["verdict"] for claim in told} == {"undecided"}
    assert all("nan" not in claim["reason"] for claim in told)


# Verdicts ----------------------------------------------------------------------------------------


def pair(first: str, second: str, overlap: tuple[float, float, float], *nulls: tuple[float, float]) -> Pair:
    """With that overlap, and for each null (observed - null mean, adjusted p)."""
    measures = {name: Interval(0.5, 0.4, 0.6, 40) for name in MEASURES} | {"overlap": Interval(*overlap, 40)}
    tests = [NullTest(0.5 + above, 0.5, p, 40) for above, p in nulls]
    if not tests:
        return Pair(first, second, measures)
    return Pair(first, second, measures, tests[0], nulls[0][1], tests[1], nulls[1][1])


def verdicts(overlaps: list[tuple[float, float, float]], *nulls: tuple[float, float]) -> dict[str, str]:
    pairs = [pair(*names, overlap, *nulls) for names, overlap in zip(lens_names.PAIRS, overlaps, strict=True)]
    pairs.append(pair("hsic", "hsic_wrong_gold", overlaps[0]))
    answers = dict.fromkeys(("entropy", "surprisal", "place", "split"), Interval(*overlaps[0], 40))
    return {claim["id"]: claim["verdict"] for claim in lens_words.claims(pairs, [], answers)}


MOST, FEW, OPEN = (0.7, 0.55, 0.8), (0.3, 0.2, 0.4), (0.5, 0.4, 0.6)
AGREE, OPPOSE, CHANCE = (0.1, 0.01), (-0.1, 0.01), (0.1, 0.2)


@pytest.mark.parametrize(
    ("overlaps", "verdict"),
    [([MOST] * 6, "holds"), ([MOST] * 5 + [FEW], "fails"), ([MOST] * 5 + [OPEN], "undecided")],
)
def test_the_same_tokens_means_half_of_the_top_fifths_of_every_pair(
    overlaps: list[tuple[float, float, float]], verdict: str
) -> None:
    assert verdicts(overlaps, AGREE, AGREE)["same"] == verdict


@pytest.mark.parametrize(
    ("nulls", "verdict"),
    [
        ((AGREE, AGREE), "holds"),
        ((OPPOSE, OPPOSE), "fails"),
        ((AGREE, CHANCE), "undecided"),
        ((CHANCE, AGREE), "undecided"),
        ((AGREE, OPPOSE), "undecided"),
    ],
)
def test_beyond_chance_means_beyond_both_nulls(nulls: tuple[tuple[float, float], ...], verdict: str) -> None:
    assert verdicts([OPEN] * 6, *nulls)["beyond_chance"] == verdict


def test_hsic_is_about_the_answer_if_another_answer_finds_other_tokens() -> None:
    found = [verdicts([first] + [OPEN] * 5, AGREE, AGREE)["answer"] for first in (FEW, MOST, OPEN)]
    assert found == ["holds", "fails", "undecided"]

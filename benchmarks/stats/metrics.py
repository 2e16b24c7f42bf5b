"""What arms are compared by: avg@k, pass@k, maj@k, answer length, truncation, and tokens per correct answer. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from steerdec.records.summary import Metric

from .comparisons import Spread, spread_of_samples
from .estimators import Counts, Floats, pass_at_k
from .pairing import ArmTable, Bools, Pair
from .tally import MISSING

METRICS: Final[tuple[Metric, ...]] = ("avg@k", "pass@k", "maj@k", "tokens", "truncation", "tokens per correct")
SCORES: Final[tuple[Metric, ...]] = ("avg@k", "pass@k", "maj@k", "truncation")  # fractions; the others are tokens
RELATIVE_DELTA: Final = 0.05  # lengths closer than 5% of the baseline's count as equal
BOOTSTRAP_DRAWS: Final = 200


def pass_size(samples: int) -> int:
    """Return the k of pass@k for `samples`: the largest power of two up to half, so that its noise can be estimated."""
    return int(2 ** max(0, int(np.log2(max(samples, 2))) - 1))


def spread(pair: Pair, metric: Metric) -> Spread:
    """Return the differences of problems in `metric`; see `Spread`.

    Every metric but maj@k is a mean of one value per sample, exactly (avg@k, tokens, truncation), by the jackknife's
    pseudo-values (pass@k, a U-statistic, whose mean they keep), or to first order (tokens per correct).
    """
    a, b = pair.arm, pair.against
    if metric == "maj@k":
        return _majorities(pair)
    if metric == "avg@k":
        return _of(pair, a.correct, b.correct, bounded=True)
    if metric == "truncation":
        return _of(pair, a.truncated, b.truncated, bounded=True)
    if metric == "tokens":
        return _of(pair, a.tokens, b.tokens, bounded=False)
    both = ~(np.isnan(a.correct) | np.isnan(b.correct))
    if metric == "pass@k":
        k = pass_size(int(both.sum(axis=1).max(initial=1)))
        mine, theirs = _passes(a.correct, both, k), _passes(b.correct, both, k)
        return _of(pair, mine, theirs, bounded=True, sample_bounded=False)
    both &= ~(np.isnan(a.tokens) | np.isnan(b.tokens))
    return _of(pair, _per_correct(a, both), _per_correct(b, both), bounded=False)


def arm_value(arm: ArmTable, metric: Metric) -> float:
    """Return the metric of one arm, a mean over problems; for tokens per correct the ratio of two such means."""
    if metric == "tokens per correct":
        both = ~(np.isnan(arm.correct) | np.isnan(arm.tokens))
        tokens, correct = _mean(arm.tokens, both), _mean(arm.correct, both)
        return tokens / correct if correct > 0 else np.nan
    table = {"avg@k": arm.correct, "tokens": arm.tokens, "truncation": arm.truncated}.get(metric)
    if table is None:
        raise ValueError(f"{metric} is not a mean of samples")
    return _mean(table, ~np.isnan(table))


def _of(pair: Pair, a: Floats, b: Floats, *, bounded: bool, sample_bounded: bool | None = None) -> Spread:
    return spread_of_samples(
        a, b, by_seed=pair.by_seed, bounded=bounded, sample_bounded=sample_bounded, groups=pair.groups
    )


def _mean(table: Floats, kept: Bools) -> float:
    k = kept.sum(axis=1)
    some = k > 0
    if not some.any():
        return np.nan
    return float(np.mean(np.where(kept, table, 0.0).sum(axis=1)[some] / k[some]))


def _passes(correct: Floats, kept: Bools, k: int) -> Floats:
    """Return the pseudo-values n T - (n - 1) T_without_it of pass@k; NaN for problems with k or fewer samples."""
    n = kept.sum(axis=1).astype(np.int64)
    c = np.where(kept, correct, 0.0).sum(axis=1).astype(np.int64)
    whole = pass_at_k(Counts(c, n), k)
    fewer = np.maximum(n - 1, 0)
    without_right = pass_at_k(Counts(np.clip(c - 1, 0, fewer), fewer), k)
    without_wrong = pass_at_k(Counts(np.minimum(c, fewer), fewer), k)
    left = np.where(correct > 0.5, without_right[:, None], without_wrong[:, None])
    values: Floats = np.where(kept, n[:, None] * whole[:, None] - (n - 1)[:, None] * left, np.nan)
    return values


def _per_correct(arm: ArmTable, kept: Bools) -> Floats:
    """Return values whose mean is R, tokens over correct answers, and whose spread is that of R to first order."""
    tokens, correct = _mean(arm.tokens, kept), _mean(arm.correct, kept)
    if not correct > 0:
        return np.full(kept.shape, np.nan)
    ratio = tokens / correct
    values: Floats = np.where(kept, ratio + (arm.tokens - ratio * arm.correct) / correct, np.nan)
    return values


def _majorities(pair: Pair) -> Spread:
    """Return the spread of maj@k.

    maj@k is not a mean, so its noise comes from samples drawn again within each problem, the same ones in both arms.
    """
    both = ~(np.isnan(pair.arm.correct) | np.isnan(pair.against.correct))
    n, k = both.shape
    if not k:
        return Spread(np.full(n, np.nan), np.zeros(n), np.full(n, np.inf), None, True, pair.groups)
    rng = np.random.default_rng([n, k, BOOTSTRAP_DRAWS])  # the same draws for every pair of a run
    some = both.sum(axis=1)
    found, again = [], []
    shared = _draws(rng, both)
    for table, draws in ((pair.arm, shared), (pair.against, shared if pair.by_seed else _draws(rng, both))):
        found.append(np.where(some > 0, _majority(table, both, both[:, None, :].astype(np.float64))[:, 0], np.nan))
        again.append(_majority(table, both, draws))
    variance = np.var(again[0] - again[1], axis=1, ddof=1)
    df = np.full(n, np.inf)
    return Spread(found[0] - found[1], variance, df, None, True, pair.groups)


def _draws(rng: np.random.Generator, kept: Bools) -> Floats:
    """Return how often each kept sample is drawn, [n_problems, draws, samples].

    Each problem draws as many samples as it has.
    """
    n, k = kept.shape
    weights = np.zeros((n, BOOTSTRAP_DRAWS, k))
    for i in range(n):
        at = np.flatnonzero(kept[i])
        if len(at):
            weights[i][:, at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), size=BOOTSTRAP_DRAWS)
    return weights


def _majority(table: ArmTable, kept: Bools, weights: Floats) -> Floats:
    """Return [n_problems, draws]: 1 where the answer with the most votes is correct; ties go to the one given first."""
    votes = kept & (table.answer != MISSING)
    # A sample stands for its answer if it is the first to give it; [n_problems, samples, samples].
    same = (table.answer[:, :, None] == table.answer[:, None, :]) & votes[:, :, None] & votes[:, None, :]
    first = same.argmax(axis=2) == np.arange(table.answer.shape[1])
    counts = weights @ same.astype(np.float64)
    counts = np.where((first & votes)[:, None, :], counts, -1.0)
    winner = counts.argmax(axis=2)
    right = np.take_along_axis(np.where(votes, table.correct, 0.0), winner, axis=1)
    return np.where(np.take_along_axis(counts, winner[..., None], axis=2)[..., 0] > 0, right, 0.0)

"""Measure what training did to the entropy of the same tokens: arXiv 2506.01939, table 1 and figure 5. Pure.

The tokens are those of the later model's responses, and H is each model's entropy at every one of them. Tokens are
pooled, as in the paper, and intervals are from bootstrap draws of problems. Nothing here says in which direction a
change should go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from steerdec.analysis.agreement import top_count, top_mask
from steerdec.analysis.profile.pattern import QUANTILES, Value, pooled
from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.trace import Trace
from steerdec.common import bootstrap
from steerdec.common.bootstrap import Floats, Ints
from steerdec.common.paper import FORK_SHARE

BINS: Final = 20
PAPER_OVERLAP: Final = 0.8667  # its table 1: base model against the end of its training


@dataclass(frozen=True)
class Overlap:
    """|A and B| / |B| of the positions with the highest entropy under base (A) and tuned (B), and what chance gives."""

    value: Value
    chance: float


@dataclass(frozen=True)
class Bin:
    """The tokens between two percentiles of entropy; changes are tuned - base, means in nats."""

    from_percentile: float
    to_percentile: float
    tokens: int
    base_nats: float  # mean
    signed_nats: Value
    absolute_nats: Value
    signed_by_tuned_nats: Value  # for the tokens between these percentiles of the tuned model's entropy


@dataclass(frozen=True)
class Quantile:
    base_nats: Value
    tuned_nats: Value
    change_nats: Value


@dataclass(frozen=True)
class Shift:
    tokens: int
    responses: int
    problems: int
    pooled: Overlap  # the top 20% of all tokens
    per_response: Overlap  # the top 20% of each response, mean over responses
    mean: Quantile
    absolute_change_nats: Value
    quantiles: dict[str, Quantile]  # "p05" ... "p99"
    bins: tuple[Bin, ...]


def shift(traces: Sequence[Trace], base: Sequence[Scores], tuned: Sequence[Scores], *, seed: int = 0) -> Shift:
    """Compare the entropies of the same tokens under two models."""
    (a, group), (b, _) = pooled(traces, base), pooled(traces, tuned)
    n = int(group.max()) + 1
    w = bootstrap.weights(n, np.random.default_rng(seed)) if n > 1 else None
    count = np.bincount(group, minlength=n).astype(np.float64)

    def mean(per_token: Floats) -> Value:
        return _mean(np.bincount(group, per_token, n).astype(np.float64), count, w)

    top = top_count(len(a))
    both = top_mask(a, seed=seed) & top_mask(b, seed=seed)
    resampled = None if w is None else bootstrap.interval(overlaps(a, b, group, w))
    return Shift(
        tokens=len(a),
        responses=len(traces),
        problems=n,
        pooled=Overlap(Value(float(both.sum()) / top, resampled), top / len(a)),
        per_response=_per_response(traces, base, tuned, w, seed),
        mean=Quantile(mean(a), mean(b), mean(b - a)),
        absolute_change_nats=mean(np.abs(b - a)),
        quantiles=_quantiles(a, b, group, w),
        bins=_bins(a, b, group, n, w, seed),
    )


def overlaps(a: Floats, b: Floats, group: Ints, w: Floats) -> Floats:
    """Compute the overlap of the top 20% under a and b, in each bootstrap draw; NaN where b has no top.

    Each draw finds its own top 20%. A token is compared only once, with the thresholds that occur in any draw. Each
    draw then counts the tokens of one problem between the same thresholds together.
    """
    cuts = [bootstrap.quantiles(h, group, np.array([1 - FORK_SHARE]), w)[:, 0] for h in (a, b)]
    passed = [np.searchsorted(np.unique(cut), h) for cut, h in zip(cuts, (a, b), strict=True)]  # cuts strictly below
    needed = [np.searchsorted(np.unique(cut), cut, side="right") for cut in cuts]
    sides = [int(side.max()) + 1 for side in passed]
    keys, counts = np.unique((group * sides[0] + passed[0]) * sides[1] + passed[1], return_counts=True)
    of, high_a, high_b = keys // sides[1] // sides[0], keys // sides[1] % sides[0], keys % sides[1]
    found = np.full(len(w), np.nan)
    for r in range(len(w)):
        weight = w[r, of] * counts
        tuned = weight * (high_b >= needed[1][r])
        if tuned.any():
            found[r] = tuned[high_a >= needed[0][r]].sum() / tuned.sum()
    return found


def _mean(top: Floats, bottom: Floats, w: Floats | None) -> Value:
    """Return the ratio of sums and counts by problem."""
    value = float(top.sum() / bottom.sum())
    return Value(value, None if w is None else bootstrap.interval(bootstrap.ratio(top, bottom, w)))


def _per_response(
    traces: Sequence[Trace], base: Sequence[Scores], tuned: Sequence[Scores], w: Floats | None, seed: int
) -> Overlap:
    numbers = {problem: i for i, problem in enumerate(dict.fromkeys(trace.problem_id for trace in traces))}
    group = np.array([numbers[trace.problem_id] for trace in traces])
    own, chance = [], []
    for one, two in zip(base, tuned, strict=True):
        length = len(one.entropy_nats)
        both = top_mask(one.entropy_nats, seed=seed) & top_mask(two.entropy_nats, seed=seed)
        own.append(float(both.sum()) / top_count(length))
        chance.append(top_count(length) / length)
    top, bottom = (np.bincount(group, x, len(numbers)).astype(np.float64) for x in (np.array(own), np.ones(len(own))))
    return Overlap(_mean(top, bottom, w), float(np.mean(chance)))


def _quantiles(a: Floats, b: Floats, group: Ints, w: Floats | None) -> dict[str, Quantile]:
    at = np.array(QUANTILES)
    spread = None if w is None else [bootstrap.quantiles(h, group, at, w) for h in (a, b)]
    found = {}
    for i, q in enumerate(QUANTILES):
        one, two = float(np.quantile(a, q)), float(np.quantile(b, q))
        ends: list[tuple[float, float] | None] = [None] * 3
        if spread is not None:
            drawn = spread[0][:, i], spread[1][:, i]
            ends = [bootstrap.interval(x) for x in (*drawn, drawn[1] - drawn[0])]
        found[f"p{round(100 * q):02}"] = Quantile(Value(one, ends[0]), Value(two, ends[1]), Value(two - one, ends[2]))
    return found


def _bins(a: Floats, b: Floats, group: Ints, n: int, w: Floats | None, seed: int) -> tuple[Bin, ...]:
    """Compute the bins. They stay fixed in the intervals: bootstrap draws move tokens only with their problem."""
    of_base, of_tuned = bin_of(a, seed), bin_of(b, seed)

    def sums(which: Ints, values: Floats) -> Floats:
        """Sum `values` by bin and problem; [BINS, n problems]."""
        return np.bincount(which * n + group, values, BINS * n).reshape(BINS, n).astype(np.float64)

    ones = np.ones(len(a))
    count, count_tuned = sums(of_base, ones), sums(of_tuned, ones)
    level, signed, absolute = (sums(of_base, x) for x in (a, b - a, np.abs(b - a)))
    by_tuned = sums(of_tuned, b - a)
    return tuple(
        Bin(
            from_percentile=100 * i / BINS,
            to_percentile=100 * (i + 1) / BINS,
            tokens=int(count[i].sum()),
            base_nats=float(level[i].sum() / count[i].sum()),
            signed_nats=_mean(signed[i], count[i], w),
            absolute_nats=_mean(absolute[i], count[i], w),
            signed_by_tuned_nats=_mean(by_tuned[i], count_tuned[i], w),
        )
        for i in range(BINS)
        if count[i].any() and count_tuned[i].any()
    )


def bin_of(h: Floats, seed: int) -> Ints:
    """Return which of BINS bins of equal size each token's rank falls in; [n]. Ties are broken at random."""
    n = len(h)
    order = np.lexsort((np.random.default_rng(seed).permutation(n), h))
    found = np.empty(n, dtype=np.int64)
    found[order] = np.arange(n) * BINS // n
    return found

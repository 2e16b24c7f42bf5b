"""Compute the entropy pattern of a model's own text: arXiv 2506.01939, section 3 and figure 2. Pure.

All tokens are pooled, as in the paper; the intervals are from bootstrap draws of problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.trace import Trace
from steerdec.common import bootstrap
from steerdec.common.bootstrap import Floats, Ints
from steerdec.common.paper import FORK_SHARE

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 0.99)
CERTAIN_NATS: Final = 0.01
MIN_COUNT: Final = 100  # a token is listed if it occurs more often than this, as in the paper's figure 2
BIN_NATS: Final = 0.1


@dataclass(frozen=True)
class Value:
    """A number with its 95% interval over problems; no interval if there is only one problem."""

    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class FrequentToken:
    token: int
    text: str
    count: int
    problems: int  # number of problems it occurs in
    mean_entropy_nats: float


@dataclass(frozen=True)
class Pattern:
    tokens: int
    problems: int
    mean_entropy_nats: Value
    quantiles_nats: dict[str, Value]  # "p05" ... "p99"
    share_below_0_01: Value
    entropy_share_of_top_fifth: Value  # share of the summed entropy that the tokens at or above p80 hold
    histogram: tuple[int, ...]  # counts in bins of BIN_NATS from 0
    most_uncertain: tuple[FrequentToken, ...]
    least_uncertain: tuple[FrequentToken, ...]
    frequent: int  # how many tokens occur more than `min_count` times
    min_count: int


def pooled(traces: Sequence[Trace], scores: Sequence[Scores]) -> tuple[Floats, Ints]:
    """Return (entropy in nats, index of the problem) of every token, problems numbered in order of appearance."""
    numbers: dict[str, int] = {}
    for trace in traces:
        numbers.setdefault(trace.problem_id, len(numbers))
    h = np.concatenate([s.entropy_nats for s in scores]).astype(np.float64)
    return h, np.repeat([numbers[t.problem_id] for t in traces], [len(s.entropy_nats) for s in scores])


def pattern(
    traces: Sequence[Trace],
    scores: Sequence[Scores],
    decode: Callable[[int], str],
    *,
    seed: int = 0,
    min_count: int = MIN_COUNT,
    shown: int = 20,
) -> Pattern:
    """Compute everything that figure 2 shows, and the intervals. `decode` returns a token's text."""
    h, group = pooled(traces, scores)
    n = int(group.max()) + 1
    w = bootstrap.weights(n, np.random.default_rng(seed)) if n > 1 else None
    count = np.bincount(group, minlength=n).astype(np.float64)
    p80 = float(np.quantile(h, 1 - FORK_SHARE))

    def mean_of(per_token: Floats, over: Floats | None = None) -> Value:
        top = np.bincount(group, per_token, n).astype(np.float64)
        bottom = count if over is None else np.bincount(group, over, n).astype(np.float64)
        value = float(top.sum() / bottom.sum()) if bottom.sum() else 0.0
        return Value(value, None if w is None else bootstrap.interval(bootstrap.ratio(top, bottom, w)))

    at = np.array(QUANTILES)
    spread = None if w is None else bootstrap.quantiles(h, group, at, w)
    values = {
        f"p{round(100 * q):02}": Value(
            float(np.quantile(h, q)), None if spread is None else bootstrap.interval(spread[:, i])
        )
        for i, q in enumerate(QUANTILES)
    }
    ranked = _frequent(traces, h, group, decode, min_count)
    upper = (len(ranked) + 1) // 2  # of few tokens, none is listed as both
    return Pattern(
        tokens=len(h),
        problems=n,
        mean_entropy_nats=mean_of(h),
        quantiles_nats=values,
        share_below_0_01=mean_of((h < CERTAIN_NATS).astype(np.float64)),
        entropy_share_of_top_fifth=mean_of(np.where(h >= p80, h, 0.0), h),
        histogram=tuple(int(c) for c in np.bincount(np.floor(h / BIN_NATS + 1e-9).astype(np.int64))),
        most_uncertain=tuple(ranked[:upper][:shown]),
        least_uncertain=tuple(ranked[upper:][::-1][:shown]),
        frequent=len(ranked),
        min_count=min_count,
    )


def _frequent(
    traces: Sequence[Trace], h: Floats, group: Ints, decode: Callable[[int], str], min_count: int
) -> list[FrequentToken]:
    """Return the tokens with more than `min_count` occurrences, highest mean entropy first."""
    ids, which = np.unique(np.concatenate([np.asarray(t.response_ids) for t in traces]), return_inverse=True)
    counts, sums = np.bincount(which), np.bincount(which, h)
    pairs = np.unique(np.stack([which, group]), axis=1)
    problems = np.bincount(pairs[0], minlength=len(ids))
    found = [
        FrequentToken(int(ids[i]), decode(int(ids[i])), int(counts[i]), int(problems[i]), float(sums[i] / counts[i]))
        for i in np.flatnonzero(counts > min_count)
    ]
    return sorted(found, key=lambda token: (-token.mean_entropy_nats, token.token))

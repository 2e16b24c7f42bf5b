"""Prepare the per-token lists of a run: where entropy lies, which tokens fork, and where two arms diverge."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BIN_WIDTH_NATS = 0.1
_HEAD_TOKENS, _BEFORE_TOKENS, _AFTER_TOKENS = 60, 60, 260


@dataclass(frozen=True)
class TokenTrace:
    """One sample that kept its per-token lists; all lists have one entry per generated token."""

    problem_id: str
    arm: str
    sample: int
    entropy_nats: tuple[float | None, ...]
    fork: tuple[bool, ...]
    token_text: tuple[str, ...] | None
    answer: str | None
    grade: str


@dataclass(frozen=True)
class Histogram:
    """Counts of tokens over entropy, bins of `BIN_WIDTH_NATS` from 0; the last bin is the last non-empty one."""

    counts: tuple[int, ...]
    tokens: int
    share_below_0_01: float
    share_above_threshold: float


@dataclass(frozen=True)
class ForkToken:
    text: str
    forks: int
    occurrences: int
    mean_entropy_nats: float  # over its occurrences as a fork


@dataclass(frozen=True)
class ShownToken:
    text: str
    entropy_nats: float | None
    fork: bool
    first_difference: bool


@dataclass(frozen=True)
class ShownTrace:
    """A trace cut to what a page can hold. `runs` alternate between tokens and the number of tokens left out there."""

    arm: str
    answer: str | None
    grade: str
    total_tokens: int
    runs: tuple[tuple[ShownToken, ...] | int, ...]


@dataclass(frozen=True)
class TracePair:
    problem_id: str
    sample: int
    left: ShownTrace
    right: ShownTrace | None  # None: no other arm kept the tokens of a sample that `left`'s arm kept
    first_difference: int | None  # token index; None if the traces are identical


def histogram(traces: Sequence[TokenTrace], threshold_nats: float) -> Histogram | None:
    """Count the tokens of all traces by entropy. None if no entropy is finite."""
    values = np.array([h for trace in traces for h in trace.entropy_nats if h is not None])
    if not values.size:
        return None
    bins = np.floor(np.maximum(values, 0.0) / BIN_WIDTH_NATS + 1e-9).astype(int)
    return Histogram(
        counts=tuple(int(count) for count in np.bincount(bins)),
        tokens=int(values.size),
        share_below_0_01=float(np.mean(values < 0.01)),
        share_above_threshold=float(np.mean(values > threshold_nats)),
    )


def frequent_fork_tokens(traces: Sequence[TokenTrace], threshold_nats: float, limit: int = 15) -> list[ForkToken]:
    """Return the tokens that were most often above the threshold, most frequent first, ties by text.

    They are counted by entropy, not by the `fork` flag, which under random selection says nothing about entropy.
    """
    occurrences: dict[str, int] = defaultdict(int)
    above: dict[str, list[float]] = defaultdict(list)
    for trace in traces:
        for text, entropy in zip(trace.token_text or (), trace.entropy_nats, strict=False):
            occurrences[text] += 1
            if entropy is not None and entropy > threshold_nats:
                above[text].append(entropy)
    ranked = sorted(above.items(), key=lambda item: (-len(item[1]), item[0]))[:limit]
    return [ForkToken(text, len(hs), occurrences[text], math.fsum(hs) / len(hs)) for text, hs in ranked]


def pair_of_traces(traces: Sequence[TokenTrace], reference: str) -> TracePair | None:
    """Return the first sample, in the order given, that kept its tokens under `reference` and under another arm.

    The rule is fixed beforehand, because a pair picked by hand would show what its picker wants to see. Without such a
    sample, the first of `reference` is alone.
    """
    by_key = {(t.arm, t.problem_id, t.sample): t for t in traces if t.token_text}
    for trace in traces:
        left = by_key.get((reference, trace.problem_id, trace.sample))
        if left is not None and trace.arm != reference and trace.token_text:
            at = _first_difference(left, trace)
            return TracePair(trace.problem_id, trace.sample, _around(left, at), _around(trace, at), at)
    alone = next((t for t in by_key.values() if t.arm == reference), None)
    return None if alone is None else TracePair(alone.problem_id, alone.sample, _around(alone, None), None, None)


def side_by_side(left: TokenTrace, right: TokenTrace | None, most_tokens: int) -> TracePair:
    """Show the first `most_tokens` tokens of a trace, beside another of the same sample or alone."""
    at = None if right is None else _first_difference(left, right)
    shown = [
        None if one is None else shown_trace(one, [(0, min(most_tokens, len(one.token_text or ())))], at)
        for one in (left, right)
    ]
    assert shown[0] is not None, "left is a trace"
    return TracePair(left.problem_id, left.sample, shown[0], shown[1], at)


def _first_difference(left: TokenTrace, right: TokenTrace) -> int | None:
    a, b = left.token_text or (), right.token_text or ()
    for at, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return at
    return None if len(a) == len(b) else min(len(a), len(b))


def _around(trace: TokenTrace, difference: int | None) -> ShownTrace:
    """Show the beginning of a trace and the tokens around `difference`."""
    tokens = len(trace.token_text or ())
    center = difference or 0
    spans = [
        (0, min(_HEAD_TOKENS, tokens)),
        (max(0, center - _BEFORE_TOKENS), min(tokens, center + _AFTER_TOKENS)),
    ]
    if spans[1][0] <= spans[0][1]:
        spans = [(0, max(spans[0][1], spans[1][1]))]
    return shown_trace(trace, spans, difference)


def shown_trace(trace: TokenTrace, spans: Sequence[tuple[int, int]], difference: int | None = None) -> ShownTrace:
    """Show the tokens of a trace that lie in `spans`, which are in order and disjoint; each [begin, end).

    Args:
        difference: the token to mark as the first that differs from another trace.
    """
    texts = trace.token_text or ()
    runs: list[tuple[ShownToken, ...] | int] = []
    end = 0
    for start, stop in spans:
        if start > end:
            runs.append(start - end)
        shown = (
            ShownToken(texts[i], trace.entropy_nats[i], trace.fork[i], i == difference) for i in range(start, stop)
        )
        runs.append(tuple(shown))
        end = stop
    if end < len(texts):
        runs.append(len(texts) - end)
    return ShownTrace(trace.arm, trace.answer, trace.grade, len(texts), tuple(runs))

"""Compute what agreement between two scores chance alone would give, in two ways. Pure; all draws come from a seed.

Circular shifts: two unrelated scores may both rise and fall slowly, and both may depend on how far into the trace a
token is. So position is removed (ranks within deciles of relative position, over all traces), and one score is rotated
against the other, which keeps its own rhythm. Shuffles within (part of the trace x token class) keep where a score is
high, and on what kind of token: agreement beyond them is due to neither.

A trace's statistic is the mean of the AUROC in both directions; that of the study is its mean over problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from steerdec.analysis.agreement import FEWEST_UNITS, Floats, top_mask

DRAWS: Final = 1000
DECILES: Final = 10
PARTS: Final = 3  # of a trace, for shuffles: in deciles x classes, hardly any token would have a partner
_CHUNK: Final = 4_000_000  # numbers in memory at once


@dataclass(frozen=True)
class NullTest:
    """An observed mean AUROC (both directions), compared with what chance gives."""

    observed: float
    null_mean: float
    p: float  # two-sided, (1 + #) / (B + 1) on the nearer side, doubled; NaN if it cannot be computed
    n_problems: int


def circular_shift_test(
    first: Sequence[Floats], second: Sequence[Floats], problems: Sequence[str], *, seed: int, draws: int = DRAWS
) -> NullTest:
    """Test two scores of the same traces, position removed, with one rotated by a random offset in each trace.

    Args:
        first: one array per trace; a trace with a NaN, or with fewer than FEWEST_UNITS units, is left out.
        second: as `first`, with arrays of the same lengths.
        draws: B; 1000 or more for reported results.
    """
    kept = _complete(first, second)
    a, b = (position_free([scores[i] for i in kept]) for scores in (first, second))
    rng = np.random.default_rng(seed)
    rows, observed = [], []
    for x, y in zip(a, b, strict=True):
        turned = shifted_auroc(x, y)
        observed.append(turned[0])
        rows.append(turned[rng.integers(0, len(x), size=draws)])  # including 0, or short traces would reject too often
    return _test(np.array(observed), np.array(rows), [problems[i] for i in kept])


def class_shuffle_test(
    first: Sequence[Floats],
    second: Sequence[Floats],
    classes: Sequence[Sequence[str]],
    problems: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> NullTest:
    """Test two scores of the same traces, with one shuffled among tokens of one class in one part of the trace."""
    kept = _complete(first, second)
    rng = np.random.default_rng(seed)
    rows, observed = [], []
    for i in kept:
        x, y = first[i], second[i]
        rank_x, rank_y, mask_x, mask_y = _ranked(x, y)
        observed.append(_both(mask_x, rank_x, mask_y, rank_y))
        cells = np.array([f"{PARTS * k // len(x)}/{kind}" for k, kind in enumerate(classes[i])])
        null = []
        step = max(1, _CHUNK // len(x))
        for begin in range(0, draws, step):
            order = _shuffles(cells, min(step, draws - begin), rng)
            null.append(_normed(mask_y, rank_x[order] @ mask_y, mask_x, mask_x[order] @ rank_y))
        rows.append(np.concatenate(null))
    return _test(np.array(observed), np.array(rows), [problems[i] for i in kept])


def position_free(scores: Sequence[Floats]) -> list[Floats]:
    """Replace each score by its rank, in (0, 1), among those of all traces in the same decile of relative position."""
    where = [np.arange(len(s)) * DECILES // max(1, len(s)) for s in scores]
    values = np.concatenate([*scores, np.zeros(0)])
    decile = np.concatenate([*where, np.zeros(0, dtype=np.int64)])
    ranks = np.empty(len(values))
    for d in range(DECILES):
        inside = decile == d
        ranks[inside] = (scipy.stats.rankdata(values[inside]) - 0.5) / max(1, int(inside.sum()))
    return np.split(ranks, np.cumsum([len(s) for s in scores])[:-1]) if scores else []


def shifted_auroc(x: Floats, y: Floats) -> Floats:
    """Return the mean AUROC of both directions with x rotated by s = 0 to n - 1 against y; [n]. By FFT, n log n."""
    rank_x, rank_y, mask_x, mask_y = _ranked(x, y)
    return _normed(mask_y, _turned(rank_x, mask_y), mask_x, _turned(mask_x, rank_y))


def _turned(moving: Floats, still: Floats) -> Floats:
    """Compute sum_i roll(moving, s)[i] still[i] for every s."""
    product = np.conj(np.fft.rfft(moving)) * np.fft.rfft(still)
    return np.asarray(np.fft.irfft(product, n=len(moving)), dtype=np.float64)


def _ranked(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the ranks and the top masks (as 0 and 1) of both."""
    masks = (top_mask(x, seed=1).astype(np.float64), top_mask(y, seed=2).astype(np.float64))
    return scipy.stats.rankdata(x), scipy.stats.rankdata(y), *masks


def _both(mask_x: Floats, rank_x: Floats, mask_y: Floats, rank_y: Floats) -> float:
    return float(_normed(mask_y, np.array([rank_x @ mask_y]), mask_x, np.array([mask_x @ rank_y]))[0])


def _normed(mask_y: Floats, of_second: Floats, mask_x: Floats, of_first: Floats) -> Floats:
    """Turn rank sums within the masks into the mean of the two AUROCs."""
    found = []
    for mask, sums in ((mask_y, of_second), (mask_x, of_first)):
        m, n = float(mask.sum()), len(mask)
        found.append((sums - m * (m + 1) / 2) / (m * (n - m)))
    return np.asarray((found[0] + found[1]) / 2, dtype=np.float64)


def _shuffles(cells: NDArray[np.str_], draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw permutations of the indices that keep every index in its cell; [draws, n]."""
    order = np.tile(np.arange(len(cells)), (draws, 1))
    for cell in np.unique(cells):
        members = np.flatnonzero(cells == cell)
        order[:, members] = rng.permuted(np.tile(members, (draws, 1)), axis=1)
    return order


def _complete(first: Sequence[Floats], second: Sequence[Floats]) -> list[int]:
    pairs = enumerate(zip(first, second, strict=True))
    return [i for i, (a, b) in pairs if len(a) >= FEWEST_UNITS and not (np.isnan(a).any() or np.isnan(b).any())]


def _test(observed: Floats, null: Floats, problems: list[str]) -> NullTest:
    """Compare `observed` [n_traces] with `null` [n_traces, draws], both averaged over problems."""
    if not problems:
        return NullTest(np.nan, np.nan, np.nan, 0)
    names = sorted(set(problems))
    weights = np.array([1 / problems.count(problem) for problem in problems]) / len(names)
    value, chance = float(weights @ observed), weights @ null
    slack = 1e-9  # draws that equal the observed value up to rounding count as reaching it
    above, below = int((chance >= value - slack).sum()), int((chance <= value + slack).sum())
    p = min(1.0, 2 * (1 + min(above, below)) / (len(chance) + 1))
    return NullTest(value, float(chance.mean()), p, len(names))

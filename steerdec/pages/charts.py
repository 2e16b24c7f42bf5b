"""Geometry of the report's charts: data to positions, without drawing.

Positions along x are percent of the plot's width, so one SVG serves a phone and a wide screen with text at its true
size; positions along y are pixels. The templates draw these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from steerdec.pages.forks import BIN_WIDTH_NATS, Histogram


@dataclass(frozen=True)
class Axis:
    """A linear scale over [lo, hi]."""

    lo: float
    hi: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Return the position of `value`, 0 to 100; values outside the scale are pinned to its ends."""
        return round(100 * min(1.0, max(0.0, (value - self.lo) / (self.hi - self.lo))), 3)


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    y: float
    height: float
    count: int
    lo_nats: float
    above: bool


@dataclass(frozen=True)
class HistogramChart:
    bars: tuple[Bar, ...]
    x_ticks: tuple[tuple[float, float], ...]
    y_ticks: tuple[tuple[int, float], ...]  # (count, y in px)
    threshold_x: float
    height: int


def axis(values: Sequence[float], *, bins: int = 7) -> Axis:
    """Return round limits and ticks around finite `values`."""
    lo, hi = min(values), max(values)
    if hi - lo < 1e-9:
        lo, hi = lo - 0.01, hi + 0.01
    ticks = [
        round(float(tick), 10) + 0.0 for tick in MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(lo, hi)
    ]
    return Axis(ticks[0], ticks[-1], tuple(ticks))


def histogram_chart(data: Histogram, threshold_nats: float, height: int = 200) -> HistogramChart:
    """Place counts on a log axis, as in the paper's figure 2, because half of all tokens are in the first bin."""
    decades = max(1, math.ceil(math.log10(max(data.counts) + 1)))
    n = len(data.counts)

    def rise(count: int) -> float:
        # A count of 1 is drawn a third of a decade high: log 1 = 0 would hide it.
        return 0.0 if count == 0 else height * (math.log10(count) + 1 / 3) / (decades + 1 / 3)

    bars = []
    for i, count in enumerate(data.counts):
        lo = i * BIN_WIDTH_NATS
        above = lo + BIN_WIDTH_NATS / 2 > threshold_nats
        bars.append(Bar(100 * i / n, 100 / n, round(height - rise(count), 2), round(rise(count), 2), count, lo, above))
    end = n * BIN_WIDTH_NATS
    ticks = [t for t in MaxNLocator(nbins=6).tick_values(0, end) if 0 <= t <= end]
    x = min(100.0, 100 * threshold_nats / end)
    y_ticks = tuple((10**d, round(height - rise(10**d), 2)) for d in range(decades + 1) if rise(10**d) <= height + 0.01)
    return HistogramChart(tuple(bars), tuple((float(t), 100 * t / end) for t in ticks), y_ticks, x, height)

"""Geometry of the report's charts: data to positions, no drawing.

Positions along x are percent of the plot's width, so one SVG serves a phone and a wide screen with text at its true
size; positions along y are pixels. The templates draw; these numbers are what they draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from steerdec.benchmarks.report.doses import PAPER_LABELS_PERCENT, DoseCurves, DosePoint
from steerdec.pages.forks import BIN_WIDTH_NATS, Histogram


@dataclass(frozen=True)
class Axis:
    """A linear scale over [lo, hi]."""

    lo: float
    hi: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Where `value` lies, 0 to 100, values outside pinned to the edge."""
        return round(100 * min(1.0, max(0.0, (value - self.lo) / (self.hi - self.lo))), 3)


@dataclass(frozen=True)
class Mark:
    """A point with its interval, at percent positions."""

    at: float
    lo: float | None
    hi: float | None
    scope_index: int
    row: Mapping[str, Any]


@dataclass(frozen=True)
class ForestRow:
    label: str
    marks: tuple[Mark, ...]
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Forest:
    axis: Axis
    zero: float
    band: tuple[float, float] | None
    rows: tuple[ForestRow, ...]
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class CurveMark:
    x: float  # percent
    y: float  # px from the top
    lo: float | None
    hi: float | None
    point: DosePoint


@dataclass(frozen=True)
class DoseChart:
    temperatures: tuple[tuple[float, float], ...]  # (temperature, x in percent)
    base_x: float
    ticks: tuple[tuple[float, float], ...]  # (accuracy, y in px)
    forks: tuple[CurveMark, ...]
    others: tuple[CurveMark, ...]
    paper: tuple[tuple[float, float], ...]  # (label in percent, y in px), on its own axis from 0 to 80
    paper_ticks: tuple[tuple[float, float], ...]
    height: int


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
    """Round limits and ticks around finite `values`."""
    lo, hi = min(values), max(values)
    if hi - lo < 1e-9:
        lo, hi = lo - 0.01, hi + 0.01
    ticks = [
        round(float(tick), 10) + 0.0 for tick in MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(lo, hi)
    ]
    return Axis(ticks[0], ticks[-1], tuple(ticks))


def scopes(*summaries: Mapping[str, Any]) -> tuple[str, ...]:
    """The scopes of the comparisons in order of appearance."""
    return tuple(dict.fromkeys(str(row["scope"]) for summary in summaries for row in summary["comparisons"]))


def pairs(summary: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The comparisons grouped by (arm, baseline), order kept."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in summary["comparisons"]:
        grouped.setdefault((row["arm"], row["baseline"]), []).append(row)
    return grouped


def difference_axis(summaries: Sequence[Mapping[str, Any]], delta: float | None) -> Axis:
    """One scale for every difference and interval of `summaries`, zero and the equivalence band inside."""
    values = [0.0, delta or 0.0, -(delta or 0.0)]
    for summary in summaries:
        for row in summary["comparisons"]:
            values += [v for v in (row["diff"], *(row["ci95"] or ())) if v is not None]
    return axis(values, bins=6)


def forest(summary: Mapping[str, Any], delta: float | None, scale: Axis | None = None) -> Forest:
    scale = scale or difference_axis([summary], delta)
    names = scopes(summary)
    rows = []
    for (arm, baseline), group in pairs(summary).items():
        marks = []
        for row in group:
            if row["diff"] is not None:
                lo, hi = row["ci95"] or (None, None)
                bounds = [None if v is None else scale.percent(v) for v in (lo, hi)]
                marks.append(
                    Mark(scale.percent(row["diff"]), bounds[0], bounds[1], names.index(str(row["scope"])), row)
                )
        rows.append(ForestRow(f"{arm} − {baseline}", tuple(marks), tuple(group)))
    band = None if delta is None else (scale.percent(-delta), scale.percent(delta))
    return Forest(scale, scale.percent(0.0), band, tuple(rows), names)


def dose_chart(curves: DoseCurves, height: int = 260) -> DoseChart:
    """Temperatures at equal steps, as in the paper: its grid is dense at the bottom and wide at the top."""
    found = sorted({point.temperature for point in (*curves.forks, *curves.others)})
    x = {t: 100 * (i + 0.5) / len(found) for i, t in enumerate(found)}
    values = [v for p in (*curves.forks, *curves.others) for v in (p.value, *(p.ci95 or ()))]
    scale = axis(values)

    def y(value: float) -> float:
        return round(height * (1 - scale.percent(value) / 100), 2)

    def marks(points: Sequence[DosePoint]) -> tuple[CurveMark, ...]:
        return tuple(
            CurveMark(
                x[p.temperature], y(p.value), y(p.ci95[0]) if p.ci95 else None, y(p.ci95[1]) if p.ci95 else None, p
            )
            for p in points
        )

    paper = Axis(0.0, 80.0, (0.0, 20.0, 40.0, 60.0, 80.0))
    return DoseChart(
        temperatures=tuple((t, x[t]) for t in found),
        base_x=x.get(curves.base_temperature, 50.0),
        ticks=tuple((tick, y(tick)) for tick in scale.ticks),
        forks=marks(curves.forks),
        others=marks(curves.others),
        paper=tuple((label, height * (1 - paper.percent(label) / 100)) for label in PAPER_LABELS_PERCENT),
        paper_ticks=tuple((tick, height * (1 - paper.percent(tick) / 100)) for tick in paper.ticks),
        height=height,
    )


def histogram_chart(data: Histogram, threshold_nats: float, height: int = 200) -> HistogramChart:
    """Counts on a log axis, as in the paper's figure 2: half of all tokens lie in the first bin."""
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

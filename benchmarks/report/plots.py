"""Geometry of the report's own charts, the forest plot and the dose curves: data to positions, without drawing.

The same forest is drawn as SVG by the page templates, as a vector file by `figures`, and printed by `latex` as a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerdec.pages.charts import Axis, axis
from steerdec.pages.wording import MINUS
from steerdec.records.summary import Comparison, Summary

from .doses import PAPER_LABELS_PERCENT, DoseCurves, DosePoint


@dataclass(frozen=True)
class Mark:
    """A point with its interval, at percent positions. `series` chooses how it is drawn; see `Forest.series`."""

    series: int
    comparison: Comparison
    at: float | None
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class ForestRow:
    """One difference with a mark per series, None for a series without it."""

    label: str
    marks: tuple[Mark | None, ...]


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals on one axis.

    `series`: the names of the marks in each row: the populations of one run, or the runs of a comparison.
    """

    axis: Axis
    zero: float
    band: tuple[float, float] | None  # within +-delta: no difference that matters
    delta: float | None
    rows: tuple[ForestRow, ...]
    series: tuple[str, ...]


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


def label(arm: str, baseline: str) -> str:
    """Name a difference."""
    return f"{arm} {MINUS} {baseline}"


def populations(summary: Summary) -> tuple[str, ...]:
    """Return the populations of the comparisons in order of appearance."""
    return tuple(dict.fromkeys(row.scope for row in summary.comparisons))


def by_pair(summary: Summary) -> dict[tuple[str, str], dict[str, Comparison]]:
    """Return the comparisons as {(arm, baseline): {population: comparison}}, in order."""
    grouped: dict[tuple[str, str], dict[str, Comparison]] = {}
    for row in summary.comparisons:
        grouped.setdefault((row.arm, row.baseline), {})[row.scope] = row
    return grouped


def forest_of_run(summary: Summary) -> Forest:
    """Return every difference of a run, one series per population."""
    rows = {label(*pair): tuple(found.values()) for pair, found in by_pair(summary).items()}
    names = populations(summary)
    placed = {
        name: tuple(next((row for row in found if row.scope == one), None) for one in names)
        for name, found in rows.items()
    }
    return forest(placed, names, summary.delta)


def forest(rows: dict[str, tuple[Comparison | None, ...]], series: tuple[str, ...], delta: float | None) -> Forest:
    """Place labeled comparisons, one per series, on one axis with zero and the equivalence band inside."""
    values = [0.0, delta or 0.0, -(delta or 0.0)]
    for found in rows.values():
        for one in found:
            values += [] if one is None else [v for v in (one.diff, *(one.ci95 or ())) if v is not None]
    scale = axis(values, bins=6)
    return Forest(
        axis=scale,
        zero=scale.percent(0.0),
        band=None if delta is None else (scale.percent(-delta), scale.percent(delta)),
        delta=delta,
        rows=tuple(
            ForestRow(name, tuple(None if one is None else _mark(i, one, scale) for i, one in enumerate(found)))
            for name, found in rows.items()
        ),
        series=series,
    )


def _mark(series: int, row: Comparison, scale: Axis) -> Mark:
    lo, hi = row.ci95 or (None, None)
    at, lo, hi = (None if value is None else scale.percent(value) for value in (row.diff, lo, hi))
    return Mark(series, row, at, lo, hi)


def dose_chart(curves: DoseCurves, height: int = 260) -> DoseChart:
    """Place the curves, temperatures at equal steps as in the paper, whose grid is dense at the bottom."""
    found = sorted({point.temperature for point in (*curves.forks, *curves.others)})
    x = {t: 100 * (i + 0.5) / len(found) for i, t in enumerate(found)}
    values = [v for p in (*curves.forks, *curves.others) for v in (p.value, *(p.ci95 or ()))]
    scale = axis(values)

    def y(value: float) -> float:
        return round(height * (1 - scale.percent(value) / 100), 2)

    def marks(points: Sequence[DosePoint]) -> tuple[CurveMark, ...]:
        placed = []
        for p in points:
            lo, hi = (y(p.ci95[0]), y(p.ci95[1])) if p.ci95 else (None, None)
            placed.append(CurveMark(x=x[p.temperature], y=y(p.value), lo=lo, hi=hi, point=p))
        return tuple(placed)

    paper = Axis(0.0, 80.0, (0.0, 20.0, 40.0, 60.0, 80.0))
    return DoseChart(
        temperatures=tuple((t, x[t]) for t in found),
        base_x=x.get(curves.base_temperature, 50.0),
        ticks=tuple((tick, y(tick)) for tick in scale.ticks),
        forks=marks(curves.forks),
        others=marks(curves.others),
        paper=tuple((score, height * (1 - paper.percent(score) / 100)) for score in PAPER_LABELS_PERCENT),
        paper_ticks=tuple((tick, height * (1 - paper.percent(tick) / 100)) for tick in paper.ticks),
        height=height,
    )

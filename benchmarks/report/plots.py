"""Geometry of the report's own charts: the forest plot and the dose curves; data to positions, no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerdec.pages.charts import Axis, axis

from .doses import PAPER_LABELS_PERCENT, DoseCurves, DosePoint


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

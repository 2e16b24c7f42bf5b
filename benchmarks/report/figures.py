"""The forest plot of a run's paired differences as a PNG, for papers, slides and the Markdown report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from steerdec.pages import wording

from . import plots

# Okabe-Ito blue against grey: told apart under every common colour blindness and in print.
_COLOURS = ("#7d858c", "#0069a8")
_INK, _MUTED, _BAND = "#1b1f23", "#5b636b", "#e2eef6"


def write_figure(summary: Mapping[str, Any], path: str | Path) -> None:
    """Draw every comparison with its 95% interval in both scopes, the zero line and the ±delta equivalence band.

    The same summary gives the same bytes: no date or version is written into the file.
    """
    rows = list(plots.pairs(summary).items())
    names = plots.scopes(summary)
    delta = summary.get("delta")
    # No mathtext: an arm may be called "$x$".
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": _INK, "text.parse_math": False}):
        figure = Figure(figsize=(8.0, 1.5 + 0.46 * max(1, len(rows))), facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if delta:
            axes.axvspan(-100 * delta, 100 * delta, color=_BAND, lw=0, label=f"within ±{100 * delta:g} points")
        axes.axvline(0, color=_MUTED, lw=1)
        for at, (_, group) in enumerate(rows):
            for row in group:
                _draw(axes, row, at, names.index(str(row["scope"])), len(names))
        _dress(axes, rows)
        figure.savefig(path, format="png", dpi=200, metadata={"Software": None})


def _draw(axes: Axes, row: Mapping[str, Any], at: int, scope: int, scopes: int) -> None:
    if row["diff"] is None:
        return
    outer = scopes > 1 and scope == 0
    y = at + (0.0 if scopes == 1 else -0.16 if outer else 0.16)
    colour = _COLOURS[0 if outer else 1]
    x = 100 * row["diff"]
    if row["ci95"] and None not in row["ci95"]:
        lo, hi = (100 * bound for bound in row["ci95"])
        axes.plot([lo, hi], [y, y], color=colour, lw=1.2 if outer else 2.2, solid_capstyle="round")
    known = axes.get_legend_handles_labels()[1]
    label = None if str(row["scope"]) in known else str(row["scope"])
    face, size = ("white", 4.0) if outer else (colour, 5.5)
    axes.plot([x], [y], marker="o", ms=size, mfc=face, mec=colour, mew=1.2, ls="none", label=label)


def _dress(axes: Axes, rows: list[tuple[tuple[str, str], list[Mapping[str, Any]]]]) -> None:
    labels = [f"{arm} {wording.MINUS} {baseline}" for (arm, baseline), _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("difference in accuracy, percentage points (95% interval)", color=_MUTED)
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.tick_params(axis="x", color=_MUTED, labelcolor=_MUTED)
    axes.xaxis.set_major_formatter(lambda value, _: wording.signed(value, 0 if value == int(value) else 1))
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    for at, (_, group) in enumerate(rows):
        last = group[-1]
        for text, offset in ((wording.points(last["diff"]), 42), (wording.points_interval(last["ci95"]), 122)):
            axes.annotate(
                text,
                (1, at),
                (offset, 0),
                ("axes fraction", "data"),
                "offset points",
                va="center",
                ha="right",
                fontsize=8.5,
            )
    if rows:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8.5, labelcolor=_MUTED)

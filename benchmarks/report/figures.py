"""The forest plot of a run as vector files: SVG for the Markdown report and the web, PDF for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from steerdec.pages import wording

from .plots import Forest, Mark

# Okabe-Ito blue against gray: distinct under every common color blindness, and in print.
_COLORS = ("#7d858c", "#0069a8")
_INK, _MUTED, _BAND = "#1b1f23", "#5b636b", "#e2eef6"
_METADATA = {  # what matplotlib would write by itself
    ".svg": ("Creator", "Date", "Format", "Type"),
    ".pdf": ("Creator", "Producer", "CreationDate"),
}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 9.5,
    "text.color": _INK,
    "text.parse_math": False,  # an arm may be called "$x$"
    "svg.fonttype": "none",  # text stays text: small, searchable, and readable by screen readers
    "svg.hashsalt": "steerdec",
    "pdf.fonttype": 42,
}


def write_figures(forest: Forest, *paths: Path) -> None:
    """Draw every difference with its 95% interval in each population, the zero line and the ±delta equivalence band.

    The suffix of each path sets the format, `.svg` or `.pdf`. Equal forests give equal bytes: no date and no version is
    written into the files.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 1.5 + 0.46 * max(1, len(forest.rows))), facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if forest.delta:
            width = 100 * forest.delta
            axes.axvspan(-width, width, color=_BAND, lw=0, label=f"within ±{width:g} points")
        axes.axvline(0, color=_MUTED, lw=1)
        for at, row in enumerate(forest.rows):
            for mark in row.marks:
                if mark is not None:
                    _draw(axes, mark, at, forest)
        _label(axes, forest)
        for path in paths:
            figure.savefig(path, metadata=dict.fromkeys(_METADATA[path.suffix]))


def _draw(axes: Axes, mark: Mark, at: int, forest: Forest) -> None:
    row = mark.comparison
    if row.diff is None:
        return
    outer = len(forest.series) > 1 and mark.series == 0
    y = at + (0.0 if len(forest.series) == 1 else -0.16 if outer else 0.16)
    color = _COLORS[0 if outer else 1]
    if row.ci95:
        lo, hi = (100 * bound for bound in row.ci95)
        axes.plot([lo, hi], [y, y], color=color, lw=1.2 if outer else 2.2, solid_capstyle="round")
    known = axes.get_legend_handles_labels()[1]
    name = forest.series[mark.series]
    face, size = ("white", 4.0) if outer else (color, 5.5)
    x = 100 * row.diff
    legend = None if name in known else name
    axes.plot([x], [y], marker="o", ms=size, mfc=face, mec=color, mew=1.2, ls="none", label=legend)


def _label(axes: Axes, forest: Forest) -> None:
    axes.set_yticks(range(len(forest.rows)), [row.label for row in forest.rows])
    axes.set_ylim(len(forest.rows) - 0.4, -0.6)
    axes.set_xlabel("difference in accuracy, percentage points (95% interval)", color=_MUTED)
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.tick_params(axis="x", color=_MUTED, labelcolor=_MUTED)
    axes.xaxis.set_major_formatter(lambda value, _: wording.signed(value, 0 if value == int(value) else 1))
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    for at, row in enumerate(forest.rows):
        last = [mark.comparison for mark in row.marks if mark is not None][-1]
        for text, offset in ((wording.points(last.diff), 42), (wording.points_interval(last.ci95), 122)):
            axes.annotate(text, (1, at), (offset, 0), fontsize=8.5, va="center", ha="right", **place)
    if forest.rows:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8.5, labelcolor=_MUTED)

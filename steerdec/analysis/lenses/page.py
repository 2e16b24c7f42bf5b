"""Prepare what the page of `lenses` shows: the matrix as cells, and traces as lines of text with every lens below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.stats

from steerdec.analysis.agreement import Floats, Interval, top_mask
from steerdec.analysis.lenses import names as lens_names
from steerdec.analysis.lenses.matrix import Pair, Table
from steerdec.analysis.lenses.names import Lens

SHOWN: Final = 6  # traces
_LINE_CHARACTERS: Final = 88
_CUT: Final = 24  # as the filter `visible` cuts a token


@dataclass(frozen=True)
class Cell:
    """The AUROC of the row's top fifth by the column's score."""

    interval: Interval
    above: bool
    tint: float  # percent, from the distance to 0.5
    clear: bool  # the interval excludes 0.5
    own: bool  # the lens with itself, in another dtype


@dataclass(frozen=True)
class Stretch:
    """A cell under a line: one token, or the part of a sentence in that line."""

    tokens: int
    tint: float | None  # percent; None without a score
    top: bool
    label: str


@dataclass(frozen=True)
class Strip:
    lens: Lens
    kind: str  # "lens", "sentence" or "baseline"
    cells: list[Stretch]


@dataclass(frozen=True)
class Line:
    texts: list[str]
    about: list[str]  # of each token: its place, class, and sentence
    strips: list[Strip]


def matrix(
    pairs: Sequence[Pair], repeated: Mapping[str, Mapping[str, Interval]]
) -> tuple[list[Lens], list[tuple[Lens, list[Cell | None]]]]:
    """Build (columns, rows) of the agreement matrix; scores in no trace are left out, impossible cells are None."""
    of = {(pair.first, pair.second): pair.measures["auroc_of_first"] for pair in pairs}
    of |= {(pair.second, pair.first): pair.measures["auroc_of_second"] for pair in pairs}
    there = {first for (first, _), found in of.items() if found.n_problems}
    lenses = [lens for lens in (*lens_names.TOKEN_LENSES, *lens_names.VARIANTS) if lens.name in there]
    columns = [*lenses, *(lens for lens in lens_names.BASELINES if lens.name in there)]
    rows = []
    for row in lenses:
        cells = [
            _cell(repeated.get(row.name, {}).get("auroc_of_first"), own=True)
            if row.name == column.name
            else _cell(of.get((row.name, column.name)))
            for column in columns
        ]
        rows.append((row, cells))
    return columns, rows


def _cell(found: Interval | None, *, own: bool = False) -> Cell | None:
    if found is None or not found.n_problems:
        return None
    clear = found.low > 0.5 or found.high < 0.5
    return Cell(found, found.mean > 0.5, round(min(60.0, 130 * abs(found.mean - 0.5)), 1), clear, own)


def lines(record: Mapping[str, Any], table: Table, i: int) -> list[Line]:
    """Return trace i of the table, with its record, as lines."""
    texts, n = list(record["tokens"]), len(record["tokens"])
    whole = [(t, t + 1) for t in range(n)]
    spans = [(int(a), int(b)) for a, b in record["spans"]]
    beside = [lens for lens in lens_names.BASELINES if lens.name not in ("position", "sentence_start")]
    shown = [
        *((lens, "lens", whole, table.tokens[i]) for lens in (*lens_names.TOKEN_LENSES, *lens_names.VARIANTS)),
        *((lens, "sentence", spans, table.sentences[i]) for lens in lens_names.sentence_lenses(resampled=True)),
        *((lens, "baseline", whole, table.tokens[i]) for lens in beside),
    ]
    rows = [(lens, kind, units, _stretches(of[lens.name], lens)) for lens, kind, units, of in shown if lens.name in of]
    sentence_of = [next(k for k, (a, b) in enumerate(spans) if a <= t < b) for t in range(n)]
    about = [f"token {t + 1} of {n}, {record['classes'][t]}, sentence {sentence_of[t] + 1}" for t in range(n)]
    found = []
    for begin, end in _breaks(texts):
        cut = []
        for lens, kind, units, cells in rows:
            inside = [(k, min(b, end) - max(a, begin)) for k, (a, b) in enumerate(units) if a < end and b > begin]
            held = [Stretch(width, cells[k].tint, cells[k].top, cells[k].label) for k, width in inside]
            cut.append(Strip(lens, kind, held))
        found.append(Line(texts[begin:end], about[begin:end], cut))
    return found


def _stretches(scores: Floats, lens: Lens) -> list[Stretch]:
    """Give every unit its rank among those with a score, where 1 is the highest."""
    known = ~np.isnan(scores)
    count = int(known.sum())
    tops = np.zeros(len(scores), dtype=np.bool_)
    ranks = np.zeros(len(scores), dtype=np.int64)
    if count:
        tops[known] = top_mask(scores[known], seed=1)
        ranks[known] = scipy.stats.rankdata(-scores[known], method="min")
    cells = []
    for value, rank, top in zip(scores, ranks, tops, strict=True):
        if np.isnan(value):
            cells.append(Stretch(1, None, False, "no score"))
        else:
            label = f"{value:.3g}{' nats' if lens.unit == 'nats' else ''}, {rank} of {count}"
            cells.append(Stretch(1, _tint(int(rank), count), bool(top), label.replace("-", "\N{MINUS SIGN}")))
    return cells


def _tint(rank: int, count: int) -> float:
    """Return the percentage of the full color, by the square of the rank, so that the highest stand out."""
    return round(85 * (1 - (rank - 1) / max(1, count - 1)) ** 2 if count > 1 else 0.0)


def _breaks(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return (first token, token after the last) of each line; a line also ends after a line break of the text."""
    found, begin, width = [], 0, 0
    for t, text in enumerate(texts):
        own = min(_CUT, max(1, len(text))) + 1
        if t > begin and (width + own > _LINE_CHARACTERS or "\n" in texts[t - 1]):
            found.append((begin, t))
            begin, width = t, 0
        width += own
    return [*found, (begin, len(texts))] if texts else []

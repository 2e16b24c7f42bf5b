"""The samples of two arms side by side: the (problem, sample) pairs that both have, with bounds for the ungraded ones.

Everything is a table of shape [n_problems, samples]; NaN means no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .estimators import Floats, Ints
from .tally import MISSING, Tally

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ArmTable:
    """The samples of one arm as tables of shape [n_problems, samples]."""

    present: Bools  # there is a line for the sample
    correct: Floats  # 1 or 0; NaN ungraded or absent
    tokens: Floats  # NaN not known
    truncated: Floats
    answer: Ints  # equal numbers are equal answers, -1 none
    text: Ints  # equal numbers are equal texts
    failed: Bools
    seed: Ints

    def first(self, samples: int | None, problems: int | None = None) -> ArmTable:
        """Return the samples with an index below `samples`, of the first `problems`; None: all of them."""
        return ArmTable(**{name: table[:problems, :samples] for name, table in vars(self).items()})


def arm_table(tally: Tally, arm: str) -> ArmTable:
    rows = np.flatnonzero(tally.of(arm))
    shape = (len(tally.problems), int(tally.sample.max(initial=-1)) + 1)
    at = (tally.problem[rows], tally.sample[rows])

    def table(values: NDArray[np.generic], empty: float | bool) -> NDArray[np.generic]:
        filled = np.full(shape, empty, dtype=values.dtype)
        filled[at] = values
        return filled

    graded, failed = tally.graded[rows], tally.failed[rows]
    tokens = tally.tokens[rows]
    known = (tokens != MISSING) & ~failed
    return ArmTable(
        present=np.asarray(table(np.ones(len(rows), dtype=bool), False), dtype=bool),
        correct=np.asarray(table(np.where(graded, tally.correct[rows], np.nan), np.nan), dtype=np.float64),
        tokens=np.asarray(table(np.where(known, tokens, np.nan), np.nan), dtype=np.float64),
        truncated=np.asarray(
            table(np.where(failed, np.nan, tally.truncated[rows].astype(np.float64)), np.nan), dtype=np.float64
        ),
        answer=np.asarray(table(tally.answer[rows], MISSING), dtype=np.int64),
        text=np.asarray(table(tally.text[rows], MISSING), dtype=np.int64),
        failed=np.asarray(table(failed, False), dtype=bool),
        seed=np.asarray(table(tally.seed[rows], MISSING), dtype=np.int64),
    )


@dataclass(frozen=True)
class Pair:
    """Two arms over the (problem, sample) pairs that both have a line for; everything else is NaN in both.

    `by_seed`: the arms drew every common sample with the same seed, so their difference is paired. Arms with seeds of
    their own (a replica, arms after a prefix) are independent.
    """

    arm: ArmTable
    against: ArmTable
    by_seed: bool
    groups: Ints | None = None  # [n_problems]: problems of one template, story or subject

    @property
    def common(self) -> Bools:
        return self.arm.present

    @property
    def ungraded(self) -> Bools:
        """Count the common samples without a grade in at least one arm."""
        doubtful: Bools = self.common & (np.isnan(self.arm.correct) | np.isnan(self.against.correct))
        return doubtful

    def graded_only(self) -> Pair:
        """Return the pair without the samples that have no grade in an arm."""
        return self._masked(self.common & ~self.ungraded)

    def at_worst(self) -> Iterator[Pair]:
        """Return the pair with ungraded samples wrong in the arm, right in the other, then reversed (Manski 1989)."""
        for mine, theirs in ((0.0, 1.0), (1.0, 0.0)):
            yield replace(
                self, arm=_filled(self.arm, self.common, mine), against=_filled(self.against, self.common, theirs)
            )

    def _masked(self, keep: Bools) -> Pair:
        return replace(self, arm=_only(self.arm, keep), against=_only(self.against, keep))


def pair_up(
    arm: ArmTable,
    against: ArmTable,
    samples: int | None = None,
    groups: Ints | None = None,
    problems: int | None = None,
) -> Pair:
    """Put two arms side by side; with `samples`, only lower indices; with `problems`, only the first ones."""
    if samples is not None or problems is not None:
        arm, against = arm.first(samples, problems), against.first(samples, problems)
        groups = groups if groups is None else groups[:problems]
    common = arm.present & against.present
    by_seed = bool(np.all(arm.seed[common] == against.seed[common]))
    return Pair(_only(arm, common), _only(against, common), by_seed, groups)


def _only(table: ArmTable, keep: Bools) -> ArmTable:
    return replace(
        table,
        present=keep,
        correct=np.where(keep, table.correct, np.nan),
        tokens=np.where(keep, table.tokens, np.nan),
        truncated=np.where(keep, table.truncated, np.nan),
    )


def _filled(table: ArmTable, common: Bools, grade: float) -> ArmTable:
    return replace(table, correct=np.where(common & np.isnan(table.correct), grade, table.correct))

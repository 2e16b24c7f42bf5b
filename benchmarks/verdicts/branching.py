"""The rows of a summary about branching arms: at equal tokens, described, without a verdict."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from steerdec.common import bootstrap
from steerdec.records.summary import BranchContrast, Branching, BranchOutcome

from ..stats.branching import OUTCOMES, Trees, trees_of
from ..stats.comparisons import FEW
from ..stats.estimators import ROUNDING, Floats
from ..stats.pairing import Bools
from .run_data import RunData
from .wording import plural


def branching_rows(data: RunData) -> tuple[tuple[Branching, ...], tuple[BranchContrast, ...]]:
    """Return every branching arm against the baseline at equal tokens, and what each gains over the others."""
    plain = data.tables[data.design.baseline]
    found = {
        name: trees_of(data.tables[name], data.tables[branch.roots], plain, branch.continuations)
        for name, branch in data.design.branches.items()
    }
    contrasts = [
        _contrast(data, (one, other), (found[one], found[other]), outcome)
        for one, other in combinations(found, 2)
        for outcome in OUTCOMES
    ]
    return tuple(_row(data, name, trees) for name, trees in found.items()), tuple(contrasts)


def _row(data: RunData, name: str, trees: Trees) -> Branching:
    branch, counted = data.design.branches[name], trees.counted
    planned, whole = len(counted) * (data.samples // branch.continuations), int(trees.whole.sum())
    once, draws = _weights(data, counted)
    outcomes = []
    for outcome in OUTCOMES:
        tree, plain = (float(value[0]) for value in trees.values(outcome, once))
        gains = np.subtract(*trees.values(outcome, draws))
        outcomes.append(
            BranchOutcome(outcome=outcome, tree=tree, plain=plain, diff=tree - plain, ci95=_interval(gains))
        )
    notes = []
    if planned > whole:
        notes.append(f"{plural(planned - whole, 'tree')} of {planned} not whole, or not graded, and left out")
    if counted.any() and outcomes[0].plain is None:
        notes.append(
            f"a tree costs more than {trees.plain['accuracy'].shape[1] - 1} plain samples, which are not there"
        )
    if not len(draws):
        notes.append(f"fewer than {FEW} problems, or groups, are too few for an interval")
    return Branching(
        arm=name,
        roots=branch.roots,
        baseline=data.design.baseline,
        place=branch.place,
        continuations=branch.continuations,
        trees=whole,
        trees_planned=planned,
        n_problems=int(counted.sum()),
        dropped_problems=int(np.sum(~counted)),
        tree_tokens=float(np.mean(trees.tree_tokens[counted])) if counted.any() else None,
        plain_samples=float(trees.plain_samples(once)[0]),
        outcomes=tuple(outcomes),
        note="; ".join(notes),
    )


def _contrast(data: RunData, names: tuple[str, str], pair: tuple[Trees, Trees], outcome: str) -> BranchContrast:
    both: Bools = pair[0].counted & pair[1].counted
    once, draws = _weights(data, both)
    gains = [[np.subtract(*trees.values(outcome, weights)) for trees in pair] for weights in (once, draws)]
    return BranchContrast(
        arm=names[0],
        against=names[1],
        outcome=outcome,
        diff=float((gains[0][0] - gains[0][1])[0]),
        ci95=_interval(gains[1][0] - gains[1][1]),
        n_problems=int(both.sum()),
    )


def _weights(data: RunData, counted: Bools) -> tuple[Floats, Floats]:
    """Return the weights of the problems that count, once [1, n_problems] and in bootstrap draws [draws, n_problems].

    Whole groups of problems are drawn. There are no draws where there are too few for an interval.
    """
    number = np.arange(len(counted)) if data.groups is None else data.groups
    clusters = np.unique(number[counted])
    once = counted[None, :].astype(np.float64)
    if len(clusters) < FEW:
        return once, np.zeros((0, len(counted)))
    drawn = bootstrap.weights(len(clusters), np.random.default_rng(len(clusters)))  # the same for every row of a run
    column = np.searchsorted(clusters, number).clip(0, len(clusters) - 1)
    return once, drawn[:, column] * counted


def _interval(gains: Floats) -> tuple[float, float] | None:
    """Return the middle 95% of the draws; None where there are none, or they are all equal: nothing shows a spread."""
    if not len(gains) or not np.ptp(gains) > ROUNDING:
        return None
    return bootstrap.interval(gains)

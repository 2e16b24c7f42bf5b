"""Was the steering of an arm applied? An arm that changed nothing can neither support nor refute a claim. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steerdec.records.summary import Application

from ..stats.estimators import Estimate, Floats, mean_over_problems
from ..stats.tally import MISSING, Tally
from .expectations import Design


@dataclass(frozen=True)
class Applied:
    """What an arm's telemetry says. `shift`: of the entropy as sampled, in nats, against the base temperatures."""

    status: Application
    reason: str
    shift: Estimate | None = None


def applications(design: Design, tally: Tally) -> dict[str, Applied]:
    """Return, for each arm that steers at other than the base temperatures, whether its steering was applied.

    Two conditions: it steered at least one token, and the entropy of the distributions drawn from moved to the side
    that the temperatures ask for (one-sided t-test over problems, 5%), against the arm that steers at the base
    temperatures, or, at base temperature 1, against the arm's own distributions. Without telemetry it is "not
    measured".
    """
    return {name: _applied(design, tally, name) for name in design.asks if name in design.arms}


def _applied(design: Design, tally: Tally, name: str) -> Applied:
    asks = design.asks[name]
    own = tally.of(name) & ~tally.failed
    counted = own & (tally.forks != MISSING) & (tally.tokens != MISSING)
    if not counted.any():
        return Applied("not measured", "no sample tells what was steered")
    forks, tokens = int(tally.forks[counted].sum()), int(tally.tokens[counted].sum())
    steered = (forks if asks.forks else 0) + (tokens - forks if asks.others else 0)
    if steered == 0:
        return Applied("not applied", f"it steered none of {tokens} tokens")
    share = f"it steered {100 * steered / tokens:.1f}% of {tokens} tokens"
    shift = None if asks.first_only else _shift(design, tally, name)
    if shift is None or np.isnan(shift.value):
        return Applied("applied", share)
    if not asks.sign:  # it raises at some tokens and lowers at others, or its policy decides by the logits
        return Applied("applied", share, shift)
    side, word = asks.sign, "raised" if asks.sign > 0 else "lowered"
    p = shift.p / 2 if side * shift.value > 0 else 1.0
    moved = f"{share}; its entropy as sampled moved by {shift.value:+.4f} nats".replace("-", "−")
    if not shift.se > 0:
        p = 0.0 if side * shift.value > 0 else 1.0
    if not p < 0.05:
        return Applied("not applied", f"{moved}, which is not {word} beyond chance", shift)
    return Applied("applied", moved, shift)


def _shift(design: Design, tally: Tally, name: str) -> Estimate | None:
    mine = _by_problem(tally, name, tally.sampled_entropy_nats)
    reference = next(
        (arm for arm in design.identities if design.controls[arm] == design.controls[name]),
        None,
    )
    if reference is not None:
        theirs = _by_problem(tally, reference, tally.sampled_entropy_nats)
        if not np.isnan(theirs).all():
            return mean_over_problems(mine - theirs)
    if design.temperature == 1.0:
        return mean_over_problems(mine - _by_problem(tally, name, tally.entropy_nats))
    return None


def _by_problem(tally: Tally, arm: str, nats: Floats) -> Floats:
    """Return the mean over an arm's samples, weighted by their tokens, [n_problems]."""
    rows = tally.of(arm) & ~np.isnan(nats) & (tally.tokens > 0)
    n = len(tally.problems)
    total = np.bincount(tally.problem[rows], weights=nats[rows] * tally.tokens[rows], minlength=n)
    tokens = np.bincount(tally.problem[rows], weights=tally.tokens[rows], minlength=n)
    means: Floats = np.full(n, np.nan)
    return np.divide(total, tokens, out=means, where=tokens > 0)

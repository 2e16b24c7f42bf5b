"""Planned looks: when a run stops to see which arms it still needs.

Watching a run and stopping at will raises false alarms. Here the looks are planned beforehand and recorded in
`run.json`, and the statistics spend their error over them (`benchmarks.stats.looks`). An arm is dropped at a look once
every claim that needs it is decided, or has no prospect of being decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from steerdec.common.errors import InvalidInputError
from steerdec.common.progress import announce
from steerdec.problems.sets import Problem
from steerdec.records.run import Look, Settings

from ..design.plan import SamplingPlan

_FRACTION = re.compile(r"[0-9.]{1,20}(/[0-9]{1,20})?")  # a Fraction would also take 1e999999999, for hours


def parse_fractions(text: str) -> tuple[float, ...]:
    """Return the fractions of "1/8,1/4,1/2,3/4,1". Raises InvalidInputError."""
    try:
        parts = [part.strip() for part in text.split(",")]
        fractions = tuple(float(Fraction(part)) for part in parts if _FRACTION.fullmatch(part))
        fractions *= len(fractions) == len(parts)
    except (ValueError, ZeroDivisionError):
        fractions = ()
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise InvalidInputError(
            f'--looks: "{text}" is not a list of fractions above 0 and at most 1, as in 1/8,1/4,1/2,3/4,1'
        )
    return fractions


def plan_run_looks(samples: int, fractions: tuple[float, ...], problems: Sequence[Problem]) -> tuple[Look, ...]:
    """Return the looks at these fractions of `samples` samples per problem and arm, the last at all of them.

    With too few problems for any verdict there is one look, at the end: otherwise the first look would give up every
    arm.
    """
    from ..stats.comparisons import FEW
    from ..stats.looks import plan_looks  # scipy, which takes a second to import

    independent = len({problem.group or problem.id for problem in problems})
    if independent < FEW:
        fractions = (1.0,)
    return tuple(Look(samples=look.samples, planned=look.planned) for look in plan_looks(samples, fractions))


@dataclass(frozen=True)
class Stage:
    """What to sample until a look: the samples not in `skip`. `total`: samples of the run, as planned now."""

    look: Look
    skip: bytearray
    total: int


class Progress:
    """Which samples of a plan exist, and which are needed next."""

    def __init__(self, folder: Path, settings: Settings, plan: SamplingPlan, done: bytearray) -> None:
        self._folder = folder
        self._plan = plan
        self._looks = settings.planned_looks
        self._samples = settings.samples
        self._dropped: set[str] = set()
        self.done = done

    def finish(self, stage: Stage) -> None:
        """Mark everything of a stage as done, including failures."""
        for number, skipped in enumerate(stage.skip):
            self.done[number] |= not skipped

    def next_stage(self) -> Stage | None:
        """Return the first look with samples missing in arms that are still needed there; None if there is none.

        Raises:
            SummaryError: the samples cannot be read.
        """
        needed = {arm.name for arm in self._plan.arms}
        kept = self._at_an_earlier_end()
        still_needed: set[str] | None = None
        for before, look in zip((None, *self._looks), self._looks, strict=False):
            skip = self._skip(look, needed)
            if before is not None and (look is self._looks[-1] or not all(skip)):
                self._announce(before, {arm.name for arm in self._plan.arms} - needed)
            if not all(skip):
                missing = sum(not have for have in self._skip(self._looks[-1], needed))
                return Stage(look=look, skip=skip, total=sum(self.done) + missing)
            if look is self._looks[-1]:
                break
            if still_needed is None:
                still_needed = set(arms_still_needed(self._folder)) | kept
            needed &= still_needed
        return None

    def _at_an_earlier_end(self) -> set[str]:
        """Return the arms that were still sampled at the end of the run before it was extended.

        The user wants more of them, although nothing is left to decide.
        """
        ends = [look for look in self._looks[:-1] if look.at_the_end]
        if not ends:
            return set()
        names = {arm.name for arm in self._plan.arms}
        skip = self._skip(ends[-1], names)
        return names - {item.arm.name for item in self._plan.items(skip)}

    def _skip(self, look: Look, arms: set[str]) -> bytearray:
        """Return one byte per sample of the plan: 0 if it is missing and the look needs it in one of `arms`."""
        skip = bytearray(self.done)
        problems = {problem.id for problem in self._plan.problems[: look.problems]}
        for planned in self._plan.items(self.done):
            if planned.sample >= look.samples or planned.arm.name not in arms or planned.problem.id not in problems:
                skip[planned.number] = 1
        return skip

    def _announce(self, look: Look, dropped: set[str]) -> None:
        if new := sorted(dropped - self._dropped):
            self._dropped |= dropped
            saved = sum(planned.arm.name in dropped for planned in self._plan.items(self.done))
            announce(
                f"look at {look.samples} of {self._samples} samples: {', '.join(new)} no longer needed, as every claim "
                f"on them is decided or given up; {saved} samples saved so far"
            )


def arms_still_needed(folder: Path) -> tuple[str, ...]:
    """Return the arms of the run in `folder` that a claim, or the description of the run, still needs.

    Raises:
        SummaryError: the run cannot be read.
    """
    from ..verdicts import claims
    from ..verdicts.summary import read_run_data

    data = read_run_data(folder)
    return claims.judge(data, claims.judge_instruments(data)).arms_needed

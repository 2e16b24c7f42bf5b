"""What a run was planned to show, and the samples it has so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from steerdec.records.doses import ArmDose

from ..stats.estimators import Ints
from ..stats.looks import PlannedLook
from ..stats.pairing import ArmTable, arm_table
from ..stats.tally import Tally
from .application import Applied, applications
from .dose_matches import DoseMatches
from .expectations import Design


@dataclass(frozen=True)
class RunData:
    """A run. `groups`: [n_problems], numbers of templates, stories or subjects; None where every problem is its own."""

    design: Design
    tally: Tally
    looks: tuple[PlannedLook, ...]
    groups: Ints | None
    tables: Mapping[str, ArmTable]
    dose_matches: DoseMatches

    @classmethod
    def of(
        cls,
        design: Design,
        tally: Tally,
        looks: tuple[PlannedLook, ...],
        groups: Ints | None = None,
        doses: Mapping[str, ArmDose] | None = None,
    ) -> RunData:
        tables = {name: arm_table(tally, name) for name in design.arms}
        return cls(design, tally, looks, groups, tables, DoseMatches(design.baseline, doses or {}, design.matched))

    @cached_property
    def applied(self) -> dict[str, Applied]:
        """By arm, whether its steering was applied; arms that steer nothing are left out."""
        return applications(self.design, self.tally)

    @property
    def samples(self) -> int:
        """Planned per problem and arm."""
        return self.looks[-1].samples

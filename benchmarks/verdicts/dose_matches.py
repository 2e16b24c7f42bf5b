"""Which differences compare arms of equal dose, and what is known of the error of the matching. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from steerdec.records.doses import ArmDose
from steerdec.records.summary import Metric, Population

from ..stats import metrics
from ..stats.comparisons import difference
from ..stats.dose_error import DoseError, Mismatch, dose_error
from ..stats.estimators import Ints
from ..stats.pairing import ArmTable, pair_up

NOT_RECORDED = "how well its doses are matched is not recorded, so the intervals take them as equal"


@dataclass(frozen=True)
class DoseMatches:
    """The matched arms of a run. `matched`: by arm whose temperature was solved, the arm whose dose it has."""

    baseline: str
    doses: Mapping[str, ArmDose] = field(default_factory=dict)
    matched: Mapping[str, str] = field(default_factory=dict)

    def not_recorded(self, arm: str, against: str) -> bool:
        """Return whether the two have equal doses by design, and the run does not say how equal."""
        return any(self._mismatch(name) is None for name in self._solved(arm, against))

    def error(
        self,
        tables: Mapping[str, ArmTable],
        compared: tuple[str, str, Metric],
        population: Population,
        samples: int | None = None,
        groups: Ints | None = None,
        problems: int | None = None,
    ) -> DoseError | None:
        """Return the error of the matching in one difference, None where the doses are not matched, or not recorded."""
        arm, against, metric = compared
        found = []
        for name in self._solved(arm, against):
            if (known := self._mismatch(name)) is not None:
                pair = pair_up(tables[name], tables[self.baseline], samples, groups, problems).graded_only()
                effect = difference(metrics.spread(pair, metric), population)
                found.append(Mismatch(*known, effect))
        return dose_error(found)

    def _solved(self, arm: str, against: str) -> Iterator[str]:
        """Yield the arms of a pair whose temperature was solved so that both have one dose."""
        mine, theirs = self.matched.get(arm), self.matched.get(against)
        if mine is not None and mine in (against, theirs):
            yield arm
        if theirs is not None and theirs in (arm, mine):
            yield against

    def _mismatch(self, name: str) -> tuple[float, float, float] | None:
        dose = self.doses.get(name)
        if dose is None or dose.mismatch_nats is None or dose.mismatch_se_nats is None:
            return None
        return dose.dose_nats, dose.mismatch_nats, dose.mismatch_se_nats

"""The temperatures that each arm set, and the dose curves they form.

The form is figure 3 of arXiv 2506.01939: accuracy against the temperature of one group of tokens, with the other group
at the base temperature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from steerdec.policies.registry import parse
from steerdec.records.arms import Arm
from steerdec.records.run import Settings
from steerdec.records.summary import ArmSummary, Summary

# The 15 labels printed in the paper's figure 3 (mean of AIME'24 and AIME'25, percent) and its temperatures. The text
# does not say which label belongs to which point.
PAPER_LABELS_PERCENT = (
    *(72.22, 71.67, 71.67, 71.11, 71.04, 70.94, 70.76, 70.73),
    *(70.52, 70.07, 68.96, 68.33, 62.71, 20.14, 0.14),
)
PAPER_TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)
MIN_DOSES = 3
AT_BASE = ("baseline", "identity", "replicate", "replica")  # roles that decode at the base temperature everywhere


@dataclass(frozen=True)
class Dose:
    """The two temperatures that one arm set. `select`: which tokens are forks; "none" in a plain request."""

    arm: Arm
    fork_temperature: float
    other_temperature: float
    select: str

    @property
    def undisturbed(self) -> bool:
        """Return whether the arm writes whole responses at the base temperature."""
        return self.arm.role in AT_BASE and self.arm.replay is None


@dataclass(frozen=True)
class DosePoint:
    arm: str
    temperature: float
    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class DoseCurves:
    """`forks`: T at forks varies, others at the base; `others`: the reverse. By temperature, the baseline in both."""

    forks: tuple[DosePoint, ...]
    others: tuple[DosePoint, ...]
    base_temperature: float


def doses(settings: Settings) -> dict[str, Dose]:
    """Return the temperatures by arm name, without the arms that decide them token by token."""
    found = {arm.name: _dose(arm) for arm in settings.arms.arms}
    return {name: dose for name, dose in found.items() if dose is not None}


def _dose(arm: Arm) -> Dose | None:
    fork, other = arm.applied()
    if fork is None or other is None:
        return None
    steering = None if arm.steering is None else parse(arm.steering)
    if steering is not None and steering.remembers:
        return None
    select = "none" if steering is None else steering.select
    return Dose(arm, fork, other, select)


def dose_curves(settings: Settings, summary: Summary) -> DoseCurves | None:
    """Return the curves, or None where neither group of tokens has `MIN_DOSES` temperatures, the base among them."""
    by_arm, base, baseline = doses(settings), settings.temperature, settings.arms.baseline
    if baseline not in by_arm:
        return None
    forks: dict[float, DosePoint] = {}
    others: dict[float, DosePoint] = {}
    # The baseline first: A/A and replica arms set the same temperatures and are not doses.
    for dose in sorted(by_arm.values(), key=lambda dose: dose.arm.name != baseline):
        arm = summary.arms.get(dose.arm.name)
        if arm is None or arm.avg_at_k is None or (dose.select != "entropy" and dose.arm.name != baseline):
            continue
        # Solved for another arm's dose, or no whole responses.
        if dose.arm.role in ("matched", "branch") or dose.arm.replay:
            continue
        if _same(dose.other_temperature, base):
            forks.setdefault(dose.fork_temperature, _point(dose.arm.name, dose.fork_temperature, arm))
        if _same(dose.fork_temperature, base):
            others.setdefault(dose.other_temperature, _point(dose.arm.name, dose.other_temperature, arm))
    if max(len(forks), len(others)) < MIN_DOSES:
        return None
    return DoseCurves(_sorted(forks), _sorted(others), base)


def reference_arm(settings: Settings, with_data: Collection[str]) -> str | None:
    """Return the first arm at base temperatures that has data, to read undisturbed entropies from; else the first."""
    undisturbed = [dose.arm.name for dose in doses(settings).values() if dose.undisturbed]
    return next(iter([*(name for name in undisturbed if name in with_data), *with_data]), None)


def _point(name: str, at: float, arm: ArmSummary) -> DosePoint:
    assert arm.avg_at_k is not None, "an arm without a score is on no curve"
    return DosePoint(name, at, arm.avg_at_k, arm.avg_at_k_ci95)


def _sorted(points: Mapping[float, DosePoint]) -> tuple[DosePoint, ...]:
    return tuple(points[at] for at in sorted(points))


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 1e-6

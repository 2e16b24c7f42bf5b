"""Which temperatures each arm asked for, and the dose curves they make.

The form is figure 3 of arXiv 2506.01939: accuracy against the temperature of one group of tokens, the other group at
the base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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
    """The temperatures one arm asked for. `select`: what makes a fork; "none" in a plain request."""

    arm: str
    fork_temperature: float
    other_temperature: float
    select: str
    role: str
    replay: str = ""  # of the prefixes it goes on from

    @property
    def undisturbed(self) -> bool:
        """Whether it writes whole responses at the base temperature."""
        return self.role in AT_BASE and not self.replay


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


def arm_list(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The arms of the resolved arm set in run.json."""
    return list(run["arms"]["arms"])


def doses(run: Mapping[str, Any]) -> dict[str, Dose]:
    """The temperatures by arm name. An arm whose policy does not set two temperatures is left out."""
    found: dict[str, Dose] = {}
    for arm in arm_list(run):
        own, steering = arm.get("temperature"), arm.get("steering") or {}
        if steering.get("policy", "split") != "split" or not isinstance(own, (int, float)):
            continue
        fork, other = steering.get("fork_temperature", own), steering.get("other_temperature", own)
        select = str(steering.get("select", "entropy")) if steering else "none"
        found[arm["name"]] = Dose(
            arm["name"],
            fork,
            fork if select == "all" else other,
            select,
            str(arm.get("role") or ""),
            str(arm.get("replay") or ""),
        )
    return found


def dose_curves(run: Mapping[str, Any], summary: Mapping[str, Any]) -> DoseCurves | None:
    """The curves, or None where neither group of tokens was given `MIN_DOSES` temperatures, the base among them."""
    asked, base = doses(run), run["temperature"]
    baseline = run["arms"]["baseline"]
    if baseline not in asked:
        return None
    forks: dict[float, DosePoint] = {}
    others: dict[float, DosePoint] = {}
    # The baseline first: A/A and replica arms ask for the same temperatures and are not doses.
    for dose in sorted(asked.values(), key=lambda dose: dose.arm != baseline):
        arm = summary["arms"].get(dose.arm)
        if arm is None or arm["avg_at_k"] is None or (dose.select != "entropy" and dose.arm != baseline):
            continue
        if dose.role == "matched" or dose.replay:  # solved for another arm's dose; not of whole responses
            continue
        if _same(dose.other_temperature, base):
            forks.setdefault(dose.fork_temperature, _point(dose.arm, dose.fork_temperature, arm))
        if _same(dose.fork_temperature, base):
            others.setdefault(dose.other_temperature, _point(dose.arm, dose.other_temperature, arm))
    if max(len(forks), len(others)) < MIN_DOSES:
        return None
    return DoseCurves(_sorted(forks), _sorted(others), base)


def reference_arm(run: Mapping[str, Any], with_data: Collection[str]) -> str | None:
    """The arm to read undisturbed entropies from: the first at base temperatures that has data, else the first."""
    undisturbed = [dose.arm for dose in doses(run).values() if dose.undisturbed and dose.arm in with_data]
    return next(iter([*undisturbed, *with_data]), None)


def _point(name: str, at: float, arm: Mapping[str, Any]) -> DosePoint:
    ci95 = arm.get("avg_at_k_ci95")
    known = ci95 is not None and None not in ci95
    return DosePoint(name, at, arm["avg_at_k"], (ci95[0], ci95[1]) if known and ci95 else None)


def _sorted(points: Mapping[float, DosePoint]) -> tuple[DosePoint, ...]:
    return tuple(points[at] for at in sorted(points))


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 1e-6

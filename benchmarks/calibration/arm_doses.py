"""The dose of every arm of a set, in both currencies, from the curves of a calibration and of its bootstrap draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from steerdec.common import bootstrap
from steerdec.records.arms import ArmSet
from steerdec.records.doses import ArmDose, Part, parts_of

from .matching import Contribution, divergence

Floats = NDArray[np.float64]


class Doses:
    """Doses by parts of the text; every number is [draws], the curves as they were measured first."""

    def __init__(
        self, base: float, measured: Mapping[float, Contribution], draws: Sequence[Mapping[float, Contribution]]
    ):
        looks = sorted(measured)
        self.base, self.low, self.high = base, looks[0], looks[-1]
        every = [measured, *(draw for draw in draws if sorted(draw) == looks)]
        log_t = np.log(looks)

        def curve(nats: str) -> PchipInterpolator:
            means = [[getattr(d[t], nats).sum() / d[t].tokens.sum() for d in every] for t in looks]
            return PchipInterpolator(log_t, np.array(means, dtype=np.float64))

        forks, others = curve("forks_nats"), curve("others_nats")
        self._curves = {"forks": (forks,), "others": (others,), "all": (forks, others)}
        self._known: dict[tuple[str, float], tuple[Floats, Floats]] = {}

    def covers(self, parts: Sequence[Part]) -> bool:
        """Return whether all temperatures are 0 or within the measured ones."""
        low, high = self.low * (1 - 1e-9), self.high * (1 + 1e-9)
        return all(part.temperature == 0.0 or low <= part.temperature <= high for part in parts)

    def of(self, parts: Sequence[Part]) -> tuple[Floats, Floats]:
        """Return the change of the mean entropy, and the mean KL divergence of what is sampled from a plain request."""
        each = [(part.share, *self._at(part.tokens, part.temperature)) for part in parts]
        return np.sum([s * dose for s, dose, _ in each], axis=0), np.sum([s * kl for s, _, kl in each], axis=0)

    def _at(self, tokens: str, temperature: float) -> tuple[Floats, Floats]:
        if (tokens, temperature) not in self._known:
            curves, base = self._curves[tokens], self.base
            nats = [0.0 if temperature == 0.0 else curve(math.log(temperature)) for curve in curves]
            dose = np.sum([at - curve(math.log(base)) for at, curve in zip(nats, curves, strict=True)], axis=0)
            kl = np.sum([divergence(curve, temperature, base) for curve in curves], axis=0)
            self._known[tokens, temperature] = (dose, np.maximum(kl, 0.0))
        return self._known[tokens, temperature]


def arm_doses(arm_set: ArmSet, doses: Doses, threshold_nats: float, matched: Mapping[str, str]) -> dict[str, ArmDose]:
    """Return the doses by arm; without the arms that fixed temperatures on the curves do not describe.

    Args:
        arm_set: resolved.
        matched: by arm whose temperature was solved, the arm whose dose it is to have.
    """
    found: dict[str, ArmDose] = {}
    parts_by_arm = {arm.name: parts_of(arm, threshold_nats) for arm in arm_set.arms}
    for name, parts in parts_by_arm.items():
        if parts is None or not doses.covers(parts):
            continue
        dose, kl = doses.of(parts)
        target = parts_by_arm.get(matched.get(name, ""))
        missed = None if target is None else dose - doses.of(target)[0]
        found[name] = ArmDose(
            parts=parts,
            dose_nats=float(dose[0]),
            dose_ci95=_interval(dose[1:]),
            kl_nats=float(kl[0]),
            kl_ci95=_interval(kl[1:]),
            matched=None if missed is None else matched[name],
            mismatch_nats=None if missed is None else float(missed[0]),
            mismatch_se_nats=None if missed is None or len(missed) < 2 else float(np.std(missed[1:])),
        )
    return found


def _interval(draws: Floats) -> tuple[float, float] | None:
    return bootstrap.interval(draws) if len(draws) else None

"""Resolve an arm set into numbers: everything that is relative to the base temperature, calibrated or solved.

A resolved set is itself a valid arm set, which resolves to itself.
"""

from __future__ import annotations

import re
from typing import Any

from steerdec.policies import registry
from steerdec.records.arms import Arm, ArmError, ArmSet, parse_arm_set
from steerdec.steering import params

PLAIN = ("baseline", "replicate", "replica", "replay", "branch")  # roles without steering


def resolve(
    arm_set: ArmSet,
    *,
    temperature: float,
    threshold_nats: float,
    fork_rate: float | None = None,
    solved: dict[str, float] | None = None,
) -> ArmSet:
    """Return the set with numbers for everything relative, each steering checked by `steerdec.steering.params`.

    Args:
        temperature: the base temperature.
        threshold_nats: entropy above which a token is a fork, written into every steering without a threshold.
        fork_rate: for "calibrated", the share of tokens above the threshold in a calibration.
        solved: for "solve", the temperature by arm name, solved on calibration text.

    Raises:
        ArmError: a value is missing or not allowed; one line that names the arm.
    """
    known = {"calibrated": fork_rate, "solve": solved or {}}
    arms = tuple(_resolve_arm(arm, temperature, threshold_nats, known) for arm in arm_set.arms)
    changed = {"arms": arms, "temperature": temperature, "threshold_nats": threshold_nats}
    return parse_arm_set(arm_set.model_copy(update=changed).model_dump())


def _resolve_arm(arm: Arm, base: float, threshold_nats: float, known: dict[str, Any]) -> Arm:
    request = _temperature(arm, "temperature", arm.temperature, base, known["solve"])
    if arm.role in PLAIN and request != base:
        raise ArmError(f'arm "{arm.name}": temperature: a {arm.role} decodes at the base temperature, {base:g}')
    if arm.steering is None:
        return arm.model_copy(update={"temperature": request})
    steering: dict[str, Any] = dict(arm.steering)
    for field in registry.temperature_fields():
        if field in steering:
            steering[field] = _temperature(arm, field, steering[field], base, known["solve"])
    if steering.get("fork_rate") == "calibrated":
        if known["calibrated"] is None:
            raise ArmError(
                f'arm "{arm.name}": fork_rate: "calibrated" needs a calibration; make one with '
                "`steerdec calibrate` and give it as --threshold FILE"
            )
        steering["fork_rate"] = known["calibrated"]
    steering.setdefault("threshold_nats", threshold_nats)
    resolved = arm.model_copy(update={"temperature": request, "steering": steering})
    if resolved.applied() != (base, base) and arm.role == "identity":
        raise ArmError(f'arm "{arm.name}": an identity arm has both temperatures equal to the base, {base:g}')
    return resolved


def _temperature(arm: Arm, field: str, value: Any, base: float, solved: dict[str, float]) -> float:
    place = f'arm "{arm.name}": {field}'
    if value == "solve":
        if arm.name not in solved:
            raise ArmError(
                f'{place}: is to be solved so that it matches "{arm.matched}"; do so with '
                "`steerdec calibrate --arms ...` and give its file as --threshold"
            )
        return solved[arm.name]
    if value == "base":
        return base
    if isinstance(value, str) and (factor := re.fullmatch(r"x(\d+(?:\.\d+)?)", value)):
        number = round(float(factor[1]) * base, 3)  # x1.667 of 0.6 is 1, not 1.0002
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ArmError(f'{place}: {params.shown(value)} is not a number, "base", "x1.67" or "solve"')
    if not (number == 0.0 or params.MIN_TEMPERATURE <= number <= params.MAX_TEMPERATURE):
        raise ArmError(
            f"{place}: {params.shown(value)} is {number:g}; allowed are 0 and {params.MIN_TEMPERATURE:g} "
            f"to {params.MAX_TEMPERATURE:g}"
        )
    return number

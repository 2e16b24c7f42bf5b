"""The settings that a search tries: arms of one steering each, and plain temperatures beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from steerdec.common.errors import InvalidInputError
from steerdec.common.seeds import hashed_bits
from steerdec.records.arms import SOLVE, Arm, ArmSet
from steerdec.steering.params import MAX_TEMPERATURE, MIN_TEMPERATURE

BASELINE: Final = "B"
QUANTILES: Final = (70, 80, 90)  # percentiles of the pilot's entropies that become thresholds
LEAST_NATS: Final = 0.01  # of a threshold: below it the model is certain

# Times the base temperature. 0 is left out: greedy decoding gives all samples of a problem one answer where it is
# applied, so that a few problems decide.
PLAIN: Final = (0.2, 0.35, 0.5, 0.7, 1.4, 2.0)
FORKS: Final = (0.2, 0.35, 0.5, 0.7, 1.4, 2.0)
OTHERS: Final = (0.5, 1.4)
BOTH: Final = ((0.5, 0.2), (1.4, 0.5), (2.0, 0.5))  # (forks, others)
DELTAS_NATS: Final = (-0.5, -0.2, 0.2, 0.5)


MAX_SETTINGS: Final = 90  # an arm set has at most 100 arms


class SpaceError(InvalidInputError):
    """There is nothing to search; the message is one plain line."""


def plain_arms(base: float) -> list[Arm]:
    """Return the baseline and one arm for each other plain temperature in the allowed range."""
    others = [factor for factor in PLAIN if _allowed(factor, base)]
    return [
        Arm(name=BASELINE, role="baseline", about="plain requests at the base temperature"),
        *(Arm(name=f"T=x{factor:g}", role="treatment", temperature=f"x{factor:g}") for factor in others),
    ]


def steered_arms(thresholds_nats: Mapping[str, float], base: float) -> list[Arm]:
    """Return every setting of the built-in space, for a base temperature and thresholds by name ("p80")."""
    return [
        Arm(name=name, role="treatment", steering=_quiet(steering))
        for name, steering in _settings(thresholds_nats)
        if all(_allowed(factor, base) for factor in _factors(steering))
    ]


def arms_from(arm_set: ArmSet) -> list[Arm]:
    """Return the settings of a user's own space: the steered arms of a set, without controls.

    Raises:
        SpaceError: there is none, or one cannot be a setting.
    """
    chosen = [arm for arm in arm_set.arms if arm.steering is not None and arm.role in ("treatment", "global")]
    if not chosen:
        raise SpaceError(f"--arms: {arm_set.name} has no arm with role treatment and a steering, so nothing to try")
    if len(chosen) > MAX_SETTINGS:
        raise SpaceError(f"--arms: {arm_set.name} has {len(chosen)} arms to try; at most {MAX_SETTINGS} are allowed")
    for arm in chosen:
        if arm.replay is not None:
            raise SpaceError(f'--arms: arm "{arm.name}" continues recorded responses, which a setting cannot do')
        if SOLVE in (arm.temperature, *(arm.steering or {}).values()):
            raise SpaceError(f'--arms: arm "{arm.name}" has a temperature to be solved; a setting needs it in numbers')
        if arm.name == BASELINE or arm.name.startswith("T="):
            raise SpaceError(f'--arms: arm "{arm.name}" has the name of a plain temperature; rename it')
    return [
        arm.model_copy(update={"role": "treatment", "matched": None, "steering": _quiet(arm.steering or {})})
        for arm in chosen
    ]


def drawn(arms: Sequence[Arm], n: int, seed: int) -> list[Arm]:
    """Return `n` of the arms, drawn by a hash of the seed, from all policies in turn; all of them if there are fewer.

    A draw begins with the draws for smaller n.
    """
    by_policy: dict[object, list[Arm]] = {}
    for arm in sorted(arms, key=lambda arm: hashed_bits("candidate", seed, arm.name)):
        by_policy.setdefault((arm.steering or {}).get("policy", "split"), []).append(arm)
    rounds = zip_longest(*by_policy.values())
    return [arm for one_round in rounds for arm in one_round if arm is not None][:n]


def _settings(thresholds_nats: Mapping[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, steering), temperatures relative to the base."""
    for place, nats in thresholds_nats.items():
        at = {"threshold_nats": nats}
        for fork in FORKS:
            yield f"split@{place}/fork=x{fork:g}", at | {"fork_temperature": f"x{fork:g}"}
        for other in OTHERS:
            yield f"split@{place}/other=x{other:g}", at | {"other_temperature": f"x{other:g}"}
        for fork, other in BOTH:
            temperatures = {"fork_temperature": f"x{fork:g}", "other_temperature": f"x{other:g}"}
            yield f"split@{place}/fork=x{fork:g}/other=x{other:g}", at | temperatures
        for delta in DELTAS_NATS:
            yield f"entropy_target@{place}/{delta:+g}", at | {"policy": "entropy_target", "delta_nats": delta}
        for fork in (1.0, 1.4, 2.0):
            yield f"p_less@{place}/fork=x{fork:g}", at | {"policy": "p_less", "fork_temperature": f"x{fork:g}"}
        for k in (2, 5):
            yield f"uniform_top_k@{place}/k={k}", at | {"policy": "uniform_top_k", "k": k}
    for theta in (0.1, 0.5):
        yield f"edt/theta={theta:g}", {"policy": "edt", "theta": theta}
    yield "dynatemp", {"policy": "dynatemp", "min_temperature": "x0.5", "max_temperature": "x1.5"}


def _factors(steering: Mapping[str, Any]) -> list[float]:
    return [float(value[1:]) for value in steering.values() if isinstance(value, str) and value.startswith("x")]


def _allowed(factor: float, base: float) -> bool:
    return MIN_TEMPERATURE <= round(factor * base, 3) <= MAX_TEMPERATURE


def _quiet(steering: Mapping[str, Any]) -> dict[str, Any]:
    """Return the steering with totals only as its telemetry: per-token lists of every candidate would fill disks."""
    return {**steering, "telemetry": "summary"}

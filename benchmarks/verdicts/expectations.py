"""What the arms of a run are to show, read from the arm set in `run.json`: pairs, claims, dose families. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from steerdec.policies.registry import parse
from steerdec.records.arms import ArmError, Branch, applied
from steerdec.records.summary import Metric

from ..stats.metrics import METRICS
from .verdict import Claim, Direction

DELTA = 0.02  # two arms closer than 2 points are called equivalent, unless the arm set says otherwise
DOSE_MATCHED = ("matched", "global")  # roles whose temperature is solved for the entropy change of another arm

_DIRECTIONS: dict[str, Direction] = {"greater": "greater", "higher": "greater", "less": "less", "lower": "less"}


class DesignError(ValueError):
    """An arm set that cannot be analyzed; one line that names the place."""


@dataclass(frozen=True)
class Family:
    """Arms that steer the same tokens in the same direction; `doses` are distances from the base temperature."""

    name: str
    arms: tuple[str, ...]  # by dose
    doses: tuple[float, ...]


class Contrast(NamedTuple):
    """Two arms with the same steering after the prefixes of two replays, each with the arm it is compared with."""

    arm: str
    control: str
    placebo: str
    placebo_control: str


@dataclass(frozen=True)
class Asks:
    """Which tokens an arm steers, and whether it raises (1) or lowers (-1) their entropy; 0 if it may do both."""

    forks: bool
    others: bool
    sign: int
    first_only: bool = False  # only the first tokens: too few to move a mean


@dataclass(frozen=True)
class Design:
    arms: tuple[str, ...]
    baseline: str
    controls: Mapping[str, str]  # arm -> what it is compared with: the plain arm of its replay, else the baseline
    identities: tuple[str, ...]
    repeats: tuple[str, ...]  # arms of plain requests; those with the baseline's seeds show what the engine changes
    pairs: tuple[tuple[str, str], ...]  # (arm, against): every arm against its control first
    claims: tuple[Claim, ...]
    combined: tuple[tuple[Claim, Claim], ...]  # (there is an effect, a dose-matched arm elsewhere does not have it)
    contrasts: tuple[Contrast, ...]
    families: tuple[Family, ...]
    delta: float
    asks: Mapping[str, Asks]  # the arms that steer at other than the base temperatures
    temperature: float | None  # of the baseline
    matched: Mapping[str, str]  # arm whose temperature is solved -> the arm whose dose it has
    branches: Mapping[str, Branch]  # arms whose samples are not independent: in no pair, compared at equal tokens


def read_design(arm_set: Mapping[str, Any]) -> Design:
    """Read the pairs, claims and dose families of an arm set.

    Raises:
        DesignError: a comparison names an arm that the run does not have, or a claim's direction is unknown.
    """
    arms: dict[str, Mapping[str, Any]] = {arm["name"]: arm for arm in arm_set["arms"]}
    baseline = str(arm_set["baseline"])
    claims = tuple(_claim(claim) for claim in arm_set.get("claims") or ())
    controls = _controls(arms, baseline)
    declared = [(c["arm"], _against(c)) for c in arm_set.get("comparisons") or ()]
    pairs = tuple(dict.fromkeys([*controls.items(), *((c.arm, c.against) for c in claims), *declared]))
    for name in (baseline, *(end for pair in pairs for end in pair)):
        if name not in arms:
            raise DesignError(f'"{name}" is compared but is not an arm of the run (there are: {", ".join(arms)})')
    delta = float(arm_set.get("delta", DELTA))
    if not 0 < delta < 1:
        raise DesignError(f"delta is {delta:g}; a fraction between 0 and 1 is allowed, such as 0.02 for 2 points")
    return Design(
        arms=tuple(arms),
        baseline=baseline,
        controls=controls,
        identities=_identities(arm_set, arms),
        repeats=tuple(n for n, arm in arms.items() if arm["role"] in ("replicate", "replica")),
        pairs=pairs,
        claims=claims,
        combined=tuple(_combined(claims, arms, baseline)),
        contrasts=tuple(_contrasts(arms, controls)),
        families=tuple(_families(arms, baseline)),
        delta=delta,
        asks={name: asks for name, arm in arms.items() if (asks := _asks(arm)) is not None},
        temperature=arms[baseline].get("temperature"),
        matched={name: str(arm["matched"]) for name, arm in arms.items() if arm.get("matched") is not None},
        branches={name: Branch.model_validate(arm["branch"]) for name, arm in arms.items() if arm.get("branch")},
    )


def _asks(arm: Mapping[str, Any]) -> Asks | None:
    """Return what an arm does to its tokens; None for one that does not steer, or is not in numbers."""
    own, steering = arm.get("temperature"), arm.get("steering") or {}
    if not isinstance(own, int | float):
        return None
    if steering.get("policy", "split") != "split":
        return _asks_by_policy(own, steering)
    fork, other = steering.get("fork_temperature", own), steering.get("other_temperature", own)
    if not isinstance(fork, int | float) or not isinstance(other, int | float):
        return None
    everything = steering.get("select") == "all"
    changes = [fork - own] if everything else [fork - own, other - own]
    signs = {1 if change > 0 else -1 for change in changes if change}
    if not signs:
        return None
    return Asks(
        forks=fork != own,
        others=not everything and other != own,
        sign=signs.pop() if len(signs) == 1 else 0,
        first_only=steering.get("select") == "first",
    )


def _asks_by_policy(own: float, steering: Mapping[str, Any]) -> Asks | None:
    """Return what a policy does whose forks have no fixed temperature: the direction is known of a target only."""
    try:
        other = applied(own, steering).other
    except ArmError:
        return None
    delta = steering.get("delta_nats", 0.0)
    others = steering.get("select", "entropy") != "all" and other is not None and other != own
    return Asks(
        forks=True,
        others=others,
        sign=0 if others or not isinstance(delta, int | float) else int(delta > 0) - int(delta < 0),
        first_only=steering.get("select") == "first",
    )


def _controls(arms: Mapping[str, Mapping[str, Any]], baseline: str) -> dict[str, str]:
    replays = {arm.get("replay"): name for name, arm in arms.items() if arm["role"] == "replay"}
    return {
        name: baseline if arm["role"] == "replay" else replays.get(arm.get("replay"), baseline)
        for name, arm in arms.items()
        if name != baseline and not arm.get("branch")
    }


def _identities(arm_set: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    if arm_set.get("identity"):
        return (str(arm_set["identity"]),)
    return tuple(name for name, arm in arms.items() if arm["role"] == "identity")


def _contrasts(arms: Mapping[str, Mapping[str, Any]], controls: Mapping[str, str]) -> list[Contrast]:
    """Return every treatment after a prefix beside the placebos after other prefixes with the same steering."""
    replayed = {name: arm for name, arm in arms.items() if arm.get("replay")}
    return [
        Contrast(name, controls[name], placebo, controls[placebo])
        for name, arm in replayed.items()
        for placebo, other in replayed.items()
        if (arm["role"], other["role"]) == ("treatment", "placebo")
        and arm["replay"] != other["replay"]
        and (arm["temperature"], arm["steering"]) == (other["temperature"], other["steering"])
    ]


def _against(comparison: Mapping[str, Any]) -> str:
    return str(comparison["against"] if "against" in comparison else comparison["baseline"])


def _claim(claim: Mapping[str, Any]) -> Claim:
    direction = _DIRECTIONS.get(claim["direction"])
    if direction is None:
        known = ", ".join(_DIRECTIONS)
        raise DesignError(f'claim "{claim["id"]}": direction "{claim["direction"]}" is none of {known}')
    metric: Metric | None = next((name for name in METRICS if name == (claim.get("metric") or "avg@k")), None)
    if metric is None:
        raise DesignError(f'claim "{claim["id"]}": metric "{claim["metric"]}" is none of {", ".join(METRICS)}')
    return Claim(claim["id"], claim["statement"], claim["arm"], _against(claim), direction, metric)


def _combined(
    claims: tuple[Claim, ...], arms: Mapping[str, Mapping[str, Any]], baseline: str
) -> list[tuple[Claim, Claim]]:
    """Return every claim on a dose-matched pair beside the claim of an effect with the same direction and tokens."""
    found = []
    for place in claims:
        dose_matched = any(arms[name]["role"] in DOSE_MATCHED for name in (place.arm, place.against))
        if place.against == baseline or not dose_matched or place.metric != "avg@k":
            continue
        where = _steered(arms[place.arm], arms[baseline])
        effects = [
            effect
            for effect in claims
            if effect.against == baseline
            and effect.metric == place.metric
            and effect.direction == place.direction
            and (effect.arm == place.arm or _same_tokens(_steered(arms[effect.arm], arms[baseline]), where))
        ]
        if effects:
            found.append((min(effects, key=lambda effect: effect.arm != place.arm), place))  # the very arm first
    return found


def _same_tokens(a: tuple[str, float] | None, b: tuple[str, float] | None) -> bool:
    return a is not None and b is not None and a[0] == b[0] and (a[1] > 0) == (b[1] > 0)


def _steered(arm: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return (which tokens, temperature there minus the base); None if no group, or more than one, is changed.

    Also None after a prefix: a change there is not a dose of the baseline. And where it depends on earlier tokens
    (a moving threshold, hysteresis, a guard): which tokens those are, each text decides for itself.
    """
    base, steering = baseline["temperature"], arm.get("steering") or {}
    try:
        fork, other = applied(arm["temperature"], arm.get("steering"))
    except ArmError:
        return None  # not in numbers yet
    if fork is None or other is None or math.isnan(fork + other) or arm.get("replay"):
        return None
    if not isinstance(base, int | float) or (steering and parse(dict(steering)).remembers):
        return None
    select = steering.get("select", "entropy")
    if select == "all" or fork == other:
        return ("all tokens", fork - base) if fork != base else None
    if other == base:
        elsewhere = f"first tokens ({steering.get('first_tokens')})" if select == "first" else "random tokens"
        return "forks" if select == "entropy" else elsewhere, fork - base
    return ("others", other - base) if fork == base and select == "entropy" else None


def _families(arms: Mapping[str, Mapping[str, Any]], baseline: str) -> list[Family]:
    members: dict[str, list[tuple[float, str]]] = {}
    for name, arm in arms.items():
        steered = _steered(arm, arms[baseline])
        if steered is not None:
            tokens, change = steered
            members.setdefault(f"{tokens} {'raised' if change > 0 else 'lowered'}", []).append(
                (round(abs(change), 6), name)
            )
    return [
        Family(name, tuple(arm for _, arm in sorted(found)), tuple(dose for dose, _ in sorted(found)))
        for name, found in members.items()
        if len({dose for dose, _ in found}) > 1
    ]

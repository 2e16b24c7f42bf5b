"""The arms of an experiment, as data: how each one decodes, and the claims about them.

An arm set is a YAML or JSON file. In it a temperature may be a number, "base" (the run's base temperature) or "x1.67"
(that many times the base, to 3 decimals); a fork rate may be "calibrated". `benchmarks.design.resolving` replaces these
by numbers. A resolved set is itself a valid arm set, so `run.json` holds it and a run can be repeated from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from steerdec.common.errors import InvalidInputError
from steerdec.common.validation import said_plainly
from steerdec.policies.registry import parse
from steerdec.records.summary import Metric
from steerdec.steering import params
from steerdec.steering.params import Applied, SteeringError, shown

Role = Literal[
    "baseline",  # plain requests; all other arms are compared with it
    "identity",  # A/A: steering on, both temperatures the base: must reproduce the baseline
    "replicate",  # plain requests, the baseline's seeds: what the engine alone changes
    "replica",  # plain requests, other seeds: what sampling alone changes
    "treatment",
    "placebo",  # random positions instead of forks
    "global",  # one temperature everywhere
    "matched",  # temperature solved so that the mean entropy changes as much as in another arm
    "replay",  # plain requests after replayed prefixes: the control of the arms that steer there
    "branch",  # plain requests after prefixes of responses of this run, several after each
]
SOLVE: Final = "solve"  # in place of a temperature: solved so that the arm matches another
REPLAYED = ("replay", "identity", "treatment", "placebo")  # roles that may start from a prefix
Positions = Literal["fork", "other", "any"]  # the tokens that a mask selects, the rest, or all
BranchPlace = Literal["highest", "fork", "other"]  # the fork with the highest entropy, any fork, any other token
MAX_CONTINUATIONS: Final = 64
Name = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[\w@/+.:=-]+$")]
NAME_IN_WORDS = "a name; allowed are up to 40 letters, digits and _@/+.:=-"


class ArmError(InvalidInputError):
    """An arm set cannot be used; the message says where in it."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Replay(_Data):
    """Where arms start: a position of a recorded response, drawn among those that a mask selects.

    `sha256` and `about` describe the mask at the start of a run; they are None in a set that has not been run.
    """

    mask: Annotated[str, Field(min_length=1)]  # its folder, relative to that of the arm set's file
    positions: Positions = "fork"
    sha256: str | None = None
    about: dict[str, JsonValue] | None = None


class Branch(_Data):
    """Where the samples of a branching arm start: at one place of a response of the arm `roots`.

    `continuations` consecutive samples start at the same place of the same response: with it they are one tree.
    """

    roots: Name  # the identity arm whose responses are continued
    place: BranchPlace
    continuations: Annotated[int, Field(ge=1, le=MAX_CONTINUATIONS)]

    def root_of(self, sample: int) -> int:
        """Return the sample of `roots` that a sample continues: the first one with the numbers of its tree."""
        return sample - sample % self.continuations


class Arm(_Data):
    """How the samples of one arm are decoded; if `steering` is None, requests are plain."""

    name: Name
    role: Role
    about: str = ""
    temperature: float | str = "base"  # of the request
    steering: dict[str, JsonValue] | None = None
    matched: Name | None = None  # the arm whose entropy change a "solve" temperature has to equal
    replay: Name | None = None  # of the set's `replays`: where the response starts
    branch: Branch | None = None

    @property
    def seed_group(self) -> str:
        """Return the arm's seed group; arms of one group draw with the same random numbers, and "" is the baseline's.

        An arm after a prefix is never in the baseline's group: its prefix may have been drawn with the same numbers.
        """
        if self.replay is not None or self.branch is not None:
            return "after a prefix"
        return self.name if self.role == "replica" else ""

    def applied(self) -> Applied:
        """Return the temperatures that the resolved arm applies; see `applied`."""
        return applied(self.temperature, self.steering, f'arm "{self.name}"')


def applied(temperature: object, steering: Mapping[str, Any] | None, place: str = "") -> Applied:
    """Return the temperatures of forks and of all other tokens under a request of an arm.

    A temperature is None where the policy decides it token by token, NaN where it is "solve".

    Raises:
        ArmError: something is not a number yet, or the steering is invalid.
    """
    if isinstance(temperature, str) and temperature != SOLVE:
        raise ArmError(f"{place}: temperature: {shown(temperature)} is not a number yet")
    # A temperature that depends on one still to be solved differs between two solutions.
    one, other = (_applied(temperature, steering, place, solution) for solution in (1.0, 2.0))
    return Applied(*(a if a == b else math.nan for a, b in zip(one, other, strict=True)))


def _applied(temperature: Any, steering: Mapping[str, Any] | None, place: str, solution: float) -> Applied:
    request = solution if temperature == SOLVE else float(temperature)
    if steering is None:
        return Applied(request, request)
    try:
        return parse({name: solution if value == SOLVE else value for name, value in steering.items()}).applied(request)
    except SteeringError as e:
        raise ArmError(f"{place}: {e}") from None


class Comparison(_Data):
    """A difference that is reported beside every arm's difference from the baseline."""

    arm: Name
    baseline: Name


class Claim(_Data):
    """A statement fixed before the run: `arm` is higher (or lower) than `baseline` in `metric`."""

    id: Annotated[str, Field(min_length=1, max_length=60)]
    statement: str
    arm: Name
    baseline: Name
    direction: Literal["higher", "lower"]
    metric: Metric = "avg@k"


class ArmSet(_Data):
    """Arms with a baseline, further comparisons, and claims (the primary comparisons, corrected together)."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    about: str = ""
    temperature: Annotated[float, Field(gt=0.0, le=params.MAX_TEMPERATURE)] | None = None  # base, unless a run says
    threshold_nats: Annotated[FiniteFloat, Field(ge=0.0)] | None = (
        None  # unless the run or the server has a calibration
    )
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02  # scores closer than this count as equal
    baseline: Name
    replays: dict[Name, Replay] = {}
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=100)]
    comparisons: tuple[Comparison, ...] = ()
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ArmSet:
        names = [arm.name for arm in self.arms]
        _no_repeats("arm", names)
        _no_repeats("claim", [claim.id for claim in self.claims])
        if [arm.name for arm in self.arms if arm.role == "baseline"] != [self.baseline]:
            raise ArmError(f'baseline: "{self.baseline}" must be the one arm with role baseline')
        if self.arm(self.baseline).steering is not None:
            raise ArmError(f'arm "{self.baseline}": the baseline takes no steering')
        pairs = [(c.arm, c.baseline) for c in self.claims] + [(c.arm, c.baseline) for c in self.comparisons]
        for name, against in pairs:
            if name == against:
                raise ArmError(f'"{name}" is compared with itself')
        for end in (end for pair in pairs for end in pair):
            if end not in names:
                raise ArmError(f'"{end}" is compared but is not an arm (there are: {", ".join(names)})')
        for arm in self.arms:
            if arm.role in ("replicate", "replica") and arm.steering is not None:
                raise ArmError(f'arm "{arm.name}": a {arm.role} takes no steering')
            if arm.role == "matched" and arm.matched is None:
                raise ArmError(f'arm "{arm.name}": role matched needs the field matched')
            if arm.matched is not None and arm.matched not in names:
                raise ArmError(f'arm "{arm.name}": matched: "{arm.matched}" is not an arm')
        _check_replays(self)
        _check_branches(self, [*(c.id for c in self.claims), *("comparisons" for _ in self.comparisons)], pairs)
        return self

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def _check_replays(arm_set: ArmSet) -> None:
    for arm in arm_set.arms:
        if arm.role == "replay" and (arm.replay is None or arm.steering is not None):
            raise ArmError(f'arm "{arm.name}": role replay needs the field replay, and takes no steering')
        if arm.replay is not None and arm.role not in REPLAYED:
            raise ArmError(f'arm "{arm.name}": a {arm.role} cannot replay; these roles can: {", ".join(REPLAYED)}')
        if arm.replay is not None and arm.replay not in arm_set.replays:
            known = ", ".join(arm_set.replays) or "none"
            raise ArmError(f'arm "{arm.name}": replay: "{arm.replay}" is not one of the replays (there are: {known})')
    for name in arm_set.replays:
        controls = sum(arm.role == "replay" and arm.replay == name for arm in arm_set.arms)
        if controls != 1:
            raise ArmError(f'replays "{name}": needs one arm with role replay to compare with, has {controls}')


def _check_branches(arm_set: ArmSet, places: list[str], pairs: list[tuple[str, str]]) -> None:
    for arm in arm_set.arms:
        if (arm.role == "branch") != (arm.branch is not None):
            raise ArmError(f'arm "{arm.name}": role branch and the field branch go together')
        if arm.branch is None:
            continue
        if arm.steering is not None or arm.replay is not None:
            raise ArmError(f'arm "{arm.name}": a branch takes no {"replay" if arm.steering is None else "steering"}')
        plain = [one.name for one in arm_set.arms if one.role == "identity" and one.replay is None]
        if arm.branch.roots not in plain:
            known = ", ".join(plain) or "none"
            raise ArmError(
                f'arm "{arm.name}": branch: roots: "{arm.branch.roots}" is not an arm with role identity that starts '
                f"from the prompt (there are: {known})"
            )
        for place, pair in zip(places, pairs, strict=True):
            if arm.name in pair:
                raise ArmError(
                    f'"{arm.name}" branches, so its samples are not independent; it is compared at equal tokens, not '
                    f"in {place if place == 'comparisons' else f'claim {place}'}"
                )


def _no_repeats(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ArmError(f'{what} "{name}" is there {names.count(name)} times')


def parse_arm_set(value: Any) -> ArmSet:
    """Return the set described by a plain object, as in a file or `run.json`. Raises ArmError."""
    try:
        return ArmSet.model_validate(value)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ArmError):
            raise cause from None
        unknown_field = first["type"] == "extra_forbidden"
        place = _place(value, first["loc"][:-1] if unknown_field else first["loc"])
        message = said_plainly(first, known=_model_at(first["loc"]).model_fields, pattern=NAME_IN_WORDS)
        separator = " " if first["type"] == "missing" else ": "
        if unknown_field and not place:
            raise ArmError(message) from None
        raise ArmError(f"{place or 'the arm set'}{separator}{message}") from None


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    parts: dict[int | str, type[BaseModel]] = {
        "arms": Arm,
        "comparisons": Comparison,
        "claims": Claim,
        "replays": Replay,
    }
    if len(loc) > 3 and loc[2] == "branch":
        return Branch
    return parts.get(str(loc[0]), ArmSet) if len(loc) > 2 else ArmSet


def _place(value: Any, loc: tuple[int | str, ...]) -> str:
    """Return `loc` in words: an arm by its name if it has one, other entries of a list counted from 1."""
    if len(loc) >= 2 and loc[0] == "arms" and isinstance(loc[1], int):
        entry = value["arms"][loc[1]]
        given = entry.get("name") if isinstance(entry, dict) else None
        name = given if isinstance(given, str) else str(loc[1] + 1)
        return " ".join([f'arm "{" ".join(name.split())}"', *map(str, loc[2:])])
    return " ".join(str(part + 1 if isinstance(part, int) else part) for part in loc)

"""The arms of an experiment, as data: how each one decodes, and what is claimed of them.

An arm set is a YAML or JSON file. In it a temperature may be a number, "base" (the run's base
temperature) or "x1.67" (that many times the base, to 3 decimals); a fork rate may be "calibrated".
:func:`resolve` puts numbers in their place. A resolved set is itself a valid arm set, so `run.json`
holds it and a run can be repeated from there.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from steerdec import params

BUILT_IN = ("quick", "figure3", "causal")
MAX_FILE_BYTES = 1 << 20
TEMPERATURE_FIELDS = ("fork_temperature", "other_temperature", "min_temperature", "max_temperature")

Role = Literal[
    "baseline",  # plain requests; every other arm is compared with it
    "identity",  # A/A: steering on, both temperatures the base: must reproduce the baseline
    "replicate",  # plain requests, the baseline's seeds: what the engine alone changes
    "replica",  # plain requests, other seeds: what sampling alone changes
    "treatment",
    "placebo",  # random positions instead of forks
    "global",  # one temperature everywhere
    "matched",  # temperature solved so that the mean entropy changes as much as in another arm
]
Name = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[\w@/+.:=-]+$")]


class ArmError(ValueError):
    """An arm set that cannot be used; the message is one line and says where."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Data):
    """How the samples of one arm are decoded; `steering` None is a plain request, without the field."""

    name: Name
    role: Role
    about: str = ""
    temperature: float | str = "base"  # of the request
    steering: dict[str, JsonValue] | None = None
    matched: Name | None = None  # the arm whose entropy change a "solve" temperature has to equal

    @property
    def shares_seeds(self) -> bool:
        """Whether it draws with the baseline's random numbers."""
        return self.role != "replica"


class Comparison(_Data):
    """A difference that is reported beside every arm's difference from the baseline."""

    arm: Name
    baseline: Name


class Claim(_Data):
    """A statement fixed before the run: `arm` scores higher (or lower) than `baseline`."""

    id: Annotated[str, Field(min_length=1, max_length=60)]
    statement: str
    arm: Name
    baseline: Name
    direction: Literal["higher", "lower"]


class ArmSet(_Data):
    """Arms with a baseline, further comparisons, and claims (the primary comparisons, corrected together)."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    about: str = ""
    temperature: Annotated[float, Field(gt=0.0, le=params.MAX_TEMPERATURE)] | None = None  # base, unless a run says
    threshold_nats: Annotated[float, Field(ge=0.0)] | None = None  # unless the run or the server has a calibration
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02  # scores closer than this count as equal
    baseline: Name
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
        for end in (end for pair in pairs for end in pair):
            if end not in names:
                raise ArmError(f'"{end}" is compared but is no arm (there are: {", ".join(names)})')
        for arm in self.arms:
            if arm.role in ("replicate", "replica") and arm.steering is not None:
                raise ArmError(f'arm "{arm.name}": a {arm.role} takes no steering')
            if arm.role == "matched" and arm.matched is None:
                raise ArmError(f'arm "{arm.name}": role matched needs the field matched')
            if arm.matched is not None and arm.matched not in names:
                raise ArmError(f'arm "{arm.name}": matched: "{arm.matched}" is no arm')
        return self

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def _no_repeats(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ArmError(f'{what} "{name}" stands there {names.count(name)} times')


def with_engine_floor(arm_set: ArmSet, batch_invariant: bool) -> ArmSet:
    """The set, with plain requests run twice where the engine may answer them differently.

    Where a batch's make-up changes the last bits of its logits, A/A differs from B in a few answers without
    steering having done anything. How many, only two plain arms with equal seeds can tell.
    """
    roles = [arm.role for arm in arm_set.arms]
    if batch_invariant or "identity" not in roles or "replicate" in roles:
        return arm_set
    baseline = arm_set.arm(arm_set.baseline)
    again = baseline.model_copy(
        update={
            "name": f"{baseline.name}-again",
            "role": "replicate",
            "about": "the same seeds: the engine's own floor",
        }
    )
    return ArmSet.model_validate(arm_set.model_copy(update={"arms": (*arm_set.arms, again)}).model_dump())


def load_arm_set(name_or_path: str) -> ArmSet:
    """A built-in set by name, else the set in the file.

    Raises:
        ArmError: there is no such set, or it is not a valid one; one line.
    """
    if name_or_path in BUILT_IN:
        text = (resources.files(__package__) / "arms" / f"{name_or_path}.yaml").read_text("utf-8")
    else:
        path = Path(name_or_path)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ArmError(f"{path} is larger than {MAX_FILE_BYTES} bytes, so no arm set")
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise ArmError(
                f'--arms: "{name_or_path}" is neither a built-in set ({", ".join(BUILT_IN)}) nor a file (YAML or JSON)'
            ) from None
        except (OSError, UnicodeDecodeError) as e:
            raise ArmError(f"{path} cannot be read ({e})") from None
    try:
        return parse_arm_set(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as e:
        raise ArmError(f"{name_or_path} is neither YAML nor JSON ({' '.join(str(e).split())})") from None
    except ArmError as e:
        raise ArmError(f"{name_or_path}: {e}") from None


def parse_arm_set(value: Any) -> ArmSet:
    """The set described by a plain object, as a file or `run.json` holds it. Raises ArmError."""
    try:
        return ArmSet.model_validate(value)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ArmError):
            raise cause from None
        raise ArmError(f"{_place(value, first['loc'])}: {_shown(first['input'])}: {first['msg']}") from None


def _place(value: Any, loc: tuple[int | str, ...]) -> str:
    """`loc` in words, an arm by its name where it has one."""
    if len(loc) >= 2 and loc[0] == "arms" and isinstance(loc[1], int):
        entry = value["arms"][loc[1]]
        name = str(entry.get("name", loc[1] + 1) if isinstance(entry, dict) else loc[1] + 1)
        return " ".join([f'arm "{" ".join(name.split())}"', *map(str, loc[2:])])
    return " ".join(map(str, loc)) or "the arm set"


def resolve(
    arm_set: ArmSet,
    *,
    temperature: float,
    threshold_nats: float,
    fork_rate: float | None = None,
    solved: dict[str, float] | None = None,
) -> ArmSet:
    """The set with numbers for everything relative, each steering checked by `steerdec.params`.

    Args:
        temperature: the base temperature.
        threshold_nats: entropy above which a token is a fork, written into every steering that names none.
        fork_rate: for "calibrated", the share of tokens above the threshold in a calibration.
        solved: for "solve", the temperature by arm name, found on calibration text.

    Raises:
        ArmError: a value is missing or not allowed; one line that names the arm.
    """
    known = {"calibrated": fork_rate, "solve": solved or {}}
    arms = tuple(_resolve_arm(arm, temperature, threshold_nats, known) for arm in arm_set.arms)
    changed = {"arms": arms, "temperature": temperature, "threshold_nats": threshold_nats}
    return parse_arm_set(arm_set.model_copy(update=changed).model_dump())


def _resolve_arm(arm: Arm, base: float, threshold_nats: float, known: dict[str, Any]) -> Arm:
    request = _temperature(arm, "temperature", arm.temperature, base, known["solve"])
    if arm.role in ("baseline", "replicate", "replica") and request != base:
        raise ArmError(f'arm "{arm.name}": temperature: a {arm.role} decodes at the base temperature, {base:g}')
    if arm.steering is None:
        return arm.model_copy(update={"temperature": request})
    steering: dict[str, Any] = dict(arm.steering)
    for field in TEMPERATURE_FIELDS:
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
    try:
        params.parse(steering)
    except params.SteeringError as e:
        raise ArmError(f'arm "{arm.name}": {e}') from None
    if arm.role == "identity" and {steering.get(f, request) for f in TEMPERATURE_FIELDS[:2]} != {base}:
        raise ArmError(f'arm "{arm.name}": an identity arm has both temperatures equal to the base, {base:g}')
    return arm.model_copy(update={"temperature": request, "steering": steering})


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
        raise ArmError(f'{place}: {_shown(value)} is not a number, "base", "x1.67" or "solve"')
    if not (number == 0.0 or params.MIN_TEMPERATURE <= number <= params.MAX_TEMPERATURE):
        raise ArmError(
            f"{place}: {_shown(value)} is {number:g}; allowed are 0 and {params.MIN_TEMPERATURE:g} "
            f"to {params.MAX_TEMPERATURE:g}"
        )
    return number


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."

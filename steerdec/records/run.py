"""`run.json`: everything needed to repeat a run, and the check that a run may be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import write_atomically
from steerdec.records.arms import ArmError, ArmSet, parse_arm_set
from steerdec.records.doses import ArmDose
from steerdec.records.samples import MAX_SAMPLES

NAME = "run.json"
# From GET /v1/steering: endpoints must not differ in these, and a run is not resumed if they changed.
ENGINE_KEYS = ("steerdec", "vllm", "runner", "dtype")


class SettingsError(InvalidInputError):
    """The settings of a run cannot be read, or a run cannot be resumed under them."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Positive = Annotated[int, Field(ge=1)]


def _iso_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class ProblemsUsed(_Data):
    """`source` and `limit` load the set again, `sha256` proves that it is the same."""

    name: str
    source: str
    limit: int | None
    sha256: str
    n: Annotated[int, Field(ge=0)]
    ids: tuple[str, ...]
    groups: dict[str, str] | None = None  # by problem id, of those that have one
    hashes: tuple[str, ...] | None = None  # `Problem.digest` in the order of `ids`; None in older files

    @model_validator(mode="after")
    def _counted(self) -> ProblemsUsed:
        if self.n != len(set(self.ids)):
            raise ValueError(f"n is {self.n}, but there are {len(set(self.ids))} different ids")
        return self


class LaunchedServer(_Data):
    """The server that a run starts for itself."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # files of version 0.1 have one field more

    model: str
    dtype: str | None = None


class Look(_Data):
    """A planned look, when every problem has `samples` samples per arm.

    `planned` is the planned number of samples when the look was planned; a run may be extended later.
    `problems`: the look is at that many of the first problems, all that the run had then; None: at all of them.
    """

    samples: int
    planned: int
    problems: int | None = None

    @property
    def at_the_end(self) -> bool:
        """Return whether the run was planned to end with this look."""
        return self.samples == self.planned

    @model_serializer(mode="wrap")
    def _without_all_problems(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class Settings(_Data):
    """The content of `run.json`."""

    steerdec: str
    created: Annotated[str, AfterValidator(_iso_time)]
    versions: dict[str, str]
    model: str
    model_info: dict[str, Any]
    launch: LaunchedServer | None  # None: it was given endpoints
    endpoints: tuple[str, ...]
    server: dict[str, Any]
    problems: ProblemsUsed
    prompt: str
    thinking: bool | None
    arms: ArmSet
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    seed: int
    temperature: Annotated[FiniteFloat, Field(gt=0.0)]
    max_tokens: Positive
    sampling: dict[str, float | int]
    threshold_nats: Annotated[FiniteFloat, Field(ge=0.0)]
    threshold_origin: str
    looks: tuple[Look, ...] = ()  # empty: one at the end
    doses: dict[str, ArmDose] = {}  # by arm, from the calibration; empty where it has none

    @property
    def planned_looks(self) -> tuple[Look, ...]:
        """Return the looks, at least the one at the end."""
        return self.looks or (Look(samples=self.samples, planned=self.samples),)

    def as_json(self) -> str:
        """Return the content of the file. Paths that are not UTF-8 are escaped; pydantic's own JSON refuses them."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "backslashreplace").decode()

    def write(self, folder: Path) -> None:
        """Write `run.json` into the folder. Raises FileError."""
        write_atomically(folder / NAME, self.as_json())


def read_settings(path: Path) -> Settings:
    """Read a `run.json`. Raises SettingsError."""
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            parse_arm_set(value.get("arms"))  # for its better message
        return Settings.model_validate(value)
    except OSError as e:
        raise SettingsError(f"{path} cannot be read ({e.strerror})") from None
    except ArmError as e:
        raise SettingsError(f"{path}: arms: {e}") from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SettingsError(f"{path} does not describe a run: {place}: {first['msg']}") from None
    except (ValueError, RecursionError) as e:
        raise SettingsError(f"{path} is not JSON ({e})") from None


# Where a run is and who serves it may change; how its samples are made may not.
_FREE = {
    "created",
    "versions",
    "model_info",
    "launch",
    "endpoints",
    "threshold_origin",
    "problems.source",
    "looks",
    "doses",
    "problems.hashes",
}


def changes(old: Settings, new: Settings, *, extension: bool = False) -> list[str]:
    """Return why a run under `old` cannot be resumed under `new`, as "field: old -> new", most important first.

    With `extension`, more samples and further problems, arms, comparisons and claims are allowed. Of more problems only
    the ids are compared; whether the old ones are unchanged is not checked here.
    """
    more_problems = set(old.problems.ids) < set(new.problems.ids)
    return [
        f"{place}: {_short(before)} -> {_short(after)}"
        for place, before, after in _changes("", _compared(old), _compared(new))
        if not (extension and _extends(place, before, after, more_problems))
    ]


def _extends(place: str, old: Any, new: Any, more_problems: bool) -> bool:
    """Return whether a change adds to a run and keeps everything it has."""
    if place.startswith("problems."):
        return more_problems
    if place == "samples":
        return bool(new > old)
    if place.startswith(("arms.arms.", "arms.claims.")) and place.count(".") == 2:
        return old is None
    if place == "arms.comparisons":
        return all(pair in new for pair in old)
    return place in ("arms.name", "arms.about")


def _compared(settings: Settings) -> dict[str, Any]:
    value = settings.model_dump(mode="json")
    value["server"] = {key: value["server"].get(key) for key in ENGINE_KEYS}
    arms = value["arms"]
    arms["arms"] = {arm["name"]: arm for arm in arms["arms"]}
    arms["claims"] = {claim["id"]: claim for claim in arms["claims"]}
    return value


def _changes(place: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if place in _FREE or old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _changes(f"{place}.{key}" if place else key, old.get(key), new.get(key))
    else:
        yield place, old, new


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

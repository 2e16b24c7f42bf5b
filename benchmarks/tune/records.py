"""The files of a search: `tune.json`, what was asked for, and `result.json`, what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import write_atomically
from steerdec.records.summary import ClaimSummary

SETTINGS_NAME: Final = "tune.json"
RESULT_NAME: Final = "result.json"
PILOT, SEARCH, TEST = "pilot", "search", "test"  # folders, each an ordinary run


class TuneFileError(InvalidInputError):
    """A folder holds another search, or a file of it cannot be read; the message is one plain line."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TuneSettings(_Data):
    """Everything that decides what a search does, beside the server's own properties, which `run.json` has."""

    problems: str
    problems_sha256: str
    tuning_share: float
    seed: int
    temperature: float
    prompt: str
    thinking: bool | None
    max_tokens: int
    threshold_nats: float | None  # None: percentiles of the pilot
    arms: tuple[dict[str, JsonValue], ...] | None  # the user's own settings; None: the built-in space
    candidates: int
    first_samples: int
    test_samples: int
    budget_tokens: int | None


class RungResult(_Data):
    """One rung: the share of right answers of every arm it compared, of all their samples so far."""

    number: int
    samples: int
    scores: dict[str, float]


class Setting(_Data):
    """A finalist. `steering` is in numbers; None for a plain temperature."""

    name: str
    temperature: float
    steering: dict[str, JsonValue] | None
    tuning_score: float | None  # of its last rung; None if it had no rival


class Cost(_Data):
    """Generated tokens, by stage."""

    pilot: int
    search: int
    test: int

    @property
    def tokens(self) -> int:
        return self.pilot + self.search + self.test


class TuneResult(_Data):
    """What came out. `claims` are those of the test's summary, which has their intervals and all other figures."""

    model: str
    thresholds_nats: dict[str, float]
    rungs: tuple[RungResult, ...]
    stopped_by_budget: bool  # before one setting was left
    baseline_temperature: float
    steered: Setting
    plain: Setting | None  # None: no plain temperature scored above the baseline while tuning
    tuning_problems: int
    held_out_problems: int
    test_samples: int
    instrument: str
    claims: tuple[ClaimSummary, ...]
    advice: Literal["steer", "temperature", "nothing"]
    entropy_shift_nats: float | None  # of the steered finalist, per token as sampled, against the base temperature
    cost: Cost


def open_settings(folder: Path, settings: TuneSettings) -> None:
    """Write `tune.json`, or check that the search in the folder is the same. Raises TuneFileError, FileError."""
    path = folder / SETTINGS_NAME
    if not path.exists():
        write_atomically(path, json.dumps(settings.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
        return
    old = _read(TuneSettings, path).model_dump(mode="json")
    new = settings.model_dump(mode="json")
    differences = [f"{name}: {_short(old[name])} -> {_short(new[name])}" for name in new if old[name] != new[name]]
    if differences:
        raise TuneFileError(
            f"{folder} holds a search under other settings: {'; '.join(differences[:3])}; give the same settings or "
            "another --out"
        )


def read_result(folder: Path) -> TuneResult | None:
    """Return the result of a finished search, None if there is none yet. Raises TuneFileError."""
    path = folder / RESULT_NAME
    return _read(TuneResult, path) if path.exists() else None


def write_result(folder: Path, result: TuneResult) -> None:
    """Write `result.json`. Raises FileError."""
    write_atomically(folder / RESULT_NAME, json.dumps(result.model_dump(mode="json"), indent=1) + "\n")


def _read(model: type[Any], path: Path) -> Any:
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as e:
        raise TuneFileError(f"{path} cannot be read ({e.strerror})") from None
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise TuneFileError(f"{path} is not one that steerdec tune wrote: {place}: {first['msg']}") from None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

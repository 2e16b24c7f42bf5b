"""A stored calibration, and the origin of a run's entropy threshold."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import read_at_most
from steerdec.common.paper import FORK_SHARE
from steerdec.problems.sets import Problem
from steerdec.records.arms import ArmSet
from steerdec.records.doses import ArmDose, parts_of
from steerdec.steering.params import PAPER_THRESHOLD_NATS

MAX_FILE_BYTES = 16 << 20
Nats = Annotated[FiniteFloat, Field(ge=0.0)]
Share = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]


class CalibrationError(InvalidInputError):
    """A calibration cannot be used."""


class CalibrationProblems(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    hash: str  # of the set
    problem_hashes: tuple[str, ...] = ()  # of each problem used; see `problem_hash`


class Matched(BaseModel):
    """A temperature solved so that `arm` adds as much to the mean entropy as the arm `matched`."""

    model_config = ConfigDict(frozen=True)

    arm: str
    matched: str
    temperature: Annotated[FiniteFloat, Field(gt=0.0)]
    temperature_ci95: tuple[float, float]
    target_nats: FiniteFloat  # the dose of `matched`
    dose_nats: FiniteFloat  # of `arm`, at the solved temperature
    # What it was solved for: temperatures of "forks" and "others", or of "all". None in older files, which lack it.
    arm_at: dict[str, FiniteFloat] | None = None
    matched_at: dict[str, FiniteFloat] | None = None


class Matching(BaseModel):
    """Solved temperatures of an arm set; they hold for this base temperature and threshold only."""

    model_config = ConfigDict(frozen=True)

    temperature: float
    threshold_nats: Nats
    arms: str
    tokens: int
    samples: int
    looks: list[float]  # temperatures at which the text's entropies were measured
    matched: tuple[Matched, ...]
    unmatched: dict[str, str] = {}  # arms that no temperature matches, and why
    doses: dict[str, ArmDose] = {}  # by arm, where temperatures describe it; none in older files


class Calibration(BaseModel):
    """Quantiles of H over the tokens a model generates at `temperature` on some problems."""

    model_config = ConfigDict(frozen=True)

    model: str
    tokens: Annotated[int, Field(gt=0)]
    quantiles_nats: dict[str, Nats]  # "p50" ... "p99"
    p80_ci95: tuple[Nats, Nats]
    share_below_0_01: Share
    fork_rate: Share = FORK_SHARE  # share of tokens with H > p80
    problems: CalibrationProblems
    created: str
    temperature: float = 1.0
    prompt: str = ""
    samples: int = 0
    matching: Matching | None = None

    @property
    def threshold_nats(self) -> float:
        return self.quantiles_nats["p80"]


def problem_hash(problem: Problem) -> str:
    """Return 16 hex digits of the text, independent of its spaces: the same problem under another id is found too."""
    return hashlib.sha256(" ".join(problem.problem.split()).encode()).hexdigest()[:16]


def load_calibration(path: Path) -> Calibration:
    """Return the calibration in the file. Raises CalibrationError."""
    try:
        calibration = Calibration.model_validate_json(read_at_most(path, MAX_FILE_BYTES))
    except FileNotFoundError:
        raise CalibrationError(f'--threshold: "{path}" is neither a number of nats nor a calibration file') from None
    except OSError as e:
        raise CalibrationError(f"{path} cannot be read ({e.strerror})") from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = " ".join(map(str, first["loc"])) or "the file"
        raise CalibrationError(f"{path} is not a calibration: {place}: {first['msg']}") from None
    if "p80" not in calibration.quantiles_nats:
        raise CalibrationError(f"{path} is not a calibration: quantiles_nats has no p80")
    return calibration


@dataclass(frozen=True)
class Threshold:
    """The threshold of a run, its origin, and the other content of a calibration."""

    nats: float
    origin: str
    fork_rate: float | None = None
    solved: dict[str, float] = field(default_factory=dict)  # temperature by arm name
    solved_at: float | None = None  # the base temperature for which they hold
    calibrated_on: tuple[str, ...] = ()  # hashes of the calibration problems, which must not be tested
    matched: dict[str, Matched] = field(default_factory=dict)  # what `solved` was solved for, by arm name
    unmatched: dict[str, str] = field(default_factory=dict)  # why an arm has no solved temperature, by arm name
    model: str | None = None  # that was calibrated
    doses: dict[str, ArmDose] = field(default_factory=dict)  # of the calibrated arms, by name

    @classmethod
    def of(cls, calibration: Calibration, where: str) -> Threshold:
        c = calibration
        origin = f"p80 of {c.tokens} tokens of {c.model} on {c.problems.name}, {where}"
        matched = {} if c.matching is None else {m.arm: m for m in c.matching.matched}
        return cls(
            c.threshold_nats,
            origin,
            fork_rate=c.fork_rate,
            solved={name: m.temperature for name, m in matched.items()},
            solved_at=None if c.matching is None else c.matching.temperature,
            calibrated_on=c.problems.problem_hashes,
            matched=matched,
            unmatched={} if c.matching is None else c.matching.unmatched,
            model=c.model,
            doses={} if c.matching is None else c.matching.doses,
        )

    def doses_of(self, arm_set: ArmSet) -> dict[str, ArmDose]:
        """Return the known doses of a resolved set, by arm: of arms that sample as a calibrated one of that name does.

        A calibrated arm that samples the same under another name counts too, unless its temperature was solved.
        """
        base_is_known = self.solved_at is None or self.solved_at == arm_set.temperature
        known = self.doses if base_is_known else {}
        by_parts = {dose.parts: dose for dose in known.values() if dose.matched is None}
        found = {}
        for arm in arm_set.arms:
            parts = parts_of(arm, self.nats) if known else None
            own = known.get(arm.name)
            dose = own if own is not None and own.parts == parts else by_parts.get(parts or ())
            if dose is not None and dose.matched in (None, arm.matched):
                found[arm.name] = dose
        return found

    def tested_again(self, problems: tuple[Problem, ...]) -> int:
        """Return how many of `problems` the threshold was calibrated on."""
        return len(set(self.calibrated_on) & {problem_hash(problem) for problem in problems})

    def check_model(self, names: Sequence[str]) -> None:
        """Check that the calibrated model is the served one, whose names these are.

        Raises:
            CalibrationError: it is another model.
        """
        served = {Path(name).name for name in names}
        if self.model is not None and Path(self.model).name not in served:
            raise CalibrationError(
                f"the calibration is of {self.model}, served is {' or '.join(sorted(served))} ({self.origin}); "
                "calibrate that model, or give --threshold as a number"
            )


def parse_threshold(text: str) -> Threshold:
    """Return the threshold of `--threshold`: a number of nats, else a calibration file. Raises CalibrationError."""
    if not text.strip():
        raise CalibrationError('--threshold: "" is neither a number of nats nor a calibration file')
    try:
        nats = float(text)
    except ValueError:
        return Threshold.of(load_calibration(Path(text)), f"from {Path(text).name}")
    if not (math.isfinite(nats) and nats >= 0.0):
        raise CalibrationError(f'--threshold: "{text}" is not an entropy; allowed are 0 nats or more, or a file')
    return Threshold(nats, "given")


def default_threshold(server: dict[str, Any], arm_set: ArmSet) -> Threshold:
    """Return the default of `--threshold`: the server's calibration, else the arm set's value, else the paper's."""
    try:
        return Threshold.of(Calibration.model_validate(server.get("calibration")), "from the server")
    except (ValidationError, KeyError):
        pass
    if arm_set.threshold_nats is not None:
        return Threshold(arm_set.threshold_nats, f"arm set {arm_set.name}")
    return Threshold(PAPER_THRESHOLD_NATS, "arXiv 2506.01939: p80 of Qwen3-8B at temperature 1")

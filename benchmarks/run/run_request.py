"""Read what a user wants to run, and check it as far as possible without a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steerdec.problems.prompts import request_body
from steerdec.problems.sets import ProblemSet, load_problems
from steerdec.records.arms import ArmSet
from steerdec.records.calibration import CalibrationError, Threshold, parse_threshold
from steerdec.records.run import Settings, SettingsError, read_settings

from ..design.arm_sets import load_arm_set, with_mask_paths
from ..design.masks import Places
from ..design.resolving import resolve
from .branches import check_samples
from .replays import read_replays

DEFAULT_TEMPERATURE = 1.0


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to make, checked as far as possible without a server."""

    problem_set: ProblemSet
    source: str
    limit: int | None
    prompt: str
    thinking: bool | None
    arms: ArmSet
    samples: int
    seed: int
    temperature: float
    max_tokens: int
    threshold: Threshold | None  # None: the server's or the arm set's
    force: bool = False
    replays: Mapping[str, Places] = field(default_factory=dict)
    look_fractions: tuple[float, ...] = (1.0,)  # of the samples; see `looks`
    extend: bool = False  # a run with fewer samples or arms may be extended
    show_scores: bool = False


def read_request(
    problems: str,
    arms: str,
    *,
    limit: int | None,
    prompt: str | None,
    thinking: bool | None,
    samples: int,
    seed: int,
    temperature: float | None,
    max_tokens: int,
    threshold: str | None,
    force: bool,
    look_fractions: tuple[float, ...] = (1.0,),
    extend: bool = False,
) -> RunRequest:
    """Load and check everything that the request names.

    Raises:
        ProblemError, ArmError, CalibrationError, PromptError, MaskError, ReplayError, BranchError: something cannot be
            used.
    """
    problem_set = load_problems(problems, limit=limit)
    prompt = prompt or problem_set.prompt
    arm_set, replays = read_replays(load_arm_set(arms), problem_set, prompt=prompt, max_tokens=max_tokens)
    request = RunRequest(
        problem_set=problem_set,
        source=problem_set.source,
        limit=limit,
        prompt=prompt,
        thinking=thinking,
        arms=arm_set,
        samples=samples,
        seed=seed,
        temperature=temperature or arm_set.temperature or DEFAULT_TEMPERATURE,
        max_tokens=max_tokens,
        threshold=None if threshold is None else parse_threshold(threshold),
        force=force,
        replays=replays,
        look_fractions=look_fractions,
        extend=extend,
    )
    _check_prompt(request)
    check_samples(arm_set, samples)
    if request.threshold is not None:
        resolved(request, request.threshold)
    else:  # a server's calibration may still provide what is missing here; everything else is checked now
        solved = {arm.name: request.temperature for arm in arm_set.arms}
        resolved(request, Threshold(0.0, "", fork_rate=0.5, solved=solved))
    return request


def repeated_request(run_json: Path) -> tuple[RunRequest, Settings]:
    """Return the request that repeats the run in `run_json`, whose masks must be beside it.

    Raises:
        SettingsError, ProblemError, MaskError, ReplayError: something cannot be used.
    """
    old = read_settings(run_json)
    problem_set = load_problems(old.problems.source, limit=old.problems.limit)
    if problem_set.sha256 != old.problems.sha256:
        raise SettingsError(
            f"{run_json}: the problems {old.problems.source} have changed: sha256 {old.problems.sha256[:12]} -> "
            f"{problem_set.sha256[:12]}"
        )
    beside = with_mask_paths(old.arms, run_json.parent)
    arms, replays = read_replays(beside, problem_set, prompt=old.prompt, max_tokens=old.max_tokens)
    request = RunRequest(
        problem_set=problem_set,
        source=old.problems.source,
        limit=old.problems.limit,
        prompt=old.prompt,
        thinking=old.thinking,
        arms=arms,
        samples=old.samples,
        seed=old.seed,
        temperature=old.temperature,
        max_tokens=old.max_tokens,
        threshold=Threshold(old.threshold_nats, old.threshold_origin, doses=old.doses),
        replays=replays,
        look_fractions=tuple(look.samples / look.planned for look in old.looks) or (1.0,),
    )
    return request, old


def resolved(request: RunRequest, threshold: Threshold) -> ArmSet:
    """Return the arms in numbers; refuse a threshold calibrated on the problems under test, or for other arms."""
    overlap = threshold.tested_again(request.problem_set.problems)
    if overlap and not request.force:
        raise CalibrationError(
            f"{overlap} of the {len(request.problem_set.problems)} problems were used for the calibration "
            f"({threshold.origin}); evaluate on others, or set --force"
        )
    needs = any("solve" in (arm.temperature, *(arm.steering or {}).values()) for arm in request.arms.arms)
    if needs and threshold.solved_at is not None and threshold.solved_at != request.temperature:
        raise CalibrationError(
            f"the matched temperatures were solved at base temperature {threshold.solved_at:g}, the run has "
            f"{request.temperature:g} ({threshold.origin}); calibrate with --temperature {request.temperature:g}"
        )
    for arm in request.arms.arms:
        if (reason := threshold.unmatched.get(arm.name)) and arm.matched is not None:
            raise CalibrationError(
                f"the calibration has no temperature for an arm of this set, and repeating it will not help: "
                f'{reason} ({threshold.origin}); remove arm "{arm.name}" with its comparisons and claims from the set, '
                f'or give "{arm.matched}" a smaller dose; `steerdec arms show NAME` prints a built-in set to edit'
            )
    resolved = resolve(
        request.arms,
        temperature=request.temperature,
        threshold_nats=threshold.nats,
        fork_rate=threshold.fork_rate,
        solved=threshold.solved,
    )
    if needs:
        _check_solved(request.arms, resolved, threshold)
    return resolved


def _check_solved(arms: ArmSet, resolved: ArmSet, threshold: Threshold) -> None:
    """Refuse temperatures that were solved for other arms: of another set, or of this one before it changed."""
    from ..calibration import matching  # loads scipy, which most runs do not need

    again = f"({threshold.origin}); calibrate again, with --arms as here"
    for arm, other in matching.to_solve(arms):
        solved = threshold.matched.get(arm.name)
        if solved is None:  # its calibration is not known yet
            continue
        if solved.matched != other.name:
            raise CalibrationError(
                f'arm "{arm.name}": its temperature was solved to match "{solved.matched}", here it is to match '
                f'"{other.name}" {again}'
            )
        for name, then in ((arm.name, solved.arm_at), (other.name, solved.matched_at)):
            if then is None:
                raise CalibrationError(
                    f'arm "{arm.name}": the calibration is from an older version and does not say what its temperature '
                    f"was solved for {again}"
                )
            if then != (now := matching.temperatures(resolved.arm(name))):
                raise CalibrationError(
                    f'arm "{arm.name}": its temperature was solved with "{name}" at {_listed(then)}, here that is at '
                    f"{_listed(now)} {again}"
                )


def _listed(at: Mapping[str, float]) -> str:
    return ", ".join(f"{temperature:g} ({part})" for part, temperature in at.items())


def _check_prompt(request: RunRequest) -> None:
    """Raise PromptError if the template does not exist or does not fit these problems."""
    for problem in request.problem_set.problems:
        request_body(request.prompt, problem, thinking=request.thinking)

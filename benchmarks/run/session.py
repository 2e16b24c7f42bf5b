"""From a request to a finished run: problems, arms, a server, a folder, samples."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steerdec import __version__
from steerdec.common.files import FileError, FolderLock
from steerdec.common.progress import announce
from steerdec.grading.pool import GradingPool
from steerdec.problems import embedded, hub
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import ProblemSet, load_problems
from steerdec.records.arms import ArmSet
from steerdec.records.calibration import CalibrationError, Threshold, default_threshold, parse_threshold
from steerdec.records.run import LaunchedServer, ProblemsUsed, Settings, SettingsError, read_settings

from ..design.arm_sets import load_arm_set, with_engine_floor, with_mask_paths
from ..design.masks import Places
from ..design.plan import SamplingPlan
from ..design.resolving import resolve
from .endpoint_health import Retry
from .preflight import Server, check_prompt_lengths, probe_arms, survey
from .replays import check_prompts, check_server, read_replays
from .sample_requests import SAMPLING, Prompting
from .sampler import done_samples, make_samples, open_folder
from .targets import Target

DEFAULT_TEMPERATURE = 1.0


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to run, checked as far as possible without a server."""

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


@dataclass(frozen=True)
class Finished:
    """How many samples the run has, and how many of them failed."""

    samples: int
    failed: int


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
) -> RunRequest:
    """Load and check everything that was named.

    Raises:
        ProblemError, ArmError, CalibrationError, PromptError, MaskError, ReplayError: something cannot be used.
    """
    problem_set = load_problems(problems, limit=limit)
    prompt = prompt or problem_set.prompt
    arm_set, replays = read_replays(load_arm_set(arms), problem_set, prompt=prompt, max_tokens=max_tokens)
    request = RunRequest(
        problem_set=problem_set,
        source=_source(problems),
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
    )
    _check_prompt(request)
    if request.threshold is not None:
        _resolved(request, request.threshold)
    else:  # a server's calibration may still bring what is missing here; all else is checked now
        solved = {arm.name: request.temperature for arm in arm_set.arms}
        _resolved(request, Threshold(0.0, "", fork_rate=0.5, solved=solved))
    return request


def _source(name: str) -> str:
    """Return a name that loads the same problems from any working directory."""
    built_in = name in hub.SETS or name in embedded.SETS or name.startswith("gym:")
    return name if built_in else str(Path(name).resolve())


def repeated_request(run_json: Path) -> tuple[RunRequest, Settings]:
    """Return the request that repeats the run in `run_json`, whose masks have to be beside it.

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
        threshold=Threshold(old.threshold_nats, old.threshold_origin),
        replays=replays,
    )
    return request, old


def _resolved(request: RunRequest, threshold: Threshold) -> ArmSet:
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
                f"the calibration has no temperature for an arm of this set, and another one will have none either: "
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
    from ..calibration import matching  # scipy: not for runs that never need it

    again = f"({threshold.origin}); calibrate again, with --arms as here"
    for arm, other in matching.to_solve(arms):
        solved = threshold.matched.get(arm.name)
        if solved is None:  # whose calibration is not known yet
            continue
        if solved.matched != other.name:
            raise CalibrationError(
                f'arm "{arm.name}": its temperature was solved to match "{solved.matched}", here it is to match '
                f'"{other.name}" {again}'
            )
        for name, then in ((arm.name, solved.arm_at), (other.name, solved.matched_at)):
            if then is None:
                raise CalibrationError(
                    f'arm "{arm.name}": the calibration is an older one, which does not say what its temperature was '
                    f"solved for {again}"
                )
            if then != (now := matching.temperatures(resolved.arm(name))):
                raise CalibrationError(
                    f'arm "{arm.name}": its temperature was solved with "{name}" at {_listed(then)}, here that is at '
                    f"{_listed(now)} {again}"
                )


def _listed(at: Mapping[str, float]) -> str:
    return ", ".join(f"{temperature:g} ({part})" for part, temperature in at.items())


def _check_prompt(request: RunRequest) -> None:
    """Raise PromptError where the template does not exist or does not take these problems."""
    for problem in request.problem_set.problems:
        request_body(request.prompt, problem, thinking=request.thinking)


def run(request: RunRequest, target: Target, folder: Path, retry: Retry) -> Finished:
    """Make, or finish, the run in `folder`.

    Raises:
        PreflightError, ServerError, FileError, NoEndpointLeftError, NoGoodAnswerError: it cannot continue.
        SettingsError, ArmError, CalibrationError: the request is wrong.
    """
    if target.model is not None and request.threshold is None:  # that server will bring no calibration
        _resolved(request, default_threshold({}, request.arms))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FileError(f"--out: {folder} cannot be created ({e.strerror})") from None
    with FolderLock(folder), target.urls(folder / "server.log") as urls, GradingPool() as pool:
        return asyncio.run(_run(request, target, urls, folder, pool, retry))


async def _run(
    request: RunRequest, target: Target, urls: tuple[str, ...], folder: Path, pool: GradingPool, retry: Retry
) -> Finished:
    async with target.opened(urls) as endpoints:
        server, endpoints = await survey(endpoints)
        settings = open_folder(folder, _settings(request, target, urls, server))
        problems = request.problem_set.problems
        plan = SamplingPlan(problems, settings.arms.arms, settings.samples, settings.seed, request.replays)
        done = done_samples(folder, plan)
        if all(done):
            return Finished(len(plan), 0)
        _announce(request, settings)
        prompting = Prompting(settings.model, settings.prompt, settings.thinking)
        await check_prompt_lengths(
            endpoints[0],
            problems,
            prompting,
            context_tokens=server.max_model_len,
            max_tokens=settings.max_tokens,
        )
        await check_prompts(endpoints[0], request.replays, problems, prompting)
        await probe_arms(endpoints, plan, prompting)
        failed = await make_samples(folder, settings, plan, done, endpoints, pool, retry)
        return Finished(len(plan), failed)


def _announce(request: RunRequest, settings: Settings) -> None:
    """Say what the user may not expect of this run."""
    per_arm = settings.samples * settings.problems.n
    for arm in settings.arms.arms[len(request.arms.arms) :]:
        announce(
            f"the engine is not batch-invariant, so arm {arm.name} ({arm.about}) is added: "
            f"{per_arm * len(settings.arms.arms)} samples instead of {per_arm * len(request.arms.arms)}"
        )
    for ids in request.problem_set.repeated_texts[:3]:
        announce(
            f"warning: problems {' and '.join(ids)} have the same text, so they are not independent; remove one, or "
            "give them the same group"
        )


def check_length(server: Server, max_tokens: int) -> None:
    """Raise SettingsError where the model's context cannot hold that many tokens."""
    if server.max_model_len is not None and max_tokens >= server.max_model_len:
        raise SettingsError(
            f"--max-tokens: {max_tokens} does not fit the server's context of {server.max_model_len} tokens, "
            "which has to hold the prompt too"
        )


def _settings(request: RunRequest, target: Target, urls: tuple[str, ...], server: Server) -> Settings:
    check_length(server, request.max_tokens)
    names = (server.model, str(server.model_info.get("root") or server.model))
    check_server(request.replays, names, server.max_model_len, request.max_tokens)
    threshold = request.threshold or default_threshold(server.steering, request.arms)
    threshold.check_model(names)
    arms = with_engine_floor(_resolved(request, threshold), server.steering.get("batch_invariant") is True)
    problems = request.problem_set
    return Settings(
        steerdec=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        model=server.model,
        model_info=server.model_info,
        launch=None if target.model is None else LaunchedServer(model=target.model, dtype=target.dtype),
        endpoints=urls,
        server=server.steering,
        problems=ProblemsUsed(
            name=problems.name,
            source=request.source,
            limit=request.limit,
            sha256=problems.sha256,
            n=len(problems.problems),
            ids=tuple(problem.id for problem in problems.problems),
            groups={p.id: p.group for p in problems.problems if p.group is not None} or None,
        ),
        prompt=request.prompt,
        thinking=request.thinking,
        arms=arms,
        samples=request.samples,
        seed=request.seed,
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        sampling=SAMPLING,
        threshold_nats=threshold.nats,
        threshold_origin=threshold.origin,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("httpx", "numpy", "scipy", "math-verify", "reasoning-gym"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions

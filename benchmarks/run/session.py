"""From a request to a finished run: problems, arms, a server, a folder, samples."""

from __future__ import annotations

import asyncio
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steerdec import __version__
from steerdec.common.files import FileError, FolderLock
from steerdec.common.progress import RunProgress, announce
from steerdec.grading.pool import GradingPool
from steerdec.records.calibration import default_threshold
from steerdec.records.run import LaunchedServer, ProblemsUsed, Settings, SettingsError

from ..design.arm_sets import with_engine_floor
from ..design.plan import SamplingPlan
from .branches import branching, prompts_of, rounds, with_branches
from .endpoint_health import Retry
from .folder import done_samples, open_folder
from .looks import Progress, plan_run_looks
from .more_problems import in_order_of_run
from .preflight import Server, check_prompt_lengths, probe_arms, survey
from .replays import check_prompts, check_server
from .run_request import DEFAULT_TEMPERATURE, RunRequest, read_request, repeated_request, resolved
from .sample_requests import SAMPLING, Prompting
from .sampler import make_samples
from .targets import Target

__all__ = ["DEFAULT_TEMPERATURE", "Finished", "RunRequest", "read_request", "repeated_request", "run"]


@dataclass(frozen=True)
class Finished:
    """How many samples the run has, and how many of them failed."""

    samples: int
    failed: int


def run(request: RunRequest, target: Target, folder: Path, retry: Retry) -> Finished:
    """Make, or finish, the run in `folder`.

    Raises:
        PreflightError, ServerError, FileError, NoEndpointLeftError, NoGoodAnswerError: it cannot continue.
        SettingsError, ArmError, CalibrationError: the request is wrong.
    """
    if target.model is not None and request.threshold is None:  # that server will have no calibration
        resolved(request, default_threshold({}, request.arms))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FileError(f"--out: {folder} cannot be created ({e.strerror})") from None
    with FolderLock(folder), target.urls(folder / "server.log") as urls, GradingPool() as pool:
        return asyncio.run(run_on(request, target, urls, folder, pool, retry))


async def run_on(
    request: RunRequest, target: Target, urls: tuple[str, ...], folder: Path, pool: GradingPool, retry: Retry
) -> Finished:
    """Make, or finish, the run in `folder`, which the caller has locked, on servers that run already.

    Raises:
        PreflightError, ServerError, FileError, NoEndpointLeftError, NoGoodAnswerError: it cannot continue.
        SettingsError, ArmError, CalibrationError: the request is wrong.
    """
    async with target.opened(urls) as endpoints:
        server, endpoints = await survey(endpoints)
        ordered = in_order_of_run(folder, request.problem_set, extend=request.extend)
        request = replace(request, problem_set=ordered)
        settings = open_folder(folder, settings_of(request, target, urls, server), extend=request.extend)
        problems = request.problem_set.problems
        plan = SamplingPlan(problems, settings.arms.arms, settings.samples, settings.seed, request.replays)
        progress = Progress(folder, settings, plan, done_samples(folder, plan))
        stage = progress.next_stage()
        if stage is None:
            return Finished(sum(progress.done), 0)
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
        prompts = await prompts_of(endpoints[0], problems, plan.arms, prompting)
        await probe_arms(endpoints, plan, prompting)
        failed, at_once = 0, sum(endpoint.connections for endpoint in endpoints)
        while stage is not None:
            with RunProgress(
                stage.total, sum(progress.done), at_once=at_once, show_scores=request.show_scores
            ) as shown:
                for skip in rounds(plan, stage.skip):
                    rooted, left, rootless = with_branches(plan, folder, prompts, skip)
                    await make_samples(folder, settings, rooted, left, endpoints, pool, retry, shown)
                    failed += rootless
            failed += shown.failed
            progress.finish(stage)
            stage = progress.next_stage()
        return Finished(sum(progress.done), failed)


def _announce(request: RunRequest, settings: Settings) -> None:
    """Print what the user may not expect of this run."""
    per_arm = settings.samples * settings.problems.n
    for arm in settings.arms.arms[len(request.arms.arms) :]:
        announce(
            f"the engine is not batch-invariant, so arm {arm.name} ({arm.about}) is added: "
            f"{per_arm * len(settings.arms.arms)} samples instead of {per_arm * len(request.arms.arms)}"
        )
    for arm in branching(settings.arms.arms):
        if arm.branch is not None and (spare := settings.samples % arm.branch.continuations):
            announce(
                f"warning: {settings.samples} samples are no multiple of {arm.branch.continuations}, so the last "
                f"{spare} of arm {arm.name} make no whole tree and do not count"
            )
    for ids in request.problem_set.repeated_texts[:3]:
        announce(
            f"warning: problems {' and '.join(ids)} have the same text, so they are not independent; remove one, or "
            "give them the same group"
        )


def check_length(server: Server, max_tokens: int) -> None:
    """Raise SettingsError if the model's context cannot hold that many tokens."""
    if server.max_model_len is not None and max_tokens >= server.max_model_len:
        raise SettingsError(
            f"--max-tokens: {max_tokens} does not fit the server's context of {server.max_model_len} tokens, "
            "which has to hold the prompt too"
        )


def settings_of(request: RunRequest, target: Target, urls: tuple[str, ...], server: Server) -> Settings:
    """Return the content of the run's `run.json`. Raises SettingsError, ArmError, CalibrationError."""
    check_length(server, request.max_tokens)
    names = (server.model, str(server.model_info.get("root") or server.model))
    check_server(request.replays, names, server.max_model_len, request.max_tokens)
    threshold = request.threshold or default_threshold(server.steering, request.arms)
    threshold.check_model(names)
    arms = with_engine_floor(resolved(request, threshold), server.steering.get("batch_invariant") is True)
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
            hashes=tuple(problem.digest for problem in problems.problems),
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
        looks=plan_run_looks(request.samples, request.look_fractions, problems.problems),
        doses=threshold.doses_of(arms),
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("httpx", "numpy", "scipy", "math-verify", "reasoning-gym"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions

"""From a request to a stored calibration."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from steerdec.common.files import FolderLock, write_atomically
from steerdec.common.progress import announce
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import ProblemSet, load_problems
from steerdec.records.arms import ArmError, ArmSet
from steerdec.records.calibration import Calibration
from steerdec.records.run import ENGINE_KEYS

from ..design.arm_sets import load_arm_set
from ..run.endpoint_health import Retry
from ..run.preflight import Server, check_prompt_lengths, survey
from ..run.sample_requests import Prompting
from ..run.session import DEFAULT_TEMPERATURE, check_length
from ..run.targets import Target
from . import matching
from .calibrate import calibration_of, sample_tokens
from .match_arms import MAX_TIMES_TOKENS, first_temperatures, match_arms, pairs_of
from .measuring import Measuring, open_journal


def journal_path(out: Path) -> Path:
    """Return the file with the samples of an unfinished calibration."""
    return out.with_name(out.name + ".samples.jsonl")


def run(
    problems: str,
    target: Target,
    out: Path,
    *,
    arms: str | None,
    temperature: float | None,
    tokens: int,
    limit: int | None,
    seed: int,
    max_tokens: int,
    prompt: str | None,
    thinking: bool | None,
) -> Calibration:
    """Calibrate and write the file; with an arm set, solve its matched temperatures too.

    The file is written once before solving, so that the quantiles are kept in any case. The samples are kept beside it
    until everything is done: after a stop, the same call resumes.

    Raises:
        ProblemError, PromptError, SettingsError, ArmError, InvalidInputError: the request is wrong.
        PreflightError, ServerError, NoEndpointLeftError, NoGoodAnswerError, TooFewTokensError: it failed.
        FileError: a file cannot be written.
    """
    problem_set = load_problems(problems, limit=limit)
    template = prompt or problem_set.prompt
    arm_set = None if arms is None else load_arm_set(arms)
    base = temperature or (arm_set and arm_set.temperature) or DEFAULT_TEMPERATURE
    if arm_set is not None and not list(matching.to_solve(arm_set)):
        raise ArmError(f'--arms: "{arms}" has no temperature to solve')
    for problem in problem_set.problems:  # raises unless the template exists and fits every problem
        request_body(template, problem, thinking=thinking)
    journal = journal_path(out)

    async def measure(urls: tuple[str, ...]) -> Calibration:
        async with target.opened(urls) as all_endpoints:
            server, endpoints = await survey(all_endpoints)
            check_length(server, max_tokens)
            measuring = Measuring(
                endpoints=endpoints,
                prompting=Prompting(server.model, template, thinking),
                temperature=base,
                max_tokens=max_tokens,
                seed=seed,
                retry=Retry(seed=seed),
                journal=journal,
            )
            await check_prompt_lengths(
                endpoints[0],
                problem_set.problems,
                measuring.prompting,
                context_tokens=server.max_model_len,
                max_tokens=max_tokens,
            )
            return await _calibrate(measuring, server, problem_set, arm_set, tokens, out)

    with FolderLock(out.absolute().parent, journal.name), target.urls(out.with_suffix(".server.log")) as urls:
        done = asyncio.run(measure(urls))
        _write(out, done)
        journal.unlink(missing_ok=True)
    return done


async def _calibrate(
    measuring: Measuring, server: Server, problem_set: ProblemSet, arm_set: ArmSet | None, tokens: int, out: Path
) -> Calibration:
    probes: list[float] = []
    if arm_set is not None:  # the threshold is not known yet, and not needed for these
        probes = first_temperatures(
            pairs_of(arm_set, temperature=measuring.temperature, threshold_nats=0.0), measuring.temperature
        )
        announce(
            f"calibrating with arm set {arm_set.name}: {tokens} tokens, and up to "
            f"{round((MAX_TIMES_TOKENS - 1) * tokens)} more to check the solved temperatures"
        )
    measures = open_journal(measuring.journal, _settings(measuring, server, problem_set, arm_set, probes))
    if measures:
        have = sum(len(one.entropy_nats) for one in measures)
        announce(f"resuming a stopped calibration: {have} tokens are in {measuring.journal}")
    first_round = [one for one in measures if one.round == 0]
    await sample_tokens(measuring, problem_set, first_round, tokens=tokens, probe_temperatures=probes)
    calibration = calibration_of(first_round, problem_set, measuring)
    _write(out, calibration)
    if arm_set is None:
        return calibration
    threshold_nats = calibration.threshold_nats
    solved = await match_arms(
        arm_set,
        pairs_of(arm_set, temperature=measuring.temperature, threshold_nats=threshold_nats),
        problem_set,
        measuring,
        [*first_round, *(one for one in measures if one.round > 0)],
        tokens=tokens,
        threshold_nats=threshold_nats,
        fork_rate=calibration.fork_rate,
    )
    return calibration.model_copy(update={"matching": solved})


def _settings(
    measuring: Measuring, server: Server, problem_set: ProblemSet, arm_set: ArmSet | None, probes: list[float]
) -> dict[str, Any]:
    """Return what the samples depend on; these may not change when a calibration is resumed."""
    return {
        "model": server.model,
        **{f"server {key}": server.steering.get(key) for key in ENGINE_KEYS},
        "problems": problem_set.sha256,
        "prompt": measuring.prompting.template,
        "thinking": measuring.prompting.thinking,
        "temperature": measuring.temperature,
        "max_tokens": measuring.max_tokens,
        "seed": measuring.seed,
        "arms": None if arm_set is None else arm_set.name,
        "probe_temperatures": probes,
    }


def _write(out: Path, calibration: Calibration) -> None:
    write_atomically(out, calibration.model_dump_json(indent=2) + "\n")

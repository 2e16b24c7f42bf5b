"""From a request to a stored calibration."""

from __future__ import annotations

import asyncio
from pathlib import Path

from steerdec.common.files import write_atomically
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import ProblemSet, load_problems
from steerdec.records.arms import ArmError
from steerdec.records.calibration import Calibration

from ..design.arm_sets import load_arm_set
from ..run.endpoint_health import Retry
from ..run.preflight import survey
from ..run.sample_requests import Prompting
from ..run.session import DEFAULT_TEMPERATURE, check_length
from ..run.targets import Target
from . import matching
from .calibrate import calibrate
from .match_arms import match_arms

MATCH_TOKENS = 10_000  # a look, of which matching takes about 15


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
    """Calibrate and write the file; where an arm set is named, solve its matched temperatures too.

    The file is written once before that, so that the quantiles are kept whatever comes of it.

    Raises:
        ProblemError, PromptError, SettingsError, ArmError: it was asked for wrongly.
        PreflightError, ServerError, NoEndpointLeftError, NoGoodAnswerError, TooFewTokensError: it failed.
        JournalError: the file cannot be written.
    """
    problem_set = load_problems(problems, limit=limit)
    template = prompt or problem_set.prompt
    arm_set = None if arms is None else load_arm_set(arms)
    base = temperature or (arm_set and arm_set.temperature) or DEFAULT_TEMPERATURE
    if arm_set is not None and not list(matching.to_solve(arm_set)):
        raise ArmError(f'--arms: "{arms}" has no temperature to solve')
    for problem in problem_set.problems:  # the template exists and takes them all
        request_body(template, problem, thinking=thinking)

    async def measure(urls: tuple[str, ...]) -> Calibration:
        async with target.opened(urls) as endpoints:
            server, endpoints = await survey(endpoints)
            check_length(server, max_tokens)
            prompting = Prompting(server.model, template, thinking)
            found = await calibrate(
                problem_set,
                endpoints,
                prompting=prompting,
                temperature=base,
                tokens=tokens,
                max_tokens=max_tokens,
                seed=seed,
                retry=Retry(seed=seed),
            )
            write(found)
            if arm_set is None:
                return found
            solved = await match_arms(
                arm_set,
                problem_set,
                endpoints,
                prompting=prompting,
                samples=_samples_each(found, problem_set, tokens),
                max_tokens=max_tokens,
                seed=seed,
                temperature=base,
                threshold_nats=found.threshold_nats,
                retry=Retry(seed=seed),
            )
            return found.model_copy(update={"matching": solved})

    def write(found: Calibration) -> None:
        write_atomically(out, found.model_dump_json(indent=2) + "\n")

    with target.urls(out.with_suffix(".server.log")) as urls:
        found = asyncio.run(measure(urls))
    write(found)
    return found


def _samples_each(found: Calibration, problem_set: ProblemSet, tokens: int) -> int:
    """Samples a problem that make about MATCH_TOKENS tokens, or as many as the calibration has where that is fewer."""
    round_tokens = found.tokens / found.samples * len(problem_set.problems)
    return max(1, round(min(tokens, MATCH_TOKENS) / round_tokens))

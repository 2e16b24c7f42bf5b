"""From what a user asked for to a stored calibration."""

from __future__ import annotations

import asyncio
from pathlib import Path

from steerdec.benchmarks.calibrate import ARM, calibrate
from steerdec.benchmarks.calibration import Calibration
from steerdec.benchmarks.dispatch import Retry
from steerdec.benchmarks.journal import write_atomically
from steerdec.benchmarks.plan import Item
from steerdec.benchmarks.preflight import survey
from steerdec.benchmarks.problems import load_problems
from steerdec.benchmarks.sample_requests import sample_request
from steerdec.benchmarks.session import check_length
from steerdec.benchmarks.targets import Target


def run(
    problems: str,
    target: Target,
    out: Path,
    *,
    tokens: int,
    limit: int | None,
    seed: int,
    max_tokens: int,
    prompt: str | None,
    thinking: bool | None,
) -> Calibration:
    """Calibrate and write the file.

    Raises:
        ProblemError, PromptError, SettingsError: it was asked for wrongly.
        PreflightError, ServerError, NoEndpointLeftError, NoGoodAnswerError, TooFewTokensError: it failed.
        JournalError: the file cannot be written.
    """
    problem_set = load_problems(problems, limit=limit)
    template = prompt or problem_set.prompt
    for problem in problem_set.problems:  # the template exists and takes them all
        sample_request(Item(0, problem, ARM, 0, 0), model="", prompt=template, thinking=thinking, max_tokens=1)

    async def measure(urls: tuple[str, ...]) -> Calibration:
        async with target.opened(urls) as endpoints:
            server = await survey(endpoints)
            check_length(server, max_tokens)
            return await calibrate(
                problem_set,
                endpoints,
                model=server.model,
                prompt=template,
                thinking=thinking,
                tokens=tokens,
                max_tokens=max_tokens,
                seed=seed,
                retry=Retry(seed=seed),
            )

    with target.urls(out.with_suffix(".server.log")) as urls:
        found = asyncio.run(measure(urls))
    write_atomically(out, found.model_dump_json(indent=2) + "\n")
    return found

"""Read what a user wants to tune, and check it as far as possible without a server."""

from __future__ import annotations

import math

from steerdec.problems.prompts import request_body
from steerdec.problems.sets import load_problems
from steerdec.records.arms import ArmSet

from ..design.resolving import resolve
from . import space
from .records import TuneSettings
from .session import TuneRequest
from .split import divided


def read_tune_request(
    problems: str,
    *,
    limit: int | None,
    tuning_share: float,
    seed: int,
    temperature: float,
    threshold_nats: float | None,
    arms: ArmSet | None,
    candidates: int,
    first_samples: int | None,
    first_rung_samples: int,
    test_samples: int,
    budget_tokens: int | None,
    max_tokens: int,
    prompt: str | None,
    thinking: bool | None,
) -> TuneRequest:
    """Load the problems, divide them, and check the settings to try.

    `first_samples` None: as many of each tuning problem as make `first_rung_samples` in all.

    Raises:
        ProblemError, SplitError, SpaceError, ArmError, PromptError: something cannot be used.
    """
    problem_set = load_problems(problems, limit=limit)
    prompt = prompt or problem_set.prompt
    halves = divided(problem_set, tuning_share, seed)
    for problem in problem_set.problems:
        request_body(prompt, problem, thinking=thinking)
    own = None
    if arms is not None:
        chosen = space.arms_from(arms)
        own = tuple(arm.model_dump(mode="json", exclude_defaults=True) for arm in chosen)
        plain = space.plain_arms(temperature)
        whole = ArmSet(name="search", temperature=temperature, baseline=space.BASELINE, arms=(*plain, *chosen))
        resolve(whole, temperature=temperature, threshold_nats=0.0)
    settings = TuneSettings(
        problems=problems,
        problems_sha256=problem_set.sha256,
        tuning_share=tuning_share,
        seed=seed,
        temperature=temperature,
        prompt=prompt,
        thinking=thinking,
        max_tokens=max_tokens,
        threshold_nats=threshold_nats,
        arms=own,
        candidates=candidates,
        first_samples=first_samples or math.ceil(first_rung_samples / len(halves.tuning.problems)),
        test_samples=test_samples,
        budget_tokens=budget_tokens,
    )
    return TuneRequest(settings, halves, arms)

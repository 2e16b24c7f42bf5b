"""Branching arms: their samples continue responses of the same run, so these are sampled first and read back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from steerdec.common.errors import InvalidInputError
from steerdec.problems.sets import Problem
from steerdec.records.arms import Arm, ArmSet
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample, read_samples

from ..design.branches import branch_position
from ..design.masks import MaskedTrace, Prefix
from ..design.plan import SamplingPlan
from .endpoints import Endpoint, RefusedError
from .replays import prompt_ids
from .sample_requests import Prompting


class BranchError(InvalidInputError):
    """The arms of a run cannot branch."""


def branching(arms: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in arms if arm.branch is not None]


def check_samples(arm_set: ArmSet, samples: int) -> None:
    """Raise BranchError if an arm has fewer than two trees: a tree may cost more plain samples than one has leaves."""
    for arm in arm_set.arms:
        if arm.branch is not None and samples < 2 * arm.branch.continuations:
            raise BranchError(
                f'--samples: {samples} are less than two trees of arm "{arm.name}", which take '
                f"{arm.branch.continuations} each; give a multiple of {arm.branch.continuations}"
            )


async def prompts_of(
    endpoint: Endpoint, problems: Sequence[Problem], arms: Sequence[Arm], prompting: Prompting
) -> dict[str, tuple[int, ...]]:
    """Return the token ids of every problem's prompt, by problem id; none if no arm branches.

    Raises:
        BranchError: the server has no /tokenize.
        EndpointError, MalformedAnswerError: it does not answer.
    """
    if not branching(arms):
        return {}
    slots = asyncio.Semaphore(endpoint.connections)

    async def one(problem: Problem) -> tuple[int, ...]:
        async with slots:
            return tuple(await prompt_ids(endpoint, problem, prompting))

    try:
        found = await asyncio.gather(*(one(problem) for problem in problems))
    except RefusedError as e:
        raise BranchError(f"{e} (at /tokenize, which branching needs)") from None
    return {problem.id: ids for problem, ids in zip(problems, found, strict=True)}


def rounds(plan: SamplingPlan, skip: bytearray) -> list[bytearray]:
    """Return what to skip in each round of a stage: first whole responses are made, then those that branch off them."""
    if not branching(plan.arms):
        return [skip]
    roots, branches = bytearray(skip), bytearray(skip)
    for planned in plan.items(skip):
        (branches if planned.arm.branch is None else roots)[planned.number] = 1
    return [roots, branches]


def with_branches(
    plan: SamplingPlan, folder: Path, prompts: Mapping[str, tuple[int, ...]], skip: bytearray
) -> tuple[SamplingPlan, bytearray, int]:
    """Return the plan with the prefixes of all roots in the folder, what to skip, and how many samples lack a root.

    A root that failed is missing: what continues it is skipped too, and made when the run is resumed.

    Raises:
        BranchError: a sample to be continued has no token ids, or lists of unequal length.
    """
    arms = branching(plan.arms)
    if not any(planned.arm.branch is not None for planned in plan.items(skip)):
        return plan, skip, 0
    found: dict[tuple[str, str, int], Prefix] = {}
    for sample in read_samples(folder / SAMPLES):
        for arm in arms:
            if (prefix := _prefix(arm, sample, plan.seed, prompts)) is not None:
                found[arm.name, sample.problem_id, sample.sample] = prefix
    rooted, left = replace(plan, branches=found), bytearray(skip)
    for planned in rooted.items(skip):
        if planned.arm.branch is not None and planned.prefix is None:
            left[planned.number] = 1
    return rooted, left, sum(left) - sum(skip)


def _prefix(arm: Arm, sample: Sample, seed: int, prompts: Mapping[str, tuple[int, ...]]) -> Prefix | None:
    """Return where an arm continues a sample; None if it does not."""
    branch = arm.branch
    if branch is None or sample.arm != branch.roots or branch.root_of(sample.sample) != sample.sample or sample.error:
        return None
    ids, entropies, forks = sample.token_ids, sample.entropy_nats, sample.fork
    if ids is None or entropies is None or forks is None or len(entropies) != len(forks):
        raise BranchError(f"{SAMPLES}: {sample.where} has no token ids and entropies, so nothing can branch off it")
    if len(entropies) - len(ids) not in (0, 1):  # the token that ended the response has no id here
        raise BranchError(f"{SAMPLES}: {sample.where} has {len(ids)} token ids, but {len(entropies)} entropies")
    position = branch_position(
        branch.place, entropies, forks, run_seed=seed, problem_id=sample.problem_id, root=sample.sample
    )
    trace = MaskedTrace(
        problem_id=sample.problem_id,
        arm=sample.arm,
        sample=sample.sample,
        prompt_ids=prompts[sample.problem_id],
        response_ids=np.asarray(ids, np.int32),
        fork=np.asarray(forks[: len(ids)], bool),
    )
    return Prefix(trace, position)

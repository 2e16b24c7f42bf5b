"""Sample what is missing of a plan over HTTP, grade it, and store it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steerdec.common.progress import RunProgress
from steerdec.grading.grade import Grade
from steerdec.problems.sets import Problem
from steerdec.records.run import Settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample, SampleJournal

from ..design.plan import PlannedSample, SamplingPlan
from .answers import Answer, Failure, MalformedAnswerError, parse_answer
from .dispatch import Outcome, dispatch
from .endpoint_health import Retry
from .endpoints import Endpoint
from .replays import whole_text
from .sample_requests import (
    Prompting,
    is_root,
    is_traced,
    max_answer_bytes,
    requested_steering,
    sample_request,
    tokens_left,
)

SYNC_EVERY_S = 1.0
ENTROPY_DIGITS = 5

Grader = Callable[[str, Problem, str], Awaitable[Grade]]  # text, problem, finish_reason


async def make_samples(
    folder: Path,
    settings: Settings,
    plan: SamplingPlan,
    skip: bytearray,
    endpoints: Sequence[Endpoint],
    grade: Grader,
    retry: Retry,
    progress: RunProgress,
) -> None:
    """Make every sample of the plan that is not in `skip`; failed samples go into the journal with their `error`.

    Raises:
        NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
        JournalError: the disk is full or broken. What was written before is safe in every case.
    """
    journal = SampleJournal(folder / SAMPLES)
    syncing = asyncio.create_task(_sync_periodically(journal))

    async def send(endpoint: Endpoint, planned: PlannedSample) -> Answer:
        if syncing.done():
            syncing.result()  # the disk failed
        return await request_sample(endpoint, planned, settings)

    async def keep(planned: PlannedSample, endpoint: Endpoint, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            sample = failed_sample(planned, endpoint.url, outcome)
        else:
            graded = await grade(outcome.text, planned.problem, outcome.finish_reason)
            sample = graded_sample(planned, endpoint.url, outcome, graded)
        journal.append(sample)
        progress.count(
            sample.arm,
            tokens=sample.completion_tokens or 0,
            failed=sample.error is not None,
            correct=None if sample.grade == "ungraded" else sample.grade == "correct",
        )

    try:
        await dispatch(plan.items(skip), endpoints, send, keep, retry)
    finally:
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
        journal.close()


async def request_sample(endpoint: Endpoint, planned: PlannedSample, settings: Settings) -> Answer:
    """Request one sample from one endpoint. Raises EndpointError, MalformedAnswerError."""
    traced, root = is_traced(settings.arms, planned), is_root(settings.arms, planned)
    max_tokens, per_token = tokens_left(planned, settings.max_tokens), traced or root
    prompting = Prompting(settings.model, settings.prompt, settings.thinking)
    path, body = sample_request(
        planned, prompting, max_tokens=max_tokens, per_token=per_token, token_text=traced, token_ids=root
    )
    raw = await endpoint.post(path, body, max_bytes=max_answer_bytes(max_tokens, per_token=per_token))
    answer = parse_answer(raw, max_tokens=max_tokens, steering=requested_steering(planned.arm, per_token=per_token))
    if answer.token_ids is None and (root or planned.prefix is not None):
        raise MalformedAnswerError("choices.0 has no token_ids, which return_token_ids requested")
    if planned.prefix is None or answer.token_ids is None:
        return answer
    stops = body.get("stop", [])
    text = await whole_text(endpoint, planned.prefix, answer.token_ids, model=settings.model, stops=stops)
    return replace(answer, text=text, token_ids=None)  # only the ids of whole responses are kept


async def _sync_periodically(journal: SampleJournal) -> None:
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        await asyncio.to_thread(journal.sync)


def failed_sample(planned: PlannedSample, url: str, failure: Failure) -> Sample:
    """Return the record of a sample without an answer: ungraded, never wrong."""
    return _with_prefix(
        planned,
        Sample(
            problem_id=planned.problem.id,
            arm=planned.arm.name,
            sample=planned.sample,
            seed=planned.seed,
            grade="ungraded",
            grade_path="error",
            endpoint=url,
            error=failure.reason,
        ),
    )


def graded_sample(planned: PlannedSample, url: str, answer: Answer, grade: Grade) -> Sample:
    """Return the record of an answered sample."""
    entropies = answer.entropy_nats
    return _with_prefix(
        planned,
        Sample(
            problem_id=planned.problem.id,
            arm=planned.arm.name,
            sample=planned.sample,
            seed=planned.seed,
            text=answer.text,
            answer=grade.answer,
            grade=grade.grade,
            grade_path=grade.path,
            finish_reason=answer.finish_reason,
            completion_tokens=answer.completion_tokens,
            forks=answer.forks,
            mean_entropy_nats=answer.mean_entropy_nats,
            mean_sampled_entropy_nats=answer.mean_probe_entropy_nats,
            guard_token=answer.guard_token,
            endpoint=url,
            entropy_nats=None
            if entropies is None
            else [None if h is None else round(h, ENTROPY_DIGITS) for h in entropies],
            fork=answer.fork,
            token_text=answer.token_text,
            token_ids=answer.token_ids,
        ),
    )


def _with_prefix(planned: PlannedSample, sample: Sample) -> Sample:
    if planned.prefix is None:
        return sample
    trace = planned.prefix.trace
    return replace(sample, position=planned.prefix.position, replayed_arm=trace.arm, replayed_sample=trace.sample)

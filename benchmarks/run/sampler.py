"""A run: the samples of a plan, made over HTTP, graded, and kept; it goes on where it stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerdec.common import journal
from steerdec.common.journal import Journal, JournalError
from steerdec.common.progress import RunProgress
from steerdec.grading.grade import Grade
from steerdec.problems.sets import Problem
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import Settings, SettingsError, changes, read_settings

from ..design.plan import Item, Plan
from .answers import Answer, MalformedAnswerError, parse_answer
from .dispatch import Retry, dispatch
from .endpoints import Endpoint
from .replays import whole_text
from .sample_requests import asked_steering, is_traced, max_answer_bytes, sample_request, tokens_left

SYNC_EVERY_S = 1.0
ENTROPY_DIGITS = 5

Grader = Callable[[str, Problem, str], Awaitable[Grade]]  # text, problem, finish_reason


def open_folder(folder: Path, settings: Settings) -> Settings:
    """Write `run.json`, or check that the run in the folder may go on under `settings`; the settings in force.

    Call it with the folder locked.

    Raises:
        SettingsError: the folder holds something else, or a run under other settings.
    """
    if (folder / RUN_JSON).exists():
        old = read_settings(folder / RUN_JSON)
        if differences := changes(old, settings):
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise SettingsError(
                f"{folder} holds a run under other settings: {'; '.join(differences[:3])}{more}; "
                "give the same settings or another --out"
            )
        return old
    if (folder / journal.NAME).exists():
        raise SettingsError(f"{folder} holds {journal.NAME} but no {RUN_JSON}; choose another --out")
    settings.write(folder)
    return settings


def done_samples(folder: Path, plan: Plan) -> bytearray:
    """One byte for each item of the plan, 1 where its sample is in the journal, which is repaired first."""
    done = bytearray(len(plan))

    def keep(sample: dict[str, Any]) -> None:
        try:
            index = plan.index(sample["problem_id"], sample["arm"], sample["sample"])
        except KeyError:
            key = f"{sample['problem_id']}, {sample['arm']}, {sample['sample']}"
            raise JournalError(f"{folder / journal.NAME} holds a sample that is not of this run: {key}") from None
        if done[index]:
            raise JournalError(
                f"{folder / journal.NAME} holds a sample twice: problem {sample['problem_id']}, "
                f"arm {sample['arm']}, sample {sample['sample']}"
            )
        done[index] = 1

    journal.repair(folder / journal.NAME, keep)
    return done


async def make_samples(
    folder: Path,
    settings: Settings,
    plan: Plan,
    done: bytearray,
    endpoints: Sequence[Endpoint],
    grade: Grader,
    retry: Retry,
) -> int:
    """Make every sample that is not `done`; the number that failed, which are in the journal with their `error`.

    Raises:
        NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
        JournalError: the disk is full or broken. What was written before is safe in every case.
    """
    with RunProgress(len(plan), sum(done)) as progress:
        lines = Journal(folder / journal.NAME)
        syncing = asyncio.create_task(_sync_now_and_then(lines))

        async def send(endpoint: Endpoint, item: Item) -> Answer:
            if syncing.done():
                syncing.result()  # the disk failed
            return await request_sample(endpoint, item, settings)

        async def keep(item: Item, endpoint: Endpoint, outcome: Answer | str) -> None:
            sample = await _sample(item, endpoint, outcome, grade)
            lines.append(sample)
            progress.count(sample)

        try:
            await dispatch(plan.items(done), endpoints, send, keep, retry)
        finally:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
            lines.close()
    return progress.failed


async def request_sample(endpoint: Endpoint, item: Item, settings: Settings) -> Answer:
    """Ask one endpoint for one sample. Raises EndpointError, MalformedAnswerError."""
    traced, max_tokens = is_traced(settings.arms, item), tokens_left(item, settings.max_tokens)
    path, body = sample_request(
        item,
        model=settings.model,
        prompt=settings.prompt,
        thinking=settings.thinking,
        max_tokens=max_tokens,
        traced=traced,
    )
    raw = await endpoint.post(path, body, max_bytes=max_answer_bytes(max_tokens, traced))
    answer = parse_answer(raw, max_tokens=max_tokens, steering=asked_steering(item.arm, traced))
    if item.prefix is None:
        return answer
    if answer.token_ids is None:
        raise MalformedAnswerError("choices.0 has no token_ids, which return_token_ids asked for")
    stops = body.get("stop", [])
    text = await whole_text(endpoint, item.prefix, answer.token_ids, model=settings.model, stops=stops)
    return replace(answer, text=text)


async def _sync_now_and_then(lines: Journal) -> None:
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        await asyncio.to_thread(lines.sync)


async def _sample(item: Item, endpoint: Endpoint, outcome: Answer | str, grade: Grader) -> dict[str, Any]:
    """One line of samples.jsonl. A sample without an answer is ungraded, never wrong."""
    failed = isinstance(outcome, str)
    answer = Answer("", "", 0) if isinstance(outcome, str) else outcome
    graded = (
        Grade(None, "ungraded", "error") if failed else await grade(answer.text, item.problem, answer.finish_reason)
    )
    sample: dict[str, Any] = {
        "problem_id": item.problem.id,
        "arm": item.arm.name,
        "sample": item.sample,
        "seed": item.seed,
        "text": None if failed else answer.text,
        "answer": graded.answer,
        "grade": graded.grade,
        "grade_path": graded.path,
        "finish_reason": answer.finish_reason or None,
        "completion_tokens": None if failed else answer.completion_tokens,
        "forks": answer.forks,
        "mean_entropy_nats": answer.mean_entropy_nats,
        "mean_sampled_entropy_nats": answer.mean_probe_entropy_nats,
        "endpoint": endpoint.url,
        "error": outcome if failed else None,
    }
    if item.prefix is not None:  # the text is the whole response; the tokens counted are those from `position` on
        trace = item.prefix.trace
        sample |= {"position": item.prefix.position, "replayed_arm": trace.arm, "replayed_sample": trace.sample}
    if answer.entropy_nats is not None:
        sample["entropy_nats"] = [None if h is None else round(h, ENTROPY_DIGITS) for h in answer.entropy_nats]
        sample["fork"] = answer.fork
        sample["token_text"] = answer.token_text
    return sample

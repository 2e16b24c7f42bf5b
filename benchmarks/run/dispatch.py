"""Distribute requests over endpoints, each with its own limit, and survive temporary failures."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from steerdec.common.errors import SteerdecError

from .answers import Answer, Failure, MalformedAnswerError
from .endpoint_health import EndpointHealth, Retry
from .endpoints import BrokenError, BusyError, Endpoint, RefusedError, UnreachableError

T = TypeVar("T")

LOOK_FOR_STRAGGLERS_EVERY_S = 1.0
STRAGGLER_AFTER_ANSWERS = 20
STRAGGLER_TIMES_LONGEST = 2.0


class NoEndpointLeftError(SteerdecError):
    """Every endpoint was retired; the message has the last failure of each."""

    resumable = True


class NoGoodAnswerError(SteerdecError):
    """Many requests in a row were refused or answered with nonsense; the message is that of the last one."""

    resumable = True


Outcome = Answer | Failure
Send = Callable[[Endpoint, T], Awaitable[Answer]]
Done = Callable[[T, Endpoint, Outcome], Awaitable[None]]


async def dispatch(
    work: Iterator[T], endpoints: Sequence[Endpoint], send: Send[T], done: Done[T], retry: Retry
) -> None:
    """Send all work, with as many concurrent requests as the endpoints have connections.

    `done` is awaited once for each piece of work, with its answer or the reason why it has none (a refusal, a malformed
    answer, or `retry.attempts` failures). An exception in it stops everything.

    Raises:
        NoEndpointLeftError: all endpoints failed too often; `done` has not been called for the rest.
        NoGoodAnswerError: `retry.bad_answers` answers in a row were refusals or malformed.
    """
    health = [EndpointHealth(endpoint, retry) for endpoint in endpoints]
    dispatcher = Dispatcher(WorkQueue(work), health, send, done, retry)
    try:
        async with asyncio.TaskGroup() as group:
            for one in health:
                for _ in range(one.endpoint.connections):
                    group.create_task(dispatcher.serve(one))
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    if dispatcher.queue.unfinished():
        raise NoEndpointLeftError("no endpoint is left: " + "; ".join(one.last_error for one in health))


@dataclass(eq=False)
class Job(Generic[T]):
    """A piece of work that was started, with the endpoints at which it failed.

    A straggler is sent twice: then `sends` has two requests, and the first answer counts.
    """

    work: T
    attempts: int = 0
    failed_at: list[EndpointHealth] = field(default_factory=list)
    started_at: float = 0.0  # of the loop's clock, seconds: the first of the requests in flight
    sends: list[tuple[EndpointHealth, asyncio.Future[Answer]]] = field(default_factory=list)
    takers: int = 0
    finished: bool = False


class WorkQueue(Generic[T]):
    """Work that is not yet started, from an iterator, work to be retried, and work in flight."""

    def __init__(self, work: Iterator[T]) -> None:
        self._fresh = work
        self._again: deque[Job[T]] = deque()
        self._in_flight: set[Job[T]] = set()
        self._changed = asyncio.Condition()

    async def take(
        self, suits: Callable[[Job[T]], bool], *, fresh_first: bool, straggles: Callable[[Job[T]], bool]
    ) -> Job[T] | None:
        """Return the next suitable job, None when all are finished.

        Waits while jobs in flight may still come back, and while others have to take what is unsuitable here. If
        nothing else is left, a job in flight that straggles is returned, to be sent a second time.
        """
        async with self._changed:
            while True:
                job = self._next() if fresh_first else None
                job = job or self._tried(suits) or self._next()
                job = job or next((one for one in self._in_flight if straggles(one)), None)
                if job is not None:
                    if job.takers == 0:
                        job.started_at = asyncio.get_running_loop().time()
                    job.takers += 1
                    self._in_flight.add(job)
                    return job
                if not self._in_flight and not self._again:
                    return None
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_FOR_STRAGGLERS_EVERY_S):
                        await self._changed.wait()

    def _tried(self, suits: Callable[[Job[T]], bool]) -> Job[T] | None:
        job = next((job for job in self._again if suits(job)), None)
        if job is not None:
            self._again.remove(job)
        return job

    def _next(self) -> Job[T] | None:
        for work in self._fresh:
            return Job(work)
        return None

    async def give_back(self, job: Job[T]) -> None:
        """Return a job that was taken, to be retried unless it is also in flight elsewhere."""
        async with self._changed:
            self._release(job)
            if job.takers == 0 and not job.finished:
                self._again.append(job)
            self._changed.notify_all()

    def _release(self, job: Job[T]) -> None:
        job.takers -= 1
        if job.takers == 0:
            self._in_flight.discard(job)

    async def look_again(self) -> None:
        """Wake everyone who waits, because the suitable jobs may have changed."""
        async with self._changed:
            self._changed.notify_all()

    async def finish(self, job: Job[T]) -> None:
        """Mark a job as finished."""
        async with self._changed:
            self._release(job)
            if not self._in_flight:
                self._changed.notify_all()

    def unfinished(self) -> bool:
        """Return whether there is unfinished work."""
        if not self._again and (job := self._next()) is not None:
            self._again.append(job)
        return bool(self._again or self._in_flight)


class Dispatcher(Generic[T]):
    """The state shared by the connections of all endpoints."""

    def __init__(
        self, queue: WorkQueue[T], health: list[EndpointHealth], send: Send[T], done: Done[T], retry: Retry
    ) -> None:
        self.queue = queue
        self._health = health
        self._send = send
        self._done = done
        self._retry = retry
        self._bad_answers = 0
        self._answered = 0
        self._longest_s = 0.0  # of the answers so far

    async def serve(self, endpoint: EndpointHealth) -> None:
        """Send one request after another, as one connection does."""

        def suits(job: Job[T]) -> bool:
            """Return whether this endpoint may take the job.

            A job that failed here is left to an endpoint that has not tried it: one that hangs would otherwise use up
            its attempts.
            """
            return endpoint not in job.failed_at or all(
                other.retired or other in job.failed_at for other in self._health
            )

        def straggles(job: Job[T]) -> bool:
            """Return whether a job takes far longer than any answer so far; False if there are too few answers yet."""
            waited_s = asyncio.get_running_loop().time() - job.started_at
            return (
                job.takers == 1
                and not job.finished  # the request that lost may still be closing
                and not endpoint.suspect
                and self._answered >= STRAGGLER_AFTER_ANSWERS
                and waited_s > max(self._retry.straggler_s, STRAGGLER_TIMES_LONGEST * self._longest_s)
                and (len(self._health) == 1 or all(sent_to is not endpoint for sent_to, _ in job.sends))
            )

        while await endpoint.usable():
            job = await self.queue.take(suits, fresh_first=endpoint.suspect, straggles=straggles)
            if job is None:
                break
            if endpoint.paused or endpoint.retired:  # since this connection began to wait for work
                await self.queue.give_back(job)
                continue
            outcome = await self._outcome(endpoint, job)
            if job.finished:  # by another endpoint, or another connection of this one
                await self.queue.finish(job)
            elif outcome is None or (isinstance(outcome, Failure) and job.takers > 1):
                await self.queue.give_back(job)
            else:
                job.finished = True
                for _, send in job.sends:
                    send.cancel()
                await self._done(job.work, endpoint.endpoint, outcome)
                await self.queue.finish(job)
        await self.queue.look_again()  # this endpoint may be retired

    async def _outcome(self, endpoint: EndpointHealth, job: Job[T]) -> Outcome | None:
        """Return the answer or the reason why there is none; None if the job should be retried."""
        started_at = asyncio.get_running_loop().time()
        send = asyncio.ensure_future(self._send(endpoint.endpoint, job.work))
        job.sends.append((endpoint, send))
        try:
            answer = await send
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if job.finished and current is not None and not current.cancelling():
                return None  # the other request was answered first
            raise
        except (RefusedError, MalformedAnswerError) as e:
            self._bad_answers += 1
            if self._bad_answers >= self._retry.bad_answers:
                raise NoGoodAnswerError(f"{self._bad_answers} bad answers in a row, the last: {e}") from None
            return Failure(f"malformed answer: {e}" if isinstance(e, MalformedAnswerError) else str(e))
        except (BusyError, UnreachableError, BrokenError) as e:
            endpoint.failed(started_at, e, again=job.attempts > 0)
            if isinstance(e, BrokenError):
                job.attempts += 1
                job.failed_at.append(endpoint)
                if job.attempts >= self._retry.attempts:
                    return Failure(f"{e} ({job.attempts} attempts)")
                await asyncio.sleep(self._retry.pause_s(job.attempts, endpoint.jitter))
            return None
        self._bad_answers = 0
        self._answered += 1
        self._longest_s = max(self._longest_s, asyncio.get_running_loop().time() - started_at)
        endpoint.succeeded()
        return answer

"""Spread requests over endpoints, each with its own limit; outlive the failures that pass."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .answers import Answer, MalformedAnswerError
from .endpoints import BrokenError, BusyError, Endpoint, EndpointError, RefusedError, UnreachableError

T = TypeVar("T")


class NoEndpointLeftError(Exception):
    """Every endpoint was left; the message is one line with the last failure of each."""


class NoGoodAnswerError(Exception):
    """Request after request was refused or answered with nonsense; the message is the last one's."""


@dataclass(frozen=True)
class Retry:
    """How much failure is borne. A pause doubles from the first to the longest, times a jitter in [0.5, 1).

    `attempts` bounds one request's failures that may be its own (5xx, cut off, timed out);
    `endpoint_failures` bounds an endpoint's failures in a row, a burst of simultaneous ones
    counting as one; `bad_answers` bounds refusals (4xx) and malformed answers in a row over the whole run.
    """

    attempts: int = 4
    endpoint_failures: int = 8
    bad_answers: int = 50
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    seed: int = 0

    def pause_s(self, failures: int, jitter: random.Random) -> float:
        longest = min(self.first_pause_s * 2.0 ** (failures - 1), self.longest_pause_s)
        return longest * jitter.uniform(0.5, 1.0)


@dataclass
class _Job(Generic[T]):
    work: T
    attempts: int = 0
    failed_at: list[_Line] = field(default_factory=list)


class _Feed(Generic[T]):
    """Work not yet begun, from an iterator, and work to be begun again."""

    def __init__(self, work: Iterator[T]) -> None:
        self._fresh = work
        self._again: deque[_Job[T]] = deque()
        self._in_hand = 0
        self._changed = asyncio.Condition()

    async def take(self, suits: Callable[[_Job[T]], bool], *, fresh_first: bool) -> _Job[T] | None:
        """The next job that suits, None when all are finished. Waits while those in other hands may still come back,
        and while others must take what does not suit here."""
        async with self._changed:
            while True:
                job = self._next() if fresh_first else None
                job = job or self._tried(suits) or self._next()
                if job is not None:
                    self._in_hand += 1
                    return job
                if self._in_hand == 0 and not self._again:
                    return None
                await self._changed.wait()

    def _tried(self, suits: Callable[[_Job[T]], bool]) -> _Job[T] | None:
        job = next((job for job in self._again if suits(job)), None)
        if job is not None:
            self._again.remove(job)
        return job

    def _next(self) -> _Job[T] | None:
        for work in self._fresh:
            return _Job(work)
        return None

    async def give_back(self, job: _Job[T]) -> None:
        async with self._changed:
            self._again.append(job)
            self._in_hand -= 1
            self._changed.notify_all()

    async def look_again(self) -> None:
        """What suits whom may have changed."""
        async with self._changed:
            self._changed.notify_all()

    async def finish(self) -> None:
        async with self._changed:
            self._in_hand -= 1
            if self._in_hand == 0:
                self._changed.notify_all()

    def left_over(self) -> bool:
        if not self._again and (job := self._next()) is not None:
            self._again.append(job)
        return bool(self._again) or self._in_hand > 0


class _Line:
    """An endpoint and its health: open, paused after a failure, or left."""

    def __init__(self, endpoint: Endpoint, retry: Retry) -> None:
        self.endpoint = endpoint
        self.left = False
        self.last_error = ""
        self._retry = retry
        self.jitter = random.Random(f"{retry.seed} {endpoint.url}")
        self._failures = 0
        self._failed_at = self._succeeded_at = -1.0  # of the loop's clock, seconds
        self._settled = asyncio.Event()  # open or left, not paused
        self._settled.set()
        self._recovery: asyncio.Task[None] | None = None

    async def usable(self) -> bool:
        """Wait out a pause; False once the endpoint is left."""
        await self._settled.wait()
        return not self.left

    @property
    def paused(self) -> bool:
        return not self._settled.is_set()

    @property
    def in_doubt(self) -> bool:
        """Failed, and no answer since. What has failed already would tell less of the endpoint than fresh work: a
        few requests that fail everywhere would have it left."""
        return self._failures > 0

    def succeeded(self) -> None:
        self._failures = 0
        self._succeeded_at = asyncio.get_running_loop().time()

    def failed(self, begun_at: float, error: EndpointError, *, again: bool) -> None:
        """Pause, unless the request had begun before a failure already counted (the same burst), or the failure is
        its own: others got answers in the meantime, or it has failed before (else the last few of a run, with
        nothing left to succeed beside them, would have their endpoint left)."""
        self.last_error = str(error)
        own = isinstance(error, BrokenError) and (again or self._succeeded_at >= begun_at)
        if own or begun_at <= self._failed_at or self.left or self.paused:
            return
        self._settled.clear()
        self._recovery = asyncio.create_task(self._recover(error))

    async def _recover(self, error: EndpointError) -> None:
        """Pause, then probe, until the endpoint answers or has failed too often."""
        while True:
            self._failures += 1
            self._failed_at = asyncio.get_running_loop().time()
            self.last_error = str(error)
            if self._failures >= self._retry.endpoint_failures:
                self.left = True
                break
            wait_s = error.retry_after_s if isinstance(error, BusyError) else 0.0
            await asyncio.sleep(max(wait_s, self._retry.pause_s(self._failures, self.jitter)))
            try:
                await self.endpoint.get_json("/v1/models")
                break
            except EndpointError as e:
                error = e
        self._failed_at = asyncio.get_running_loop().time()
        self._settled.set()


Send = Callable[[Endpoint, T], Awaitable[Answer]]
Done = Callable[[T, Endpoint, Answer | str], Awaitable[None]]


async def dispatch(
    work: Iterator[T], endpoints: Sequence[Endpoint], send: Send[T], done: Done[T], retry: Retry
) -> None:
    """Send all work, as many requests at once as the endpoints have connections.

    `done` is awaited once for each piece of work, with its answer or with the reason it has none
    (a refusal, a malformed answer, or `retry.attempts` failures). An exception in it stops everything.

    Raises:
        NoEndpointLeftError: all endpoints failed too often; `done` has not been called for the rest.
        NoGoodAnswerError: `retry.bad_answers` answers in a row were refusals or malformed.
    """
    lines = [_Line(endpoint, retry) for endpoint in endpoints]
    desk = _Desk(_Feed(work), lines, send, done, retry)
    try:
        async with asyncio.TaskGroup() as group:
            for line in lines:
                for _ in range(line.endpoint.connections):
                    group.create_task(desk.serve(line))
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    if desk.feed.left_over():
        raise NoEndpointLeftError("no endpoint is left: " + "; ".join(line.last_error for line in lines))


class _Desk(Generic[T]):
    """What the workers of all endpoints share."""

    def __init__(self, feed: _Feed[T], lines: list[_Line], send: Send[T], done: Done[T], retry: Retry) -> None:
        self.feed = feed
        self._lines = lines
        self._send = send
        self._done = done
        self._retry = retry
        self._bad_answers = 0

    async def serve(self, line: _Line) -> None:
        """One connection's worth of requests, one after another."""

        def suits(job: _Job[T]) -> bool:
            """Where it failed a job is not tried again while there is an endpoint that has not had it: one that hangs
            would else use up its attempts."""
            return line not in job.failed_at or all(other.left or other in job.failed_at for other in self._lines)

        while await line.usable() and (job := await self.feed.take(suits, fresh_first=line.in_doubt)) is not None:
            if line.paused or line.left:  # it happened while the feed was empty
                await self.feed.give_back(job)
                continue
            outcome = await self._outcome(line, job)
            if outcome is None:
                await self.feed.give_back(job)
                continue
            await self._done(job.work, line.endpoint, outcome)
            await self.feed.finish()
        await self.feed.look_again()  # this endpoint may be left

    async def _outcome(self, line: _Line, job: _Job[T]) -> Answer | str | None:
        """The answer, the reason there is none, or None where the job should be tried again."""
        begun_at = asyncio.get_running_loop().time()
        try:
            answer = await self._send(line.endpoint, job.work)
        except (RefusedError, MalformedAnswerError) as e:
            self._bad_answers += 1
            if self._bad_answers >= self._retry.bad_answers:
                raise NoGoodAnswerError(f"{self._bad_answers} bad answers in a row, the last: {e}") from None
            return f"malformed answer: {e}" if isinstance(e, MalformedAnswerError) else str(e)
        except (BusyError, UnreachableError, BrokenError) as e:
            line.failed(begun_at, e, again=job.attempts > 0)
            if isinstance(e, BrokenError):
                job.attempts += 1
                job.failed_at.append(line)
                if job.attempts >= self._retry.attempts:
                    return f"{e} ({job.attempts} attempts)"
                await asyncio.sleep(self._retry.pause_s(job.attempts, line.jitter))
            return None
        self._bad_answers = 0
        line.succeeded()
        return answer

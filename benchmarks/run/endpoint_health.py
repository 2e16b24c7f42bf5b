"""Decide when a failing endpoint is paused, tried again, and retired."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from .endpoints import BrokenError, BusyError, Endpoint, EndpointError


@dataclass(frozen=True)
class Retry:
    """How much failure a run tolerates. A pause doubles from the first to the longest, times a jitter in [0.5, 1).

    `attempts` limits the failures of one request that it may cause itself (5xx, cut off, timed out);
    `endpoint_failures` limits an endpoint's failures in a row, a burst of simultaneous ones counting as one;
    `bad_answers` limits refusals (4xx) and malformed answers in a row over the whole run.
    """

    attempts: int = 4
    endpoint_failures: int = 8
    bad_answers: int = 50
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    seed: int = 0
    straggler_s: float = 30.0  # no request is a straggler before this

    def pause_s(self, failures: int, jitter: random.Random) -> float:
        """Return how long to wait after so many failures in a row."""
        longest = min(self.first_pause_s * 2.0 ** (failures - 1), self.longest_pause_s)
        return longest * jitter.uniform(0.5, 1.0)


class EndpointHealth:
    """An endpoint that is open, paused after a failure, or retired. Use inside one event loop."""

    def __init__(self, endpoint: Endpoint, retry: Retry) -> None:
        self.endpoint = endpoint
        self.retired = False
        self.last_error = ""
        self._retry = retry
        self.jitter = random.Random(f"{retry.seed} {endpoint.url}")
        self._failures = 0
        self._failed_at = self._succeeded_at = -1.0  # of the loop's clock, seconds
        self._settled = asyncio.Event()  # open or retired, not paused
        self._settled.set()
        self._recovery: asyncio.Task[None] | None = None

    async def usable(self) -> bool:
        """Wait out a pause; return False once the endpoint is retired."""
        await self._settled.wait()
        return not self.retired

    @property
    def paused(self) -> bool:
        return not self._settled.is_set()

    @property
    def suspect(self) -> bool:
        """Return whether it failed and has not answered since.

        It should get fresh work then: jobs that failed before say less about the endpoint, and a few requests that fail
        everywhere would have it retired.
        """
        return self._failures > 0

    def succeeded(self) -> None:
        self._failures = 0
        self._succeeded_at = asyncio.get_running_loop().time()

    def failed(self, started_at: float, error: EndpointError, *, again: bool) -> None:
        """Pause after a failure of a request sent at `started_at`.

        There is no pause if the request was sent before a failure that counts already (the same burst), or if it is the
        likely cause: others got answers in the meantime, or it has failed before (otherwise the last few of a run, with
        nothing left to succeed beside them, would have their endpoint retired).
        """
        self.last_error = str(error)
        request_is_the_cause = isinstance(error, BrokenError) and (again or self._succeeded_at >= started_at)
        if request_is_the_cause or started_at <= self._failed_at or self.retired or self.paused:
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
                self.retired = True
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

"""Telemetry of background responses, whose answer is fetched later: by GET, perhaps more than once, perhaps never.

The lane of such a response is read when its generation ends, and given back; the records are kept here for those who
fetch it. As in vLLM's own store, from which the response is fetched, they are this process's and are lost with it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final, Protocol

from steerdec.steering.params import SteeringError
from steerdec.telemetry.loan import Loan, Telemetry

from . import metrics

MAX_KEPT_TOKENS: Final = 2**24  # of ended responses; about 200 MiB
RESPONSE_TOKENS: Final = 64  # a response counts as this many more


class Responses(Protocol):
    """What is used of vLLM's handler of responses."""

    background_tasks: dict[str, asyncio.Task[Any]]  # of those that are generating
    response_store: dict[str, Any]


class BackgroundResponse:
    """One of them: adds its telemetry to every answer that holds the complete response."""

    def __init__(self, loan: Loan, telemetry: str) -> None:
        self._loan, self._wanted = loan, telemetry
        self._telemetry: Telemetry | None = None  # once the response is complete

    @property
    def tokens(self) -> int:
        """Return the number of tokens whose records are kept."""
        return 0 if self._telemetry is None else len(self._telemetry.fork)

    def whole(self, answer: dict[str, Any]) -> None:
        """Annotate a response, in place, if it is complete."""
        usage = answer.get("usage")
        if isinstance(usage, dict):
            self.complete(usage["output_tokens"])
        if self._telemetry is not None and answer.get("status") in ("completed", "incomplete"):
            lists = self._telemetry.lists() if self._wanted == "tokens" else {}
            answer["steering"] = self._telemetry.summary() | lists

    def chunk(self, event: dict[str, Any]) -> bool:
        """Annotate one event of a stream, in place; all are passed on."""
        response = event.get("response")
        if isinstance(response, dict):
            self.whole(response)
        return True

    def complete(self, tokens: int) -> None:
        """Read the records of the whole response, the first time that it is seen."""
        if self._telemetry is None:
            self._loan.returned_tokens[0] = tokens
            self._telemetry = self._loan.returned(0)

    def end(self, stored: Any) -> None:
        """Give the lane back: the engine has finished the response that vLLM has stored, or was told to abort it."""
        usage = getattr(stored, "usage", None)
        if usage is not None:
            self.complete(usage.output_tokens)
        if self._telemetry is not None:
            metrics.count([self._telemetry])
        self._loan.give_back(aborted=self._telemetry is None and stored is not None)


class BackgroundResponses:
    """Those of this server, by their names; the oldest are forgotten when they hold too many tokens."""

    def __init__(self, max_tokens: int = MAX_KEPT_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._generating: dict[str, BackgroundResponse] = {}
        self._ended: OrderedDict[str, BackgroundResponse] = OrderedDict()
        self._tokens = 0

    def get(self, name: str) -> BackgroundResponse | None:
        """Return the response of this name; None if it is unknown or forgotten."""
        return self._generating.get(name) or self._ended.get(name)

    def refuse_taken(self, name: str | None) -> None:
        """Raise SteeringError if a response of this name is being generated."""
        if name in self._generating:
            raise SteeringError("telemetry", f"request_id {name!r} is taken by a response that is being generated")

    def begin(self, name: str, loan: Loan, telemetry: str) -> BackgroundResponse:
        """Return a new response, to be followed by :meth:`follow` once vLLM has taken or refused it."""
        self._forget(name)
        response = self._generating[name] = BackgroundResponse(loan, telemetry)
        return response

    def follow(self, name: str, handler: Responses | None) -> None:
        """Keep the records of a response when its generation ends. A model that cannot chat has no handler."""
        task = None if handler is None else handler.background_tasks.get(name)
        if task is None:  # refused, or ended already
            self._end(name, handler)
        else:
            task.add_done_callback(lambda _: self._end(name, handler))

    def _end(self, name: str, handler: Responses | None) -> None:
        response = self._generating.pop(name)
        response.end(None if handler is None else handler.response_store.get(name))
        self._ended[name] = response
        self._tokens += response.tokens + RESPONSE_TOKENS
        while self._tokens > self._max_tokens:
            self._forget(next(iter(self._ended)))

    def _forget(self, name: str) -> None:
        response = self._ended.pop(name, None)
        if response is not None:
            self._tokens -= response.tokens + RESPONSE_TOKENS

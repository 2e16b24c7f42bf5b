"""Take `steering` out of a request and put telemetry into its answer; refuse it where it would be ignored."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerdec.steering.params import SteeringError
from steerdec.telemetry.lanes import LanesExhaustedError
from steerdec.telemetry.loan import Telemetry

from .. import metrics, tracing
from ..answer import Annotator
from ..background import BackgroundResponses
from ..body import Host, Prepared, may_be_steered, names_steering, prepared
from ..errors import refuse
from ..fields import PATHS, RESPONSES
from ..misplaced import refuse_everywhere, refuse_misplaced
from .body_limit import read_body, replayed
from .sse import EventStream

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class SteeringMiddleware:
    """ASGI middleware that steers; see the module."""

    def __init__(self, app: ASGIApp, host: Callable[[], Host]) -> None:
        self._app, self._host = app, host
        self._background = BackgroundResponses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST":
            under, _, name = path.rpartition("/")
            fetched = self._background.get(name) if under == RESPONSES else None
            await self._app(scope, receive, send if fetched is None else _Sender(send, fetched))
            return
        raw = await read_body(receive) or b""
        try:
            ready = self._prepare(path, raw)
        except SteeringError as e:
            await refuse(send, 400, str(e), f"steering.{e.field}" if e.field else "steering", path)
            return
        except LanesExhaustedError as e:
            message = f'{e}: try again, or send steering.telemetry "none"'
            await refuse(send, 429, message, "steering.telemetry", path)
            return
        if ready is None:
            await self._app(scope, replayed(raw, receive), send)
            return
        answer = self._answer if ready[0].background is None else self._answer_in_background
        await answer(scope, receive, send, *ready)

    def _prepare(self, path: str, raw: bytes) -> tuple[Prepared, bytes] | None:
        """Return how to answer, and the body to pass on; None if it passes unchanged."""
        host = self._host()
        if not (may_be_steered(raw, host) if path in PATHS else names_steering(raw)):
            return None
        try:
            with _without_collection():
                body = json.loads(raw)
        except (ValueError, RecursionError):
            return None  # vLLM reports what is wrong with it
        if not isinstance(body, dict):
            return None
        if path not in PATHS:
            refuse_everywhere(body, ", ".join(sorted(PATHS)))
            return None
        refuse_misplaced(body)
        ready = prepared(path, body, host)
        if ready is None:
            return None
        try:
            self._background.refuse_taken(ready.background)
            return ready, json.dumps(ready.body).encode()
        except SteeringError:
            ready.loan.give_back(aborted=False)
            raise
        except RecursionError:  # a few levels below the depth at which parsing fails
            ready.loan.give_back(aborted=False)
            raise SteeringError("", "cannot be combined with a body nested this deeply") from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ready: Prepared, raw: bytes) -> None:
        annotator = Annotator(ready)
        sender = _Sender(send, annotator)
        headers = _with_length(scope, raw)
        try:
            with tracing.span_of(self._host().tracer, headers, ready) as span:
                try:
                    await self._app({**scope, "headers": headers.raw}, replayed(raw, receive), sender)
                finally:
                    if annotator.answered:
                        _count(annotator.returned(), span)
        finally:
            # The handler has returned or been cancelled, so the engine has finished the sequences
            # or has been told to abort them.
            ready.loan.give_back(aborted=not sender.complete or annotator.may_be_generating)

    async def _answer_in_background(
        self, scope: Scope, receive: Receive, send: Send, ready: Prepared, raw: bytes
    ) -> None:
        name = str(ready.background)
        response = self._background.begin(name, ready.loan, ready.telemetry)
        headers = _with_length(scope, raw)
        try:
            with tracing.span_of(self._host().tracer, headers, ready):  # ends before the response does
                await self._app({**scope, "headers": headers.raw}, replayed(raw, receive), _Sender(send, response))
        finally:  # a client that left leaves the response to those who know its name
            self._background.follow(name, getattr(scope["app"].state, "openai_serving_responses", None))


class _Annotates(Protocol):
    """What puts telemetry into an answer."""

    def whole(self, answer: dict[str, Any]) -> None: ...

    def chunk(self, chunk: dict[str, Any], /) -> bool: ...


class _Sender:
    """Passes the answer on, annotated: JSON as a whole, server-sent events one by one."""

    def __init__(self, send: Send, annotator: _Annotates) -> None:
        self._send, self._annotator = send, annotator
        self._start: Message | None = None
        self._held: list[bytes] = []
        self._events: EventStream | None = None
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            content_type = MutableHeaders(raw=list(message["headers"])).get("content-type", "")
            if message["status"] == 200 and content_type.startswith("text/event-stream"):
                self._events = EventStream(self._annotator.chunk)
            elif message["status"] == 200 and content_type.startswith("application/json"):
                self._start = message  # its content-length is known only with the whole body
                return
            await self._send(message)
        elif message["type"] == "http.response.body":
            await self._body(message)
        else:
            await self._send(message)

    async def _body(self, message: Message) -> None:
        data, more = message.get("body", b""), message.get("more_body", False)
        self.complete = not more
        if self._events is not None:
            data = self._events.feed(data, last=not more)
        elif self._start is not None:
            self._held.append(data)
            if more:
                return
            data = self._annotated(b"".join(self._held))
            headers = MutableHeaders(raw=list(self._start["headers"]))
            headers["content-length"] = str(len(data))
            await self._send({**self._start, "headers": headers.raw})
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _annotated(self, body: bytes) -> bytes:
        answer: Any = json.loads(body)
        if not isinstance(answer, dict):  # null: the client left, and vLLM's handler was cancelled
            self.complete = False
            return body
        self._annotator.whole(answer)
        return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def _with_length(scope: Scope, raw: bytes) -> MutableHeaders:
    """Return the headers of a request whose body is `raw`."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(len(raw))
    return headers


def _count(returned: list[Telemetry], span: Span | None) -> None:
    metrics.count(returned)
    if span is not None:
        tracing.count(span, returned)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Parse without garbage collection, which would visit all lists of a large body again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

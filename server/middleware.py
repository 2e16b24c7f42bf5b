"""Between the client and vLLM's own handlers: takes `steering` out of a request, puts telemetry into its answer.

Plain ASGI. It sits inside vLLM's API-key check, so nothing here is spent on a caller without a key.
A request without steering passes through untouched, byte for byte, both ways. On paths that are not ours too: what
asks for a key, how large a body may be, and that steering is done or refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerdec.steering.params import SteeringError
from steerdec.telemetry.lanes import LanesExhaustedError
from steerdec.vllm_plugin.request import RESERVED_ARGS, STEERING_ARG

from . import metrics
from .answer import Annotator, EventStream
from .body import PATHS, Host, Prepared, error_body, may_be_steered, names_steering, prepared

MAX_BODY_BYTES = 64 * 2**20
RETRY_AFTER_S = 1


class SteeringMiddleware:
    """See the module."""

    def __init__(self, app: ASGIApp, host: Callable[[], Host]) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not self._host().keys.admit(scope["headers"]):
            await _refuse(send, 401, "no key of this server: send Authorization: Bearer KEY", None)
            return
        raw = await _read(receive)
        if raw is None:
            await _refuse(send, 413, f"the request body is larger than {MAX_BODY_BYTES} bytes", None)
            return
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        try:
            ready = self._prepare(path, raw)
        except SteeringError as e:
            await _refuse(send, 400, str(e), f"steering.{e.field}" if e.field else "steering")
            return
        except LanesExhaustedError as e:
            message = f'{e}: try again, or send steering.telemetry "none"'
            await _refuse(send, 429, message, "steering.telemetry")
            return
        if ready is None:
            await self._app(scope, _replayed(raw, receive), send)
            return
        await self._answer(scope, receive, send, *ready)

    def _prepare(self, path: str, raw: bytes) -> tuple[Prepared, bytes] | None:
        """What to do, and the body to pass on; None where it passes as it is."""
        host = self._host()
        if not (may_be_steered(raw, host) if path in PATHS else names_steering(raw)):
            return None
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return None  # vLLM says what is wrong with it
        if not isinstance(body, dict):
            return None
        if path not in PATHS:
            _refuse_elsewhere(body)
            return None
        ready = prepared(path, body, host)
        if ready is None:
            return None
        try:
            return ready, json.dumps(ready.body).encode()
        except RecursionError:  # a few levels before reading it fails
            if ready.pool is not None:
                ready.pool.take_back(ready.lanes, aborted=False)
            raise SteeringError("", "does not go with a body that is nested as deeply as this") from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ready: Prepared, raw: bytes) -> None:
        headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
        headers.append((b"content-length", str(len(raw)).encode()))
        annotator = Annotator(ready)
        sender = _Sender(send, annotator)
        try:
            await self._app({**scope, "headers": headers}, _replayed(raw, receive), sender)
        finally:
            # The handler has returned or been cancelled, so the engine has finished the sequences
            # or has been told to abort them.
            if sender.answered:
                metrics.count(annotator.returned())
            if ready.pool is not None:
                ready.pool.take_back(ready.lanes, aborted=not sender.complete)


def _refuse_elsewhere(body: dict[str, Any]) -> None:
    """Where the answer would not say what was done, nothing of ours is taken, wherever vLLM's paths look for it."""
    sampling_params = body.get("sampling_params")
    extra_args = sampling_params.get("extra_args") if isinstance(sampling_params, dict) else None
    for place in (body, body.get("vllm_xargs"), extra_args):
        if isinstance(place, dict) and any(place.get(n) is not None for n in (STEERING_ARG, *RESERVED_ARGS)):
            raise SteeringError("", f"goes with {', '.join(sorted(PATHS))} only")


class _Sender:
    """Passes the answer on, annotated: JSON as a whole, server-sent events one by one."""

    def __init__(self, send: Send, annotator: Annotator) -> None:
        self._send, self._annotator = send, annotator
        self._start: Message | None = None
        self._held = b""
        self._events: EventStream | None = None
        self.answered = False  # with status 200
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = message["status"] == 200
            content_type = dict(message["headers"]).get(b"content-type", b"")
            if self.answered and content_type.startswith(b"text/event-stream"):
                self._events = EventStream(self._annotator)
            elif self.answered and content_type.startswith(b"application/json"):
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
            self._held += data
            if more:
                return
            data = self._annotated(self._held)
            headers = [(k, v) for k, v in self._start["headers"] if k != b"content-length"]
            headers.append((b"content-length", str(len(data)).encode()))
            await self._send({**self._start, "headers": headers})
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _annotated(self, body: bytes) -> bytes:
        answer: Any = json.loads(body)
        if not isinstance(answer, dict):  # null: the client left, and vLLM's handler was cancelled
            self.answered = self.complete = False
            return body
        self._annotator.whole(answer)
        return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


async def _read(receive: Receive) -> bytes | None:
    """The whole request body, None where it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client left; vLLM sees an empty body
            return b""
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(raw: bytes, receive: Receive) -> Receive:
    """Gives `raw` once, then what really comes: vLLM waits there for the client to disconnect."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": raw, "more_body": False}
        return await receive()

    return replay


async def _refuse(send: Send, status: int, message: str, param: str | None) -> None:
    body = error_body(status, message, param)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

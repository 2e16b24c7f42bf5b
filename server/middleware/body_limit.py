"""Limit request bodies on every path: in bytes, and in the cost of parsing them.

JSON is parsed on the event loop, by us and by vLLM again. A list costs more time than a number, and both far more than
text: 60 MiB of `[],[],` would keep every client waiting for 20 s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import refuse

if TYPE_CHECKING:
    from ..body import Host

MAX_BODY_BYTES: Final = 64 * 2**20
MAX_BRACKETS: Final = 2**20  # "[" and "{", anywhere; a request for a long context has a few thousand
MAX_COMMAS: Final = 2**23  # a prompt of token ids has one per token
_SMALL_BYTES: Final = MAX_BRACKETS


class BodyLimit:
    """Answers 413 to a POST whose body is too large; the application gets the body in one piece."""

    def __init__(self, app: ASGIApp, host: Callable[[], Host] | None = None) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        raw = await read_body(receive, MAX_BODY_BYTES)
        if raw is None:
            await refuse(send, 413, f"the request body is larger than {MAX_BODY_BYTES:,} bytes", None)
        elif (reason := _costly(raw)) is not None:
            await refuse(send, 413, f"the request body has more than {reason}", None)
        else:
            await self._app(scope, replayed(raw, receive), send)


def _costly(raw: bytes) -> str | None:
    if len(raw) <= _SMALL_BYTES:
        return None
    if raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        return f"{MAX_BRACKETS:,} opening brackets"
    return f"{MAX_COMMAS:,} commas" if raw.count(b",") > MAX_COMMAS else None


async def read_body(receive: Receive, limit_bytes: int | None = None) -> bytes | None:
    """Return the whole request body, None if it is larger than the limit; empty if the client has disconnected."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        size += len(message.get("body", b""))
        if limit_bytes is not None and size > limit_bytes:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def replayed(raw: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `raw` once, then the real messages: vLLM waits there for a disconnect."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": raw, "more_body": False}
        return await receive()

    return replay

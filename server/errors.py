"""Answers in OpenAI's form for requests that never reach vLLM."""

from __future__ import annotations

import json
from typing import Final

from starlette.types import Send

from .fields import MESSAGES

RETRY_AFTER_S: Final = 1
_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    413: "PayloadTooLargeError",
    429: "RateLimitError",
}


async def refuse(send: Send, status: int, message: str, param: str | None, path: str = "") -> None:
    """Return an OpenAI error as the answer; on Anthropic's path it is also an Anthropic error."""
    error = {"message": message, "type": _TYPES[status], "param": param, "code": status}
    body = json.dumps({"type": "error", "error": error} if path == MESSAGES else {"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

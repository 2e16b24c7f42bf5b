"""Check the API key on every path that does work.

vLLM checks its `--api-key` below /v1 and a few more prefixes only, though /invocations generates as they do, and
/tokenize works on texts of any length.
"""

from __future__ import annotations

import hashlib
import secrets
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

import vllm.envs as envs
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import refuse

if TYPE_CHECKING:
    from ..body import Host


class Keys:
    """The server's keys; without any, everyone is admitted."""

    def __init__(self, keys: list[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @classmethod
    def of(cls, args: Namespace) -> Keys:
        """Read the keys as vLLM does: the command line before the environment."""
        return cls([key for key in (args.api_key or [envs.VLLM_API_KEY]) if key])

    def admit(self, headers: Headers) -> bool:
        """Return whether a request's headers have one of the keys, as `Authorization: Bearer KEY`."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = [secrets.compare_digest(_hash(given), key) for key in self._hashes]
        return not matches or (scheme.lower() == "bearer" and any(matches))


class KeyCheck:
    """Answers 401 to a POST without a key, before its body is read."""

    def __init__(self, app: ASGIApp, host: Callable[[], Host]) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posts = scope["type"] == "http" and scope["method"] == "POST"
        if posts and not self._host().keys.admit(Headers(scope=scope)):
            await refuse(send, 401, "no key of this server: send Authorization: Bearer KEY", None)
            return
        await self._app(scope, receive, send)


def _hash(key: str) -> bytes:
    """Return a hash of equal length for all, so that the time of a comparison reveals nothing about a key."""
    return hashlib.sha256(key.encode()).digest()

"""One endpoint over HTTP: it takes requests, returns answers of bounded size, and reports about itself.

EndpointError
├── BusyError          429 or 503: come back later
├── UnreachableError   no connection
├── BrokenError        5xx, cut off, timed out: the request itself may be the cause
└── RefusedError       any other 4xx: the same request will be refused again
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from steerdec.common.errors import SteerdecError, reason_of

CONTROL_BYTES = 1 << 20  # for answers about the server, and for errors
LONGEST_RETRY_AFTER_S = 300.0
CONNECT_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 10.0
CLIENT_CONNECTIONS = 16  # httpx looks at all connections of a client for every request: many small ones are faster
IDLE_CONNECTION_S = 2.0  # uvicorn closes idle connections after 5 s; a request on a closed one would fail

# A machine that vanished sends no reset: without these, a request to it waits until it times out.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]


class EndpointError(SteerdecError):
    """The endpoint did not answer the request."""


class BusyError(EndpointError):
    """It is overloaded; `retry_after_s` is when to retry, 0 if it does not say."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnreachableError(EndpointError):
    """No connection was made."""


class BrokenError(EndpointError):
    """It failed, closed the connection or timed out; the request itself may be the cause."""


class RefusedError(EndpointError):
    """It will refuse the same request again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


# Ends of URLs that people copy from an OpenAI client's settings.
_ROUTE = re.compile(r"/v1(/(chat/completions|completions|responses|models|steering))?$")


def endpoint_url(text: str) -> str:
    """Return `text` as `http(s)://host[:port][/path]` without /v1 or a route under it. Raises ValueError, one line."""
    url = _ROUTE.sub("", text.strip().rstrip("/")).rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx.URL(url)  # knows which names no host can have
    except (ValueError, httpx.InvalidURL):
        good = False
    if not good or parts.query or parts.fragment or parts.username or re.search(r"\s", url):
        raise ValueError(f'"{text}" is not an endpoint; expected http://HOST:PORT or https://HOST:PORT')
    return url


def same_server(one: str, two: str) -> bool:
    """Return whether two endpoint URLs are two spellings of one: any name of this machine, a default port left out."""
    return _address(one) == _address(two)


def _address(url: str) -> tuple[str, str, int, str]:
    parts = urlsplit(url)
    host = parts.hostname or ""  # in lower case
    if host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host):
        host = "localhost"
    return parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80), parts.path


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds. `request_s` runs from sending a request to the last byte of its answer."""

    request_s: float = 3600.0
    connect_s: float = CONNECT_TIMEOUT_S


class Endpoint:
    """A server at `url`. Use inside one event loop; close it at the end."""

    def __init__(self, url: str, *, connections: int, timeouts: Timeouts, api_key: str | None = None) -> None:
        self.url = url
        self.connections = connections
        self._request_s = timeouts.request_s
        headers = {
            "accept-encoding": "identity"
        }  # no compression, so that the bytes counted are the bytes of the answer
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        tls = httpx.create_ssl_context()

        def client(size: int) -> httpx.AsyncClient:
            limits = httpx.Limits(
                max_connections=size, max_keepalive_connections=size, keepalive_expiry=IDLE_CONNECTION_S
            )
            return httpx.AsyncClient(
                base_url=url,
                headers=headers,
                timeout=httpx.Timeout(None, connect=timeouts.connect_s),
                verify=tls,
                transport=httpx.AsyncHTTPTransport(verify=tls, limits=limits, socket_options=_KEEPALIVE),
                trust_env=not local,  # a proxy from the environment, but never for this machine itself
            )

        self._control = client(2)
        self._clients = [client(CLIENT_CONNECTIONS) for _ in range(0, connections, CLIENT_CONNECTIONS)]
        self._free = self._clients * CLIENT_CONNECTIONS  # a client is in here once for each unused connection

    async def close(self) -> None:
        for client in (self._control, *self._clients):
            await client.aclose()

    async def post(self, path: str, body: dict[str, Any], *, max_bytes: int) -> bytes:
        """Return the body of a 200 answer; for at most `connections` callers at once. Raises EndpointError."""
        client = self._free.pop()
        try:
            return await self._request(client, "POST", path, body, max_bytes, self._request_s)
        finally:
            self._free.append(client)

    async def get_json(self, path: str, timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Any]:
        """Return the JSON object at `path`. Raises EndpointError."""
        answer = await self._request(self._control, "GET", path, None, CONTROL_BYTES, timeout_s)
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise BrokenError(f"{self.url}{path} did not answer with a JSON object")
        return value

    async def _request(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        max_bytes: int,
        timeout_s: float,
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_s), client.stream(method, path, json=body) as response:
                good = response.status_code == 200
                content = await _bounded(response, max_bytes if good else CONTROL_BYTES)
        except TimeoutError:
            raise BrokenError(f"{self.url} gave no whole answer within {timeout_s:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as e:
            raise UnreachableError(f"{self.url} cannot be reached ({reason_of(e)})") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as e:
            raise BrokenError(f"{self.url} broke the connection off ({reason_of(e)})") from None
        if content is None:
            raise BrokenError(f"{self.url} answered with more than {max_bytes} bytes")
        if not good:
            raise self._error(response, content)
        return content

    def _error(self, response: httpx.Response, content: bytes) -> EndpointError:
        status = response.status_code
        message = f"{self.url} answered {status}: {_server_message(content)}"
        if status in (429, 503):
            return BusyError(message, _retry_after_s(response.headers.get("retry-after")))
        if 400 <= status < 500 and status != 408:
            return RefusedError(message, status)
        return BrokenError(message)


async def _bounded(response: httpx.Response, max_bytes: int) -> bytes | None:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > max_bytes:
            return None
        parts.append(part)
    return b"".join(parts)


def _server_message(content: bytes) -> str:
    """Return the message of an OpenAI error body, else the beginning of the body; one line."""
    text = content[:2000].decode("utf-8", "replace")
    try:
        value = json.loads(content)
        inner = value.get("error", value)
        text = str(inner.get("message") or inner.get("detail") or text) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError, AttributeError):
        pass
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:300] or "(no message)"


def _retry_after_s(value: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 without one."""
    if value is None:
        return 0.0
    try:
        number = re.fullmatch(r"\d+(\.\d+)?", value)
        seconds = float(value) if number else parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)

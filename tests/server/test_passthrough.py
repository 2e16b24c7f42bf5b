"""Requests without steering reach vLLM byte for byte, and its answers come back so, also where a default steps back.

The application behind is scripted: what passes untouched does not depend on what it says. That the real server's
answers then equal those of vLLM's own is seen in test_server_plain.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from steerdec.policies import registry
from steerdec.server.fields import PATHS as STEERED
from steerdec.server.fields import read_by
from steerdec.server.middleware import wrapped
from steerdec.telemetry import lanes as telemetry
from tests.support.in_process import InProcess, in_process_server

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations", "/tokenize")
FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
    {"seed": 7, "n": 2, "max_tokens": 5},
    {"seed": "abc", "n": 2},
    {"stop": ["a", "\u0000"], "include_reasoning": False},
    {"logprobs": 3, "return_token_ids": True, "return_tokens_as_token_ids": True},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
    {"response_format": {"type": "json_object"}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"prompt": ["a", "b"], "echo": True},
    {"prompt": [1, 2, 3], "logit_bias": {"5": -100}},
    {"vllm_xargs": {"other": 1, "list": [1, "a"]}},
    {"extra_body": {"x": 1}, "user": "caf\u00e9 \U0001f600"},
    {"unknown": {"a": [{"b": None}]}, "n": 1.5},
    {"use_beam_search": True, "background": True},
    {"presence_penalty": 0.5, "frequency_penalty": "1"},
    {"temperature": "hot", "messages": 5},
    {"prompt": "1e400", "number": 1e300, "int": 2**70},
)
RAW = (b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"[" * 3000, b'{"a": 1}' * 2, b' {"prompt" : "x"}\r\n')
# With a default, what does not go with it: greedy, penalties, an explicit null, the request's own field at vLLM.
STEPS_BACK: tuple[dict[str, Any], ...] = (
    *({"temperature": 0}, {"temperature": "0"}, {"temperature": 0.0}, {"steering": None}),
    *({"presence_penalty": 0.5}, {"frequency_penalty": "-1"}, {"repetition_penalty": 1.1}),
    *({"use_beam_search": True}, {"n": 2, "seed": -2}),
)


def bodies() -> list[bytes]:
    made = [json.dumps({"model": "m", "stream": s} | f).encode() for f, s in itertools.product(FIELDS, (False, True))]
    return [*made, *RAW, *(json.dumps(f, ensure_ascii=False, indent=1).encode("utf-16") for f in FIELDS[:2])]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """One of several kinds of answers, chosen by the request's bytes, which it repeats."""
    raw, more = b"", True
    while more:
        message = await receive()
        raw, more = raw + message.get("body", b""), message.get("more_body", False)
    digest = hashlib.sha256(raw).hexdigest()
    kind = int(digest[0], 16) % 4
    said = json.dumps({"choices": [{"token_ids": None, "x": 1.50}], "seen": digest, "path": scope["path"]}).encode()
    events = b'data: {"choices": [ {"index":0} ],"seen":"%s"}\r\n\r\n: ping\n\ndata:[DONE]\n\n' % digest.encode()
    status, kind_of_content, body = (
        *((200, b"application/json", said), (200, b"text/event-stream; charset=utf-8", events)),
        *((400, b"application/json", said), (500, b"text/plain", b"no")),
    )[kind]
    headers = [(b"content-type", kind_of_content), (b"X-Odd", digest.encode())]
    if kind != 1:
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for i in range(0, len(body), 11):
        await send({"type": "http.response.body", "body": body[i : i + 11], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def exchange(app: Any, path: str, raw: bytes) -> list[Message]:
    sent: list[Message] = []
    parts = [raw[:5], raw[5:]]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"Content-Length", str(len(raw)).encode()), (b"x-a", b"1")]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent


@pytest.fixture(params=[False, True], ids=["no default", "default"])
def server(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=17) as file:
        default = registry.parse({"fork_temperature": 1.3, "telemetry": "tokens"}) if request.param else None
        yield in_process_server(file, default)


def test_what_brings_no_steering_passes_untouched_both_ways(server: InProcess) -> None:
    app = wrapped(answer, lambda: server.host)
    compared = 0
    for path in PATHS:
        if server.host.default is not None and path in STEERED:
            rows = [f for f in STEPS_BACK if f.keys() <= read_by(path, f).keys()]
            sent = [json.dumps({"stream": s} | f).encode() for f, s in itertools.product(rows, (False, True))]
            sent += RAW[:-1]  # the last one is a request, which the default steers
        else:
            sent = bodies()
        for raw in sent:
            assert exchange(app, path, raw) == exchange(answer, path, raw), (path, raw[:200])
            compared += 1
    assert compared >= 180
    assert server.pool.lent == 0


def test_other_methods_and_kinds_of_connection_pass(server: InProcess) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"] + scope.get("method", ""))

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    for scope in (
        {"type": "lifespan"},
        {"type": "websocket", "path": "/v1/realtime", "headers": []},
        *({"type": "http", "method": m, "path": "/v1/completions", "headers": []} for m in ("GET", "PUT", "OPTIONS")),
    ):
        asyncio.run(wrapped(app, lambda: server.host)(scope, nothing, nothing))
    assert seen == ["lifespan", "websocket", "httpGET", "httpPUT", "httpOPTIONS"]

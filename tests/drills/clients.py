"""Clients that a server must bear. `url` is a running `steerdec serve` with the real model."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.drills.parts import listener

IDLE = 10_000
STEERING = {"fork_temperature": 1.3, "other_temperature": 0.7, "threshold_nats": 0.6, "telemetry": "tokens"}
BODY = {"prompt": "Once upon a time", "max_tokens": 16, "seed": 5, "temperature": 1.0, "steering": STEERING}


def steered(url: str) -> dict[str, Any]:
    """The one choice of a steered answer, with telemetry for every token."""
    answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=120)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    assert choice["steering"]["tokens"] == len(choice["steering"]["entropy_nats"]) == 16
    return choice


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal but for the last digits of the entropies, which depend on what else is in the batch."""
    assert one["text"] == other["text"], "another client's answer changed"
    told, expected = one["steering"], other["steering"]
    assert (told["fork"], told["temperature"]) == (expected["fork"], expected["temperature"])
    pairs = zip(told["entropy_nats"], expected["entropy_nats"], strict=True)
    assert all(abs(a - b) < 1e-3 for a, b in pairs)


def lanes_lent(url: str) -> int:
    return int(httpx.get(f"{url}/v1/steering", timeout=30).json()["telemetry_lanes_lent"])


def opened(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=30)


def head(length: int) -> bytes:
    lines = ("POST /v1/completions HTTP/1.1", "Host: drill", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()


def slow_clients(url: str) -> str:
    """One sends its request byte by byte and never ends; one asks for a stream and does not read it."""
    before = steered(url)
    with contextlib.ExitStack() as clients:
        sender = clients.enter_context(opened(url))
        sender.sendall(head(10_000) + b"{")
        reader = clients.enter_context(opened(url))
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(BODY | {"max_tokens": 200, "stream": True, "ignore_eos": True}).encode()
        reader.sendall(head(len(body)) + body)
        for _ in range(3):
            sender.sendall(b" ")
            assert_same(steered(url), before)
        assert lanes_lent(url) <= 1, "a request that is not there yet has no lane"
        text = b""
        while b"data: [DONE]" not in text:
            part = reader.recv(512)
            assert part, f"the stream was cut: {text[-300:]!r}"
            text += part
        assert b'"finish_reason":"length"' in text
    return f"others are answered as before; the slow reader's stream is whole ({len(text):,} bytes); {settled(url)}"


def settled(url: str) -> str:
    wait_until(lambda: lanes_lent(url) == 0, lambda: f"{lanes_lent(url)} lanes were not given back")
    return "no lane left lent"


def wait_until(true: Callable[[], bool], told: Callable[[], str], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.1)


def idle_connections(url: str) -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(IDLE, hard - 500)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = listener(urlsplit(url).port or 80)
    before, files, memory = steered(url), server.num_fds(), server.memory_info().rss
    try:
        with contextlib.ExitStack() as clients:
            for _ in range(count):
                clients.enter_context(opened(url))
            # The kernel says "connected" to some before the server has room to accept them.
            enough = files + count - 20
            wait_until(lambda: server.num_fds() >= enough, lambda: f"{server.num_fds() - files} are connected")
            begin = time.monotonic()
            assert_same(steered(url), before)
            answered_s = time.monotonic() - begin
            each_kib = (server.memory_info().rss - memory) / count / 1024
        wait_until(lambda: server.num_fds() <= files + 20, lambda: f"{server.num_fds() - files} are kept")
        assert_same(steered(url), before)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return f"{count:,} held, {each_kib:.0f} KiB each; a steered request beside them took {answered_s:.1f} s"

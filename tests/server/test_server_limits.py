"""What a client may send to the real server: heads and bodies have an end, on every path, and errors have a shape."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from steerdec.server.middleware.body_limit import MAX_BODY_BYTES
from tests.support.serving import PATIENCE_S

pytestmark = pytest.mark.engine

MIB = 2**20
MAX_HEAD_BYTES = 4 * MIB  # vLLM's --h11-max-incomplete-event-size
BUFFERED_BYTES = 16 * MIB  # what sockets on the way may take before anybody looks at it


def sent_until_closed(url: str, parts: Iterator[bytes]) -> tuple[int, bytes]:
    """How many bytes went out before the server closed the connection, and what it answered."""
    sent, answer = 0, b""
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=60) as client:
        try:
            for part in parts:
                client.sendall(part)
                sent += len(part)
            answer = client.recv(4096)
        except (ConnectionResetError, BrokenPipeError):
            pass
    return sent, answer


@pytest.mark.parametrize("head", ["one header", "many headers", "the path"])
def test_a_head_without_end_is_cut_off(server_url: str, head: str) -> None:
    begin = b"GET /" if head == "the path" else b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "
    part = b"b\r\nX-A: " * 2**17 if head == "many headers" else b"a" * MIB
    tries = 64

    def parts() -> Iterator[bytes]:
        yield begin
        for _ in range(tries):
            yield part

    sent, answer = sent_until_closed(server_url, parts())
    assert sent < MAX_HEAD_BYTES + BUFFERED_BYTES < tries * len(part)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{server_url}/health", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/no/such/path"])
def test_a_body_without_end_is_cut_off_on_every_path(server_url: str, path: str, chunked: bool) -> None:
    tries = MAX_BODY_BYTES // MIB + 64

    def parts() -> Iterator[bytes]:
        how = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (tries * MIB)
        yield b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%s\r\n\r\n" % (path.encode(), how)
        for _ in range(tries):
            yield (b"100000\r\n%s\r\n" if chunked else b"%s") % (b" " * MIB)

    sent, answer = sent_until_closed(server_url, parts())
    head_and_framing = 200 + 10 * tries
    assert sent < MAX_BODY_BYTES + BUFFERED_BYTES + MIB + head_and_framing
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert httpx.get(f"{server_url}/health", timeout=PATIENCE_S).status_code == 200


def test_other_paths_are_answered_as_before(server_url: str) -> None:
    """A body in one piece and in chunks, and none at all."""
    body = b'{"prompt": "Once upon a time"}'
    headers = {"content-type": "application/json"}
    for content in (body, iter([body[:9], body[9:]])):
        answer = httpx.post(f"{server_url}/tokenize", content=content, headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert answer.json()["count"] == 4
    assert httpx.post(f"{server_url}/tokenize", timeout=PATIENCE_S).status_code == 400
    assert httpx.post(f"{server_url}/no/such/path", timeout=PATIENCE_S).status_code == 404

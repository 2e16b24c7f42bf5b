"""A recorder between a tool and the real server: it passes everything on, and remembers what was asked and answered.

It says what a tool really sends and what the server really answered, also where the tool shows neither.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx

from tests.support.serving import PATIENCE_S

HOP_BY_HOP = {"connection", "content-length", "host", "transfer-encoding", "content-encoding", "accept-encoding"}


class Call(NamedTuple):
    """A request that was answered with status 200, and the documents of its answer: one, or the events of a stream."""

    path: str
    request: dict[str, Any]
    answers: list[Any]

    def telemetry(self) -> list[dict[str, Any]]:
        """One object per choice: the totals, and the lists of all chunks put together."""
        choices: dict[Any, dict[str, Any]] = {}
        for choice, part in _steering_in(self.answers):
            whole = choices.setdefault(choice, {})
            for name, value in part.items():
                whole[name] = whole.get(name, []) + value if isinstance(value, list) else value
        return list(choices.values())


def _steering_in(value: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield (index of the choice, its `steering`), wherever they stand in the documents.

    The `delta` of a choice may repeat what the choice has.
    """
    if isinstance(value, dict):
        if isinstance(value.get("steering"), dict):
            yield value.get("index"), value["steering"]
        else:
            for inner in value.values():
                yield from _steering_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _steering_in(inner)


class Recorder(ThreadingHTTPServer):
    """Serves on a free loopback port; `url` is its address and `calls` what went through."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        """Pass everything on to `server`, a base URL."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []
        self.refused: list[str] = []  # bodies of answers with a status of 400 or more, to POST
        self.client = httpx.Client(base_url=server, timeout=PATIENCE_S)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes) -> None:
        """Pass the answer on whole: a stream arrives at its end, event by event."""
        # Stripped, because lm-eval without a key sends "Bearer " with nothing after it, which httpx would not send.
        headers = {name: value.strip() for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        answer = self.server.client.request(self.command, self.path, content=body, headers=headers)
        if self.command == "POST" and answer.is_success:
            self.server.calls.append(Call(self.path, json.loads(body), _documents(answer)))
        elif self.command == "POST":
            self.server.refused.append(answer.text)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: Any) -> None:
        pass


def _documents(answer: httpx.Response) -> list[Any]:
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        return [json.loads(event) for event in events]
    return [answer.json()]


@contextlib.contextmanager
def recording(server: str) -> Iterator[Recorder]:
    """Run a recorder in front of the server at `server` until the end of the block."""
    with Recorder(server) as recorder:
        thread = threading.Thread(target=recorder.serve_forever, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            recorder.shutdown()
            recorder.client.close()

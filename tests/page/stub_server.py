"""A scripted stand-in for `steerdec serve`, for what a real engine cannot be made to do on demand.

The page's everyday path is tested against the real server too (STEERDEC_PAGE_URL in tests/page/test_page.py). Here is
the rest: errors in the middle of a stream, cut connections, characters split over tokens, slow streams, and
known entropies, so that a test can say which tokens are forks. The model named in the request chooses the scenario.

Steering objects go through `steerdec.registry.parse`, so a request that the real server would refuse is refused here.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from steerdec.policies.registry import parse
from steerdec.policies.schema import request_schema
from steerdec.policies.split.fields import Split
from steerdec.steering.params import Steering, SteeringError

PAGE = Path(__file__).parents[2] / "server" / "page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SCENARIOS = (
    "scripted",
    "several-a-chunk",
    "no-logprobs",
    "split-character",
    "markup",
    "error-in-stream",
    "cut",
    "slow",
    "refused",
)
CALIBRATED_THRESHOLD_NATS = 0.5
REFUSAL = "steering.fork_temperature: 0.001 must be 0 (greedy) or from 0.01 to 100"
CSP = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # as server/routes.py sends it

START = "To count the numbers below 100 that can be divided by 3 or by 5, we"
BASELINE = """ can count each kind and then add them up.

First, the multiples of 3: they are 3, 6, 9, and so on up to 99, so there are 33 of them. Next, the multiples of 5: \
5, 10, and so on up to 95, so there are 19.

Some numbers were counted twice, those that can be divided by 15: 15, 30, 45, 60, 75 and 90, which makes 6.

So the answer is 33 + 19 - 6 = 46."""
STEERED = """ could start with a smaller problem. Look at the numbers from 1 to 15: the ones that work are 3, 5, 6, 9, \
10, 12 and 15, so 7 in every block of 15.

There are 6 whole blocks up to 90, which gives 42. What is left is 91 to 99: 93, 95, 96 and 99, so 4 more.

Together that makes 42 + 4 = 46."""


@dataclass(frozen=True)
class Token:
    text: str
    entropy_nats: float
    logprob: float = -0.1
    others: tuple[tuple[str, float], ...] = ()

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """(text, logprob), the sampled token first, as vLLM lists them."""
        return [(self.text, self.logprob), *self.others]


def tokens_of(text: str, seed: int) -> list[Token]:
    """Words with their leading space; half the entropies tiny, a fifth above 0.6 nats, from a seeded generator."""
    rng = np.random.default_rng(seed)
    made = []
    for word in re.findall(r"\n\n| ?[^\s,.:]+|[,.:]", text):
        entropy_nats = float(np.exp(rng.normal(-5, 2.2)) if rng.random() < 0.6 else np.exp(rng.normal(-0.5, 1.0)))
        p = math.exp(-entropy_nats)
        rest = tuple((f" {other}", math.log((1 - p) * share)) for other, share in OTHERS) if p < 0.999 else ()
        if rng.random() < 0.1 * entropy_nats and rest:  # now and then the second choice is the one sampled
            p, rest = math.exp(rest[0][1]), ((rest[0][0], math.log(p)), *rest[1:])
        made.append(Token(word, entropy_nats, math.log(p), rest))
    return made


OTHERS = (("so", 0.4), ("then", 0.25), ("that", 0.2), ("now", 0.1))
PARTING_NATS = 1.42
PARTING_OTHERS = ((" need", math.log(0.4)), (" first", math.log(0.15)), (" should", math.log(0.1)))


def script(steering: Steering, temperature: float) -> list[Token]:
    """The tokens of one arm; an arm that leaves every temperature alone is the baseline."""
    steered = not isinstance(steering, Split) or steering.temperatures(temperature) != (temperature, temperature)
    rest = tokens_of(STEERED, 2) if steered else tokens_of(BASELINE, 3)
    # What comes before the parting is shared, and so is the distribution that both arms sample there.
    parting = replace(rest[0], entropy_nats=PARTING_NATS, logprob=math.log(0.3), others=PARTING_OTHERS)
    return [*tokens_of(START, 1), parting, *rest[1:]]


def scenario_chunks(model: str, tokens: list[Token]) -> list[tuple[str, list[Token]]]:
    """(text, tokens) of every chunk."""
    if model == "split-character":
        split = [
            Token("Well", 0.1),
            Token("", 1.5),
            Token(" 🙂", 0.7),
            Token("�", 2.0),
            Token("�", 0.01),
            Token("!", 0.2),
        ]
        return [
            *zip(["Well", "", " 🙂", "", "é", "!"], [[t] for t in split], strict=True),
            ("", [Token("<|im_end|>", 0.3)]),
        ]
    if model == "markup":
        hostile = ["<img src=x onerror=alert(1)>", "</span>", "<script>alert(2)</script>", "&amp;"]
        return [(text, [Token(text, 1.0, others=((text, -1.0),))]) for text in hostile]
    if model in {"several-a-chunk", "no-logprobs"}:
        groups = [tokens[i : i + 3] for i in range(0, len(tokens), 3)]
        return [("".join(t.text for t in group), group) for group in groups]
    return [(t.text, [t]) for t in tokens]


@dataclass
class Stub:
    """A running server: its address, what it was sent, and how many clients left before the end."""

    api_key: str | None = None
    pace_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)  # {"path", "headers", "body"}
    disconnects: int = 0

    def __post_init__(self) -> None:
        stub = self

        class Handler(_Handler):
            owner = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Stub
    protocol_version = "HTTP/1.1"

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # so that stop() leaves nothing that still answers
        super().end_headers()

    def do_GET(self) -> None:
        if self.path.startswith("/v1/") and self._refused():
            return
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in SCENARIOS]})
        elif self.path == "/v1/steering/schema":
            self._json(200, request_schema())
        elif self.path == "/v1/steering":
            self._json(200, {"vllm": "0.0", "runner": "v1", "threshold_nats": CALIBRATED_THRESHOLD_NATS})
        else:
            self._page(PAGE / ("index.html" if self.path == "/" else self.path.removeprefix("/page/")))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        if self._refused():
            return
        if body["model"] == "refused":
            self._error(
                400,
                "steering.fork_temperature: 0.001 must be 0 (greedy) or from 0.01 to 100",
                "steering.fork_temperature",
            )
            return
        try:
            steering = parse(body["steering"])
        except SteeringError as e:
            self._error(400, str(e), f"steering.{e.field}")
            return
        self._stream(body, steering)

    def log_message(self, *_: Any) -> None:
        """Quiet: pytest shows what failed."""

    def _refused(self) -> bool:
        key = self.owner.api_key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self._json(401, {"error": "Unauthorized"})  # vLLM's own body
        return True

    def _error(self, status: int, message: str, param: str) -> None:
        self._json(status, {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}})

    def _json(self, status: int, value: Any) -> None:
        self._whole(status, "application/json", json.dumps(value).encode())

    def _page(self, file: Path) -> None:
        if file.parent != PAGE or not file.is_file():
            self._whole(404, "text/plain", b"not here")
            return
        self._whole(200, TYPES[file.suffix], file.read_bytes())

    def _whole(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, body: dict[str, Any], steering: Steering) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # Odd pieces: events, lines and characters are all cut somewhere.
        size = 11 if body["model"] in {"several-a-chunk", "split-character"} else 1 << 20
        try:
            for event in self._events(body, steering):
                for i in range(0, len(event), size):
                    piece = event[i : i + size]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
                time.sleep(self.owner.pace_s)
            if body["model"] == "cut":
                time.sleep(0.3)  # a browser drops what it has not read yet when a transfer breaks
                return  # without the last chunk
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.owner.disconnects += 1

    def _events(self, body: dict[str, Any], steering: Steering) -> Iterator[bytes]:
        model, chat = body["model"], "messages" in body
        tokens = script(steering, body["temperature"])[: body["max_tokens"]]
        chunks = scenario_chunks(model, tokens)
        if model in {"cut", "error-in-stream"}:
            chunks = chunks[:5]
        if chat:
            yield _event(
                {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
            )
        sent: list[Token] = []
        for i, (text, group) in enumerate(chunks):
            sent += group
            last = i == len(chunks) - 1 and model not in {"cut", "error-in-stream"}
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if last else None}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            if model != "no-logprobs":
                choice["logprobs"] = _chat_logprobs(group) if chat else _completion_logprobs(group)
            choice["steering"] = self._telemetry(body, steering, group)
            choice["steering"] |= self._summary(steering, sent) if last else {}
            yield _event({"choices": [choice]})
            if model == "slow":
                time.sleep(0.1)
        if model == "cut":
            return
        if model == "error-in-stream":
            yield _event(
                {"error": {"message": "the engine stopped", "type": "InternalServerError", "param": None, "code": 500}}
            )
        else:
            yield _event({"choices": [], "usage": {"completion_tokens": len(sent)}})
        yield b"data: [DONE]\n\n"

    @staticmethod
    def _is_fork(steering: Steering, token: Token) -> bool:
        if steering.select == "entropy":
            return token.entropy_nats > (steering.threshold_nats or 0.0)
        return steering.select == "all" or len(token.text) % 4 == 0

    def _telemetry(self, body: dict[str, Any], steering: Steering, group: list[Token]) -> dict[str, Any]:
        fork = [self._is_fork(steering, t) for t in group]
        applied = steering.applied(body["temperature"])
        return {
            "entropy_nats": [t.entropy_nats for t in group],
            "fork": fork,
            "temperature": [applied.fork if f else applied.other for f in fork],
        }

    def _summary(self, steering: Steering, sent: list[Token]) -> dict[str, Any]:
        forks = sum(self._is_fork(steering, t) for t in sent)
        return {
            "tokens": len(sent),
            "forks": forks,
            "fork_rate": forks / len(sent),
            "mean_entropy_nats": sum(t.entropy_nats for t in sent) / len(sent),
            "threshold_nats": steering.threshold_nats if steering.select == "entropy" else None,
        }


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _chat_logprobs(group: list[Token]) -> dict[str, Any]:
    def entry(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {"content": [entry(t.text, t.logprob) | {"top_logprobs": [entry(*r) for r in t.ranked]} for t in group]}


def _completion_logprobs(group: list[Token]) -> dict[str, Any]:
    return {
        "tokens": [t.text for t in group],
        "token_logprobs": [t.logprob for t in group],
        "top_logprobs": [dict(t.ranked) for t in group],
        "text_offset": [0] * len(group),
    }


if __name__ == "__main__":
    print(Stub(pace_s=0.03).url, flush=True)
    threading.Event().wait()

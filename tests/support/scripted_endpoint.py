"""A server with known success probabilities, for tests of the benchmark runner.

It stands in for a real model because nobody knows in advance how often a real model is right, so a
real one cannot show that the runner, the grading and the statistics find it. It is an HTTP server on a
loopback port that speaks what `steerdec serve` speaks (/health, /v1/models, /v1/steering, /tokenize,
/detokenize, both completion routes with `steering` telemetry), and it fails on demand: errors, hangs, cut
connections, nonsense. Its tokens are characters. tests/benchmarks/run/test_endpoint_contract.py holds it
and a real server to the same assertions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from steerdec.policies.registry import parse
from steerdec.steering.params import PAPER_THRESHOLD_NATS, SteeringError

Body = dict[str, Any]
Fault = str | Response | None  # "hang", "cut", or an answer to give instead; None: behave


@dataclass
class Script:
    """What the server does.

    `probability(problem_text, body)` is the chance of a right answer. The coin is a hash of the
    request's seed and the problem, so arms that share seeds share luck, as with common random numbers.
    `fault(number, body)` is asked before each answer, with the number of the request from 0.
    """

    answers: Mapping[str, str]  # problem text -> answer
    probability: Callable[[str, Body], float] = lambda problem, body: 0.5
    fault: Callable[[int, Body], Fault] = lambda number, body: None
    latency_s: float = 0.0
    tokens: int = 6
    max_model_len: int = 4096
    model: str = "scripted"
    about: dict[str, Any] = field(default_factory=dict)  # over GET /v1/steering
    ignores_steering: bool = False
    hides_tokens: bool = False  # as behind a proxy that passes /v1 on alone
    # (fork, T) -> nats of softmax(z / T) at such a token; at T = 1 what `telemetry` tells as its entropy
    entropy_at: Callable[[bool, float], float] = lambda fork, t: (2.0 if fork else 0.001) * 2 * t / (1 + t)


class ScriptedEndpoint:
    """Serve a script while the `with` block lasts; what was asked is in `bodies`."""

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.bodies: list[Body] = []
        self.times_s: list[float] = []
        self.authorizations: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/steering", self._steering),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off", backlog=4096)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        with suppress(asyncio.CancelledError, KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def __enter__(self) -> ScriptedEndpoint:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port at once, cutting every connection."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _models(self, request: Request) -> Response:
        return JSONResponse(models(self.script))

    async def _steering(self, request: Request) -> Response:
        return JSONResponse(about(self.script))

    async def _tokenize(self, request: Request) -> Response:
        if self.script.hides_tokens:
            return JSONResponse({"detail": "Not Found"}, status_code=404)
        return JSONResponse({"tokens": ids_of(asked_text(json.loads(await request.body())))})

    async def _detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": "".join(map(chr, json.loads(await request.body())["tokens"]))})

    async def _complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        number = len(self.bodies)
        self.bodies.append(body)
        self.times_s.append(time.monotonic())
        self.authorizations.append(request.headers.get("authorization"))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            fault = self.script.fault(number, body)
            if fault == "hang":
                await asyncio.sleep(3600)
            if fault == "cut":
                return _Cut()
            if isinstance(fault, Response):
                return fault
            if "steering" in body and not self.script.ignores_steering:
                try:
                    parse(body["steering"])
                except SteeringError as e:
                    return JSONResponse(error(str(e), "steering"), status_code=400)
            await asyncio.sleep(self.script.latency_s)
            return JSONResponse(answer(self.script, body))
        finally:
            self._at_once -= 1


class _Cut(Response):
    """Promise a body and end the connection in the middle of it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise asyncio.CancelledError


def error(message: str, param: str) -> Body:
    """An OpenAI error body with status 400, as `steerdec serve` sends it."""
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}


def models(script: Script) -> Body:
    """GET /v1/models."""
    entry = {"id": script.model, "object": "model", "max_model_len": script.max_model_len}
    return {"object": "list", "data": [entry]}


def about(script: Script) -> Body:
    """GET /v1/steering."""
    versions: Body = {"steerdec": "0", "vllm": "0", "runner": "v1", "dtype": "float32", "processor": True}
    settings: Body = {"default": None, "batch_invariant": True, "calibration": None}
    return versions | settings | {"threshold_nats": PAPER_THRESHOLD_NATS} | script.about


def ids_of(text: str) -> list[int]:
    return [ord(character) for character in text]


def asked_text(body: Body) -> str:
    """The prompt of a request, of one with token ids too."""
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return "".join(map(chr, asked)) if isinstance(asked, list) else str(asked)


def answer(script: Script, body: Body) -> Body:
    """The completion object for one request."""
    chat = "messages" in body
    asked = asked_text(body)
    # The last one: a few-shot prompt may hold other problems before it.
    problem = max((p for p in script.answers if p in asked), key=asked.rfind)
    u = int.from_bytes(hashlib.blake2b(f"{body['seed']} {problem}".encode(), digest_size=6).digest()) / 2**48
    right = u < script.probability(problem, body)
    # A wrong number, not a wrong text, so that grading needs no computer algebra system to start up.
    text = f"So it is \\boxed{{{script.answers[problem] if right else 998}}}."
    ids = [*ids_of(text), 0]  # with the token that ends it
    tokens = min(len(ids) if "return_token_ids" in body else script.tokens, body["max_tokens"])
    choice: Body = {"index": 0, "finish_reason": "stop"}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if "return_token_ids" in body:
        choice |= {"token_ids": ids[:tokens], "finish_reason": "stop" if tokens == len(ids) else "length"}
    if "logprobs" in body:
        choice["logprobs"] = (
            {"content": [{"token": f"t{i}"} for i in range(tokens)]}
            if chat
            else {"tokens": [f"t{i}" for i in range(tokens)]}
        )
    if "steering" in body and not script.ignores_steering:
        choice["steering"] = telemetry(script, body, tokens)
    return {"object": "completion", "model": script.model, "choices": [choice], "usage": {"completion_tokens": tokens}}


def telemetry(script: Script, body: Body, tokens: int) -> Body:
    """Every fifth token has 2 nats, the others have 0.001, or what the script says."""
    steering, own = body["steering"], body["temperature"]
    threshold = steering.get("threshold_nats", PAPER_THRESHOLD_NATS)
    at = (steering.get("other_temperature", own), steering.get("fork_temperature", own))
    fifth = [i % 5 == 0 for i in range(tokens)]
    entropy = [script.entropy_at(f, 1.0) for f in fifth]
    fork = [h > threshold for h in entropy]
    if steering.get("select") in ("random", "all"):  # at the same rate as by entropy, or everywhere
        fork = [i % 5 == 0 or steering["select"] == "all" for i in range(tokens)]
    if steering.get("select") == "first":
        fork = [i < steering["first_tokens"] for i in range(tokens)]
    if steering.get("scope", "all") != "all":  # its text has no thinking block
        fork, at = [False] * tokens, (own, own)
    told: Body = {
        "tokens": tokens,
        "forks": sum(fork),
        "fork_rate": sum(fork) / tokens if tokens else 0.0,
        "mean_entropy_nats": sum(entropy) / tokens if tokens else None,
        "threshold_nats": threshold,
    }
    probe = steering.get("probe_temperature")
    if probe is not None:
        looked = [
            script.entropy_at(h, at[f] if probe == "applied" else probe) for h, f in zip(fifth, fork, strict=True)
        ]
        told["mean_probe_entropy_nats"] = sum(looked) / tokens if tokens else None
        if steering.get("telemetry") == "tokens":
            told["probe_entropy_nats"] = looked
    if steering.get("telemetry") == "tokens":
        told |= {"entropy_nats": entropy, "fork": fork, "temperature": [at[f] for f in fork]}
    return told

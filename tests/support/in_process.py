"""The steering middleware in this process, before a scripted application instead of vLLM."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers.inputs.preprocess import prompt_to_seq
from vllm.sampling_params import SamplingParams

from steerdec.policies.split.fields import FORK_T, Split
from steerdec.server.body import Host
from steerdec.server.middleware import wrapped
from steerdec.server.middleware.keys import Keys
from steerdec.steering import admission, encoding
from steerdec.steering.encoding import EncodedRequest
from steerdec.steering.params import PAPER_THRESHOLD_NATS, Steering
from steerdec.telemetry.lanes import ENTROPY, FLAG_BITS, TAG, TEMPERATURE, LaneFile, LanePool
from steerdec.vllm_plugin.request import validate

MODELS: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
}
ENTROPIES_NATS = (0.01, 0.5, 0.7, 2.0, 6.0)
TOKENS = len(ENTROPIES_NATS)


class InputProcessor:
    """In place of vLLM's, which needs an engine: what `validate` looks for on the stack."""

    def process_inputs(self, request_id: str, params: SamplingParams) -> None:
        validate(params)


def _prompts(request: Any) -> list[Any]:
    """The prompts of a request as vLLM counts them."""
    if not isinstance(request, CompletionRequest):
        return [""]
    given = (request.prompt_embeds, request.prompt)
    return [prompt for each in given if each is not None for prompt in prompt_to_seq(each)]


def _text(request: Any, prompt: Any) -> str:
    """What a choice says: nothing, or with `echo` its prompt if that is text; vLLM leaves it out beside token ids."""
    return prompt if request.echo and not request.return_token_ids and isinstance(prompt, str) else ""


def _token_ids(request: Any, prompt: Any) -> dict[str, list[int]]:
    if not request.return_token_ids:
        return {}
    return {"token_ids": [0] * TOKENS, "prompt_token_ids": prompt if isinstance(prompt, list) else [0]}


@dataclass
class Inner:
    """Parses as vLLM does and answers as its handlers do: TOKENS tokens a choice, recorded as the steering asks."""

    file: LaneFile
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = (await receive())["body"]
        self.bodies.append(raw)
        assert int(dict(scope["headers"])[b"content-length"]) == len(raw)
        try:
            request: Any = MODELS[scope["path"]].model_validate(json.loads(raw))
            request.to_sampling_params(TOKENS, {})
        except (ValueError, RecursionError, VLLMValidationError):
            return await _send(send, 400, b"application/json", [b'{"error": {"message": "vLLM\'s own"}}'])
        prompts = _prompts(request)
        for i in range(len(prompts)):
            self._record(request, i)
        chosen = [
            {"index": i, "finish_reason": "length", "text": _text(request, prompt), **_token_ids(request, prompt)}
            for i, prompt in enumerate(prompt for prompt in prompts for _ in range(request.n or 1))
        ]
        if request.stream:
            events = [b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in chosen]
            return await _send(send, 200, b"text/event-stream", [*events, b"data: [DONE]\n\n"])
        usage = {"completion_tokens": TOKENS * len(chosen)}
        answer = json.dumps({"choices": chosen, "usage": usage}).encode()
        return await _send(send, 200, b"application/json", [answer])

    def _record(self, request: Any, prompt: int) -> None:
        """What the worker does for a prompt; it distinguishes sequences by their seeds."""
        params = request.to_sampling_params(TOKENS, {})
        InputProcessor().process_inputs(f"cmpl-in-process-{prompt}", params)
        extra = params.extra_args or {}
        if "steerdec_lanes" not in extra:
            return
        encoded = EncodedRequest.unpacked(extra["steerdec_request"][1:])
        f = dict(enumerate(encoded.floats))
        words, flat = self.file.open(), extra["steerdec_lanes"]
        assert params.n == 1 or extra["steerdec_base_seed"] == params.seed
        for i in range(request.n or 1):
            lane, generation = flat[2 * i : 2 * i + 2]
            for token, h in enumerate(ENTROPIES_NATS):
                fork = encoded.select == encoding.ALWAYS or h > f[encoding.THRESHOLD]
                t = f[encoding.OTHER_T] if not fork else f[FORK_T] if encoded.kind == Split.kind else 1.0
                record = np.array([h, t], np.float32).view(np.int32)
                words[lane, token, ENTROPY], words[lane, token, TEMPERATURE] = record
                words[lane, token, TAG] = generation << FLAG_BITS | fork


async def _send(send: Send, status: int, content_type: bytes, parts: list[bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass
class InProcess:
    inner: Inner
    pool: LanePool
    host: Host
    behind: ASGIApp | None = None  # instead of `inner`

    def app(self) -> ASGIApp:
        return wrapped(self.behind or self.inner, lambda: self.host)

    def post(self, path: str, raw: bytes) -> tuple[int, bytes]:
        """Status and body; fails where the application raises, which a server would make a 500."""
        self.inner.bodies.clear()
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": raw}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": headers}
        lent = self.pool.lent
        asyncio.run(self.app()(scope, receive, send))
        assert self.pool.lent == lent
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


def in_process_server(
    file: LaneFile, default: Steering | None = None, delimiters: tuple[int | None, int | None] = (None, None)
) -> InProcess:
    pool, inner = LanePool(file), Inner(file)
    host = Host(
        default=default,
        threshold_nats=PAPER_THRESHOLD_NATS,
        default_temperature=1.0,
        default_penalties=admission.NO_PENALTIES,
        delimiters=delimiters,
        engine=admission.Engine(v1=True),
        decode=lambda ids: "".join(map(chr, ids)),
        pool=pool,
        keys=Keys([]),
        tracer=None,
    )
    return InProcess(inner, pool, host)


def choices_of(raw: bytes) -> list[dict[str, Any]]:
    """The choices of a whole answer or of a stream of one chunk a choice."""
    if not raw.startswith(b"data:"):
        choices: list[dict[str, Any]] = json.loads(raw)["choices"]
        return choices
    events = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if line]
    assert events[-1] == b"[DONE]"
    return [choice for event in events[:-1] for choice in json.loads(event)["choices"]]

"""Requests without steering, byte for byte: our server's answers beside those of vLLM's own, both real.

    python -m tests.support.byte_equality [MODEL]

The servers run with the same model and the same engine flags: vLLM's own, in which steerdec's entry points are not to
be found, and beside it ours, then ours with a default that steps back from every body that is sent to it. A few bodies
are sent at once (float32 on a CPU does not depend on the batch), and again alone where the answers differ. Compared are
the status, the headers, and every byte of the body, but for what no two answers share: ids, times, and the fingerprint
of the configuration. Where a stream is cut into chunks depends on the moment, on one server as between two, so the
chunks of a choice are joined, and the choices put in order, before they are compared. The model is a tiny random one
unless another is named: what passes through a server does not depend on it. Exit status 1 if any pair is unequal.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from steerdec import models
from steerdec.benchmarks.engine.served import CPU_ENVIRONMENT, CPU_FLAGS, HIDING
from steerdec.benchmarks.run.local_server import local_server
from steerdec.server.fields import read_by
from tests.support.tiny_lm import tiny_lm

MODEL: Final = "served"
# Without a prefix cache an answer does not depend, in the last digits of its log-probabilities, on those before it.
FLAGS: Final = (
    *("--dtype", "float32", "--no-enable-prefix-caching", "--max-logprobs", "20"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
DEFAULT: Final = {"fork_temperature": 1.3, "other_temperature": 0.5, "telemetry": "tokens"}
AT_ONCE: Final = 8
NO_KEEP_ALIVE: Final = httpx.Limits(max_keepalive_connections=0)  # a server may close what was idle for 5 s
PATIENCE_S: Final = 600.0
START_PATIENCE_S: Final = 1200.0  # beside other work

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, BATCH, GENERATE = "/v1/messages", "/v1/chat/completions/batch", "/inference/v1/generate"
INVOCATIONS = "/invocations"
STEERABLE: Final = (CHAT, COMPLETIONS, RESPONSES)  # and messages, which have no seed: only greedy ones repeat

QUESTION: Final = [{"role": "user", "content": "Name two animals, and say why."}]
TOOL: Final = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

# What every body of a path begins with; the rows below replace or add fields.
CONTENT: Final[dict[str, dict[str, Any]]] = {
    CHAT: {"messages": QUESTION, "max_tokens": 6, "seed": 1, "temperature": 0.9},
    COMPLETIONS: {"prompt": "Once upon a time", "max_tokens": 6, "seed": 1, "temperature": 0.9},
    RESPONSES: {"input": "Name an animal.", "max_output_tokens": 6, "seed": 1, "temperature": 0.9},
    MESSAGES: {"messages": QUESTION, "max_tokens": 6, "temperature": 0.0},
    BATCH: {"messages": [QUESTION, QUESTION], "max_tokens": 6, "seed": 1, "temperature": 0.9},
    GENERATE: {"token_ids": [1, 93, 198], "sampling_params": {"max_tokens": 6, "seed": 1, "temperature": 0.9}},
    INVOCATIONS: {"messages": QUESTION, "max_tokens": 6, "seed": 1, "temperature": 0.9},
}
SAMPLING: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"temperature": 0},
    *({"seed": 2, "top_p": 0.5}, {"seed": 3, "top_k": 5}, {"seed": 4, "min_p": 0.2}, {"seed": 5, "temperature": 1.7}),
    *({"presence_penalty": 0.8}, {"frequency_penalty": 0.8}, {"repetition_penalty": 1.3}),
    *({"n": 2}, {"n": 3, "seed": 7}, {"logit_bias": {"253": 30}}, {"stop": [" a", "e"]}, {"stop_token_ids": [28]}),
    *({"ignore_eos": True, "min_tokens": 6}, {"skip_special_tokens": False}, {"include_stop_str_in_output": True}),
    *({"return_token_ids": True}, {"return_tokens_as_token_ids": True, "logprobs": 1}, {"bad_words": ["the"]}),
    *({"stream_options": {"include_usage": True}}, {"user": "caf\u00e9 \U0001f600", "unknown": {"a": [None]}}),
    *({"vllm_xargs": {"mine": 1, "list": ["a", 2.5]}}, {"vllm_xargs": {"nested": {"a": 1}}}, {"priority": 3}),
    *({"seed": "abc"}, {"temperature": "hot"}, {"n": 1.5}, {"max_tokens": -1}, {"temperature": -1}, {"top_p": 7}),
    *({"model": "no-such-model"}, {"model": None}, {"request_id": "mine"}, {"steering": None}, {"cache_salt": "x"}),
)
ALSO: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    CHAT: (
        *({"logprobs": True, "top_logprobs": 3}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "required"}),
        *(
            {"response_format": {"type": "json_object"}},
            {"messages": []},
            {"messages": 5},
            {"include_reasoning": False},
        ),
        *({"messages": [*QUESTION, {"role": "assistant", "content": "A"}], "continue_final_message": True},),
        *({"add_generation_prompt": False}, {"echo": True}, {"use_beam_search": True, "n": 2}, {"max_tokens": None}),
        *({"max_completion_tokens": 3}, {"structured_outputs": {"choice": ["cat", "dog"]}}, {"stream": "maybe"}),
        *({"stream_options": {"include_usage": True, "continuous_usage_stats": True}}, {"prompt_logprobs": 1}),
    ),
    COMPLETIONS: (
        *({"logprobs": 3}, {"echo": True}, {"echo": True, "logprobs": 1}, {"prompt": ["A", "B"]}, {"prompt": [1, 2]}),
        *({"prompt": ["A", "B", "A"], "n": 2}, {"prompt": ["A", "B"], "n": 2, "seed": None, "temperature": 0}),
        *({"prompt": ["A", "B"], "echo": True, "n": 2}, {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 1}),
        *({"prompt": [1, 2], "echo": True, "return_token_ids": True},),
        *({"prompt": [[1, 2], [3]]}, {"prompt": ""}, {"prompt": None}, {"prompt": {}}, {"suffix": "end"}),
        *({"use_beam_search": True, "n": 2}, {"prompt_logprobs": 1}, {"max_tokens": 0, "echo": True}),
        *({"structured_outputs": {"regex": "[ab]{3}"}}, {"truncate_prompt_tokens": 2}, {"add_special_tokens": False}),
        *({"stream_options": {"include_usage": True, "continuous_usage_stats": True}}, {"best_of": 2}),
    ),
    RESPONSES: (
        *({"input": QUESTION}, {"instructions": "Be brief."}, {"store": False}, {"background": True, "store": False}),
        *({"top_logprobs": 2, "include": ["message.output_text.logprobs"]}, {"input": []}, {"input": 5}),
        *({"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}, {"metadata": {"a": "b"}}),
        *({"previous_response_id": "resp_none"}, {"max_output_tokens": 1}, {"truncation": "auto"}),
    ),
    MESSAGES: (
        *({"system": "Be brief."}, {"stop_sequences": ["a"]}, {"max_tokens": 0}, {"metadata": {"user_id": "u"}}),
        *({"messages": []}, {"tools": [{"name": "w", "input_schema": {"type": "object"}}]}, {"top_k": 3}),
        *(
            {"vllm_xargs": {"mine": 1}},
            {"thinking": {"type": "enabled", "budget_tokens": 2}},
            {"thinking": {"type": "x"}},
        ),
    ),
    BATCH: ({"logprobs": True, "top_logprobs": 2}, {"messages": [QUESTION]}, {"messages": []}, {"tools": [TOOL]}),
    GENERATE: (
        {"sampling_params": {"max_tokens": 5, "temperature": 0}},
        {"sampling_params": {"max_tokens": 5, "seed": 5, "logprobs": 2}},
        *({"token_ids": []}, {"token_ids": ["a"]}, {"sampling_params": 5}),
    ),
    INVOCATIONS: ({"messages": None, "prompt": "Once"}, {"messages": None}),
}
RAW: Final = (b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 3000, b'{"a": 1}' * 2, b'{"stream": true}')
# What a default steps back from on the paths that it steers; alone and beside other fields.
STEPS_BACK: Final[tuple[dict[str, Any], ...]] = (
    *({"temperature": 0}, {"temperature": 0.0, "n": 1}, {"temperature": "0"}, {"vllm_xargs": {"steering": None}}),
    *(
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.2},
        {"n": 2, "seed": -2, "top_k": 1},
    ),
)


def bodies(path: str) -> Iterator[bytes]:
    """Every body of a path, streamed and not."""
    rows = (*SAMPLING, *ALSO[path]) if path in STEERABLE else (*SAMPLING[:24:3], *SAMPLING[24:], *ALSO[path])
    for row, stream in itertools.product(rows, (False, True)):
        yield _body(path, row, stream)
    yield from RAW


def bodies_of_a_default(path: str) -> Iterator[bytes]:
    """Every body of a path that a default leaves alone."""
    if path == MESSAGES:
        rows = [row for row in (*SAMPLING[:24:3], *ALSO[path]) if "temperature" not in row]
        yield from (_body(path, row, stream) for row, stream in itertools.product(rows, (False, True)))
        yield from RAW[:-1]
        return
    if path not in STEERABLE:
        yield from bodies(path)
        return
    for back, row, stream in itertools.product(STEPS_BACK, (SAMPLING[0], *SAMPLING[16:24:2]), (False, True)):
        # A path that does not read a field does not step back from it.
        if back.keys() <= read_by(path, back).keys() and not back.keys() & row.keys():
            yield _body(path, row | back, stream)
    yield from RAW[:-1]


def _body(path: str, row: dict[str, Any], stream: bool) -> bytes:
    body = {"model": MODEL} | CONTENT[path] | row
    # A batch that asks for a stream gets from vLLM as much as was there when it looked.
    if path in (GENERATE, BATCH) or "stream" in row:
        stream = False
    return json.dumps(body | ({"stream": True} if stream else {})).encode()


# Normal form ---------------------------------------------------------------------------------------

_CHANGING: Final = (
    (
        re.compile(
            rb"(cmpl|chatcmpl|chatcmpl-tool|resp|msg|rs|fc|call|item|generate-tokens|batch)([-_])[0-9a-f]{8,32}"
        ),
        rb"\1\2ID",
    ),
    (re.compile(rb'"(created|created_at|completed_at)":\d+(\.\d+)?'), rb'"\1":0'),
    (re.compile(rb'"system_fingerprint":"[^"]*"'), rb'"system_fingerprint":""'),
    (re.compile(rb"\b[0-9a-f]{32}\b|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), rb"ID"),
)
_CHANGING_HEADERS: Final = frozenset({"date", "x-request-id"})

Answer = tuple[int, list[tuple[str, str]], bytes]


def normal(body: bytes) -> bytes:
    """Return an answer without what no two answers share, a stream as its joined events."""
    for pattern, instead in _CHANGING:
        body = pattern.sub(instead, body)
    return _joined(body) if body.startswith((b"data: {", b"event: ")) else body


# Of two chunks of one choice, these are put together; of all other fields the later one counts.
_GROWING: Final = frozenset(
    {"content", "text", "delta", "arguments", "reasoning", "token_ids", "tokens", "token_logprobs", "top_logprobs"}
    | {"text_offset", "partial_json", "thinking", "logprobs"}
)


def _joined(stream: bytes) -> bytes:
    """Return the events of a stream, with the chunks of a choice joined into its first, and the choices in order.

    Which of several prompts is answered first depends on the moment, too.
    """
    events: list[tuple[list[bytes], Any]] = []
    first: dict[tuple[object, ...], int] = {}
    for event in stream.split(b"\n\n"):
        lines = event.split(b"\n")
        if not lines[-1].startswith(b"data: {"):
            events.append((lines, None))
            continue
        content = json.loads(lines[-1].removeprefix(b"data: "))
        content.pop("sequence_number", None)  # of the responses API: counts the chunks
        key = _choice_of(content)
        if key is not None and key in first:
            known = events[first[key]]
            events[first[key]] = known[0], _merged(known[1], content)
            continue
        if key is not None:
            first[key] = len(events)
        events.append((lines[:-1], content))
    choices = [key for key in first if key[0] == "choice"]
    joined = [events[first[key]] for key in sorted(choices, key=str)]
    for i, event in zip(sorted(first[key] for key in choices), joined, strict=True):
        events[i] = event
    return b"\n\n".join(b"\n".join([*lines, json.dumps(content, sort_keys=True).encode()]) for lines, content in events)


def _choice_of(event: dict[str, Any]) -> tuple[object, ...] | None:
    """Return what names the choice whose next tokens an event brings, None for any other event."""
    if isinstance(event.get("choices"), list) and len(event["choices"]) == 1:
        choice = event["choices"][0]
        return None if "role" in choice.get("delta", {}) else ("choice", choice.get("index"))
    if "delta" in event and str(event.get("type")).endswith(("delta", ".delta")):
        return event["type"], event.get("item_id"), event.get("index"), event.get("content_index")
    return None


def _merged(one: Any, two: Any, name: str = "") -> Any:
    if isinstance(one, dict) and isinstance(two, dict):
        return {k: _merged(one.get(k), two.get(k), k) if k in two else one[k] for k in {**one, **two}}
    if name == "choices":
        return [_merged(one[0], two[0])]
    if name in _GROWING and isinstance(one, str | list) and type(one) is type(two):
        return one + two
    return two if two is not None or name not in _GROWING else one


def answer(client: httpx.Client, path: str, raw: bytes) -> Answer:
    """Send a body; return status, headers and bytes in normal form."""
    response = client.post(path, content=raw, headers={"content-type": "application/json"})
    headers = sorted((k, v) for k, v in response.headers.items() if k not in _CHANGING_HEADERS)
    return response.status_code, headers, normal(response.content)


def compared(name: str, vllms: str, ours: str, made: Iterable[tuple[str, bytes]], *, shown: bool = True) -> bool:
    """Send every body to both servers, print the figures, and unequal answers if `shown`; return whether none is."""
    sent: Counter[str] = Counter()
    different, again, streams, statuses, distinct = 0, 0, 0, Counter[int](), set[bytes]()
    with (
        ThreadPoolExecutor(AT_ONCE) as threads,
        httpx.Client(base_url=vllms, timeout=PATIENCE_S, trust_env=False, limits=NO_KEEP_ALIVE) as first,
        httpx.Client(base_url=ours, timeout=PATIENCE_S, trust_env=False, limits=NO_KEEP_ALIVE) as second,
    ):

        def both(body: tuple[str, bytes]) -> tuple[str, bytes, Answer, Answer]:
            return *body, answer(first, *body), answer(second, *body)

        for path, raw, a, b in threads.map(both, made):
            if a != b:  # alone, nothing else can be the cause
                a, b = answer(first, path, raw), answer(second, path, raw)
                again += 1
            sent[path] += 1
            statuses[a[0]] += 1
            distinct.add(a[2])
            streams += any("event-stream" in value for _, value in a[1])
            different += a != b
            if shown and a != b:
                print(f"{path} {raw[:300]!r}\n  vLLM: {a}\n  ours: {b}"[:3000], flush=True)
    total = sum(sent.values())
    print(f"{name}: {total - different} of {total} answers equal, {streams} of them streams, {again} only alone;")
    print(
        f"  {len(distinct)} distinct answers; statuses {dict(sorted(statuses.items()))}; bodies {dict(sent)}",
        flush=True,
    )
    return different == 0


@contextmanager
def vllms_own(weights: Path, folder: Path) -> Iterator[str]:
    """URL of vLLM's own server, started where steerdec's entry points are not to be found."""
    (folder / "sitecustomize.py").write_text(HIDING)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
    with _started(command, folder / "vllm.log", {"PYTHONPATH": str(folder)}, ("/health",)) as url:
        yield url


@contextmanager
def ours(weights: Path, folder: Path, *flags: str) -> Iterator[str]:
    """URL of our server."""
    command = [sys.executable, "-m", "steerdec", "serve", str(weights), *flags]
    with _started(command, folder / "ours.log", {}, ("/health", "/v1/steering")) as url:
        yield url


@contextmanager
def _started(command: list[str], log: Path, environment: dict[str, str], ready: tuple[str, ...]) -> Iterator[str]:
    literal = [part.replace("{", "{{").replace("}", "}}") for part in command]
    whole = [*literal, "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "{port}", *CPU_FLAGS, *FLAGS]
    with local_server(
        MODEL,
        log,
        command=whole,
        environment=CPU_ENVIRONMENT | environment,
        ready=ready,
        start_timeout_s=START_PATIENCE_S,
    ) as url:
        yield url


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="steerdec-bytes-") as name:
        folder = Path(name)
        weights = models.fetch(sys.argv[1]) if sys.argv[1:] else tiny_lm(folder / "model", head_dim=32)
        with vllms_own(weights, folder) as vllm:
            with ours(weights, folder) as url:
                every = [(path, raw) for path in CONTENT for raw in bodies(path)]
                equal = compared("no default", vllm, url, every)
            with ours(weights, folder, "--steering", json.dumps(DEFAULT)) as url:
                back = [(path, raw) for path in CONTENT for raw in bodies_of_a_default(path)]
                equal &= compared("under a default that steps back", vllm, url, back)
                # The comparison must be able to fail: under a default, a sampled request is answered otherwise.
                steered = [(COMPLETIONS, _body(COMPLETIONS, {"max_tokens": 24}, False))]
                assert not compared("what the default steers", vllm, url, steered, shown=False)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())

"""Requests that were once answered wrongly, each with the rest of its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from steerdec.policies import registry
from steerdec.server import metrics
from steerdec.server.fields import CHAT, COMPLETIONS, MESSAGES, RESPONSES, read_by
from steerdec.server.middleware import body_limit
from steerdec.telemetry import lanes as telemetry
from tests.support.in_process import InProcess, choices_of, in_process_server

STEERING = {"fork_temperature": 1.3, "other_temperature": 0.7, "telemetry": "tokens"}
MODELS: dict[str, Any] = {
    CHAT: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
    RESPONSES: ResponsesRequest,
    MESSAGES: AnthropicMessagesRequest,
}
CONTENT: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}]},
    COMPLETIONS: {"prompt": "x"},
    RESPONSES: {"input": "x"},
    MESSAGES: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
}
READ = (
    *("temperature", "seed", "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "use_beam_search"),
    *("tools", "background", "prompt", "prompt_embeds", "echo", "return_token_ids", "vllm_xargs", "include_reasoning"),
    "thinking_token_budget",
)


@pytest.fixture
def server() -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=33) as file:
        yield in_process_server(file)


@pytest.fixture
def server_with_default() -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=33) as file:
        yield in_process_server(file, registry.parse(STEERING | {"telemetry": "summary"}))


def post(server: InProcess, path: str = COMPLETIONS, **body: Any) -> tuple[int, Any]:
    status, raw = server.post(path, json.dumps(CONTENT[path.rstrip("/")] | body).encode())
    return status, json.loads(raw) if raw.startswith(b"{") else raw


# What each endpoint reads ------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(MODELS))
def test_only_fields_that_vllm_reads_there_are_read(path: str) -> None:
    body = dict.fromkeys(READ, 1)
    # A response's prompt is a stored template, and no prompt of ours: its handler is never asked for several.
    assert set(read_by(path, body)) == {name for name in READ if name in MODELS[path].model_fields}


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("ignored", [{"n": 2}, {"n": 100_000}, {"use_beam_search": True}, {"echo": True}])
def test_responses_ignore_what_they_do_not_know(
    server: InProcess, server_with_default: InProcess, ignored: dict[str, Any], default: bool
) -> None:
    used = server_with_default if default else server
    seen: list[dict[str, Any]] = []
    used.behind = recording(seen, {"object": "response", "output": [], "usage": {"output_tokens": 0}})
    status, answer = post(used, RESPONSES, **ignored, **({} if default else {"steering": STEERING}))
    assert status == 200
    assert answer["steering"]["tokens"] == 0
    assert len(seen[0]["vllm_xargs"]["steerdec_lanes"]) == 2
    assert "seed" not in seen[0]


def recording(seen: list[dict[str, Any]], answer: dict[str, Any]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(json.loads((await receive())["body"]))
        raw = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    return app


# Values of the wrong type are vLLM's to refuse ---------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "wrong",
    [
        *({"seed": "abc", "n": 2}, {"seed": 1.5, "n": 2}, {"seed": [], "n": 2}, {"seed": {}, "n": 3}),
        *({"seed": 2**70, "n": 2}, {"seed": "", "n": 2}, {"n": "two"}, {"n": 1.5}, {"n": []}),
        *({"temperature": "hot"}, {"temperature": []}, {"presence_penalty": "x"}, {"repetition_penalty": []}),
        *({"use_beam_search": "maybe"}, {"return_token_ids": "maybe"}, {"stream": "maybe"}, {"vllm_xargs": "x"}),
    ],
)
def test_a_value_of_the_wrong_type_is_not_taken_for_absent(
    server: InProcess, server_with_default: InProcess, path: str, wrong: dict[str, Any], stream: bool
) -> None:
    body = {"stream": stream} | wrong
    assert post(server, path, **body, steering=STEERING)[0] == 400
    assert post(server_with_default, path, **body)[0] == 400
    assert post(server, path, **body)[0] == 400


# Steering where nobody reads it ------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, "/v1/completions/", "/invocations"])
@pytest.mark.parametrize("form", ["object", "text", "steering as text"])
@pytest.mark.parametrize("wrapper", ["extra_body", "extra_args", "sampling_params", "parameters", "generation_config"])
def test_steering_in_a_field_that_is_ignored_is_named(server: InProcess, path: str, form: str, wrapper: str) -> None:
    inner: Any = {"steering": json.dumps(STEERING) if form == "steering as text" else STEERING}
    for value in (inner, {"vllm_xargs": inner}, {"extra_args": inner}):
        given = json.dumps(value) if form == "text" else value
        status, answer = post_raw(server, path, {wrapper: given})
        assert (status, answer["error"]["param"]) == (400, "steering")
        assert wrapper in answer["error"]["message"]
    assert server.inner.bodies == []


def post_raw(server: InProcess, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    status, raw = server.post(path, json.dumps({"prompt": "x"} | body).encode())
    return status, json.loads(raw)


@pytest.mark.parametrize("extra", ["steering", '{"steering": ', '["steering"]', {"steering": None}, {"x": 1}, 7, None])
def test_what_is_no_steering_there_is_left_alone(server: InProcess, extra: Any) -> None:
    assert post(server, extra_body=extra, user="steering")[0] == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_trailing_slash_changes_nothing(server: InProcess, path: str) -> None:
    """vLLM redirects such a request; what is refused without the slash is refused with it."""
    for steering in ({"forks": 1}, {"fork_temperature": -1}):
        plain, slash = (post(server, p, steering=steering) for p in (path, path + "/"))
        assert plain == slash
        assert plain[0] == 400

    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == path + "/"
        await receive()
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", path.encode())]})
        await send({"type": "http.response.body", "body": b""})

    server.behind = redirect
    assert post(server, path + "/", steering=STEERING)[0] == 307


# What a stream carries ---------------------------------------------------------------------------


def streaming(*chunks: dict[str, Any]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for chunk in chunks:
            await send(
                {"type": "http.response.body", "body": b"data: %s\n\n" % json.dumps(chunk).encode(), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


def events(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(e.removeprefix(b"data: ")) for e in raw.split(b"\n\n") if e.startswith(b"data: {")]


@pytest.mark.parametrize("default", [False, True])
def test_a_stream_has_null_where_vllm_has_null(
    server: InProcess, server_with_default: InProcess, default: bool
) -> None:
    used = server_with_default if default else server
    wish = {} if default else {"steering": STEERING}
    plain = {"index": 0, "text": "a", "logprobs": None, "finish_reason": None, "stop_reason": None}
    with_ids = plain | {"prompt_token_ids": [1, 2], "token_ids": [3]}
    last = plain | {"prompt_token_ids": None, "token_ids": [4], "finish_reason": "stop"}
    used.behind = streaming(
        {"id": "c", "choices": [with_ids]}, {"id": "c", "choices": [last]}, {"choices": [], "usage": {}}
    )
    got = [c for event in events(post(used, stream=True, **wish)[1]) for c in event["choices"]]
    assert [{k: v for k, v in c.items() if k != "steering"} for c in got] == [
        plain | {"prompt_token_ids": None, "token_ids": None},
        plain | {"prompt_token_ids": None, "token_ids": None, "finish_reason": "stop"},
    ]
    assert got[-1]["steering"]["tokens"] == 2
    got = [c for event in events(post(used, stream=True, return_token_ids=True, **wish)[1]) for c in event["choices"]]
    assert [c["token_ids"] for c in got] == [[3], [4]]
    assert got[0]["prompt_token_ids"] == [1, 2]


def test_chunks_that_vllm_sends_for_token_ids_only_are_left_out(server: InProcess) -> None:
    def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": [1]}
        return {"id": "c", "choices": [choice | more]}

    first = {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}], "prompt_token_ids": [5]}
    server.behind = streaming(first, chunk({}), chunk({"content": "a"}), chunk({}, finish_reason="stop"))
    summary = STEERING | {"telemetry": "summary"}
    got = events(post(server, CHAT, stream=True, steering=summary)[1])
    assert [event["choices"][0]["delta"] for event in got] == [{"role": "assistant"}, {"content": "a"}, {}]
    assert got[0]["prompt_token_ids"] is None
    assert got[-1]["choices"][0]["steering"]["tokens"] == 3
    got = events(post(server, CHAT, stream=True, steering=STEERING)[1])
    assert [len(e["choices"][0].get("steering", {"fork": ""})["fork"]) for e in got] == [0, 1, 1, 1]


# Hidden reasoning --------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [{"stream": True}, {"n": 2}, {"stream": True, "n": 2, "stop": ["a", "b"]}])
def test_hidden_token_ids_and_a_stop_string_leave_no_exact_telemetry(
    server: InProcess, server_with_default: InProcess, beside: dict[str, Any]
) -> None:
    body = {"include_reasoning": False, "stop": "a"} | beside
    status, answer = post(server, CHAT, **body, steering=STEERING)
    assert (status, answer["error"]["param"]) == (400, "steering.telemetry")
    assert post(server, CHAT, **body, steering=STEERING | {"telemetry": "none"})[0] == 200
    status, _ = post(server_with_default, CHAT, **body)
    assert status == 200
    assert "steerdec_lanes" not in json.loads(server_with_default.inner.bodies[0])["vllm_xargs"]
    assert post(server, CHAT, include_reasoning=False, stop="a", steering=STEERING)[0] == 200  # usage has the number


# Counting ----------------------------------------------------------------------------------------


def counted() -> float:
    return metrics.REQUESTS.labels("")._value.get()  # type: ignore[no-any-return]


def test_a_refused_stream_is_not_counted(server: InProcess) -> None:
    before = counted()
    server.behind = streaming({"error": {"message": "refused", "code": 400}})
    assert post(server, stream=True, steering=STEERING)[0] == 200
    assert counted() == before
    server.behind = None
    assert post(server, stream=True, steering=STEERING)[0] == 200
    assert counted() == before + 1
    assert post(server, vllm_xargs={"steering": json.dumps(STEERING)})[0] == 200
    assert counted() == before + 2


# Bodies that cost too much -----------------------------------------------------------------------


@pytest.mark.parametrize("path", [COMPLETIONS, RESPONSES, "/tokenize"])
@pytest.mark.parametrize(("piece", "word"), [(b"[],", b"brackets"), (b"{},", b"brackets"), (b"1,", b"commas")])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(
    server: InProcess, path: str, piece: bytes, word: bytes
) -> None:
    raw = b'{"steering": {}, "prompt": [%s1]}' % (piece * (20_000_000 // len(piece)))
    status, answer = server.post(path, raw)
    assert status == 413
    assert word in answer
    assert server.inner.bodies == []


def test_long_prompts_pass() -> None:
    text = json.dumps({"prompt": "An ordinary sentence, with commas, [brackets] and {braces}. " * 50_000}).encode()
    ids = json.dumps({"prompt": list(range(1_000_000))}).encode()
    assert [body_limit._costly(raw) for raw in (text, ids)] == [None, None]


def test_choices_are_still_annotated(server: InProcess) -> None:
    status, raw = server.post(COMPLETIONS, json.dumps({"prompt": "x", "steering": STEERING}).encode())
    assert status == 200
    assert "steering" in choices_of(raw)[0]

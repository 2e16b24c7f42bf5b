"""The middleware where requests and clients are awkward: spellings vLLM also takes, clients that leave, defaults."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from transformers import AutoTokenizer

from steerdec.policies import registry
from steerdec.policies.split.fields import FORK_T, Split
from steerdec.server.middleware import wrapped
from steerdec.server.middleware.keys import Keys
from steerdec.steering import admission, scope
from steerdec.steering.encoding import EncodedRequest
from steerdec.telemetry import lanes as telemetry
from tests.support.in_process import ENTROPIES_NATS, TOKENS, InProcess, choices_of, in_process_server

STEERING = {"fork_temperature": 1.3, "other_temperature": 0.7, "telemetry": "tokens"}


@pytest.fixture
def server() -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=17) as file:
        yield in_process_server(file)


@pytest.fixture
def server_with_default() -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=17) as file:
        yield in_process_server(file, registry.parse(STEERING | {"telemetry": "summary"}))


def post(server: InProcess, **body: Any) -> tuple[int, bytes]:
    return server.post("/v1/completions", json.dumps({"prompt": "x"} | body).encode())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [2, "2", 2.0])
def test_every_choice_has_its_lane_however_n_is_spelled(server: InProcess, n: Any, stream: bool) -> None:
    status, raw = post(server, n=n, stream=stream, steering=STEERING)
    assert status == 200
    assert [len(choice["steering"]["fork"]) for choice in choices_of(raw)] == [TOKENS, TOKENS]


@pytest.mark.parametrize("seed", ["7", 7.0, -7])
def test_choices_keep_apart_however_the_seed_is_spelled(server: InProcess, seed: Any) -> None:
    assert post(server, n=2, seed=seed, steering=STEERING)[0] == 200
    xargs = json.loads(server.inner.bodies[0])["vllm_xargs"]
    assert xargs["steerdec_base_seed"] == int(seed)


def test_a_seed_that_is_none_to_vllm_is_none_to_us(server: InProcess) -> None:
    """vLLM takes -1 for no seed; the sequences of one request would then not be told apart."""
    assert post(server, n=2, seed=-1, steering=STEERING)[0] == 200
    body = json.loads(server.inner.bodies[0])
    assert body["seed"] >= 0
    assert body["vllm_xargs"]["steerdec_base_seed"] == body["seed"]
    status, raw = post(server, seed=-1, steering={"select": "random", "fork_rate": 0.2})
    assert (status, json.loads(raw)["error"]["param"]) == (400, "steering.select")
    for n, seed in ((2, -2), (4, -3), (3, "-2")):
        status, raw = post(server, n=n, seed=seed, steering=STEERING | {"telemetry": "none"})
        assert status == 400
        assert b"would get seed -1" in raw
    assert post(server, n=2, seed=-3, steering=STEERING)[0] == 200
    assert server.pool.lent == 0


def test_telemetry_is_refused_where_a_response_is_several_requests(server: InProcess) -> None:
    body = {"tools": [{"type": "code_interpreter"}], "input": "x", "steering": STEERING}
    status, raw = server.post("/v1/responses", json.dumps(body).encode())
    assert status == 400
    assert b"built-in tools" in raw
    assert server.pool.lent == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": ["a", "a"], "n": 2}, 4),
        ({"prompt": ["a", "b"], "n": 2, "seed": 7}, 4),
        ({"prompt": [[1], [2, 3]], "n": "2"}, 4),
        ({"prompt": "x", "prompt_embeds": "YQ=="}, 2),
        ({"prompt": ["a"], "n": 2}, 2),
    ],
)
def test_every_choice_of_every_prompt_has_its_lane(
    server: InProcess, body: dict[str, Any], choices: int, stream: bool
) -> None:
    status, raw = post(server, **body, stream=stream, steering=STEERING)
    assert status == 200, raw
    found = choices_of(raw)
    assert [choice["index"] for choice in found] == list(range(choices))
    assert [choice["steering"]["entropy_nats"] for choice in found] == [pytest.approx(ENTROPIES_NATS)] * choices


def test_prompts_times_n_are_limited_together(server: InProcess) -> None:
    for body in ({"prompt": ["a"] * 5}, {"prompt": ["a", "b", "c"], "n": 2}):
        status, raw = post(server, **body, steering=STEERING)
        assert (status, json.loads(raw)["error"]["param"]) == (400, "steering.telemetry")
        assert b"prompts times n is at most 4" in raw
        assert post(server, **body, steering=STEERING | {"telemetry": "none"})[0] == 200


def test_lanes_rest_when_one_of_several_prompts_fails(server: InProcess) -> None:
    """vLLM aborts the requests of the other prompts, and a step in flight may still write their records."""

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"error": {"message": "one prompt is too long"}}'})

    app = InProcess(server.inner, server.pool, server.host, failing)
    for prompt, resting in (("a", 0), (["a", "b"], 2)):
        assert post(app, prompt=prompt, steering=STEERING)[0] == 400
        free = server.pool.count - resting
        server.pool.take_back(server.pool.lend(free), aborted=False)
        with pytest.raises(telemetry.LanesExhaustedError):
            server.pool.lend(free + 1)


def test_token_ids_declined_in_words_are_still_counted_and_not_sent(server: InProcess) -> None:
    status, raw = post(server, stream=True, return_token_ids="false", steering=STEERING)
    assert status == 200
    (choice,) = choices_of(raw)
    assert len(choice["steering"]["fork"]) == TOKENS
    assert choice.get("token_ids") is None


def test_a_greedy_request_is_refused_however_its_temperature_is_spelled(server: InProcess) -> None:
    for temperature in (0, 0.0, "0", False):
        status, raw = post(server, temperature=temperature, stream=True, steering=STEERING)
        assert status == 400
        assert "temperature is 0" in json.loads(raw)["error"]["message"]


def test_numbers_beyond_every_float_are_refused_or_left_to_vllm(server: InProcess) -> None:
    status, raw = post(server, steering={"fork_temperature": 10**400})
    assert status == 400
    assert json.loads(raw)["error"]["param"] == "steering.fork_temperature"
    assert post(server, temperature=10**400, steering=STEERING)[0] == 400


def test_an_unprintable_key_is_named_in_one_plain_line(server: InProcess) -> None:
    status, raw = post(server, steering={"a\n\x1b[2J": 1})
    assert status == 400
    error = json.loads(raw)["error"]
    assert error["message"].isprintable()
    assert error["param"] == "steering.a\n\x1b[2J"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("once", ["once"] * 2), (["a", "b"], ["a", "a", "b", "b"]), ([[65], [66, 67]], ["A", "A", "BC", "BC"])],
)
def test_an_echo_has_its_prompt_and_telemetry_of_what_follows(
    server: InProcess, prompt: Any, texts: list[str], stream: bool
) -> None:
    """vLLM leaves the prompt out of an echo that returns token ids, which telemetry needs."""
    status, raw = post(server, prompt=prompt, n=2, echo="true", stream=stream, steering=STEERING)
    assert status == 200
    choices = choices_of(raw)
    assert [choice["text"] for choice in choices] == texts
    assert {choice["steering"]["tokens"] for choice in choices} == {TOKENS}
    assert all(choice["token_ids"] is choice["prompt_token_ids"] is None for choice in choices)


def test_an_echo_is_vllms_own_where_the_client_asks_for_token_ids(server: InProcess) -> None:
    status, raw = post(server, echo=True, return_token_ids=True, steering=STEERING)
    (choice,) = choices_of(raw)
    assert (status, choice["text"], choice["token_ids"]) == (200, "", [0] * TOKENS)
    assert len(choice["steering"]["fork"]) == TOKENS


def test_an_echo_that_we_cannot_repeat_goes_without_telemetry_only(server: InProcess) -> None:
    for host, body in (
        (server.host, {"truncate_prompt_tokens": 1}),
        (dataclasses.replace(server.host, decode=None), {}),
    ):
        server.host = host
        status, raw = post(server, echo=True, steering=STEERING, **body)
        assert (status, json.loads(raw)["error"]["param"]) == (400, "steering.telemetry")
        assert post(server, echo=True, steering=STEERING | {"telemetry": "none"}, **body)[0] == 200
        assert "return_token_ids" not in json.loads(server.inner.bodies[0])


@pytest.mark.parametrize("body", [{"echo": True, "truncate_prompt_tokens": 1}, {"n": 5}, {"prompt": ["a"] * 5}])
def test_a_default_gives_up_its_telemetry_before_its_steering(
    server_with_default: InProcess, body: dict[str, Any]
) -> None:
    status, raw = post(server_with_default, **body)
    assert status == 200
    assert all("steering" not in choice for choice in choices_of(raw))
    xargs = json.loads(server_with_default.inner.bodies[0])["vllm_xargs"]
    assert EncodedRequest.unpacked(xargs["steerdec_request"][1:]).kind == Split.kind
    assert "steerdec_lanes" not in xargs


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 0},
        {"steering": None},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.1},
    ],
)
def test_a_default_steps_back_entirely(server_with_default: InProcess, body: dict[str, Any]) -> None:
    status, raw = post(server_with_default, **body)
    assert status == 200
    assert all("steering" not in choice for choice in choices_of(raw))
    assert "steerdec" not in server_with_default.inner.bodies[0].decode()


def test_steering_in_vllm_xargs_is_encoded_too_and_stands_instead_of_a_default(server_with_default: InProcess) -> None:
    status, raw = post(server_with_default, vllm_xargs={"steering": '{"fork_temperature": 0.4}', "other": 1})
    assert status == 200
    assert all("steering" not in choice for choice in choices_of(raw))
    xargs = json.loads(server_with_default.inner.bodies[0])["vllm_xargs"]
    assert set(xargs) == {"other", "steerdec_request"}
    assert EncodedRequest.unpacked(xargs["steerdec_request"][1:]).floats[FORK_T] == 0.4


@pytest.mark.parametrize("stream", [False, True])
def test_what_vllm_would_refuse_in_a_stream_already_begun_is_refused_before(server: InProcess, stream: bool) -> None:
    for penalty in ({"presence_penalty": 0.5}, {"frequency_penalty": "-1"}, {"repetition_penalty": 1.1}):
        status, raw = post(server, stream=stream, steering=STEERING, **penalty)
        assert status == 400
        assert "penalties" in json.loads(raw)["error"]["message"]
    assert post(server, stream=stream, steering=STEERING, presence_penalty=0, repetition_penalty=1)[0] == 200
    status, raw = post(server, stream=stream, vllm_xargs={"steering": '{"forks": 1}'})
    assert status == 400
    assert json.loads(raw)["error"]["param"] == "steering.forks"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("steering", "beside", "param"),
    [
        ({"forks": 1}, {}, "steering.forks"),
        ({"scope": "thinking"}, {}, "steering.thinking_start_id"),
        ({"select": "random", "fork_rate": 0.2}, {}, "steering.select"),
        ({}, {"temperature": 0}, "steering"),
        ({}, {"frequency_penalty": 0.1}, "steering"),
    ],
)
def test_steering_in_vllms_own_field_is_refused_before_a_stream_begins(
    server: InProcess, steering: dict[str, Any], beside: dict[str, Any], param: str, stream: bool
) -> None:
    status, raw = post(server, stream=stream, vllm_xargs={"steering": json.dumps(steering)}, **beside)
    assert (status, json.loads(raw)["error"]["param"]) == (400, param)
    assert server.inner.bodies == []
    fine = {"select": "random", "fork_rate": 0.2, "scope": "thinking", "thinking_start_id": 1, "thinking_end_id": 2}
    assert post(server, stream=stream, seed=1, vllm_xargs={"steering": json.dumps(fine)})[0] == 200


@pytest.mark.parametrize(
    ("given", "ids"),
    [({}, (41, 42)), ({"thinking_end_id": 7}, (41, 7)), ({"thinking_start_id": 8, "thinking_end_id": 7}, (8, 7))],
)
def test_delimiters_are_the_tokenizers_where_the_request_gives_none(
    given: dict[str, int], ids: tuple[int, int]
) -> None:
    with telemetry.created(8, max_lanes=17) as file:
        server = in_process_server(file, delimiters=(41, 42))
        assert post(server, steering=STEERING | {"scope": "thinking"} | given)[0] == 200
        words = json.loads(server.inner.bodies[0])["vllm_xargs"]["steerdec_request"]
        assert EncodedRequest.unpacked(words[1:]).delimiters == ids


def test_a_tokenizer_has_delimiters_where_each_is_one_token(weights: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(weights)
    assert scope.delimiters(tokenizer) == (None, None)
    tokenizer.add_tokens(["<think>", "</think>"])
    assert scope.delimiters(tokenizer) == tuple(tokenizer.encode("<think></think>"))


def test_a_body_that_can_be_read_but_not_written_again_is_refused(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON nested to within a few levels of the stack; which levels those are, only the stack knows."""
    dumps = json.dumps

    def failing(value: Any, **more: Any) -> str:
        if isinstance(value, dict) and "prompt" in value:
            raise RecursionError
        return dumps(value, **more)

    raw = json.dumps({"prompt": "x", "steering": STEERING}).encode()
    monkeypatch.setattr("steerdec.server.middleware.steering.json.dumps", failing)
    status, answer = server.post("/v1/completions", raw)
    assert status == 400
    assert "nested" in json.loads(answer)["error"]["message"]
    assert server.pool.lent == 0


def test_a_penalty_of_the_models_own_counts_too(server: InProcess) -> None:
    host = dataclasses.replace(server.host, default_penalties={"repetition_penalty": 1.05})
    server.host = host
    assert post(server, steering=STEERING)[0] == 400
    assert post(server, steering=STEERING, repetition_penalty=1.0)[0] == 200
    server.host = dataclasses.replace(host, engine=admission.Engine())
    assert post(server, steering=STEERING, repetition_penalty=1.2)[0] == 200


def test_lanes_rest_when_a_client_leaves_a_request_that_is_not_streamed(server: InProcess) -> None:
    """vLLM's cancelled handler answers `null` to nobody, while the engine may still write one more record."""

    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"null"})

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps({"prompt": "x", "steering": STEERING}).encode()}

    async def send(message: Message) -> None:
        sent.append(message)

    app = wrapped(cancelled, lambda: server.host)
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert sent[-1]["body"] == b"null"
    assert server.pool.lent == 0
    free = server.pool.count - 1  # the lane just given back is not among them yet
    server.pool.lend(free)
    with pytest.raises(telemetry.LanesExhaustedError):
        server.pool.lend(1)


def test_without_a_free_lane_a_default_still_steers_and_a_request_of_its_own_waits(
    server_with_default: InProcess,
) -> None:
    server = server_with_default
    lent = server.pool.lend(server.pool.count)
    status, raw = post(server)
    assert status == 200
    assert "steering" not in choices_of(raw)[0]
    xargs = json.loads(server.inner.bodies[-1])["vllm_xargs"]
    encoded = EncodedRequest.unpacked(xargs["steerdec_request"][1:])
    assert encoded.floats[FORK_T] == STEERING["fork_temperature"]
    assert "steerdec_lanes" not in xargs
    status, raw = post(server, steering=STEERING)
    assert (status, json.loads(raw)["error"]["param"]) == (429, "steering.telemetry")
    server.pool.take_back(lent, aborted=False)
    assert "steering" in choices_of(post(server)[1])[0]


def test_steering_is_refused_where_it_would_be_ignored(server: InProcess) -> None:
    """vLLM has more paths that generate, and ignores what it does not know."""
    reached: list[bytes] = []

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app = InProcess(server.inner, server.pool, server.host, other)
    for path in ("/invocations", "/v1/chat/completions/batch"):
        for steering in (
            *(b'"steering": {}', b'"st\\u0065ering": 1', b'"vllm_xargs": {"steering": "{}"}'),
            *(b'"vllm_xargs": {"steerdec_lanes": [1, 1]}', b'"sampling_params": {"extra_args": {"steering": {}}}'),
        ):
            status, raw = app.post(path, b'{"prompt": "x", %s}' % steering)
            assert (status, json.loads(raw)["error"]["param"]) == (400, "steering")
        assert reached == []
        for body in (b'{"prompt": "steering"}', b'{"steering": null}', b"[1]", b"steer", b""):
            assert app.post(path, body)[0] == 200
            assert reached.pop() == body


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/tokenize"])
def test_a_key_is_asked_for_on_every_path_before_the_body_is_read(server: InProcess, path: str) -> None:
    host = dataclasses.replace(server.host, keys=Keys(["one", "zwei\u00e9"]))
    reads: list[str] = []
    statuses: list[int] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Message:
        reads.append(path)
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    app = wrapped(inner, lambda: host)
    for given in (b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic one", b"one", b"Bearer one ", b"\xff\xfe"):
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"authorization", given)] if given else [],
        }
        asyncio.run(app(scope, receive, send))
        assert (statuses.pop(0), reads) == (401, []), given
        statuses.clear()
    for given in (b"Bearer one", b"bearer one", "Bearer zwei\u00e9".encode("latin-1")):
        asyncio.run(app(scope | {"headers": [(b"authorization", given)]}, receive, send))
        assert (statuses.pop(0), reads.pop()) == (200, path)
        statuses.clear()

"""The real server with the real model, through the clients people use."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.support.serving import PATIENCE_S

pytestmark = pytest.mark.engine

MODEL = "SmolLM2-135M-Instruct"
STEERING = {"fork_temperature": 1.3, "other_temperature": 0.7, "threshold_nats": 0.6, "telemetry": "tokens"}
QUESTION = [{"role": "user", "content": "Name three animals."}]


@pytest.fixture(scope="module")
def client(server_url: str) -> OpenAI:
    return OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0)


def lanes_lent(url: str) -> int:
    return int(httpx.get(f"{url}/v1/steering", timeout=PATIENCE_S).json()["telemetry_lanes_lent"])


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"model": MODEL, **body}, timeout=PATIENCE_S)


def complete(url: str, **body: Any) -> dict[str, Any]:
    response = post(url, "/v1/completions", prompt="Once upon a time", **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def assert_steered(steering: dict[str, Any], tokens: int) -> None:
    """The telemetry is as long as the answer, and consistent with what was asked for."""
    entropy, fork, temperature = steering["entropy_nats"], steering["fork"], steering["temperature"]
    assert len(entropy) == len(fork) == len(temperature) == tokens == steering["tokens"]
    assert fork == [h > 0.6 for h in entropy]
    assert temperature == [1.3 if f else 0.7 for f in fork]
    assert steering["forks"] == sum(fork)
    assert steering["fork_rate"] == pytest.approx(sum(fork) / tokens)
    assert steering["mean_entropy_nats"] == pytest.approx(sum(entropy) / tokens, abs=1e-5)
    assert steering["threshold_nats"] == 0.6


def entropies(steps: list[dict[str, float]]) -> list[float]:
    """H of each step from its full log-probabilities."""
    return [-sum(math.exp(v) * v for v in step.values() if v > -200) for step in steps]


# What comes back ---------------------------------------------------------------------------------


def test_completion_telemetry_is_right_by_a_second_computation(server_url: str) -> None:
    # by id: many tokens decode to the same text, and would overwrite each other
    every_token = {"logprobs": 49_152, "return_tokens_as_token_ids": True}
    answer = complete(server_url, max_tokens=12, seed=1, temperature=1.0, steering=STEERING, **every_token)
    choice = answer["choices"][0]
    assert_steered(choice["steering"], answer["usage"]["completion_tokens"])
    expected = entropies(choice["logprobs"]["top_logprobs"])
    assert choice["steering"]["entropy_nats"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_chat_with_the_openai_client(client: OpenAI, stream: bool, n: int) -> None:
    sampling: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": 16,
        "seed": 5,
        "temperature": 1.0,
        "n": n,
    }
    whole = client.chat.completions.create(**sampling, extra_body={"steering": STEERING, "return_token_ids": True})
    for choice in whole.choices:
        assert_steered(choice.steering, len(choice.token_ids))  # type: ignore[attr-defined]
    if not stream:
        assert sum(len(c.token_ids) for c in whole.choices) == whole.usage.completion_tokens  # type: ignore
        return
    gathered: dict[int, dict[str, list[Any]]] = {}
    closing: dict[int, dict[str, Any]] = {}
    text = dict.fromkeys(range(n), "")
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        **sampling, stream=True, stream_options=options, extra_body={"steering": STEERING}
    ):
        for choice in chunk.choices:
            assert (choice.model_extra or {}).get("token_ids") is None, "asked for by us, not by the client"
            text[choice.index] += choice.delta.content or ""
            steering = (choice.model_extra or {}).get("steering", {})
            for key in ("entropy_nats", "fork", "temperature"):
                gathered.setdefault(choice.index, {}).setdefault(key, []).extend(steering.get(key, []))
            if choice.finish_reason:
                closing[choice.index] = {k: v for k, v in steering.items() if not isinstance(v, list)}
    for choice in whole.choices:
        assert text[choice.index] == choice.message.content
        streamed = gathered[choice.index] | closing[choice.index]
        assert_steered(streamed, len(choice.token_ids))  # type: ignore[attr-defined]
        whole_entropies = choice.steering["entropy_nats"]  # type: ignore[attr-defined]
        assert streamed["entropy_nats"] == pytest.approx(whole_entropies, abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_with_the_openai_client(client: OpenAI, stream: bool) -> None:
    sampling: dict[str, Any] = {
        "model": MODEL,
        "input": "Name three animals.",
        "max_output_tokens": 16,
        "temperature": 1.0,
    }
    extra = {"extra_body": {"steering": STEERING, "seed": 5}}
    if stream:
        events = list(client.responses.create(**sampling, **extra, stream=True))
        response = events[-1].response  # type: ignore[union-attr]
        assert events[-1].type in ("response.completed", "response.incomplete")
    else:
        response = client.responses.create(**sampling, **extra)
    assert_steered(response.steering, response.usage.output_tokens)  # type: ignore[union-attr]


def test_summary_is_the_default_and_none_is_none(server_url: str) -> None:
    sampling = {"max_tokens": 6, "seed": 1, "temperature": 1.0}
    summary = complete(server_url, **sampling, steering={"fork_temperature": 1.1})["choices"][0]["steering"]
    assert set(summary) == {"tokens", "forks", "fork_rate", "mean_entropy_nats", "threshold_nats"}
    assert summary["threshold_nats"] == 0.672
    silent = complete(server_url, **sampling, steering={"fork_temperature": 1.1, "telemetry": "none"})
    assert "steering" not in silent["choices"][0]


def test_tools_and_structured_output_are_unharmed(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}}, "required": ["name"]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,  # type: ignore[arg-type]
        max_tokens=40,
        temperature=1.0,
        seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
        extra_body={"steering": STEERING},
    )
    assert json.loads(answer.choices[0].message.content or "")["name"] in ("Ann", "Bob")
    assert_steered(answer.choices[0].steering, answer.usage.completion_tokens)  # type: ignore
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": 3,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }
    plain = client.chat.completions.create(**asked)
    same = {"fork_temperature": 1.0, "telemetry": "tokens"}
    called = client.chat.completions.create(**asked, extra_body={"steering": same})
    calls = [(answer.choices[0].message.tool_calls or [])[0].function for answer in (plain, called)]  # type: ignore
    assert calls[0] == calls[1]
    assert calls[0].name == "get_weather"
    assert len(called.choices[0].steering["fork"]) == called.usage.completion_tokens  # type: ignore


# What is not steered -----------------------------------------------------------------------------


def test_without_steering_the_answer_has_nothing_of_ours(server_url: str) -> None:
    plain = complete(server_url, max_tokens=8, seed=1, temperature=1.0)
    assert "steering" not in plain["choices"][0]
    same = complete(server_url, max_tokens=8, seed=1, temperature=1.0, steering={"fork_temperature": 1.0})
    assert same["choices"][0]["text"] == plain["choices"][0]["text"]
    assert set(same["choices"][0]) - {"steering"} == set(plain["choices"][0])
    assert set(same) == set(plain)
    none = complete(server_url, max_tokens=8, seed=1, temperature=1.0, steering=None)
    assert none["choices"][0].keys() == plain["choices"][0].keys()


# What is refused ---------------------------------------------------------------------------------

BAD = [
    ({"fork_temperature": "hot"}, "steering.fork_temperature"),
    ({"fork_temperature": -1}, "steering.fork_temperature"),
    ({"fork_temperature": 0.001}, "steering.fork_temperature"),
    ({"temprature": 1}, "steering.temprature"),
    ({"policy": "entropix"}, "steering.policy"),
    ({"policy": "entropy_target"}, "steering.delta_nats"),
    ({"select": "random"}, "steering.fork_rate"),
    ({"select": "first"}, "steering.first_tokens"),
    ({"first_tokens": 1}, "steering.first_tokens"),
    ({"scope": "thinking"}, "steering.thinking_start_id"),
    (["split"], "steering"),
    (True, "steering"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("steering", "param"), BAD, ids=[p for _, p in BAD])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_wrong_steering_is_a_400_that_names_the_field(
    server_url: str, path: str, steering: Any, param: str, stream: bool
) -> None:
    content = {"/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}.get(path, {"messages": QUESTION})
    response = post(server_url, path, **content, stream=stream, steering=steering, seed=1, temperature=1.0)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(param)
    assert error["type"] == "BadRequestError"
    assert "\n" not in error["message"]
    assert lanes_lent(server_url) == 0


def test_the_openai_client_raises_its_own_error(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"steering\.forks: is not a field of policy split"):
        client.completions.create(model=MODEL, prompt="x", extra_body={"steering": {"forks": 1}})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"temperature": 0, "steering": {}}, "temperature is 0"),
        ({"steering": {"select": "random", "fork_rate": 0.2}}, "seed"),
        ({"steering": {}, "vllm_xargs": {"steering": "{}"}}, "twice"),
        ({"vllm_xargs": {"steerdec_lanes": [1, 1]}}, "steerdec_lanes"),
        ({"steering": {}, "vllm_xargs": {"steerdec_base_seed": 1}}, "steerdec_base_seed"),
        ({"steering": {}, "presence_penalty": 1.0}, "penalties"),
        ({"steering": {}, "prompt": ["a", "b"], "n": 100_000}, "prompts times n is at most"),
        ({"steering": {}, "n": 100_000}, "n is at most"),
        ({"vllm_xargs": {"steering": '{"fork_temperature": -3}'}}, "fork_temperature"),
    ],
)
def test_steering_that_does_not_go_with_the_rest_is_refused(
    server_url: str, body: dict[str, Any], words: str, stream: bool
) -> None:
    response = post(server_url, "/v1/completions", **({"prompt": "x", "max_tokens": 2, "stream": stream} | body))
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert lanes_lent(server_url) == 0


def test_a_key_spelled_with_escapes_is_still_seen(server_url: str) -> None:
    raw = json.dumps({"model": MODEL, "prompt": "x", "steering": {"fork": 1}}).replace("steer", "st\\u0065er")
    response = httpx.post(
        f"{server_url}/v1/completions", content=raw, headers={"content-type": "application/json"}, timeout=PATIENCE_S
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "steering.fork"


def test_broken_bodies_are_vllms_to_refuse(server_url: str) -> None:
    for raw in (b"", b"{", b"[]", b'{"steering": {}}', b"\xff\xfe", b'{"steering":' + b"[" * 100_000):
        response = httpx.post(
            f"{server_url}/v1/completions",
            content=raw,
            headers={"content-type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert 400 <= response.status_code < 500, raw[:40]


def test_a_body_beyond_all_measure_is_cut_off(server_url: str) -> None:
    big = b'{"steering": {}, "prompt": "' + b"x" * (65 * 2**20) + b'"}'
    try:
        response = httpx.post(
            f"{server_url}/v1/completions",
            content=big,
            headers={"content-type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert response.status_code == 413
    except httpx.TransportError:
        pass  # closed while sending, which is as good
    assert httpx.get(f"{server_url}/health", timeout=PATIENCE_S).status_code == 200


# Lanes and life ----------------------------------------------------------------------------------


def test_requests_cancelled_midway_give_their_lanes_back(server_url: str) -> None:
    async def cancelled() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            body = {"model": MODEL, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
            async with http.stream(
                "POST", f"{server_url}/v1/completions", json=body | {"steering": STEERING}
            ) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        return

    async def all_of_them() -> None:
        await asyncio.gather(*(cancelled() for _ in range(20)))

    asyncio.run(all_of_them())
    for _ in range(100):
        if lanes_lent(server_url) == 0:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert lanes_lent(server_url) == 0


def test_seeded_request_with_a_long_prompt_does_not_kill_the_engine(server_url: str) -> None:
    prompt = "word " * 3000
    assert (
        post(
            server_url, "/v1/completions", prompt=prompt, max_tokens=2, seed=1, temperature=1.0, steering={}
        ).status_code
        == 200
    )
    assert httpx.get(f"{server_url}/health", timeout=PATIENCE_S).status_code == 200


def test_what_the_server_says_of_itself(server_url: str) -> None:
    about = httpx.get(f"{server_url}/v1/steering", timeout=PATIENCE_S).json()
    assert about["processor"] is True
    assert about["runner"] == "v1"
    assert about["threshold_nats"] == 0.672
    assert about["model"] == MODEL


def test_metrics_count_tokens_forks_and_entropies(server_url: str) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{server_url}/metrics", timeout=PATIENCE_S).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))

    names = ["steerdec_requests_total", "steerdec_tokens_total", "steerdec_forks_total", "steerdec_entropy_nats_count"]
    before = [value(name) for name in names]
    steering = complete(server_url, max_tokens=9, seed=4, temperature=1.0, steering=STEERING)["choices"][0]["steering"]
    after = [value(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [
        1,
        steering["tokens"],
        steering["forks"],
        steering["tokens"],
    ]


def test_the_page_is_served_with_nothing_from_elsewhere(server_url: str) -> None:
    page = httpx.get(f"{server_url}/", timeout=PATIENCE_S)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(f"{server_url}/page/style.css", timeout=PATIENCE_S).headers["content-type"].startswith("text/css")
    assert httpx.get(f"{server_url}/page/../routes.py", timeout=PATIENCE_S).status_code == 404


def test_errors_show_nothing_of_the_host(server_url: str, weights: Path) -> None:
    texts = [
        post(server_url, "/v1/completions", prompt="x", steering={"x": 1}).text,
        post(server_url, "/v1/completions", prompt="x", temperature="a").text,
        post(server_url, "/v1/nothing").text,
        httpx.get(f"{server_url}/page/none.js", timeout=PATIENCE_S).text,
    ]
    for text in texts:
        assert str(weights) not in text
        assert "Traceback" not in text
        assert "/site-packages" not in text

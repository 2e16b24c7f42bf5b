"""The scripted endpoint and a real server, through the same assertions.

Tests of the runner stand on the scripted endpoint, so what it says must be what a real server says: every statement
here is made of both. Only what no real server does on demand (errors, hangs, cut connections) is the script's alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.verdicts.summary import summarize
from tests.support.scripted_endpoint import Script, ScriptedEndpoint
from tests.support.serving import PATIENCE_S

PROBLEM = "Tom has 3 apples and buys 4 more. How many apples does he have?"
MAX_TOKENS = 12
CHAT = {"messages": [{"role": "user", "content": PROBLEM}]}
TEXT = {"prompt": PROBLEM}
KINDS = [pytest.param("scripted", id="scripted"), pytest.param("real", marks=pytest.mark.engine, id="real")]


@pytest.fixture(scope="module")
def scripted_url() -> Iterator[str]:
    with ScriptedEndpoint(Script(answers={PROBLEM: "7"}, tokens=MAX_TOKENS)) as endpoint:
        yield endpoint.url


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    url = request.getfixturevalue("scripted_url" if request.param == "scripted" else "server_url")
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as http:
        yield http


def body_of(client: httpx.Client, prompt: dict[str, Any], **fields: Any) -> dict[str, Any]:
    model = client.get("/v1/models").json()["data"][0]["id"]
    return {"model": model, "seed": 5, "temperature": 0.8, "max_tokens": MAX_TOKENS, **prompt, **fields}


def completed(client: httpx.Client, prompt: dict[str, Any], **fields: Any) -> dict[str, Any]:
    path = "/v1/chat/completions" if "messages" in prompt else "/v1/completions"
    answer = client.post(path, json=body_of(client, prompt, **fields))
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def test_what_is_asked_before_a_run(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    (model,) = client.get("/v1/models").json()["data"]
    assert isinstance(model["id"], str)
    assert type(model["max_model_len"]) is int
    about = client.get("/v1/steering").json()
    types = {
        "steerdec": str,
        "vllm": str,
        "runner": str,
        "dtype": str,
        "processor": bool,
        "batch_invariant": bool,
        "threshold_nats": float,
    }
    assert {name: type(about.get(name)) for name in types} == types
    assert about["runner"] in ("v1", "v2")
    assert {"default", "calibration"} <= set(about)


@pytest.mark.parametrize("prompt", [CHAT, TEXT], ids=["chat", "text"])
def test_a_plain_request_is_answered_without_steering(client: httpx.Client, prompt: dict[str, Any]) -> None:
    answer = completed(client, prompt)
    (choice,) = answer["choices"]
    assert choice.get("steering") is None
    assert choice["index"] == 0
    assert choice["finish_reason"] in ("stop", "length")
    text = choice["message"]["content"] if "messages" in prompt else choice["text"]
    assert isinstance(text, str)
    assert 0 < answer["usage"]["completion_tokens"] <= MAX_TOKENS


@pytest.mark.parametrize("prompt", [CHAT, TEXT], ids=["chat", "text"])
@pytest.mark.parametrize("probe", [None, "applied", 1.5])
def test_telemetry_has_one_entry_per_token(client: httpx.Client, prompt: dict[str, Any], probe: Any) -> None:
    steering = {"fork_temperature": 1.2, "other_temperature": 0.5, "threshold_nats": 0.5, "telemetry": "tokens"}
    steering |= {} if probe is None else {"probe_temperature": probe}
    answer = completed(client, prompt, steering=steering)
    tokens, told = answer["usage"]["completion_tokens"], answer["choices"][0]["steering"]
    lists = ["entropy_nats", "fork", "temperature"] + (["probe_entropy_nats"] if probe else [])
    totals = ["tokens", "forks", "fork_rate", "mean_entropy_nats", "threshold_nats"]
    totals += ["mean_probe_entropy_nats"] if probe else []
    assert set(told) == {*lists, *totals}
    assert [len(told[name]) for name in lists] == [tokens] * len(lists)
    assert (told["tokens"], told["forks"]) == (tokens, sum(told["fork"]))
    assert told["fork_rate"] == pytest.approx(sum(told["fork"]) / tokens)
    assert told["mean_entropy_nats"] == pytest.approx(math.fsum(told["entropy_nats"]) / tokens, abs=1e-5)
    assert told["threshold_nats"] == 0.5
    for entropy, fork, temperature in zip(told["entropy_nats"], told["fork"], told["temperature"], strict=True):
        assert fork is (entropy > 0.5)
        assert temperature == pytest.approx(1.2 if fork else 0.5)


@pytest.mark.parametrize(
    ("steering", "forks"),
    [({"select": "all"}, MAX_TOKENS), ({"select": "first", "first_tokens": 3}, 3), ({"threshold_nats": 1000.0}, 0)],
    ids=["all", "first", "none"],
)
def test_selectors_take_the_tokens_they_name(client: httpx.Client, steering: dict[str, Any], forks: int) -> None:
    answer = completed(client, TEXT, steering=steering | {"fork_temperature": 0.9}, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == MAX_TOKENS
    assert answer["choices"][0]["steering"]["forks"] == forks


def test_a_summary_has_no_lists(client: httpx.Client) -> None:
    told = completed(client, CHAT, steering={})["choices"][0]["steering"]
    assert set(told) == {"tokens", "forks", "fork_rate", "mean_entropy_nats", "threshold_nats"}


def test_token_ids_of_a_prompt_and_of_an_answer(client: httpx.Client) -> None:
    model = client.get("/v1/models").json()["data"][0]["id"]
    ids = client.post("/tokenize", json={"model": model, "prompt": "Hello there"}).json()["tokens"]
    assert ids
    assert all(type(token) is int for token in ids)
    back = client.post("/detokenize", json={"model": model, "tokens": ids}).json()["prompt"]
    assert back == "Hello there"
    answer = completed(client, TEXT, return_token_ids=True)
    assert len(answer["choices"][0]["token_ids"]) == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("prompt", [CHAT, TEXT], ids=["chat", "text"])
def test_log_probabilities_name_each_token(client: httpx.Client, prompt: dict[str, Any]) -> None:
    wish = {"logprobs": True} if "messages" in prompt else {"logprobs": 0}
    answer = completed(client, prompt, **wish)
    told = answer["choices"][0]["logprobs"]
    texts = [entry["token"] for entry in told["content"]] if "messages" in prompt else told["tokens"]
    assert len(texts) == answer["usage"]["completion_tokens"]
    assert all(isinstance(text, str) for text in texts)


def test_equal_seeds_give_equal_answers_and_other_seeds_may_not(client: httpx.Client) -> None:
    first, again = (completed(client, CHAT)["choices"][0]["message"]["content"] for _ in range(2))
    assert first == again
    others = {completed(client, CHAT, seed=seed)["choices"][0]["message"]["content"] for seed in range(4)}
    assert len(others) > 1


@pytest.mark.parametrize(
    "steering", [{"fork_temperatur": 1.2}, {"fork_temperature": "hot"}, {"policy": "none"}, {"select": "random"}]
)
def test_steering_that_is_wrong_is_refused_with_its_field(client: httpx.Client, steering: dict[str, Any]) -> None:
    answer = client.post("/v1/chat/completions", json=body_of(client, CHAT, steering=steering))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == 400
    assert error["message"].startswith("steering.")


NO_OP: dict[str, Any] = {
    "name": "no-op",
    "baseline": "B",
    "arms": [
        {"name": "B", "role": "baseline"},
        {"name": "F-up", "role": "treatment", "steering": {"fork_temperature": "x1.667"}},
        {"name": "F-down", "role": "treatment", "steering": {"fork_temperature": "x0.333"}},
        # Two tokens that the model does not write, and the scripted endpoint does not either.
        {
            "name": "S-up",
            "role": "treatment",
            "steering": {
                "select": "all",
                "fork_temperature": "x1.667",
                "scope": "thinking",
                "thinking_start_id": 3,
                "thinking_end_id": 4,
            },
        },
    ],
    "claims": [
        {"id": f"{arm}-{to}", "statement": f"{arm} is {to}.", "arm": arm, "baseline": "B", "direction": to}
        for arm in ("F-up", "F-down", "S-up")
        for to in ("higher", "lower")
    ],
}


def test_steering_that_steers_nothing_is_not_applied(client: httpx.Client, tmp_path: Path) -> None:
    """No token has 20 nats, and the scope never begins: nothing is claimed of such arms, in either direction."""
    (arms := tmp_path / "no-op.yaml").write_text(yaml.safe_dump(NO_OP))
    (problems := tmp_path / "problems.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "problem": f"{i}: {PROBLEM}", "answer": "7"}) + "\n" for i in range(10))
    )
    asked: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 2, "seed": 1}
    asked |= {"temperature": 0.6, "max_tokens": MAX_TOKENS, "threshold": "20", "force": False}
    url = str(client.base_url)
    target = Target(endpoints=(url,), model=None, dtype=None, concurrency=16, timeout_s=PATIENCE_S, api_key=None)
    done = session.run(session.read_request(str(problems), str(arms), **asked), target, tmp_path / "run", Retry())
    assert done.failed == 0
    verdicts = {row.id: (row.verdict, row.verdict_these_problems) for row in summarize(tmp_path / "run").claims}
    assert verdicts == {row["id"]: ("not applied", "not applied") for row in NO_OP["claims"]}

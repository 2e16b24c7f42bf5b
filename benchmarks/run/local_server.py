"""Start a server on this machine for the length of a run."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from steerdec.common.errors import SteerdecError

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
LOG_LINES = 5
# A line of a traceback that is not its last, also behind vLLM's "(EngineCore pid=1) ERROR 01-02 03:04:05 [core.py:1]".
_FRAME = re.compile(r"(\(\w+ pid=\d+\) )?(ERROR [\d: -]+\[[^]]*\])?(\s{2,}|\s?Traceback \(most recent call last\):)")
READY = ("/health", "/v1/steering")


class ServerError(SteerdecError):
    """The server did not start; the message holds the last lines of its log."""


def serve_command(model: str, port: int, dtype: str | None) -> list[str]:
    """`dtype` None: float32 where no GPU is seen, so that the engine is batch-invariant; else the model's own."""
    if dtype is None and not _has_gpu():
        dtype = "float32"
    command = [sys.executable, "-m", "steerdec", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    return command if dtype is None else [*command, "--dtype", dtype]


def _has_gpu() -> bool:
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


@contextmanager
def local_server(
    model: str,
    log: Path,
    *,
    dtype: str | None = None,
    command: list[str] | None = None,
    environment: dict[str, str] | None = None,
    ready: tuple[str, ...] = READY,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[str]:
    """The URL of a running server that steers; it is stopped when the block is left, however that comes about.

    `command` replaces `steerdec serve`; "{port}" in it becomes the port. `environment` is added to this process's.
    `ready`: the paths that answer 200 once it is.

    Raises:
        ServerError: it ended, or was not ready in time.
    """
    port = _free_port()
    command = serve_command(model, port, dtype) if command is None else [a.format(port=port) for a in command]
    tethered = [sys.executable, "-m", "steerdec.common.tether", str(os.getpid()), *command]
    with log.open("ab") as output:
        process = subprocess.Popen(
            tethered,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, ready, log, start_timeout_s)
        yield url
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_until_ready(
    process: subprocess.Popen[bytes], url: str, ready: tuple[str, ...], log: Path, timeout_s: float
) -> None:
    deadline_s = time.monotonic() + timeout_s
    with httpx.Client(base_url=url, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline_s:
            if (status := process.poll()) is not None:
                raise ServerError(f"the server ended with status {status} before it was ready; {_tail(log)}")
            try:
                if all(client.get(path).status_code == 200 for path in ready):
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    raise ServerError(f"the server was not ready within {timeout_s:g} s; {_tail(log)}")


def _tail(log: Path) -> str:
    """The last lines of the log, without the frames of tracebacks: what was raised tells more than where."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _FRAME.match(line)]
    return f"{log} ends with: {' | '.join(line[:200] for line in lines[-LOG_LINES:]) or '(nothing)'}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, then SIGKILL to its whole group, which also takes what it left behind."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

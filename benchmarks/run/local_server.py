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
from steerdec.common.progress import announce

START_TIMEOUT_S = 300.0
REMIND_EVERY_S = 15.0
STOP_TIMEOUT_S = 20.0
LOG_LINES = 5
# A line of a traceback that is not its last, also behind vLLM's "(EngineCore pid=1) ERROR 01-02 03:04:05 [core.py:1]".
_FRAME = re.compile(r"(\(\w+ pid=\d+\) )?(ERROR [\d: -]+\[[^]]*\])?(\s{2,}|\s?Traceback \(most recent call last\):)")
READY = ("/health", "/v1/steering")


class ServerError(SteerdecError):
    """The server did not start; the message holds the last lines of its log."""


def serve_command(model: str, port: int, dtype: str | None) -> list[str]:
    """Return the command of a server that steers.

    With `dtype` None it is float32 if no GPU is found, so that the engine is batch-invariant, else the model's own.
    """
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
    remind_every_s: float = REMIND_EVERY_S,
) -> Iterator[str]:
    """Start a server that steers and yield its URL; it is stopped when the block ends, for any reason.

    Args:
        command: replaces `steerdec serve`; "{port}" in it becomes the port.
        environment: added to this process's.
        ready: the paths that answer 200 once the server is ready.
        remind_every_s: how often to say on stderr that it is still starting.

    Raises:
        ServerError: it ended, or was not ready in time.
    """
    port = _free_port()
    command = serve_command(model, port, dtype) if command is None else [a.format(port=port) for a in command]
    announce(f"starting a server for {model}; its log is {log}")
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
        waiting = f"still waiting for the server of {model}"
        _wait_until_ready(process, url, ready, log, start_timeout_s, waiting, remind_every_s)
        yield url
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_until_ready(
    process: subprocess.Popen[bytes],
    url: str,
    ready: tuple[str, ...],
    log: Path,
    timeout_s: float,
    waiting: str,
    remind_every_s: float,
) -> None:
    began_at_s = time.monotonic()
    remind_at_s = began_at_s + remind_every_s
    with httpx.Client(base_url=url, timeout=5.0, trust_env=False) as client:
        while (now_s := time.monotonic()) < began_at_s + timeout_s:
            if now_s >= remind_at_s:
                remind_at_s += remind_every_s
                announce(f"{waiting}, {now_s - began_at_s:.0f} s ({_last_line(log)})")
            if (status := process.poll()) is not None:
                raise ServerError(f"the server ended with status {status} before it was ready; {_tail(log)}")
            try:
                if all(client.get(path).status_code == 200 for path in ready):
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    raise ServerError(f"the server was not ready within {timeout_s:g} s; {_tail(log)}")


def _last_line(log: Path) -> str:
    """Return the last line of the log, which shows what the server is doing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode("utf-8", "replace").split("\n")
    line = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "its log is empty")
    return "".join(c for c in line if c.isprintable())[:120]


def _tail(log: Path) -> str:
    """Return the last lines of the log without the frames of tracebacks, because the exception says more."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _FRAME.match(line)]
    return f"{log} ends with: {' | '.join(line[:200] for line in lines[-LOG_LINES:]) or '(nothing)'}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the server, then SIGKILL to its whole group, including processes that it left behind."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

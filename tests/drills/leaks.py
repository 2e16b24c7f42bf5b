"""A server started and ended in every way, again and again: nothing of it may stay on the machine."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from steerdec.server.launch import scratch
from steerdec.telemetry.lanes import remove_stale
from tests.drills.processes import lane_file
from tests.support.serving import free_port
from tests.support.tiny_lm import tiny_lm

STARTS = 20
PATIENCE_S = 900.0  # a start on a machine that does other work too

Launcher = subprocess.Popen[bytes]


def _engine(launcher: Launcher) -> psutil.Process:
    return next(p for p in _family(launcher) if "EngineCore" in " ".join(p.cmdline()))


def _family(launcher: Launcher) -> list[psutil.Process]:
    return psutil.Process(launcher.pid).children(recursive=True)


# How it ends, and whether its status must then be 0 (None: it was killed itself).
ENDINGS: dict[str, tuple[Callable[[Launcher], None], bool | None]] = {
    "SIGTERM": (lambda launcher: launcher.send_signal(signal.SIGTERM), True),
    "SIGINT": (lambda launcher: launcher.send_signal(signal.SIGINT), True),
    "SIGHUP": (lambda launcher: launcher.send_signal(signal.SIGHUP), True),
    "kill -9 of the launcher": (lambda launcher: launcher.kill(), None),
    "kill -9 of the API process": (lambda launcher: psutil.Process(launcher.pid).children()[0].kill(), False),
    "kill -9 of the engine": (lambda launcher: _engine(launcher).kill(), False),
}


def starts_and_stops(folder: Path, starts: int = STARTS) -> str:
    """Every third ending comes while the server is still loading."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup a launcher rightly ignores it
    model = tiny_lm(folder / "model", head_dim=32)
    temporary = folder / "tmp"
    temporary.mkdir()
    for i, (name, (end, clean)) in enumerate(itertools.islice(itertools.cycle(ENDINGS.items()), starts)):
        loading = i % 3 == 2 and "engine" not in name
        _one(model, temporary, folder / f"{i}.log", name, end, clean, loading=loading)
        print(f"  {i + 1}/{starts}: {name}{' while loading' if loading else ''}", file=sys.stderr, flush=True)
    return f"{starts} starts and stops: no process, port, shared memory or temporary file left"


def _one(
    model: Path,
    temporary: Path,
    log: Path,
    name: str,
    end: Callable[[Launcher], None],
    clean: bool | None,
    *,
    loading: bool,
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "steerdec", "serve", str(model), "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("wb") as output:
        launcher = subprocess.Popen(command, stdout=output, stderr=output, env=environment | {"TMPDIR": str(temporary)})
    limit = time.monotonic() + PATIENCE_S
    while not (_engine_is_there(launcher) if loading else _answers(port)):
        assert launcher.poll() is None, f"{name}: {log.read_text()[-1000:]}"
        assert time.monotonic() < limit, f"{name}: no answer in {PATIENCE_S:g} s"
        time.sleep(0.2)
    family = _family(launcher)
    shared = {m.path.split(" ")[0] for p in family for m in p.memory_maps() if m.path.startswith("/dev/shm/")}
    shared.add(str(lane_file(port)))
    end(launcher)
    status = launcher.wait(60)
    assert clean is None or (status == 0) == clean, f"{name}: status {status}"
    _, alive = psutil.wait_procs(family, 60)
    assert alive == [], f"{name}: {alive}"
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    if clean is None:  # a launcher that was killed cannot: the next start removes its leftovers first
        time.sleep(1)  # the resource tracker of its server
        remove_stale()
        scratch.remove_stale()
    left = [path for path in shared if Path(path).exists()]
    assert left == [], f"{name}: {left}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    kept = sorted(path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_"))
    assert kept == [], f"{name}: {kept}"


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _engine_is_there(launcher: Launcher) -> bool:
    try:
        return any("EngineCore" in " ".join(p.cmdline()) for p in _family(launcher))
    except psutil.Error:
        return False


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="steerdec-leaks-") as folder:
        print(starts_and_stops(Path(folder), int(sys.argv[1]) if sys.argv[1:] else STARTS))

"""A server started for a run: ready when it says so, gone afterwards whatever happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import pytest

from steerdec.benchmarks.run.local_server import ServerError, local_server, serve_command
from tests.support.serving import PATIENCE_S

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
SERVER = """
import http.server, subprocess, sys
{before}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(before: str = "") -> list[str]:
    return [sys.executable, "-c", SERVER.replace("{before}", before), "{port}"]


def child(log: Path) -> int:
    return int(log.read_text().split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(pid: int, within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return not alive(pid)


def test_it_answers_inside_the_block_and_nothing_of_it_is_left_after(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with local_server("m", log, command=command()) as url:
        assert httpx.get(f"{url}/health", trust_env=False, timeout=PATIENCE_S).status_code == 200
        assert alive(child(log))
    assert gone_soon(child(log))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False, timeout=PATIENCE_S)


def test_it_is_stopped_when_the_block_fails_even_if_it_will_not_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerdec.benchmarks.run.local_server.STOP_TIMEOUT_S", 0.5)
    log = tmp_path / "server.log"
    with pytest.raises(KeyboardInterrupt), local_server("m", log, command=command(STUBBORN)):
        raise KeyboardInterrupt
    assert gone_soon(child(log))


def test_one_that_ends_at_once_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    broken = [sys.executable, "-c", "import sys; print('line\\n' * 50); sys.exit('no such model')"]
    begun_s = time.monotonic()
    with (
        pytest.raises(ServerError, match=r"status 1 .*no such model") as e,
        local_server("m", tmp_path / "log", command=broken),
    ):
        pass
    assert "\n" not in str(e.value)
    assert time.monotonic() - begun_s < 300


CRASHING = """
def start():
    raise OSError("no such weights")
try:
    start()
except OSError:
    import traceback
    for line in traceback.format_exc().splitlines():
        print("(EngineCore pid=7) ERROR 01-02 03:04:05 [core.py:6] " + line)
    raise
"""


def test_the_end_of_a_log_tells_what_was_raised_and_not_where(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError) as e,
        local_server("m", tmp_path / "log", command=[sys.executable, "-c", CRASHING]),
    ):
        pass
    told = str(e.value).partition("ends with: ")[2]
    assert (
        told
        == "(EngineCore pid=7) ERROR 01-02 03:04:05 [core.py:6] OSError: no such weights | OSError: no such weights"
    )


def test_one_that_never_gets_ready_is_given_up_and_stopped(tmp_path: Path) -> None:
    sleepy = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
    log = tmp_path / "log"  # has the id by then, on a busy machine too
    with (
        pytest.raises(ServerError, match="not ready within 6 s"),
        local_server("m", log, command=sleepy, start_timeout_s=6),
    ):
        pass
    assert gone_soon(int(log.read_text()))


KILLED = """
import os, sys, time
from pathlib import Path
from steerdec.benchmarks.run.local_server import local_server
with local_server("m", Path(sys.argv[1]), command=[sys.executable, "-c", sys.argv[2], "{port}"]):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told by the Linux kernel only")
def test_it_does_not_outlive_a_run_that_was_killed(tmp_path: Path) -> None:
    """The server gets SIGTERM then; what it started in turn is its own to stop, as vLLM does."""
    log = tmp_path / "log"
    tell_pid = SERVER.replace("{before}", "import os; print(os.getpid(), flush=True)").replace("child = ", "pass #")
    tell_pid = tell_pid.replace('print("child", child.pid, flush=True)', "")
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(log), tell_pid], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    server = int(log.read_text().split()[0])
    assert alive(server)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert gone_soon(server)


def test_without_a_gpu_the_server_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerdec.benchmarks.run.local_server._has_gpu", lambda: False)
    assert serve_command("m", 1, None)[-2:] == ["--dtype", "float32"]
    assert serve_command("m", 1, "bfloat16")[-2:] == ["--dtype", "bfloat16"]
    monkeypatch.setattr("steerdec.benchmarks.run.local_server._has_gpu", lambda: True)
    assert "--dtype" not in serve_command("m", 1, None)

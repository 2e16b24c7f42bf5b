"""However a server ends, its processes end and nothing of them stays in /dev/shm.

The processes here are Python's own multiprocessing, which is where vLLM's shared memory comes from; the drills
(tests/drills/leaks.py) do the same with a real server.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SHARED_MEMORY = Path("/dev/shm")
WAIT_S = 60.0
LAUNCHER = """
import os, sys
from steerdec.server.launch.processes import PATIENCE_S
from steerdec.server.launch.supervisor import StopSignals, supervise
command = [sys.executable, "-m", "tests.support.process_tree", *sys.argv[2:]]
with StopSignals() as signals:
    sys.exit(supervise(command, os.environ | {PATIENCE_S: sys.argv[1]}, float(sys.argv[1]), signals))
"""


TRACKER = re.compile(r".*/multiprocessing/resource_tracker\.py:\d+: |  warnings\.warn\(")


class Tree:
    """A launcher, its server and the server's engine."""

    def __init__(self, folder: Path, *flags: str, patience_s: float = 0.5) -> None:
        self.names = folder / "names"
        command = [sys.executable, "-c", LAUNCHER, str(patience_s), str(self.names), *flags]
        self.launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + WAIT_S
        while "ready" not in (self.names.read_text() if self.names.exists() else ""):
            assert time.monotonic() < end
            assert self.launcher.poll() is None
            time.sleep(0.05)
        memory, semaphore, server, inner, engine, _ = self.names.read_text().split()
        self.files = [SHARED_MEMORY / name for name in (memory, semaphore, inner)]
        self.server, self.engine = int(server), int(engine)
        assert all(file.exists() for file in self.files)
        self.processes = psutil.Process(self.launcher.pid).children(recursive=True)
        assert len(self.processes) == 3  # with Python's resource tracker

    def assert_nothing_is_left(self) -> None:
        _, alive = psutil.wait_procs(self.processes, WAIT_S)
        assert alive == []
        end = time.monotonic() + 5
        while any(file.exists() for file in self.files) and time.monotonic() < end:
            time.sleep(0.05)
        assert [file for file in self.files if file.exists()] == []

    def ended(self) -> tuple[int, str]:
        _, errors = self.launcher.communicate(timeout=WAIT_S)
        # Python's resource tracker says what it removes.
        return self.launcher.returncode, "".join(e for e in errors.splitlines(True) if not TRACKER.match(e))


@pytest.mark.parametrize("hang", [(), ("hang",)], ids=["prompt", "hanging"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_with_status_0(tmp_path: Path, signum: signal.Signals, hang: tuple[str, ...]) -> None:
    tree = Tree(tmp_path, *hang)
    tree.launcher.send_signal(signum)
    assert tree.ended() == (0, "")
    tree.assert_nothing_is_left()


def test_a_second_signal_ends_it_without_patience(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "hang", patience_s=1000)
    tree.launcher.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    tree.launcher.send_signal(signal.SIGTERM)
    assert tree.ended() == (0, "")
    tree.assert_nothing_is_left()


@pytest.mark.parametrize("hang", [(), ("hang",)], ids=["prompt", "hanging"])
def test_a_killed_launcher_takes_everything_with_it(tmp_path: Path, hang: tuple[str, ...]) -> None:
    tree = Tree(tmp_path, *hang)
    tree.launcher.kill()
    tree.assert_nothing_is_left()


@pytest.mark.parametrize(("who", "how"), [("server", "killed by SIGKILL"), ("engine", "status 3")])
def test_a_killed_child_is_a_failure_and_leaves_nothing(tmp_path: Path, who: str, how: str) -> None:
    tree = Tree(tmp_path)
    os.kill(getattr(tree, who), signal.SIGKILL)
    status, errors = tree.ended()
    assert status != 0
    assert errors.splitlines()[-1] == f"steerdec: vLLM's server ended on its own ({how})"
    tree.assert_nothing_is_left()


def test_hangup_is_ignored_under_nohup(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        tree = Tree(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, previous)
    tree.launcher.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert tree.launcher.poll() is None
    tree.launcher.terminate()
    assert tree.ended()[0] == 0
    tree.assert_nothing_is_left()


def test_a_signal_before_the_server_is_started_leaves_nothing_either() -> None:
    """While a model is fetched, say: what was made until then is removed again."""
    wait = (
        "import os, signal, sys, time\n"
        "from steerdec.server.launch.supervisor import StoppedError, StopSignals\n"
        "from steerdec.telemetry import lanes\n"
        "try:\n"
        "    with StopSignals(), lanes.created(8, max_lanes=4) as file:\n"
        "        print(file.path, flush=True)\n"
        "        time.sleep(60)\n"
        "except StoppedError:\n"
        "    sys.exit(7)\n"
    )
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            path = Path(process.stdout.readline().strip())
            assert path.exists()
            process.send_signal(signum)
            assert process.wait(WAIT_S) == 7
            assert not path.exists()


def test_the_reason_is_the_last_line_and_output_goes_through(tmp_path: Path) -> None:
    program = "import sys; print('to stdout'); sys.exit(0 if sys.stderr.write('ValueError: too short\\\\n') else 1)"
    code = LAUNCHER.replace('"-m", "tests.support.process_tree", *sys.argv[2:]', f'"-c", "{program}"')
    done = subprocess.run(
        [sys.executable, "-c", code, "1"], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "to stdout\n"
    assert done.stderr.splitlines() == [
        "ValueError: too short",
        "steerdec: vLLM's server ended on its own (status 0): too short",
    ]

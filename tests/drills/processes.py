"""Processes of a real server killed while a real bench run is under way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from steerdec.telemetry.lanes import PREFIX, SHARED_MEMORY
from tests.drills.parts import DONE, FAILED, assert_nothing_lost, bench, ended, finished_samples, wait_for_samples
from tests.support.serving import command_running, free_port

TOTAL = 8 * 4 * 6  # problems, samples, arms of the set quick in float32
GONE_WITHIN_S = 30.0


def serve(port: int) -> list[str]:
    command = [sys.executable, "-m", "steerdec", "serve", "SmolLM2-135M-Instruct", "--port", str(port)]
    return [*command, "--dtype", "float32"]


def lane_file(port: int) -> Path:
    """The telemetry file is named for its user and the server's port."""
    return SHARED_MEMORY / f"{PREFIX}{os.getuid()}-{port}"


def descendants(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(launcher.pid).children(recursive=True)


def engine(launcher: subprocess.Popen[bytes]) -> psutil.Process:
    (found,) = [p for p in descendants(launcher) if "EngineCore" in " ".join(p.cmdline())]
    return found


def api_server(launcher: subprocess.Popen[bytes]) -> psutil.Process:
    """What the launcher stands beside; the engine is its child."""
    (found,) = psutil.Process(launcher.pid).children()
    return found


def itself(launcher: subprocess.Popen[bytes]) -> psutil.Process:
    return psutil.Process(launcher.pid)


def killed(folder: Path, who: Callable[[subprocess.Popen[bytes]], psutil.Process]) -> str:
    """Kill -9 in the middle of a run; then the server started again on the same port, and the same command again."""
    port, run = free_port(), folder / "run"
    url = f"http://127.0.0.1:{port}"
    options = ("--problems", "embedded", "--limit", 8, "--samples", 4, "--max-tokens", 64, "--endpoint", url)
    lanes = lane_file(port)
    with command_running(serve(port), port, folder / "first.log") as launcher:
        of_the_killed = lanes.stat().st_ino
        process = bench(*options, "--out", run)
        wait_for_samples(run, TOTAL // 4, process)
        family = [*descendants(launcher), itself(launcher)]
        begin = time.monotonic()
        who(launcher).kill()
        status = launcher.wait(GONE_WITHIN_S)
        _, left = psutil.wait_procs(family, GONE_WITHIN_S)
        assert left == [], "processes of the server are left"
        gone_s = time.monotonic() - begin
        assert status != 0, "a supervisor must see that it failed"
        # Only a launcher that was itself killed cannot remove its file; the next start does.
        assert lanes.exists() == (who is itself)
    status, errors = ended(process)
    assert status == FAILED, errors
    assert "no endpoint is left" in errors[-1], errors
    before = finished_samples(run)
    assert TOTAL // 4 <= len(before) < TOTAL
    with command_running(serve(port), port, folder / "second.log"):
        assert lanes.stat().st_ino != of_the_killed, "the next start goes on with the file that was left"
        assert ended(bench(*options, "--out", run))[0] == DONE
    assert_nothing_lost(before, run)
    assert len(finished_samples(run)) == TOTAL
    return (
        f"server gone in {gone_s:.1f} s, status not 0; run: status 1, one line, {len(before)} samples kept; "
        f"after a new start all {TOTAL}"
    )

"""Faults around a bench run: the disk, the endpoint, the clock. The endpoint is the scripted one, so that what a run
must end with is known."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.drills.parts import (
    DONE,
    FAILED,
    PROBLEMS,
    assert_nothing_lost,
    bench,
    ended,
    finished_samples,
    problems_file,
)
from tests.support.scripted_endpoint import Script, ScriptedEndpoint

ARMS = 6  # of the set quick
SMALL_KIB, ENOUGH_KIB = 64, 8192

# The wall clock of a process that goes forth and back by a day with every look at it.
JUMPING = """
import datetime, itertools, time
_time, _jumps = time.time, itertools.cycle((0.0, 86400.0, -86400.0))
def jumped(): return _time() + next(_jumps)
time.time = jumped
time.time_ns = lambda: int(jumped() * 1e9)
class _Jumped(datetime.datetime):
    @classmethod
    def now(cls, tz=None): return cls.fromtimestamp(jumped(), tz)
datetime.datetime = _Jumped
open({seen!r}, "a").close()
"""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of SMALL_KIB at `folder`. Raises PermissionError where mounting is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_KIB}k", "steerdec-drill", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        raise PermissionError(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def disk_full(folder: Path) -> str:
    """Raise PermissionError where mounting is not allowed; test_runs.py limits the size of files instead."""
    disk = folder / "disk"
    disk.mkdir()
    with small_disk(disk), ScriptedEndpoint(Script(PROBLEMS)) as server:
        run = disk / "run"
        command = ("--problems", problems_file(folder), "--endpoint", server.url, "--out", run, "--max-tokens", 64)
        status, errors = ended(bench(*command))
        assert status == FAILED
        assert "cannot be written" in errors[-1], errors
        assert "No space left" in errors[-1], errors
        assert "same command continues" in errors[-1], errors
        before = finished_samples(run)
        assert 0 < len(before) < len(PROBLEMS) * 16 * ARMS
        subprocess.run(["mount", "-o", f"remount,size={ENOUGH_KIB}k", disk], check=True)
        assert ended(bench(*command))[0] == DONE
        assert_nothing_lost(before, run)
        assert len(finished_samples(run)) == len(PROBLEMS) * 16 * ARMS
    return f"status 1, one line; {len(before)} samples kept, with room again all {len(PROBLEMS) * 16 * ARMS}"


def endpoint_hung(folder: Path) -> str:
    hang = Script(PROBLEMS, fault=lambda number, body: "hang" if number >= 20 else None)
    with ScriptedEndpoint(hang) as hung, ScriptedEndpoint(Script(PROBLEMS, latency_s=0.02)) as sound:
        run = folder / "run"
        command = ("--problems", problems_file(folder), "--endpoint", hung.url, "--endpoint", sound.url)
        status, errors = ended(bench(*command, "--out", run, "--max-tokens", 64, "--timeout", 2, "--concurrency", 8))
        assert status == DONE, errors
        total = len(PROBLEMS) * 16 * ARMS
        assert len(finished_samples(run)) == total
        moved = sum(b["max_tokens"] == 64 for b in sound.bodies)
    return f"status 0; {moved} of {total} samples from the other endpoint, none lost, none twice"


def clock_jumps(folder: Path) -> str:
    seen, shim = folder / "seen", folder / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(JUMPING.format(seen=str(seen)))
    with ScriptedEndpoint(Script(PROBLEMS, latency_s=0.02)) as server:
        run = folder / "run"
        command = ("--problems", problems_file(folder), "--endpoint", server.url, "--out", run, "--max-tokens", 64)
        status, errors = ended(bench(*command, environment={"PYTHONPATH": str(shim)}))
    assert seen.exists(), "the clock did not jump"
    assert status == DONE, errors
    total = len(PROBLEMS) * 16 * ARMS
    assert len(finished_samples(run)) == total
    assert not re.search(r"-\d|\d{5,} *(s|min|h)|\bdays?\b", errors[-1]), f"a wrong time: {errors[-1]}"
    shutil.rmtree(shim)
    return f"status 0; {total} samples; told at the end: {errors[-1]}"

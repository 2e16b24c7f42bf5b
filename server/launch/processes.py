"""The processes of one server, and what they leave in shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Final

import psutil

PATIENCE_S: Final = "STEERDEC_PATIENCE_S"  # environment variable set by the launcher: how long a stop may take

_CLEANUP_S: Final = 5.0


def end_group(group: int, *, spare: int | None = None) -> None:
    """Kill the processes of a group, except `spare`, and let Python remove their shared memory.

    vLLM's processes share memory through files and semaphores in /dev/shm. Python starts a "resource tracker" beside
    them that removes those once every other process is gone, so the trackers are killed last, and only if they hang.
    With `spare`, which still holds them, the trackers are left to end after it.
    """
    for process in _members(group):
        if process.pid != spare and not _is_tracker(process):
            _kill(process.pid)
    if spare is not None:
        return
    end = time.monotonic() + _CLEANUP_S
    while time.monotonic() < end and _members(group):
        time.sleep(0.02)
    for process in _members(group):
        _kill(process.pid)


def end_with_launcher() -> None:
    """End the server's group, in the server, some time after a launcher that was killed.

    Linux has signaled this process to end by then (PR_SET_PDEATHSIG), but vLLM may wait for clients forever. Does
    nothing if no launcher has set `PATIENCE_S`.
    """
    if patience_s := os.environ.get(PATIENCE_S):
        threading.Thread(target=_end_after, args=(os.getppid(), float(patience_s)), daemon=True).start()


def _end_after(launcher: int, patience_s: float) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    time.sleep(patience_s)
    end_group(os.getpgid(0), spare=os.getpid())
    _kill(os.getpid())


def _members(group: int) -> list[psutil.Process]:
    """Return the running processes of a group, without those that are only waiting to be reaped."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

"""What drills share: a bench run as a command, and what must be true of its folder whatever happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 7)}
DONE, FAILED = 0, 1
PATIENCE_S = 300.0


def problems_file(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": text, "answer": a} for i, (text, a) in enumerate(PROBLEMS.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bench(*options: object, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`steerdec bench run` with these options, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "steerdec", "bench", "run", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"} | dict(environment or {}),
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """(exit status, lines of stderr); never a traceback."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in errors, errors
    return process.returncode, errors.splitlines()


def finished_samples(run: Path) -> dict[tuple[str, str, int], str]:
    """The text of every sample that was reported done: whole lines without an error."""
    path = run / "samples.jsonl"
    if not path.exists():
        return {}
    whole = path.read_bytes().rpartition(b"\n")[0]
    found: dict[tuple[str, str, int], str] = {}
    for sample in map(json.loads, whole.splitlines()):
        if sample["error"] is None:
            key = (sample["problem_id"], sample["arm"], sample["sample"])
            assert key not in found, f"{key} is there twice"
            found[key] = sample["text"]
    return found


def assert_nothing_lost(before: Mapping[Any, str], run: Path) -> None:
    after = finished_samples(run)
    assert {key: after.get(key) for key in before} == dict(before)


def wait_for_samples(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(finished_samples(run)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {count} samples in {PATIENCE_S:g} s"
        time.sleep(0.05)


def listener(port: int) -> psutil.Process:
    """The process that listens on a port of this machine; of several that have the socket, the one that opened it."""
    found = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
    return min((psutil.Process(pid) for pid in found if pid is not None), key=lambda p: p.create_time())

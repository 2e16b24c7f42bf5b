"""Ray on this machine, with places for ranks on its CPU, for `python -m tests.drills.parallel --ray`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.support.serving import free_port

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements" / "ray.txt"
INSTALLED = ROOT / "build" / "ray"
SECRET = "RAY_AUTH_TOKEN"
OBJECT_STORE_BYTES = 100_000_000  # vLLM's ranks do not use it; by default Ray takes 30% of the memory
START_S, STOP_S = 600.0, 60.0
STARTED = "Ray runtime started."
MEMORY_OF_RANKS = re.compile(r"psm_[0-9a-f]+|\d+-.+-cpushm_\d+")


def install() -> None:
    """Install Ray under build/, if the list has changed since."""
    wanted, stamp = REQUIREMENTS.read_text(), INSTALLED / REQUIREMENTS.name
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(INSTALLED, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(INSTALLED)]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)


def environment() -> dict[str, str]:
    """The variables for Ray and for those who connect to it, which nobody does without the secret."""
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support" / "ray_on_cpu"), str(INSTALLED)]),
        "RAY_ADDRESS": f"127.0.0.1:{free_port()}",
        "RAY_AUTH_MODE": "token",
        SECRET: secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # by default 15, with which a busy machine starves ranks
        "RAY_memory_monitor_refresh_ms": "0",  # it kills ranks where other programs fill the memory
    }


@contextlib.contextmanager
def running(places: int, log: Path, given: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Ray with `places` for ranks until the end of the block. The "GPUs" are a number that Ray does not look for."""
    port = given["RAY_ADDRESS"].rpartition(":")[2]
    arguments = ["start", "--head", "--block", f"--port={port}", f"--num-cpus={places}", f"--num-gpus={places}"]
    arguments += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-dashboard=false"]
    print("ray", shlex.join(arguments), flush=True)
    with contextlib.ExitStack() as stack:
        # Not below the log's folder: the names of Ray's sockets there may be longer than a socket's name can be.
        own = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments, f"--temp-dir={stack.enter_context(own)}"]
        out = stack.enter_context(log.open("wb"))
        head = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | given)
        stack.callback(_stop, head)
        end = time.monotonic() + START_S
        while STARTED not in log.read_text():
            assert head.poll() is None, f"Ray ended: {log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"Ray has not started in {START_S} s: {log.read_text()[-3000:]}"
            time.sleep(0.5)
        yield head


def remove_memory_of_ranks(open_before: Iterable[Path]) -> None:
    """Remove what vLLM's ranks leave in shared memory because Ray kills them.

    These are their message queues, and, on a CPU, the files in which they exchange tensors. Under Ray the latter are
    named after a TCP port, and not after a file in the launcher's temporary folder, with which they would go.
    """
    for path in open_before:
        if MEMORY_OF_RANKS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _stop(head: subprocess.Popen[bytes]) -> None:
    head.terminate()
    head.wait(STOP_S)

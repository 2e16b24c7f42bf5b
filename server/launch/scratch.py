"""Give the server's processes a temporary folder of their own, because vLLM leaves its sockets behind.

On a CPU, the ranks of a tensor- or pipeline-parallel group also exchange their data through files in /dev/shm, 4 MiB
for each rank, which vLLM never removes. They are named after a file in the temporary folder, so they go with it.
"""

from __future__ import annotations

import contextlib
import getpass
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from steerdec.telemetry.lanes import SHARED_MEMORY

from .errors import LaunchError

_PREFIX: Final = "steerdec-serve-"
_LOCK: Final = "lock"
_GROUP: Final = "vllm_dist_"  # how vLLM begins the name of a group's file (utils/network_utils.py)
_BEING_MADE_S: Final = 60.0


@contextlib.contextmanager
def scratch() -> Iterator[dict[str, str]]:
    """Make the folder, yield the environment that makes processes use it, and remove it at the end.

    PyTorch's cache of compiled kernels stays at its usual place, because the next start needs it.

    Raises:
        LaunchError: the folder cannot be made.
    """
    remove_stale()
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except (OSError, Timeout) as e:
        raise LaunchError(f"no temporary folder can be made: {e}") from None
    try:
        cache = Path(tempfile.gettempdir()) / f"torchinductor_{_user()}"
        yield {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    finally:
        _remove_ranks_memory(folder)
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def remove_stale() -> None:
    """Remove the folders of launchers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if not (folder / _LOCK).exists() and time.time() - folder.stat().st_mtime < _BEING_MADE_S:
                continue
            with FileLock(folder / _LOCK, timeout=0):
                _remove_ranks_memory(folder)
                shutil.rmtree(folder)


def _remove_ranks_memory(folder: Path) -> None:
    """Remove the files in shared memory that are named after a group's file in `folder`."""
    for group in folder.glob(f"{_GROUP}*"):
        for left in SHARED_MEMORY.glob(f"{group.name}-*"):
            left.unlink(missing_ok=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "user"

"""Keep the compiled CPU kernel for later processes, since compiling it takes seconds at every start.

numba notices a change of the function that it compiles, but not of the functions in other files that this one calls.
So the folder is named by a hash of every source of ours that the kernel may be made of, and a kernel with steps of
another distribution's policies, whose sources can be anywhere, is not kept.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llvmlite
import numba
import numpy as np
from numba import cfunc, types
from numba.core import config

from steerdec.common.cache import cache_folder
from steerdec.policies import registry

PACKAGE: Final = Path(__file__).parents[1]
ROOMS: Final = ("kernels", "policies", "softmax", "steering")  # all that the kernel's sources import of steerdec


def compiled(work: Callable[[Any], None]) -> Any:
    """Return `work` as a C function of one pointer, loaded if an earlier process compiled the same sources."""
    signature, options = types.void(types.voidptr), {"error_model": "numpy"}
    if not set(registry.POLICIES.values()) <= set(registry.BUILT_IN):
        return cfunc(signature, **options)(work)
    folder = cache_folder() / "kernels" / sources_key(PACKAGE)
    before = config.CACHE_DIR
    try:
        _make_private(folder)
        config.CACHE_DIR = str(folder)
        return cfunc(signature, cache=True, **options)(work)
    # A damaged file may raise anything when it is unpickled. Whatever goes wrong here, the kernel has to be there.
    except Exception:
        return cfunc(signature, **options)(work)
    finally:
        config.CACHE_DIR = before


def sources_key(package: Path) -> str:
    """Return a hash of the kernel's sources in `package`, and of the versions of what compiles them."""
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, np.__version__)).encode())
    for path in sorted(path for room in ROOMS for path in (package / room).rglob("*.py")):
        digest.update(repr((path.relative_to(package).as_posix(), path.read_bytes())).encode())
    return digest.hexdigest()[:20]


def _make_private(folder: Path) -> None:
    """Make the folder and the one above it, which nobody else may write to: what is loaded from there is run.

    Raises:
        OSError: they cannot be made, or another user can write to one.
    """
    folder.parents[1].mkdir(parents=True, exist_ok=True)
    for one in (folder.parent, folder):
        one.mkdir(mode=0o700, exist_ok=True)
        found = one.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{one} can be written by other users")

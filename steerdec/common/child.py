"""Start our own modules as processes."""

from __future__ import annotations

import os
import sys


def python_child(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of a Python that runs `module` and imports from where this one does.

    The hash seed is fixed, because some reasoning_gym tasks draw from sets, whose order depends on it.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return [sys.executable, "-W", "ignore", "-m", module, *arguments], os.environ | {
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "0",
    }

"""The folder of what would otherwise be fetched or made again: weights, an organism, the compiled CPU kernel."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $STEERDEC_CACHE, else `steerdec` in the user's cache folder. It need not exist."""
    if own := os.environ.get("STEERDEC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steerdec"

"""The state of a training that may be stopped: written whole or not at all, and left aside where it cannot be read."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from steerdec.common.progress import announce


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint. Raises OSError, which torch does not where it writes a file itself and the disk is full."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(buffer.getbuffer())
    fresh.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint; None if there is none that can be read, as after a power cut."""
    if not path.exists():
        return None
    try:
        held: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        announce(f"{path} cannot be read; training starts anew")
        return None
    return held

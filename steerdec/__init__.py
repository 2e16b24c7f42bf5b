"""Entropy steering for vLLM: find forking tokens while decoding, change their temperature, measure what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerdec.records.folder import load_run

__version__ = "0.1.0"
__all__ = ["__version__", "load_run"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `import steerdec` alone loads nothing else."""
    if name == "load_run":
        from steerdec.records.folder import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a start of the server can fail with."""

from __future__ import annotations


class LaunchError(RuntimeError):
    """The server cannot be started as requested; the message is one plain line."""


class LaunchUsageError(LaunchError):
    """The command line is wrong, whatever the machine."""

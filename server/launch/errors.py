"""The errors of a start of the server."""

from __future__ import annotations


class LaunchError(RuntimeError):
    """The server cannot be started as requested; the message is one plain line."""


class LaunchUsageError(LaunchError):
    """The command line is wrong, whatever the machine."""

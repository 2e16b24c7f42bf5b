"""Allow one `steerdec serve` per port, even while the first is still loading its model.

vLLM binds its socket early but listens only when the model is loaded. Until then a second vLLM binds the same port
without an error, loads its model too, and then neither listens nor ends.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from steerdec.common.errors import reason_of

from .errors import LaunchError


@contextlib.contextmanager
def reserved(host: str, port: int) -> Iterator[None]:
    """Hold the port against other launchers of this machine inside the block.

    Raises:
        LaunchError: another program listens there, another `steerdec serve` holds the port, or the host cannot be
            bound.
    """
    where = f"--host {host} --port {port}"
    # A name in Linux's abstract namespace is atomic, held by one process of any user, gone with it, and not a file.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(f"\0steerdec-serve-{port}")
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise LaunchError(f"{where}: cannot be reserved ({e.strerror})") from None
            raise LaunchError(f"{where}: another steerdec serve uses this port; choose another") from None
        _check_free(host, port, where)
        yield


def _check_free(host: str, port: int, where: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # like vLLM: ignore leftovers of closed connections
            probe.bind((host, port))
    except (OSError, OverflowError, ValueError, TypeError) as e:  # the last two: not a host name
        taken = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        reason = "another program uses this port" if taken else f"cannot listen there ({reason_of(e)})"
        raise LaunchError(f"{where}: {reason}; choose another") from None

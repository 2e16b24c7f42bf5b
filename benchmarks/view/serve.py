"""The server of `steerdec bench view`."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn

from steerdec.common.errors import InvalidInputError, SteerdecError, reason_of
from steerdec.records.folder import load_run

from .app import app


class PortError(SteerdecError):
    """The server cannot listen on the address."""


class HostError(InvalidInputError):
    """The address is none."""


def serve(folder: Path, host: str, port: int) -> None:
    """Serve the run until Ctrl-C.

    Raises:
        SettingsError: the folder has no run.
        HostError: the host is empty.
        PortError: the address is in use or not on this machine.
    """
    load_run(folder)
    if not host.strip():
        raise HostError("--host: must not be empty; 0.0.0.0 listens on every network")
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, ValueError, TypeError) as e:  # the last two: not a host name
        reason = reason_of(e).partition(" (while attempting")[0]
        raise PortError(f"cannot listen on {host}:{port} ({reason})") from None
    with listening:
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{listening.getsockname()[1]}/", flush=True)
        # A page of another site must not read a run through a host name of its own that resolves to this machine.
        hosts = ["127.0.0.1", "localhost", "[::1]", host] if host in ("127.0.0.1", "::1", "localhost") else ["*"]
        config = uvicorn.Config(app(folder, hosts), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])

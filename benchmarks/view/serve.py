"""The server of `steerdec bench view`."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import uvicorn

from steerdec.common.errors import SteerdecError
from steerdec.records.folder import load_run

from .app import app


class PortError(SteerdecError):
    """The server cannot listen on the address."""


def serve(folder: Path, host: str, port: int) -> None:
    """Serve the run until Ctrl-C.

    Raises:
        SettingsError: the folder has no run.
        PortError: the address is in use or not on this machine.
    """
    load_run(folder)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise PortError(f"cannot listen on {host}:{port} ({os.strerror(e.errno or 0)})") from None
    with listening:
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{listening.getsockname()[1]}/", flush=True)
        # A page of another site must not read a run through a host name of its own that resolves to this machine.
        hosts = ["127.0.0.1", "localhost", "[::1]", host] if host in ("127.0.0.1", "::1", "localhost") else ["*"]
        config = uvicorn.Config(app(folder, hosts), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])

"""One server per port, also while the first is still loading its model and listens nowhere."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from steerdec.server.launch.errors import LaunchError
from steerdec.server.launch.port import reserved
from tests.support.serving import free_port


def test_a_second_start_on_one_port_is_refused_until_the_first_has_ended() -> None:
    port = free_port()
    with reserved("127.0.0.1", port):
        for host in ("127.0.0.1", "0.0.0.0", "::"):
            with pytest.raises(LaunchError, match=r"another steerdec serve uses this port; choose another$"):
                reserved(host, port).__enter__()
        with reserved("127.0.0.1", free_port()):
            pass
        with socket.socket() as vllms:  # which binds while its launcher holds the port
            vllms.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            vllms.bind(("127.0.0.1", port))
            vllms.listen()
    with reserved("127.0.0.1", port):
        pass


def test_a_killed_launcher_frees_its_port() -> None:
    port = free_port()
    hold = "from steerdec.server.launch.port import reserved\n"
    hold += f"with reserved('127.0.0.1', {port}): print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(LaunchError):
            reserved("127.0.0.1", port).__enter__()
        first.kill()
    with reserved("127.0.0.1", port):
        pass


def test_a_port_that_another_program_listens_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"--port {port}: another program uses this port; choose another$"):
            reserved("127.0.0.1", port).__enter__()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 80, "1.2.3", "\u2603..", "127.0.0.1\0"])
def test_a_host_that_cannot_be_bound_is_one_line(host: str) -> None:
    with pytest.raises(LaunchError) as refused:
        reserved(host, free_port()).__enter__()
    assert "cannot listen there" in str(refused.value)
    assert "\n" not in str(refused.value)

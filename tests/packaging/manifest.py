"""deploy/kubernetes/, in a form that tests can ask, and its container run as a kubelet would run it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.built import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
# The pod's own network, of which only the loopback is there, and its /dev/shm.
_START = """
set -e
ip link set lo up
mount -t tmpfs -o "size=$SHM,mode=1777,nosuid,nodev" shm /dev/shm
exec env -i "$@"
"""
_GET = """
import http.client, sys
port, path, timeout_s = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=float(timeout_s))
try:
    connection.request("GET", path)
    print(connection.getresponse().status)
except ConnectionRefusedError:
    print("refused")
"""


@cache
def objects() -> dict[str, Any]:
    """The manifest's objects by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "steerdec.yaml").read_text())}


def pod() -> dict[str, Any]:
    found: dict[str, Any] = objects()["Deployment"]["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


def environment() -> dict[str, str]:
    """The container's variables that need no secret."""
    return {one["name"]: one["value"] for one in container()["env"] if "value" in one}


def arguments(variables: Mapping[str, str]) -> list[str]:
    """The container's arguments, with $(NAME) as Kubernetes fills it in."""
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in container()["args"]]


def volume(name: str) -> dict[str, Any]:
    (found,) = [one for one in pod()["volumes"] if one["name"] == name]
    assert isinstance(found, dict)
    return found


@contextlib.contextmanager
def pod_running(command: list[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command with nothing but these variables, in a network of its own, with the manifest's /dev/shm. Takes root."""
    size = volume("shm")["emptyDir"]["sizeLimit"].removesuffix("i")
    words = ["unshare", "--mount", "--net", "sh", "-c", _START, "sh", *(f"{k}={v}" for k, v in variables.items())]
    outside = {"PATH": os.environ["PATH"], "SHM": size}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*words, *command], env=outside, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def probed(process: subprocess.Popen[bytes], probe: Mapping[str, Any]) -> str:
    """What the kubelet sees of a probe: an HTTP status, or "refused"."""
    get, ports = probe["httpGet"], {one["name"]: one["containerPort"] for one in container()["ports"]}
    words = [str(ports[get["port"]]), get["path"], str(probe["timeoutSeconds"])]
    return inside(process, [sys.executable, "-c", _GET, *words]).strip()


def inside(process: subprocess.Popen[bytes], command: list[str], stdin: str = "") -> str:
    """stdout of a command in the pod's network."""
    enter = ["nsenter", "--target", str(process.pid), "--net", *command]
    return subprocess.run(enter, input=stdin, capture_output=True, text=True, check=True, timeout=300).stdout

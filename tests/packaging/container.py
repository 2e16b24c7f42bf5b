"""An image built and run as Docker would, where there is no Docker: buildah for the files, the kernel for the rest.

A running container here: the image's files as the root, its user without capabilities, its environment, its entry point
as process 1 of a process namespace, a /dev/shm of a given size. The network is the host's. Takes root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_START = """
set -e
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o "size=$SHM,mode=1777,nosuid,nodev" shm "$ROOT/dev/shm"
touch "$ROOT/etc/hosts"
for pair in /etc/hosts=/etc/hosts $MOUNTS; do
    target="$ROOT${pair#*=}"
    test -e "$target" || mkdir -p "$target"
    mount --bind "${pair%%=*}" "$target"
    mount -o remount,bind,ro "$target"
done
exec "$@"
"""


@dataclass(frozen=True)
class Image:
    """What an image says of itself."""

    name: str
    config: Mapping[str, Any]  # in Docker's words: Entrypoint, Cmd, Env, User, WorkingDir, Labels, Healthcheck
    history: str

    @property
    def uid(self) -> str:
        return str(self.config["User"]).partition(":")[0]

    @property
    def health_check(self) -> list[str]:
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        return command

    def entered(self, root: Path, command: list[str]) -> list[str]:
        """Words that run a command in the image's files, as its user, in its environment and working folder."""
        user, _, group = str(self.config["User"]).partition(":")
        drop = [f"--reuid={user}", f"--regid={group or user}", "--clear-groups", "--inh-caps=-all", "--no-new-privs"]
        there = f'cd {shlex.quote(self.config["WorkingDir"] or "/")} && exec "$@"'
        in_files = ["chroot", str(root), "env", "-i", *self.config["Env"], "setpriv", *drop, "--bounding-set=-all"]
        return [*in_files, "sh", "-c", there, "sh", *command]


class Storage:
    """Images in a folder of their own, so that nothing of the machine's other images is touched."""

    def __init__(self, folder: Path) -> None:
        where = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self._command = ["buildah", *where]

    def run(self, *words: str) -> str:
        """stdout of `buildah WORDS`; stderr goes where this process's does. Raises CalledProcessError."""
        done = subprocess.run([*self._command, *words], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    def image(self, name: str) -> Image:
        found = json.loads(self.run("inspect", "--type", "image", name))["Docker"]
        return Image(name, found["config"], json.dumps(found["history"]))

    def imported(self, rootfs: Path, name: str, environment: Mapping[str, str]) -> str:
        """An image of one layer from a folder with a root file system."""
        container = self.run("from", "scratch")
        settings = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
        self.run("config", *settings, container)
        self.run("copy", "--quiet", container, str(rootfs), "/")
        self.run("commit", "--quiet", "--rm", container, name)
        return name

    @contextlib.contextmanager
    def unpacked(self, name: str) -> Iterator[Path]:
        """The image's files, a writable copy that is gone after the block."""
        container = self.run("from", "--pull-never", name)
        try:
            yield Path(self.run("mount", container))
        finally:
            self.run("rm", container)


class Running(NamedTuple):
    outside: subprocess.Popen[bytes]  # ends when process 1 ends, with the same status
    first: int  # process 1, by its number on the host


@contextlib.contextmanager
def running(
    image: Image, root: Path, log: Path, arguments: list[str], mounts: Mapping[Path, str], shm: str
) -> Iterator[Running]:
    """The image's entry point with `arguments`; `mounts` are read-only, `shm` as in `--shm-size`.

    Whatever is left of it ends with the block.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "ROOT": str(root),
        "SHM": shm,
        "MOUNTS": " ".join(f"{source}={target}" for source, target in mounts.items()),
    }
    inside = image.entered(root, [*image.config["Entrypoint"], *arguments])
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _START, "sh", *inside]
    with log.open("wb") as out:
        outside = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Running(outside, _child(outside))
    finally:
        outside.send_signal(signal.SIGKILL)  # takes the namespace with it, and all that lives in there
        outside.wait()


def run_beside(image: Image, root: Path, first: int, command: list[str]) -> int:
    """Status of a command in a running container, as health checks and `docker exec` run it."""
    enter = ["nsenter", "--target", str(first), "--mount", "--pid", *image.entered(root, command)]
    return subprocess.run(enter, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def _child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.05)
    raise TimeoutError("unshare started nothing")

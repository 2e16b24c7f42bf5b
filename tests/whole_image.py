"""The `cpu` image, built and run where there is no Docker: `python -m tests.whole_image FOLDER [--base ROOTFS]`.

Needs root, Debian's buildah and debootstrap, the package index, 25 GB in FOLDER (empty or new), and some ten minutes.

1. A base image like python:3.11-slim: from the folder ROOTFS, else by debootstrap (Debian 12 has Python 3.11).
2. `buildah build --target cpu`, with this machine's settings of pip as its secret.
3. The image: whom it runs as, what it says of itself, no cache, no trace of the index.
4. The server in it, as process 1, under the image's user, without capabilities, with 64 MiB of /dev/shm: healthy by the
   image's own health check, a steered request answered with telemetry.
5. SIGTERM while answers stream: gone within 10 s with status 0, every stream whole or cut between two events.

Prints one line a step; exit status 1 at the first that fails. The images stay in FOLDER; `--built` begins at step 3.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from steerdec import models
from tests import built as builds
from tests.container import Image, Running, Storage, run_beside, running

NAME = "localhost/steerdec:cpu"
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
WEIGHTS = "/models/SmolLM2-135M-Instruct"
PORT = 8000  # the image's health check asks there
SHM = "64m"  # what Docker gives unasked
STOP_LIMIT_S = 10.0  # what Docker grants
HEALTHY_LIMIT_S = 400.0
STREAMS = 4


class StepError(Exception):
    """A step did not do what it should; the message has the end of its output."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise StepError(message)


def say(line: str) -> None:
    print(line, flush=True)


def output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    expect(done.returncode == 0, f"{command[0]}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


# Building -----------------------------------------------------------------------------------------


def base_files(folder: Path) -> Path:
    listed = output("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").splitlines()
    mirrors = [uri for uri, _, release in (line.partition(" ") for line in listed) if release == "bookworm"]
    expect(mirrors, "apt on this machine has no source with bookworm; give --base")
    packages = "python3,python3-venv,python3-pip,ca-certificates"
    output("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder), mirrors[0])
    return folder


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, by files and by environment."""
    lines = output(sys.executable, "-m", "pip", "config", "list").splitlines()
    settings = [line.partition("=") for line in lines]
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in settings}


def local_paths(settings: dict[str, str]) -> list[Path]:
    """Folders and files of this machine that the settings name; of an index, the folder around it, for its links."""
    words = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
    paths = [Path(word) for word in words if word.startswith("/") and Path(word).exists()]
    return sorted({path.parent if path.name == "simple" else path for path in paths})


def build(storage: Storage, base: str, settings: dict[str, str], scratch: Path) -> None:
    secret = scratch / "pip.conf"
    secret.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    seen = [word for path in local_paths(settings) for word in ("--volume", f"{path}:{path}:ro")]
    options = ["--format", "docker", "--isolation", "chroot", "--pull-never", "--quiet", "--target", "cpu"]
    arguments = ["--build-arg", f"PYTHON_IMAGE={base}", "--build-arg", "REVISION=checked"]
    source = builds.source_copy(scratch / "source")
    storage.run("build", *options, *arguments, *seen, "--secret", f"id=pip,src={secret}", "--tag", NAME, str(source))


# The image ----------------------------------------------------------------------------------------


def check_image(image: Image, root: Path, settings: dict[str, str]) -> None:
    config = image.config
    expect(image.uid.isdigit() and image.uid != "0", f"runs as {config['User']!r}")
    expect(config["Entrypoint"] == ["steerdec"], f"has the entry point {config['Entrypoint']}")
    expect(config["Labels"]["org.opencontainers.image.revision"] == "checked", f"has the labels {config['Labels']}")
    for folder in ("root/.cache", "var/lib/apt/lists", "var/cache/apt", "home/steerdec", "src", "tmp", "run/secrets"):
        left = [path for path in (root / folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
        expect(not left, f"has {left[:5]} left in it")
    indexes = [word for key, value in settings.items() if "index" in key for word in value.split()]
    told = json.dumps(dict(config)) + image.history
    for index in indexes:
        expect(index not in told, "names the package index in its history")
        found = subprocess.run(["grep", "-rlF", index, root / "etc", root / "home", root / "opt"], capture_output=True)
        expect(not found.stdout, f"names the package index in {found.stdout.decode()}")
    size_mb = sum(path.lstat().st_size for path in root.rglob("*")) / 1e6
    say(f"  the image: uid {image.uid}, entry point, labels, no cache, no trace of the index; {size_mb:.0f} MB")


# The server ---------------------------------------------------------------------------------------


def end_of(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-3000:]


def wait_until_healthy(image: Image, root: Path, server: Running, log: Path) -> float:
    begin_s = time.monotonic()
    while run_beside(image, root, server.first, image.health_check) != 0:
        expect(server.outside.poll() is None, f"the server ended: {end_of(log)}")
        expect(time.monotonic() - begin_s < HEALTHY_LIMIT_S, f"the server is not healthy: {end_of(log)}")
        time.sleep(1)
    return time.monotonic() - begin_s


def check_process(image: Image, server: Running) -> None:
    lines = Path(f"/proc/{server.first}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    expect(status["Uid"] == [image.uid] * 4, f"the server runs under {status['Uid']}")
    expect(int(status["CapEff"][0], 16) == int(status["CapBnd"][0], 16) == 0, "the server has capabilities")
    expect(status["NSpid"][-1] == "1", "the server is not process 1")


def steered(**more: Any) -> dict[str, Any]:
    body = {"prompt": "Once", "max_tokens": 16, "seed": 1, "temperature": 1.0, "ignore_eos": True}
    return body | {"steering": {"fork_temperature": 1.3, "threshold_nats": 0.6, "telemetry": "tokens"}} | more


def check_steering(url: str) -> str:
    answer = httpx.post(f"{url}/v1/completions", json=steered(), timeout=120).json()
    told = answer["choices"][0]["steering"]
    expect(len(told["entropy_nats"]) == answer["usage"]["completion_tokens"] == 16, f"telemetry is {told}")
    expect(None not in told["entropy_nats"], f"telemetry is {told}")
    expect(told["fork"] == [entropy > 0.6 for entropy in told["entropy_nats"]], f"telemetry is {told}")
    return f"{told['forks']} forks among {told['tokens']} tokens"


class Stream(threading.Thread):
    """One long answer, read to wherever it ends."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.received, self.begun = url, b"", threading.Event()

    def run(self) -> None:
        body = steered(stream=True, max_tokens=3000)
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60) as answer:
                for part in answer.iter_raw():
                    self.received += part
                    self.begun.set()
        except httpx.HTTPError:
            pass  # it was cut; what came until then is judged

    def outcome(self) -> str:
        """Raises StepError if it was cut inside an event."""
        expect(self.received.endswith(b"\n\n"), f"a stream was cut inside an event: {self.received[-200:]!r}")
        events = [event.removeprefix(b"data: ") for event in self.received.split(b"\n\n") if event]
        for event in events:
            expect(event == b"[DONE]" or isinstance(json.loads(event), dict), f"an event is {event!r}")
        return "finished" if events[-1] == b"[DONE]" else "cut between two events"


def check_stop(url: str, server: Running, log: Path) -> None:
    streams = [Stream(url) for _ in range(STREAMS)]
    for stream in streams:
        stream.start()
    expect(all(stream.begun.wait(120) for stream in streams), "a stream did not begin")
    begin_s = time.monotonic()
    os.kill(server.first, signal.SIGTERM)
    try:
        status = server.outside.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise StepError(f"the server is there {STOP_LIMIT_S:g} s after SIGTERM: {end_of(log)}") from None
    took_s = time.monotonic() - begin_s
    expect(status == 0, f"the server ended with {status} after SIGTERM: {end_of(log)}")
    for stream in streams:
        stream.join(30)
    outcomes = ", ".join(sorted({stream.outcome() for stream in streams}))
    say(f"  SIGTERM while {STREAMS} answers streamed: status 0 after {took_s:.1f} s; streams: {outcomes}")


def readable_weights(folder: Path) -> Path:
    """The embedded model where the image's user can read it, which a cache of root's own may not let it."""
    if not folder.exists():
        shutil.copytree(models.fetch(), folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def check_server(image: Image, root: Path, weights: Path, log: Path) -> None:
    with socket.socket() as probe:
        expect(probe.connect_ex(("127.0.0.1", PORT)) != 0, f"port {PORT} is in use")
    url, arguments = f"http://127.0.0.1:{PORT}", ["serve", WEIGHTS, "--port", str(PORT)]
    with running(image, root, log, arguments, {weights: WEIGHTS}, SHM) as server:
        took_s = wait_until_healthy(image, root, server, log)
        check_process(image, server)
        say(f"  the server: process 1, without capabilities, {SHM} of /dev/shm; healthy after {took_s:.0f} s")
        say(f"  a steered request is answered with telemetry: {check_steering(url)}")
        check_stop(url, server, log)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--built", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    storage, settings = Storage(folder), pip_settings()
    try:
        expect(os.geteuid() == 0, "root is needed")
        for command in ("buildah", *(["debootstrap"] if asked.base is None else [])):
            expect(shutil.which(command), f"{command} is not installed")
        if not asked.built:
            with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
                files = asked.base or base_files(Path(scratch) / "base")
                base = storage.imported(files, "localhost/python:3.11-slim", BASE_ENVIRONMENT)
                say(f"base image: {base}")
                build(storage, base, settings, Path(scratch))
            say(f"built: {NAME}")
        image = storage.image(NAME)
        with storage.unpacked(NAME) as root:
            check_image(image, root, settings)
            check_server(image, root, readable_weights(folder / "weights"), folder / "server.log")
    except (StepError, subprocess.CalledProcessError) as e:
        print(e, file=sys.stderr)
        return 1
    say("the image does what it should")
    return 0


if __name__ == "__main__":
    sys.exit(main())

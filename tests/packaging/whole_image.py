"""Build and run the `cpu` image where there is no Docker.

    python -m tests.packaging.whole_image FOLDER [--base ROOTFS]

Needs root, Debian's buildah and debootstrap, the package index, 25 GB in FOLDER (empty or new), and some ten minutes.

1. A base image like python:3.11-slim: from the folder ROOTFS, else by debootstrap (Debian 12 has Python 3.11).
2. `buildah build --target cpu`, with this machine's settings of pip as its secret.
3. The image: whom it runs as, what it says of itself, no cache, no trace of the index.
4. The server in it, as process 1, under the image's user, without capabilities, with 1 GB of /dev/shm: healthy by the
   image's own health check, a steered request answered with telemetry.
5. SIGTERM while answers stream: gone within 10 s with status 0, every stream whole or cut between two events; whole
   where `--shutdown-timeout` gives them the time.

Prints one line a step; exit status 1 at the first that fails. The images stay in FOLDER; `--built` begins at step 3.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.packaging.container import Image, Storage
from tests.packaging.image_server import StepError, check_server, expect, readable_weights, say
from tests.support import built as builds

NAME = "localhost/steerdec:cpu"
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


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

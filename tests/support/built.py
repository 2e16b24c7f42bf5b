"""The wheel and the sdist of this working tree, and environments that have the wheel instead of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def source_copy(folder: Path) -> Path:
    """Everything git knows of or would take, links as links, so that what is written beside the sources is written
    there. Returns `folder`."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(source: Path, out: Path, *options: str) -> Built:
    """`python -m build`: the sdist from the sources, then the wheel from the sdist."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist)


def environment_with(wheel: Path, folder: Path) -> Path:
    """A fresh virtual environment with the wheel and, behind it, this one's packages; returns its `python`.

    They are borrowed as a plain path: this environment's own steerdec is a link to the working tree, which hangs on
    a .pth file, and those count only in the environment's own folder.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    borrow(next((folder / "lib").glob("python*/site-packages")))
    return python


def borrow(site_packages: Path) -> None:
    """Put this environment's packages behind those of another."""
    behind = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in behind))

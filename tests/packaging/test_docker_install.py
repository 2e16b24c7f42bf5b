"""How the `gpu` image gets steerdec beside its own vLLM: the Dockerfile's command as it stands, on a stand-in."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.packaging.container_files import commands, pinned
from tests.support.built import ROOT, Built


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel with nothing in it."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata + "".join(f"Requires-Dist: {r}\n" for r in requires))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


class Base:
    """An environment that stands for the base image: the packages of this one but for steerdec and `matplotlib`, and a
    distribution called vllm. An index with two versions of matplotlib, and newer ones of what is there."""

    def __init__(self, folder: Path, built: Built, vllm: str = "0.32.0") -> None:
        self.folder, self.index = folder, folder / "index"
        for name in ("borrowed", "index", "tmp"):
            (folder / name).mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not re.match(r"(__editable__\.*_?)?(steerdec|matplotlib)", entry.name):
                (folder / "borrowed" / entry.name).symlink_to(entry)
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "borrowed.pth").write_text(f"{folder / 'borrowed'}\n")
        (site / f"vllm-{vllm}.dist-info").mkdir()
        (site / f"vllm-{vllm}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm}\n"
        )
        wheel(self.index, "matplotlib", "99.0")
        for name in ("torch", "vllm", "numpy"):
            wheel(self.index, name, "99.0")
        (folder / "tmp" / "requirements").symlink_to(ROOT / "requirements")
        (folder / "tmp" / "deploy").symlink_to(ROOT / "deploy")
        (folder / "tmp" / "dist").symlink_to(built.wheel.parent)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A RUN command as it stands, but for its /tmp."""
        path = f"{self.folder / 'venv' / 'bin'}:{os.environ['PATH']}"
        keep = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment = keep | {"PATH": path, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        here = command.replace("/tmp/", f"{self.folder / 'tmp'}/")
        return subprocess.run(
            ["sh", "-c", here], env=environment, capture_output=True, text=True, cwd=self.folder, check=False
        )

    def versions(self) -> dict[str, str]:
        told = self.run("python3 -m pip list --format json --disable-pip-version-check").stdout
        return {package["name"].lower(): package["version"] for package in json.loads(told)}


INSTALL = commands("gpu")[-1]


@pytest.fixture
def base(tmp_path: Path, built: Built) -> Base:
    return Base(tmp_path, built)


def test_the_installation_adds_what_is_missing_as_pinned_and_changes_nothing(base: Base) -> None:
    wheel(base.index, "matplotlib", pinned("matplotlib"))
    before = base.versions()
    assert "steerdec" not in before
    assert "matplotlib" not in before
    done = base.run(INSTALL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    after = base.versions()
    version = after.pop("steerdec")
    assert done.stdout.splitlines()[-1] == version
    assert after.pop("matplotlib") == pinned("matplotlib")
    assert after == before
    assert not (base.folder / "tmp" / "constraints.txt").exists()


def test_the_installation_fails_where_it_would_have_to_change_the_base(base: Base) -> None:
    wheel(base.index, "matplotlib", pinned("matplotlib"), "numpy>=99")
    before = base.versions()
    done = base.run(INSTALL)
    assert done.returncode != 0
    assert "numpy" in done.stdout + done.stderr
    assert base.versions() == before


def test_the_installation_fails_on_a_vllm_that_is_not_supported(tmp_path: Path, built: Built) -> None:
    base = Base(tmp_path, built, vllm="0.34.0")
    wheel(base.index, "matplotlib", pinned("matplotlib"))
    done = base.run(INSTALL)
    assert done.returncode != 0
    assert "vllm 0.34.0 is installed; steerdec works with >= 0.31, < 0.34" in done.stderr


def test_a_constraint_for_each_package_its_own_version_before_the_pinned_one() -> None:
    constraints = runpy.run_path(str(ROOT / "deploy" / "constraints.py"))["constraints"]
    here = {line.partition("==")[0].lower(): line for line in constraints("PyYAML==0.1  # old\n\nNot_here == 1.0\n")}
    assert here["pyyaml"] == f"PyYAML=={yaml.__version__}"
    assert here["not_here"] == "Not_here==1.0"
    assert "torch" in here

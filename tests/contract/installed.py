"""Another version of vLLM's CPU build, really run: an environment that has it before this one's packages."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.built import ROOT, borrow

# Their default builds do not fit a CPU torch, and text models do not need them (CONTRIBUTING.md).
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}

# What depends on vLLM itself; the last are in processes of their own, as in `make test`.
TESTS = (
    (
        "tests/vllm_plugin/test_contract.py",
        "tests/vllm_plugin/test_processor.py",
        "tests/vllm_plugin/test_versions.py",
        "-k",
        "not serve_refuses",
    ),
    ("tests/vllm_plugin/test_engine.py",),
    ("tests/server/test_server_plain.py", "tests/server/test_server.py"),
)


def environment_with(requirement: str, folder: Path) -> Path:
    """The python of a fresh environment: that vLLM, what of its requirements is not here in a version that fits, and
    behind them everything that is here.

    Raises:
        subprocess.CalledProcessError: pip could not install something.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    _install(python, requirement)
    site = next((folder / "lib").glob("python*/site-packages"))
    name = requirement.partition("==")[0]
    (vllm,) = [d for d in distributions(path=[str(site)]) if d.name == name]
    _install(python, *_unmet(vllm))
    borrow(site)
    return python


def _install(python: Path, *requirements: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    if requirements:
        subprocess.run([*pip, *requirements], check=True, capture_output=True)


def _unmet(package: Distribution) -> Iterator[str]:
    here = {_normal(d.name): d.version for d in distributions()}
    for line in package.requires or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if _normal(wanted.name) in LEFT_OUT or "extra ==" in line:
            continue
        found = here.get(_normal(wanted.name))
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name}{wanted.specifier}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def failures(requirement: str, folder: Path) -> list[str]:
    """The last lines of every group of tests that does not pass with that vLLM."""
    python = environment_with(requirement, folder)
    told = []
    for tests in TESTS:
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        summary = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
        print(f"{requirement}: {' '.join(tests)}: {' '.join(summary)}", flush=True)
        if done.returncode:
            told += [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))] or summary
    return told

"""The whole check on the real engine: it passes, and a kernel that applies another factor makes it fail.

Many minutes, and it wants a machine with nothing else running: `python -m pytest tests/check/whole_check.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steerdec.phantom.folder import write_phantom
from steerdec.phantom.kinds import KINDS

ROOT = Path(__file__).parents[2]
DEFECT = """

_right_steer_ = steer_


def steer_(logits, floats, ints, *rest, **named):
    floats = floats.clone()
    from steerdec.policies.split.fields import FORK_FACTOR

    floats[:, FORK_FACTOR] = 1.0 / floats[:, FORK_FACTOR]
    return _right_steer_(logits, floats, ints, *rest, **named)
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "phantom"
    write_phantom(KINDS["claim-true"], folder)
    return folder


def checked(phantom: Path, package: Path, out: Path) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit status, results by name, and what was written to stderr."""
    # The working directory, which `python -m` looks into first, has the package without defects.
    environment = os.environ | {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "steerdec", "check", str(phantom), "--quick", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, {r["check"]: r for r in json.loads(out.read_text())["checks"]}, done.stderr


@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_everything_but_speed_passes(phantom: Path, tmp_path: Path) -> None:
    _, found, stderr = checked(phantom, ROOT, tmp_path / "check.json")
    exact = {name: r for name, r in found.items() if "speed" not in name}
    assert {r["status"] for r in exact.values()} <= {"pass", "not applicable"}, stderr
    assert sum(r["status"] == "pass" for r in exact.values()) >= 12


@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_a_defect_of_the_kernel_fails_by_itself_and_in_the_engine(phantom: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(ROOT / "steerdec", package / "steerdec", ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "steerdec" / "kernels" / "dispatch.py").open("a") as file:
        file.write(DEFECT)
    status, found, stderr = checked(phantom, package, tmp_path / "check.json")
    assert status == 1
    for name in ("kernel: as the reference", "distribution: split", "distribution: top-p"):
        assert found[name]["status"] == "FAIL", found[name]
        assert f"steerdec check: {name}: " in stderr
    assert found["A/A: logits"]["status"] == "pass"  # at T' = T the factor is 1, inverted or not

"""The compiled CPU kernel is kept, only for the sources that it was made of, and only where nobody else can write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import carray

from steerdec.kernels import compiled
from steerdec.policies import registry
from steerdec.steering.params import Steering

STEER = """
import sys, torch
from steerdec.kernels import cpu, dispatch
dispatch.warm_up(64, "cpu")
print(cpu._worker().cache_hits)
print(*sorted(name for name in sys.modules if name.startswith("steerdec.")))
"""


def steered(cache: Path) -> tuple[int, list[str]]:
    """Return how often a new process loaded the kernel instead of compiling it, and its modules of steerdec."""
    environment = os.environ | {"STEERDEC_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", STEER], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    hits, modules = done.stdout.splitlines()[-2:]
    return int(hits), modules.split()


def test_a_second_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    assert steered(tmp_path)[0] == 0
    hits, modules = steered(tmp_path)
    assert hits == 1
    rooms = {name.split(".")[1] for name in modules}
    assert rooms <= {*compiled.ROOMS, "common"}, "the kernel's sources are in more rooms than its key covers"


def count(address: Any) -> None:
    carray(address, 1, np.int64)[0] += 1


def counted() -> int:
    """Return how often the compiled `count` was loaded instead of compiled; it has to work in either case."""
    function, number = compiled.compiled(count), np.zeros(1, np.int64)
    function.ctypes(number.ctypes.data)
    assert number[0] == 1
    return int(function.cache_hits)


def test_a_kernel_with_a_policy_of_another_distribution_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a kernel computes is compared in tests/policies/test_new_policy.py, where ours has been kept before."""
    monkeypatch.setenv("STEERDEC_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "POLICIES", registry.POLICIES | {"another": Steering})
    assert [counted(), counted()] == [0, 0]
    assert list(tmp_path.rglob("*.nbc")) == []


def test_a_damaged_file_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERDEC_CACHE", str(tmp_path))
    assert [counted(), counted()] == [0, 1]
    (kept,) = tmp_path.rglob("*.nbc")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert counted() == 0


def test_where_others_can_write_or_nobody_it_is_compiled_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernels" / "key"
    before = os.umask(0)
    try:
        compiled._make_private(folder)
    finally:
        os.umask(before)
    assert [one.stat().st_mode & 0o777 for one in (folder, folder.parent)] == [0o700, 0o700]
    folder.parent.chmod(0o777)
    with pytest.raises(PermissionError, match=r"kernels can be written by other users"):
        compiled._make_private(folder)
    monkeypatch.setenv("STEERDEC_CACHE", str(tmp_path))
    assert [counted(), counted()] == [0, 0]
    folder.parent.chmod(0o755)
    with monkeypatch.context() as another:
        another.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(PermissionError, match=r"kernels can be written by other users"):
            compiled._make_private(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEERDEC_CACHE", str(tmp_path / "file"))
    assert counted() == 0


def test_any_change_of_a_source_is_another_kernel(tmp_path: Path) -> None:
    for room in compiled.ROOMS:
        shutil.copytree(compiled.PACKAGE / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    key = compiled.sources_key(compiled.PACKAGE)
    assert compiled.sources_key(tmp_path) == key
    step = tmp_path / "policies" / "split" / "cpu.py"
    step.write_text(step.read_text() + "\n")
    assert compiled.sources_key(tmp_path) != key

"""What the Triton kernels take on a GPU, by ptxas: the program whose table is in docs/performance.md."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from steerdec.benchmarks.engine.compiled import ARCHITECTURES, warps_at_once


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_no_kernel_spills_on_any_architecture(tmp_path: Path) -> None:
    """In a process of its own, because vLLM hides Triton from kernels that are imported without a GPU."""
    out = tmp_path / "compiled.json"
    command = [sys.executable, "-m", "steerdec.benchmarks.engine.compiled", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert len(found) == len(ARCHITECTURES) * 6
    for kernel in found:
        assert kernel["kernel"] in done.stdout
        assert (kernel["spill_bytes"], kernel["stack_bytes"]) == (0, 0), kernel
        assert 0 < kernel["registers"] <= 128, kernel  # two programs of 256 threads on a multiprocessor at least
        assert kernel["warps"] >= 16, kernel


def test_warps_are_limited_by_registers_shared_memory_and_their_number() -> None:
    assert warps_at_once(registers=32, shared_bytes=0, warps=4, capability=90) == 64
    assert warps_at_once(registers=128, shared_bytes=0, warps=8, capability=90) == 16
    assert warps_at_once(registers=129, shared_bytes=0, warps=8, capability=90) == 8
    assert warps_at_once(registers=32, shared_bytes=100 * 1024, warps=8, capability=80) == 8

"""Steering inside vLLM's own V2 sampler and whole V2 engine: the cases of `CASES` here, in Triton's interpreter.

In a process of its own, because the interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CASES = ("v2_sampler_cases", "launch_cases", "step_cases", "v2_engine_cases", "v2_drafts_cases")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cases", CASES)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_on_v2_with_tritons_kernels(cases: str) -> None:
    file = Path(__file__).with_name(f"{cases}.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

"""Steering inside vLLM's own V2 sampler: the cases of tests/vllm_plugin/v2_sampler_cases.py, in Triton's interpreter.

In a process of its own, because the interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("v2_sampler_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_in_vllms_own_v2_sampler_steering_keeps_its_place_and_its_numbers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

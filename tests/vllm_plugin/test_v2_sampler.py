"""Steering inside vLLM's own V2 sampler and whole V2 engine: the cases of `CASES` here, in Triton's interpreter.

In a process of its own, because the interpreter must be chosen before triton is imported. What takes minutes is marked
`thorough` in the cases, and runs in a test that is marked so here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

# Two processes, not seven: each imports vLLM, which takes longer than some of the cases.
CASES = {
    "sampler": ("v2_sampler_cases", "launch_cases", "step_cases", "memory_cases"),
    "engine": ("v2_engine_cases", "v2_draws_cases", "v2_drafts_cases", "v2_draft_model_cases"),
}
MINUTES = ("v2_draws_cases", "v2_drafts_cases", "v2_records_cases")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("cases", "mark"),
    [
        *(pytest.param(cases, "not thorough", id=name) for name, cases in CASES.items()),
        *(pytest.param((cases,), "thorough", id=f"{cases}-thorough", marks=pytest.mark.thorough) for cases in MINUTES),
    ],
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_on_v2_with_tritons_kernels(cases: tuple[str, ...], mark: str) -> None:
    files = [str(Path(__file__).with_name(f"{name}.py")) for name in cases]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark, "--timeout", "3600"]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

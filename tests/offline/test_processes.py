"""Offline engines whose core is another process, as vLLM's default is: the cases of tests/support/offline_cases.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]


def held(case: str, *arguments: str) -> None:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "tests.support.offline_cases", case, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{case}: held" in done.stdout


def test_the_asynchronous_engine() -> None:
    held("asynchronous")


@pytest.mark.thorough
def test_offline_gives_the_tokens_and_records_of_the_server(server_url: str) -> None:
    held("as_served", server_url)


@pytest.mark.thorough
@pytest.mark.parametrize("number", ["0", "1"])
def test_the_documented_examples_run(number: str) -> None:
    held("example", number)

"""The official npm client against the real server (Debian: apt-get install -y nodejs npm)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "clients"


def run(folder: Path, program: str, *arguments: str) -> str:
    """Standard output of a program; fails with its last words."""
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"the npm client's test needs {program}: apt-get install -y nodejs npm", pytrace=False)
    done = subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.fail(f"{program} {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}", pytrace=False)
    return done.stdout


@pytest.mark.engine
@pytest.mark.thorough  # npm's installation takes longer than the client; test_openai_client.py reads the same answers
def test_the_npm_client_reads_what_the_server_writes(server_url: str, tmp_path: Path) -> None:
    for source in CLIENTS.iterdir():
        shutil.copy(source, tmp_path)
    run(tmp_path, "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--prefer-offline")
    lines = run(tmp_path, "node", "openai_client.mjs", server_url).splitlines()
    assert len(lines) == 12, lines

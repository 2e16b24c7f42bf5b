"""The README's way from a fresh clone to a report, its commands text for text, in a copy of the repository.

Two things differ from a newcomer's machine. The set-up that `make demo` begins with finds `.venv` ready: the wheel in
an environment of its own, the packages of requirements/ borrowed from the one that runs the tests
(tests/packaging/whole_install.py installs it all). And the demo is the short one that the README offers: `make demo`
itself takes four minutes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.support import built as builds
from tests.support.built import ROOT, Built

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

README = (ROOT / "README.md").read_text("utf-8")
SERVED_AT = "http://127.0.0.1:8000"
ARMS = {"B", "A/A", "F-up", "F-down", "N-up", "N-down"}


def commands(heading: str) -> list[str]:
    """The indented lines of a section."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (\S.*)$", section, re.MULTILINE)


DEMO, SERVE = commands("Start")
RUN, REPORT, *FOR_READERS_WITH_A_GPU_HOST = commands("Measure")
(SHORTER,) = re.findall(r"`(LIMIT=\d+) make demo`", README)
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def clone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = builds.source_copy(tmp_path_factory.mktemp("newcomer") / "steerdec")
    builds.environment_with(built.wheel, folder / ".venv")
    (folder / ".venv" / ".ready").touch()
    return folder


def run(command: str, clone: Path, **environment: str) -> str:
    """stdout of a line typed into a shell."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@contextmanager
def running(command: str, clone: Path) -> Iterator[None]:
    """A command left running in a terminal of its own, until Ctrl-C."""
    with (clone / "server.log").open("wb") as log:
        process = subprocess.Popen(shlex.split(command), cwd=clone, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 400
        while time.monotonic() < end:
            assert process.poll() is None, (clone / "server.log").read_text()[-3000:]
            with suppress(httpx.TransportError):
                if httpx.get(f"{SERVED_AT}/health", timeout=5).status_code == 200:
                    break
            time.sleep(0.5)
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()


def assert_reported(folder: Path, arms: set[str]) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["arms"]) == arms
    assert all(arm["ungraded"] == 0 for arm in summary["arms"].values())
    assert len(summary["claims"]) >= 4
    assert "<html" in (folder / "report.html").read_text()


def test_every_command_of_the_way_is_run_here_or_needs_the_readers_own_gpu_host() -> None:
    assert (DEMO, SERVE) == ("make demo", ".venv/bin/steerdec serve"), "two commands to start, and no more"
    assert SERVED_AT in RUN
    assert any("http://gpu:8000" in line for line in FOR_READERS_WITH_A_GPU_HOST)
    run_folder = re.findall(r"--out (\S+)", RUN)
    assert run_folder == [REPORT.split()[-1]]
    assert f"{run_folder[0]}/report.html" in README


def test_the_demo_ends_with_a_table_and_a_report(clone: Path) -> None:
    name, _, problems = SHORTER.partition("=")
    table = run(DEMO, clone, **{name: problems})
    assert all(re.search(rf"\b{re.escape(arm)}\b", table) for arm in ARMS)
    assert_reported(clone / f"demo-{problems}", ARMS)


def test_from_the_server_to_a_report(clone: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000, which the README's commands name, is taken by another server")
    with running(SERVE, clone):
        page = httpx.get(f"{SERVED_AT}/", timeout=30)
        assert page.headers["content-type"].startswith("text/html")
        assert "forks" in run(f".venv/bin/python - <<'END'\n{EXAMPLE}END\n", clone)
        run(RUN, clone)
    run(REPORT, clone)
    folder = clone / REPORT.split()[-1]
    arms = set(json.loads((folder / "summary.json").read_text())["arms"])
    assert arms > ARMS, "a server in bfloat16 is not batch-invariant: the plain arm is run twice"
    assert_reported(folder, arms)

"""The fault drills that need no server of their own; `make drills` runs the others too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.drills import clients, runs
from tests.drills.__main__ import AT_A_SERVER, IN_A_FOLDER
from tests.drills.promises import PROMISES

ROOT = Path(__file__).parents[2]


def test_every_promise_has_its_drill_and_stands_in_the_documentation() -> None:
    assert set(PROMISES) == set(IN_A_FOLDER) | set(AT_A_SERVER)
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    for name, promise in PROMISES.items():
        assert f"| {name} | {promise} |" in page


def test_disk_full(tmp_path: Path) -> None:
    try:
        runs.disk_full(tmp_path)
    except PermissionError as e:
        pytest.skip(str(e))


def test_endpoint_hung(tmp_path: Path) -> None:
    runs.endpoint_hung(tmp_path)


def test_clock_jumps(tmp_path: Path) -> None:
    runs.clock_jumps(tmp_path)


@pytest.mark.engine
def test_slow_clients(server_url: str) -> None:
    clients.slow_clients(server_url)


@pytest.mark.engine
def test_idle_connections(server_url: str) -> None:
    clients.idle_connections(server_url)


# The wall clock says when a file was made, how far off the date in a Retry-After header is (which is bounded), and how
# old a file is: after a jump a folder of a dead process stays until a later start, and the page of a run shows a wrong
# age. Everything else is measured with clocks that cannot jump.
WALL_CLOCK = {
    "steerdec/analysis/masks/run.py": "created",
    "steerdec/check/report.py": "created",
    "server/launch/scratch.py": "st_mtime",
    "benchmarks/view/progress.py": "index.last_s",  # which is the file's time
    "benchmarks/run/session.py": "created",
    "benchmarks/calibration/calibrate.py": "created",
    "benchmarks/run/endpoints.py": "parsedate_to_datetime",
}


def test_only_dates_are_taken_from_the_wall_clock() -> None:
    for folder in ("steerdec", "server", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.If):
                    continue
                text = ast.unparse(node)
                if any(call in text for call in ("time.time(", " time()", "datetime.now(", "utcnow(", "today(")):
                    assert WALL_CLOCK.get(name, "") in text, f"{name}: {text[:80]}"
                    assert name in WALL_CLOCK, f"{name}: {text[:80]}"

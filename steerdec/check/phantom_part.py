"""A phantom, whose every number has a closed form, served by `steerdec serve` and measured by `steerdec bench run`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

from steerdec.check.part import Reporter
from steerdec.check.results import Result, judged

CHECKS: Final = {"phantom": ("phantom: known answers",)}
KIND: Final = "claim-true"
ARMS: Final = "B,A/A,F-up,F-down,N-up,P-up,entropy_target"
FEW_ARMS: Final = "B,A/A,F-up"


def run(reporter: Reporter) -> None:
    """Make the check."""
    reporter.run(CHECKS["phantom"], lambda: _measured(reporter))


def _measured(reporter: Reporter) -> Iterator[Result]:
    interpreted = reporter.settings.interpreted
    limit, arms = ("10", FEW_ARMS) if interpreted else ("40", ARMS)
    reporter.progress(f"serving a phantom, {limit} problems under {arms}")
    options = ["--kinds", KIND, "--arms", arms, "--limit", limit, "--samples", "1", "--calibrate", "none"]
    command = [sys.executable, "-m", "steerdec.phantom.check", *options, "--no-analyses"]
    with tempfile.TemporaryDirectory(prefix="check-") as out:
        done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    wrong = [line for line in done.stderr.splitlines() if line.startswith("steerdec.phantom.check: ")]
    last = wrong[0].removeprefix("steerdec.phantom.check: ") if wrong else lines[-1] if lines else "it ended at once"
    yield judged(
        CHECKS["phantom"][0],
        last,
        "every number right",
        done.returncode == 0,
        kind=KIND,
        arms=arms.split(","),
        problems=int(limit),
        wrong=len(wrong),
    )

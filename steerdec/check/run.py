"""Run the parts of the check, each in a process of its own, and collect what they find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from steerdec.check import engine_part, kernel_part, phantom_part
from steerdec.check.part import Settings, as_arguments
from steerdec.check.results import Result, failed, not_applicable
from steerdec.common.errors import InvalidInputError
from steerdec.server.launch.command import Launch, plan
from steerdec.server.launch.flags import parse
from steerdec.server.launch.reason import LastError
from steerdec.server.launch.start import is_cpu_build

LIMIT_S: Final = 600.0  # for everything
STOP_S: Final = 10.0
POLL_S: Final = 0.2
CHECKS: Final[dict[str, tuple[str, ...]]] = {
    "kernel": tuple(name for names in kernel_part.CHECKS.values() for name in names),
    "engine": tuple(name for names in engine_part.CHECKS.values() for name in names),
    "phantom": tuple(name for names in phantom_part.CHECKS.values() for name in names),
}


class FlagsError(InvalidInputError):
    """The flags cannot be used for a check."""


@dataclass
class Report:
    """Everything that was found."""

    results: list[Result] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[Result]:
        """The checks that fell short."""
        return [result for result in self.results if result.status == "FAIL"]


Announce = Callable[[str], None]


def run(settings: Settings, log: Path, announce: Announce, *, limit_s: float = LIMIT_S) -> Report:
    """Run every part in turn.

    Args:
        settings: what to check.
        log: a file that everything the parts print is appended to.
        announce: takes a line of progress.
        limit_s: after which what is not finished has failed.

    Raises:
        FlagsError, LaunchUsageError: wrong usage, before anything is measured or as vLLM's own parser finds it.
        LaunchError, ModelError: vLLM or the model is not there.
    """
    server = plan(
        Launch(settings.model, vllm_flags=settings.vllm_flags), parse(settings.vllm_flags), on_cpu=is_cpu_build()
    )
    stop_at_s = time.monotonic() + limit_s
    report = Report()
    # The engine in the part's own process, where its logits can be read; its warnings go to the log.
    environment = server.environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    for name, checks in CHECKS.items():
        if name == "phantom" and settings.quick:
            report.results += [not_applicable(check, "left out by --quick") for check in checks]
            continue
        own = os.environ if name == "phantom" else environment
        _run_part(name, checks, settings, own, log, announce, stop_at_s, report)
    return report


def _run_part(
    name: str,
    checks: tuple[str, ...],
    settings: Settings,
    environment: Mapping[str, str],
    log: Path,
    announce: Announce,
    stop_at_s: float,
    report: Report,
) -> None:
    left, error = list(checks), LastError()
    with tempfile.TemporaryDirectory(prefix="check-") as folder, log.open("ab") as output:
        found = Path(folder) / "results"
        found.touch()
        start = output.tell()
        # Tied to this process: a part must not outlive a check that was killed.
        module = [sys.executable, "-m", "steerdec.check.part", *as_arguments(name, settings, found)]
        tied = [sys.executable, "-m", "steerdec.common.tether", str(os.getpid()), *module]
        process = subprocess.Popen(tied, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(environment))
        try:
            read = 0
            while True:
                ended = process.poll() is not None
                lines = found.read_bytes()[read:].split(b"\n")[:-1]
                read += sum(len(line) + 1 for line in lines)
                for line in lines:
                    _take(json.loads(line), left, announce, report)
                if ended or time.monotonic() > stop_at_s:
                    break
                time.sleep(POLL_S)
        finally:
            _stop(process)
        if left:
            with log.open("rb") as file:
                file.seek(start)
                error.feed(0, file.read())
            late = time.monotonic() > stop_at_s
            why = "no time was left for it" if late else error.reason() or f"ended with status {process.returncode}"
            report.results += [failed(check, why) for check in left]
            announce(f"{name}: {why}")


def _take(line: dict[str, Any], left: list[str], announce: Announce, report: Report) -> None:
    if "usage" in line:
        raise FlagsError(line["usage"])
    if "progress" in line:
        announce(line["progress"])
    if "about" in line:
        report.about |= line["about"]
    if "result" in line:
        result = Result(**line["result"])
        left.remove(result.check)
        report.results.append(result)
        announce(f"{result.check}: {result.status} ({result.measured})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()

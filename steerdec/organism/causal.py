"""The causal test on the organism at several base temperatures, by the product's own commands and one server.

For each temperature `steerdec calibrate --arms causal` on the calibration problems (threshold, matched doses), then
`steerdec bench run` and `bench report` on the others. A stage whose result exists is not run again; a stopped run
resumes in its own folder.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steerdec.benchmarks.run.local_server import local_server
from steerdec.common.child import python_child
from steerdec.common.errors import AnalysisError, reason_of
from steerdec.organism.build import CALIBRATION, PROBLEMS
from steerdec.organism.vocabulary import LONGEST_RESPONSE

SUMMARY: Final = "summary.json"
CALIBRATED: Final = "calibration.json"


@dataclass(frozen=True)
class Causal:
    """The size of the causal test."""

    temperatures: tuple[float, ...] = (0.6, 1.0, 1.4)
    samples: int = 16
    tokens: int = 20_000  # of a calibration
    seed: int = 0


def folder_of(out: Path, temperature: float) -> Path:
    """Return where the run at one base temperature lies."""
    return out / f"causal-{temperature:g}"


def run(model: Path, out: Path, settings: Causal) -> None:
    """Make every run that is missing. Raises AnalysisError, ServerError."""
    missing = [t for t in settings.temperatures if not (folder_of(out, t) / SUMMARY).exists()]
    if not missing:
        return
    with _server(model, out / "server.log") as url:
        for temperature in missing:
            _run_at(temperature, model, out, settings, url)


def _run_at(temperature: float, model: Path, out: Path, settings: Causal, url: str) -> None:
    folder = folder_of(out, temperature)
    folder.mkdir(parents=True, exist_ok=True)
    calibration = folder.with_name(f"{folder.name}-{CALIBRATED}")
    common = ["--endpoint", url, "--arms", "causal", "--seed", str(settings.seed), "--temperature", f"{temperature:g}"]
    common += ["--max-tokens", str(LONGEST_RESPONSE + 8)]
    if "matching" not in _read(calibration):
        sizes = ["--tokens", str(settings.tokens), "--out", str(calibration)]
        _command("calibrate", "--problems", str(model / CALIBRATION), *common, *sizes)
    measured = ["--problems", str(model / PROBLEMS), "--samples", str(settings.samples), "--out", str(folder)]
    _command("bench", "run", "--looks", "1", *common, *measured, "--threshold", str(calibration))
    _command("bench", "report", str(folder))


def results(out: Path, settings: Causal) -> dict[str, Any]:
    """Return, by base temperature, what each run's summary says and the threshold it had."""
    found = {}
    for temperature in settings.temperatures:
        folder = folder_of(out, temperature)
        summary = _read(folder / SUMMARY)
        run_json = _read(folder / "run.json")
        found[f"{temperature:g}"] = {
            "threshold_nats": run_json["threshold_nats"],
            "arms": summary["arms"],
            "comparisons": summary["comparisons"],
            "claims": summary["claims"],
            "instrument": summary["instrument"],
        }
    return found


@contextmanager
def _server(model: Path, log: Path) -> Iterator[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with local_server(str(model), log, dtype="float32") as url:
        yield url


def _command(*arguments: str) -> None:
    """Run one of our own commands, its progress on this terminal. Raises AnalysisError."""
    command, environment = python_child("steerdec", *arguments)
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode != 0:
        raise AnalysisError(f"`steerdec {' '.join(arguments[:2])}` failed with status {done.returncode}; see above")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise AnalysisError(f"{path} cannot be read ({reason_of(e)})") from None
    return found if isinstance(found, dict) else {}

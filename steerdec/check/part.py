"""Run one part of the check: `python -m steerdec.check.part NAME SETTINGS RESULTS`. `run.py` starts it.

What is found is appended to RESULTS, one JSON object per line, as soon as it is known: a part that dies has said what
it found before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerdec.check.results import Result, Skip, failed, not_applicable
from steerdec.common.json import plain


@dataclass(frozen=True)
class Settings:
    """What the check was called with."""

    model: str | None
    vllm_flags: list[str]
    quick: bool

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter stands in for a GPU."""
        return os.environ.get("TRITON_INTERPRET") == "1"


class Reporter:
    """The way out of a part."""

    def __init__(self, file: Path, settings: Settings) -> None:
        self._file, self.settings = file, settings

    def _write(self, **line: Any) -> None:
        with self._file.open("a") as out:
            out.write(json.dumps(plain(line)) + "\n")

    def progress(self, text: str) -> None:
        """Say what is being done."""
        self._write(progress=text)

    def about(self, **facts: Any) -> None:
        """Record facts about the machine and the engine."""
        self._write(about=facts)

    def usage(self, text: str) -> None:
        """Report that the flags cannot be used."""
        self._write(usage=text)

    def result(self, result: Result) -> None:
        """Record the outcome of a check."""
        self._write(result=result.model_dump())

    def run(self, checks: tuple[str, ...], measure: Callable[[], Iterable[Result]]) -> None:
        """Make some checks; where it breaks, those that have no result yet have failed."""
        left = list(checks)
        try:
            for result in measure():
                left.remove(result.check)
                self.result(result)
        except Skip as e:
            for check in left:
                self.result(not_applicable(check, str(e)))
        except Exception as e:
            why = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            for check in left:
                self.result(failed(check, why))


def main() -> None:
    """Run the part."""
    name, settings, results = sys.argv[1:]
    reporter = Reporter(Path(results), Settings(**json.loads(settings)))
    if name == "kernel":
        from steerdec.check import kernel_part as part
    elif name == "engine":
        from steerdec.check import engine_part as part  # type: ignore[no-redef]
    else:
        from steerdec.check import phantom_part as part  # type: ignore[no-redef]
    part.run(reporter)


def as_arguments(name: str, settings: Settings, results: Path) -> list[str]:
    """Return the arguments that `main` takes."""
    return [name, json.dumps(asdict(settings)), str(results)]


if __name__ == "__main__":
    main()

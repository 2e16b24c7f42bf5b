"""How far a run is: a bar on a terminal, a plain line every ten seconds elsewhere (both on stderr)."""

from __future__ import annotations

import sys
from collections import Counter
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0
MOST_SCORES = 8


class RunProgress:
    """Counts the samples of a run and shows them; `done` of `total` were there before."""

    def __init__(self, total: int, done: int, unit: str = "samples") -> None:
        self._total = total
        self._unit = unit
        self._done = done
        self._new = 0
        self._tokens = 0
        self.failed = 0
        self._correct: Counter[str] = Counter()
        self._graded: Counter[str] = Counter()
        self._begun_at_s = monotonic()
        self._line_at_s = self._begun_at_s
        self._told = done
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn(unit),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[facts]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total, completed=done, facts="")

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._new and self._told != self._done:
            self._line()

    def count(self, sample: dict[str, Any]) -> None:
        """One more sample is in the journal."""
        self.failed += sample["error"] is not None
        if sample["grade"] != "ungraded":
            self._graded[sample["arm"]] += 1
            self._correct[sample["arm"]] += sample["grade"] == "correct"
        self.advance(1, sample["completion_tokens"] or 0)

    def advance(self, steps: int, tokens: int) -> None:
        """So many more of the total, with so many generated tokens."""
        self._done += steps
        self._new += steps
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, facts=self._facts())
        elif monotonic() - self._line_at_s >= LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._line_at_s, self._told = monotonic(), self._done
        print(f"{self._done}/{self._total} {self._unit}, {self._facts()}", file=sys.stderr, flush=True)

    def _facts(self) -> str:
        seconds = max(monotonic() - self._begun_at_s, 1e-3)
        left_s = max(0, self._total - self._done) * seconds / max(self._new, 1)
        rate = [f"{self._tokens / seconds:.0f} tokens/s"] if self._tokens else []
        facts = [*rate, f"{_duration(left_s)} left"]
        if self.failed:
            facts.append(f"{self.failed} failed")
        if 0 < len(self._graded) <= MOST_SCORES:
            facts.append(" ".join(f"{a} {100 * self._correct[a] / n:.1f}" for a, n in sorted(self._graded.items())))
        return ", ".join(facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"

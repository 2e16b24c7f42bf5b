"""Show how far a run is: a bar on a terminal, a plain line every ten seconds elsewhere (both on stderr)."""

from __future__ import annotations

import sys
from collections import Counter
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0
MAX_SCORES = 8
FEWEST_TO_ESTIMATE = 10


def announce(message: str) -> None:
    """Print one line on stderr: what is about to happen, or what the user should know about it."""
    print(message, file=sys.stderr, flush=True)


class RunProgress:
    """Count the samples of a run and show progress, speed, and the time left.

    Scores are shown only on request: whoever watches them and stops when they please raises false alarms.
    """

    def __init__(
        self, total: int, done: int, unit: str = "samples", *, at_once: int = 1, show_scores: bool = False
    ) -> None:
        """Start counting.

        Args:
            total: how many there will be, including those from before.
            done: how many there are from before.
            unit: what is counted.
            at_once: how many are made at the same time. The first to finish are the shortest, so no speed and no
                remaining time is shown until twice as many have finished.
            show_scores: show the running score of each arm.
        """
        self._total = total
        self._unit = unit
        self._done = done
        self._new = 0
        self._finished = 0  # calls of `advance`
        self._tokens = 0
        self._estimate_from = max(FEWEST_TO_ESTIMATE, 2 * at_once)
        self._show_scores = show_scores
        self.failed = 0
        self._correct: Counter[str] = Counter()
        self._graded: Counter[str] = Counter()
        self._began_at_s = monotonic()
        self._line_at_s = self._began_at_s
        self._shown = done
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
        elif self._new and self._shown != self._done:
            self._line()

    def count(self, arm: str, *, tokens: int, failed: bool, correct: bool | None) -> None:
        """Count one more sample; `correct` is None if it is ungraded."""
        self.failed += failed
        if correct is not None:
            self._graded[arm] += 1
            self._correct[arm] += correct
        self.advance(1, tokens)

    def advance(self, steps: int, tokens: int) -> None:
        """Count this many more steps of the total, and this many generated tokens."""
        self._done += steps
        self._new += steps
        self._finished += 1
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, facts=self._facts())
        elif monotonic() - self._line_at_s >= LINE_EVERY_S:
            self._line()

    def grow(self, total: int) -> None:
        """Announce that the total has changed."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def _line(self) -> None:
        self._line_at_s, self._shown = monotonic(), self._done
        facts = self._facts()
        print(f"{self._done}/{self._total} {self._unit}{facts and ', '}{facts}", file=sys.stderr, flush=True)

    def _facts(self) -> str:
        seconds = max(monotonic() - self._began_at_s, 1e-3)
        facts = [f"{self._tokens / seconds:.0f} tokens/s"] if self._tokens else []
        if self._finished >= self._estimate_from or self._done >= self._total:
            facts.append(f"{_duration(max(0, self._total - self._done) * seconds / max(self._new, 1))} left")
        if self.failed:
            facts.append(f"{self.failed} failed")
        if self._show_scores and 0 < len(self._graded) <= MAX_SCORES:
            facts.append(" ".join(f"{a} {100 * self._correct[a] / n:.1f}" for a, n in sorted(self._graded.items())))
        return ", ".join(facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"

"""Grade in worker processes, each of which can be ended without affecting the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import select
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Self, cast

from steerdec.common.child import python_child
from steerdec.common.errors import SteerdecError
from steerdec.grading.grade import Comparison, Grade, decide
from steerdec.grading.worker import TIMEOUT_SIGNAL
from steerdec.problems.sets import Problem

MAX_REMEMBERED = 100_000  # verdicts; the samples of a problem repeat their answers
START_S = 120.0  # seconds to start a worker and import a computer algebra system, on a busy machine
STUCK_FACTOR = 20.0  # wall-clock seconds per second of the limit, before a worker that does not compute is ended


class GradingError(SteerdecError):
    """A worker failed before it reached the answer: the installation is at fault, not the sample."""


class GradingPool:
    """Grade responses; what needs an algebra system goes to worker processes, started when first needed.

    A comparison that takes more than `timeout_s` seconds of processor time ends its worker and counts as incorrect
    (path "timeout"). If a worker dies otherwise, it is replaced and the comparison is repeated once, then given up
    (path "crash"). May be used from several threads.
    """

    def __init__(self, workers: int = 2, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._verdicts: dict[Comparison, Grade] = {}

    def grade(self, text: str, problem: Problem, finish_reason: str | None) -> Grade:
        """Grade one response, waiting for a worker if it needs one. Raises GradingError."""
        decided = decide(text, problem.answer, problem.kind, finish_reason)
        return self._compare(decided) if isinstance(decided, Comparison) else decided

    async def __call__(self, text: str, problem: Problem, finish_reason: str | None) -> Grade:
        """Do as :meth:`grade`, without blocking the event loop."""
        decided = decide(text, problem.answer, problem.kind, finish_reason)
        if not isinstance(decided, Comparison):
            return decided
        if known := self._verdicts.get(decided):
            return known
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._compare, decided)

    def close(self) -> None:
        """End the workers after their current work. The pool cannot be used again."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compare(self, comparison: Comparison) -> Grade:
        if known := self._verdicts.get(comparison):
            return known
        worker = self._idle.get()
        try:
            for _attempt in range(2):
                worker = worker or _Worker()
                grade = worker.compare(comparison, self.timeout_s)
                if not worker.alive:
                    worker = None
                if grade.path != "crash":
                    break
        except BaseException:
            worker = None  # its state is unknown
            raise
        finally:
            self._idle.put(worker)
        if len(self._verdicts) >= MAX_REMEMBERED:
            self._verdicts.clear()
        self._verdicts[comparison] = grade
        return grade


class _Worker:
    def __init__(self) -> None:
        command, environment = python_child("steerdec.grading.worker")
        self.last_error = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the worker; a pipe could fill up)
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._requests = cast(IO[bytes], self._process.stdin)
        self._answers = cast(IO[bytes], self._process.stdout)
        self._readable = select.poll()  # select() would not take a descriptor above 1023
        self._readable.register(self._answers, select.POLLIN)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def compare(self, comparison: Comparison, timeout_s: float) -> Grade:
        """Return the grade; after path "timeout" or "crash" the worker has ended. Raises GradingError."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading will show too
            self._requests.write(json.dumps({"comparison": comparison, "timeout_s": timeout_s}).encode() + b"\n")
            self._requests.flush()
        stuck = not self._readable.poll(1000 * (START_S + STUCK_FACTOR * timeout_s))
        line = b"" if stuck else self._answers.readline()
        if line:
            return Grade(**json.loads(line))
        self.stop(wait_s=0 if stuck else START_S)  # it has closed its output, so it is about to end
        status = self._process.returncode
        if status > 0:
            raise GradingError(f"a grading worker failed on {comparison.kind!r}: {self.last_error or status}")
        path = "timeout" if stuck or status == -TIMEOUT_SIGNAL else "crash"
        return Grade(comparison.answer, "incorrect", path)

    def stop(self, wait_s: float = 1.0) -> None:
        """End the process, by force if it does not end within `wait_s` seconds."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        with self._errors as file:
            file.seek(0)
            self.last_error = file.read().decode(errors="replace").strip().rpartition("\n")[2]

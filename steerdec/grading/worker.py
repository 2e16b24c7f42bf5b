"""Make comparisons in a process of their own, for :mod:`steerdec.grading.pool`: one JSON line in, one JSON line out.

In:  {"comparison": [answer, gold, kind], "timeout_s": seconds of processor time} Out: {"answer": ..., "grade": ...,
"path": ...}

The limit counts processor time, so a busy machine never turns a correct answer into an incorrect one. The default
action of its signal ends the process, even in the middle of an integer power that no Python code could interrupt, and
even if its parent is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from dataclasses import asdict

from steerdec.grading.grade import Comparison, compare, prepare

TIMEOUT_SIGNAL = signal.SIGPROF
MEMORY_BYTES = 4 << 30


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    signal.signal(TIMEOUT_SIGNAL, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints may come between the answers
    for line in sys.stdin:
        request = json.loads(line)
        comparison = Comparison(*request["comparison"])
        prepare(comparison.kind)  # imports and the task's data do not count as the answer's time
        signal.setitimer(signal.ITIMER_PROF, request["timeout_s"])
        grade = compare(comparison)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(asdict(grade)), file=answers, flush=True)


if __name__ == "__main__":
    main()

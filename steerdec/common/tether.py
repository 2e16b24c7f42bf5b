"""Become a command that dies with another process: `python -m steerdec.common.tether PID COMMAND...`.

A server started for a run must not outlive it, even if the run is killed with SIGKILL and cannot clean up. On Linux,
the signal set here is sent when the parent is gone; elsewhere this only execs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); survives exec


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above ran
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

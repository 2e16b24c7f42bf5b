"""Run vLLM's server as a child: pass signals and output on, and leave nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import IO, Any, Final

from .errors import LaunchError
from .processes import end_group
from .reason import LastError

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG: Final = 1
_LAST_OUTPUT_S: Final = 2.0


class StoppedError(BaseException):
    """A signal arrived before the server was started."""


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP during a launch: they end what is running, and nothing is left behind."""

    def __init__(self) -> None:
        self._group: int | None = None
        self._patience_s = 0.0
        self._interrupts = True
        self._out_of_patience: threading.Timer | None = None
        self._previous: dict[int, Any] = {}
        self.stopping = False

    def __enter__(self) -> StopSignals:
        for signum in STOP_SIGNALS:
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # nohup
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self._out_of_patience is not None:
            self._out_of_patience.cancel()

    def hold(self) -> None:
        """From now on only record signals, until there is a server to pass them to."""
        self._interrupts = False

    def pass_to(self, group: int, patience_s: float) -> None:
        """Pass signals to the server that leads this process group; after `patience_s` it is killed."""
        self._group, self._patience_s = group, patience_s
        if self.stopping:
            self._stop_server(group)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.stopping = self.stopping, True
        if self._interrupts:
            raise StoppedError
        if self._group is None:
            return
        if again:
            end_group(self._group)
        else:
            self._stop_server(self._group)

    def _stop_server(self, group: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGTERM)
        self._out_of_patience = threading.Timer(self._patience_s, end_group, (group,))
        self._out_of_patience.daemon = True
        self._out_of_patience.start()


def supervise(command: list[str], environment: dict[str, str], patience_s: float, signals: StopSignals) -> int:
    """Run the command until it ends; return the exit status for the launcher.

    0 after a signal, else nonzero, even if the command returns 0: a server that ends on its own has failed, and a
    supervisor should start it again. Its reason is then printed as the last line.

    Raises:
        LaunchError: it cannot be started.
    """
    signals.hold()
    process = _started(command, environment)
    signals.pass_to(process.pid, patience_s)
    last_error = LastError()
    pumps = [_pump(stream, fd, last_error) for stream, fd in ((process.stdout, 1), (process.stderr, 2))]
    try:
        status = process.wait()
    finally:
        end_group(process.pid)
        for pump in pumps:
            pump.join(_LAST_OUTPUT_S)
    if signals.stopping:
        return 0
    ended = f"vLLM's server ended on its own ({_how(status)})"
    print(": ".join(filter(None, ("steerdec", ended, last_error.reason()))), file=sys.stderr)
    return status if 0 < status < 128 else 1


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    except OSError as e:
        reason = e.strerror
        if e.errno == errno.E2BIG:  # a calibration holds a hash of each of its problems
            reason = (
                f"{reason}, the longest has {max(map(len, command)):,} characters and Linux takes 131,071; "
                "if --threshold is a calibration of more than 6,000 problems, give its number of nats instead"
            )
        raise LaunchError(f"vLLM's server cannot be started: {reason}") from None
    except ValueError as e:  # a NUL character
        raise LaunchError(f"vLLM's server cannot be started: {e}") from None


def _die_with_parent() -> None:
    """Make the child end when the launcher is killed; runs in the child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _pump(stream: IO[bytes] | None, fd: int, last_error: LastError) -> threading.Thread:
    """Copy the server's output to our own, and keep its end."""
    assert stream is not None
    source = stream

    def copy() -> None:
        writes = True
        while data := os.read(source.fileno(), 65536):
            last_error.feed(fd, data)
            while data and writes:
                try:
                    data = data[os.write(fd, data) :]
                except OSError:  # nobody reads our output anymore; the server must not wait for that
                    writes = False

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread

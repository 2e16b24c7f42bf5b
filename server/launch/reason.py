"""Find out why vLLM's server ended, from its output."""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import Final

_KEPT_LINES: Final = 2000
_LONGEST: Final = 600

_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS: Final = re.compile(r"^\(\w+ pid=\d+\) ")
_LEVEL: Final = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^]]*\] ?")
_EXCEPTION: Final = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception))(?:: (.*))?$")
_USAGE: Final = re.compile(r"^[\w./ -]*: error: (.+)$")
_VALIDATION: Final = re.compile(r"^\d+ validation errors? for \w+$")
# These report that something else failed before.
_ECHO: Final = re.compile(
    r"[Ss]ee (the )?(root cause|stack trace)|Failed core proc|CancelledError|EngineDeadError|BrokenPipe|ConnectionReset"
)


class LastError:
    """Keeps the last lines of some streams, fed from a thread each."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
        self._rest: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def feed(self, stream: int, data: bytes) -> None:
        """Add output of one of the streams, cut anywhere."""
        with self._lock:
            *lines, rest = (self._rest.get(stream, b"") + data).split(b"\n")
            self._rest[stream] = rest[-_LONGEST * 10 :]
            self._lines.extend((stream, line.decode("utf-8", "replace")) for line in lines)

    def reason(self) -> str | None:
        """Return the last error that is not merely the consequence of another, in one line; None if there is none."""
        with self._lock:
            lines = [*self._lines, *((stream, rest.decode("utf-8", "replace")) for stream, rest in self._rest.items())]
        errors: list[str] = []
        logged: list[str] = []
        cleaned = [(stream, *_clean(line)) for stream, line in lines]
        for i, (stream, level, text) in enumerate(cleaned):
            if usage := _USAGE.match(text):
                errors.append(usage[1])
            elif found := _EXCEPTION.match(text):
                following = [line for other, _, line in cleaned[i + 1 :] if other == stream]
                errors.append(_message(found[1], found[2] or "", following[:20]))
            elif level in ("ERROR", "CRITICAL") and text and not text.startswith((" ", "Traceback")):
                logged.append(text)
        for kind in (errors, logged):
            first_hand = [text for text in kind if not _ECHO.search(text)]
            if first_hand:
                return first_hand[-1][:_LONGEST]
        return None


def _clean(line: str) -> tuple[str | None, str]:
    """Return (log level if there is one, the message)."""
    text = _PROCESS.sub("", _COLOR.sub("", line).rstrip())
    level = _LEVEL.match(text)
    return (level[1], text[level.end() :]) if level else (None, text)


def _message(kind: str, text: str, following: list[str]) -> str:
    if _VALIDATION.match(text):  # pydantic: the reasons are in the lines below
        reasons = []
        for line in following:
            if not line.strip() or _EXCEPTION.match(line):
                break
            if "For further information" not in line:
                reasons.append(re.sub(r"\s*\[type=.*$", "", line).strip().removeprefix("Value error, "))
        return " ".join(filter(None, reasons)) or text
    return text if kind in ("ValueError", "RuntimeError", "OSError") and text else f"{kind}: {text}".rstrip(": ")

"""Server-sent events, cut at any byte, rewritten one whole event at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class EventStream:
    """Applies `rewrite` to the JSON of each event; an event for which it returns False is left out."""

    def __init__(self, rewrite: Callable[[dict[str, Any]], bool]) -> None:
        self._rewrite = rewrite
        self._rest = b""

    def feed(self, data: bytes, *, last: bool) -> bytes:
        """Return the rewritten form of all events that are complete now."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        rewritten = b"".join(self._rewritten(event) for event in events)
        if last and self._rest:
            rewritten, self._rest = rewritten + self._rest, b""
        return rewritten

    def _rewritten(self, event: bytes) -> bytes:
        lines = event.split(b"\n")
        for i, line in enumerate(lines):
            payload = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and payload.startswith(b"{"):
                try:
                    content = json.loads(payload)
                except ValueError:
                    break  # not ours to judge
                if not self._rewrite(content):
                    return b""
                lines[i] = b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return b"\n".join(lines) + b"\n\n"

"""vLLM's limits on the headers of a request, made to hold.

vLLM hands its `--h11-max-incomplete-event-size` (4 MiB) to uvicorn, which knows it for its h11 protocol only, but takes
httptools where that is installed, as it is beside vLLM. httptools reads headers without end into memory, and before
anybody has asked for a key. h11 costs 2 microseconds more a chunk and 27 a request.
"""

from __future__ import annotations

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol


def limit_headers() -> None:
    """Let uvicorn's servers of this process that are configured from now on, and name no protocol, use h11."""
    auto.AutoHTTPProtocol = H11Protocol

"""Where samples come from: running endpoints, or a server started for the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .endpoints import Endpoint, Timeouts
from .local_server import local_server


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where samples come from: endpoints, or a server to start for `model`."""

    endpoints: tuple[str, ...]
    model: str | None
    dtype: str | None
    concurrency: int  # simultaneous requests per endpoint
    timeout_s: float
    api_key: str | None

    @contextmanager
    def urls(self, log: Path) -> Iterator[tuple[str, ...]]:
        """Yield the endpoints' URLs; a server started here runs until the block ends. Raises ServerError."""
        if self.model is None:
            yield self.endpoints
        else:
            with local_server(self.model, log, dtype=self.dtype) as url:
                yield (url,)

    @asynccontextmanager
    async def opened(self, urls: tuple[str, ...]) -> AsyncIterator[list[Endpoint]]:
        timeouts = Timeouts(self.timeout_s)
        endpoints = [Endpoint(u, connections=self.concurrency, timeouts=timeouts, api_key=self.api_key) for u in urls]
        try:
            yield endpoints
        finally:
            for endpoint in endpoints:
                await endpoint.close()

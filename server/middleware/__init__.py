"""The layers between the client and vLLM's own handlers, plain ASGI, outermost first: `keys`, `body_limit`, `steering`.

All of it is inside vLLM's API-key check, which covers some paths only; `keys` covers every path, so that nothing is
spent on a caller without a key. A request without steering passes through unchanged, byte for byte, both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp

from .body_limit import BodyLimit
from .keys import KeyCheck
from .steering import SteeringMiddleware

if TYPE_CHECKING:
    from ..body import Host

INWARD: Final = (KeyCheck, BodyLimit, SteeringMiddleware)


def wrapped(app: ASGIApp, host: Callable[[], Host]) -> ASGIApp:
    """Return `app` inside all of them."""
    for layer in reversed(INWARD):
        app = layer(app, host)
    return app

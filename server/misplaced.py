"""Steering in a place of a request where nothing would read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from steerdec.steering.params import SteeringError
from steerdec.vllm_plugin.request import RESERVED_ARGS, STEERING_ARG

XARGS: Final = "vllm_xargs"
# The names that Python clients and other servers use for extra fields. None of them is a field of vLLM's
# requests, except vllm_xargs and, on a few paths, sampling_params.
_WRAPPERS: Final = (XARGS, "extra_body", "extra_args", "sampling_params", "parameters", "generation_config")
_NAMES: Final = (STEERING_ARG, *RESERVED_ARGS)
_DEPTH: Final = 3


def refuse_misplaced(body: dict[str, Any]) -> None:
    """Refuse steering inside a field that vLLM ignores, as an object or as JSON text.

    Raises:
        SteeringError: naming the place.
    """
    for place, name in _places(body, "", _DEPTH):
        if place and place != XARGS:  # the request's own steering, and vLLM's field for it
            raise SteeringError("", f"{place}.{name} would be ignored; send `steering` at the top of the request body")


def refuse_everywhere(body: dict[str, Any], paths: str) -> None:
    """Refuse steering anywhere in a request to a path that does not take it.

    Raises:
        SteeringError: naming the paths that do.
    """
    for place, name in _places(body, "", _DEPTH):
        where = f"{place}.{name}" if place else name
        raise SteeringError("", f"goes with {paths} only, not with this path (sent as {where})")


def _places(holder: dict[str, Any], place: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield (place, name) of every field of ours that is not null; the place in the body itself is ""."""
    for name in _NAMES:
        if holder.get(name) is not None:
            yield place, name
    for wrapper in _WRAPPERS if depth else ():
        inner = holder.get(wrapper)
        if isinstance(inner, str) and STEERING_ARG[:5] in inner:
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError):
                continue
        if isinstance(inner, dict):
            yield from _places(inner, f"{place}.{wrapper}".lstrip("."), depth - 1)

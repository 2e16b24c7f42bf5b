"""The engine's configuration and the request's name, which vLLM does not hand to its `validate_params` hook.

vLLM calls the hook with the parameters alone, though what is exact depends on the runner, on speculative decoding and
on scheduling. Refusing later, in the worker, would kill the engine for everyone; silently steering less than requested
is worse. So this searches the stack for vLLM's InputProcessor, which holds the configuration. A contract test pins it.

The prompts of one completion have equal parameters, and become requests that differ by the number at the end of their
names alone. The same frames hold the name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig


_PROMPT = re.compile(r"-(\d+)$")  # vLLM's name of a completion's request: "cmpl-NAME-PROMPT"


def validating_engine() -> VllmConfig | None:
    """Return the configuration of the engine front end that is validating a request now, None if there is none."""
    for frame in _input_processors():
        owner: Any = frame.f_locals["self"]
        if hasattr(owner, "vllm_config"):
            return owner.vllm_config
    return None


def validated_prompt() -> int:
    """Return which prompt of its completion is being validated now, from 0; -1 if vLLM's name does not say."""
    for frame in _input_processors():
        number = _PROMPT.search(str(frame.f_locals.get("request_id")))  # of process_inputs
        if number is not None:
            return int(number[1])
    return -1


def _input_processors() -> Iterator[FrameType]:
    """Yield the frames that run methods of an InputProcessor, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if type(frame.f_locals.get("self")).__name__ == "InputProcessor":
            yield frame
        frame = frame.f_back

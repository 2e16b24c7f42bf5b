"""The engine's configuration, which vLLM does not hand to its `validate_params` hook.

vLLM calls the hook with the parameters alone, though what is exact depends on the runner, on speculative decoding and
on scheduling. Refusing later, in the worker, would kill the engine for everyone; silently steering less than requested
is worse. So this searches the stack for vLLM's InputProcessor, which holds the configuration. A contract test pins it.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def validating_engine() -> VllmConfig | None:
    """Return the configuration of the engine front end that is validating a request now, None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if type(owner).__name__ == "InputProcessor" and hasattr(owner, "vllm_config"):
            return owner.vllm_config
        frame = frame.f_back
    return None

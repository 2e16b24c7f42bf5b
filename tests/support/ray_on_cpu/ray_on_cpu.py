"""A Ray resource for vLLM's CPU platform, which names none: the "GPU" of a Ray node that was told to count two.

Put this folder first in PYTHONPATH of the server and of Ray; vLLM finds the platform by the entry point beside this
file. Ray hands out the resource and its ids as on a host with GPUs. Nothing else of the platform changes.
"""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    """vLLM's CPU platform, which Ray may place."""

    ray_device_key = "GPU"


def platform() -> str:
    """Return the class's name, as vLLM's group of platform plugins has it."""
    return f"{RayCpuPlatform.__module__}.{RayCpuPlatform.__qualname__}"

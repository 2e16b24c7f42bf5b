"""Shared by all tests: the real small model, and vLLM's settings for a machine without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import serving

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


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with the embedded model, one for all tests; float32, so that an answer repeats in any batch."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ["--dtype", "float32", "--max-logprobs", "-1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with serving(log, *flags) as base:
        yield base

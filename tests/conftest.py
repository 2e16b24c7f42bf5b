"""Shared by all tests: the real small model, and vLLM's settings for a machine without a GPU."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from tests.support import built as builds
from tests.support.built import Built
from tests.support.serving import serving

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from steerdec.offline import SteeredLLM

# Before vLLM is imported: the engine in this process, so that tests can look at its tensors.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the time that each folder's tests took, set-up included, so that its growth is seen."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = PurePosixPath(report.nodeid.partition("::")[0]).parent
                seconds[str(folder)] += report.duration
    terminalreporter.section("time per folder")
    for folder, duration_s in seconds.most_common():
        terminalreporter.write_line(f"{duration_s:8.1f} s  {folder}")


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """Leave out of garbage collection what is there already: statsmodels asks for a whole one at every correction."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def weights() -> Path:
    """The embedded model's folder; fetched on first use."""
    from steerdec import models

    return models.fetch()


@pytest.fixture(scope="session")
def steered_llm(weights: Path) -> SteeredLLM:
    """A real engine in this process, one for all tests: vLLM builds no second one beside it."""
    from steerdec.offline import SteeredLLM
    from tests.vllm_plugin.test_engine import ARGUMENTS

    return SteeredLLM(str(weights), telemetry_lanes=256, **ARGUMENTS)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with the embedded model, one for all tests; float32, so that an answer repeats in any batch."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ["--dtype", "float32", "--max-logprobs", "-1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with serving(log, *flags, environment={"VLLM_ENABLE_RESPONSES_API_STORE": "1"}) as base:
        yield base


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless browser, one for all tests of pages."""
    from tests.page.browser import start_chrome

    driver = start_chrome(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree as git would take it."""
    return builds.source_copy(tmp_path_factory.mktemp("source") / "steerdec")


@pytest.fixture(scope="session")
def built(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the sdist, built once."""
    return builds.build(source_tree, tmp_path_factory.mktemp("dist"), "--no-isolation")


@pytest.fixture(scope="session")
def wheel_python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment that has the wheel installed beside vLLM."""
    return builds.environment_with(built.wheel, tmp_path_factory.mktemp("wheel") / "venv")

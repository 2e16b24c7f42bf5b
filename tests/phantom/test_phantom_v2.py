"""The phantom on vLLM's V2 runner and our Triton kernels, in a whole server: smaller, because Triton's interpreter runs
them (`tests/support/v2_on_cpu`)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import httpx
import pytest

from steerdec.benchmarks.run.local_server import local_server
from steerdec.phantom import check
from steerdec.phantom.folder import write_phantom
from steerdec.phantom.kinds import KINDS

ROOT = Path(__file__).parents[2]
ARMS = "B,A/A,F-up,F-down,N-up,P-up,entropy_target"


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_every_number_is_right_on_the_v2_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom = tmp_path / "dose-only" / "phantom"
    write_phantom(KINDS["dose-only"], phantom)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support" / "v2_on_cpu"), str(ROOT)]),
        "STEERDEC_ROOT": str(ROOT),
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    with local_server(str(phantom), tmp_path / "log", environment=environment, start_timeout_s=900) as url:
        assert httpx.get(f"{url}/v1/steering", timeout=60).json()["runner"] == "v2"
        options = ["--kinds", "dose-only", "--arms", ARMS, "--limit", "10", "--samples", "1", "--calibrate", "none"]
        status = check.main([*options, "--no-analyses", "--endpoint", url, "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr()

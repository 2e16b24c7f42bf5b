"""The engine's part of the check, in this process and on a phantom, whose tokens are cheap: everything exact passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerdec.check import engine_part
from steerdec.check.part import Reporter, Settings
from steerdec.phantom.folder import write_phantom
from steerdec.phantom.kinds import KINDS


@pytest.mark.engine
def test_every_check_of_the_engine_has_a_result_and_the_exact_ones_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom(KINDS["claim-true"], tmp_path / "phantom")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    engine_part.run(Reporter(tmp_path / "results", Settings(str(tmp_path / "phantom"), [], quick=True)))
    lines = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    results = {line["result"]["check"]: line["result"] for line in lines if "result" in line}
    assert list(results) == [check for checks in engine_part.CHECKS.values() for check in checks]
    for name, result in results.items():
        # How fast it is, is measured on a quiet machine only; here the measuring has to end with a ratio.
        allowed = {"pass", "FAIL", "undecided"} if name.startswith("speed") else {"pass", "not applicable"}
        assert result["status"] in allowed, result
        assert not name.startswith("speed") or 0.1 < result["figures"]["ratio"] < 10
    (about,) = (line["about"] for line in lines if "about" in line)
    assert (about["runner"], about["kernels"]) == ("V1", "CPU")

"""What share of a step steering takes: by hand, and in the directions that must hold whatever is assumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steerdec.benchmarks.operations import sizing
from steerdec.benchmarks.operations.step_share import HEAD, MIN_P, STEERING, TEMPERATURE, Assumptions, kernels_s, table

GIVEN = Assumptions(sizing.Gpu())


def test_bytes_and_seconds_by_hand() -> None:
    assert STEERING.bytes(64, 100, fork_share=0.25) == 64 * 100 * 4 * 1.5
    assert TEMPERATURE.bytes(1, 100) + MIN_P.bytes(1, 100) == 5 * 400
    given = Assumptions(replace(sizing.Gpu(), bandwidth_bytes_per_s=1e12), launch_s=1e-6, bandwidth_share=0.5)
    assert kernels_s(TEMPERATURE, 10, 1000, given) == pytest.approx(1e-6 + 80_000 / 0.5e12)


def test_a_larger_model_gives_steering_a_smaller_share() -> None:
    lines = [dict(zip(HEAD, line, strict=True)) for line in table(GIVEN)]
    shares = {(line["model"], line["rows"]): float(line["share"].rstrip("%")) for line in lines}
    for rows in ("1", "64", "256"):
        assert shares["Llama-3.2-1B", rows] > shares["Qwen3-8B", rows] > shares["Qwen3-32B", rows] > 0
    assert all(float(line["steering, MB"]) < float(line["vLLM's two, MB"]) for line in lines)

"""A new policy is one folder and one line: tests/policies/toy, whose line is an entry point.

It runs in processes that have that folder on their path, as an installed distribution would be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.serving import command_running, free_port

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy")
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(map(str, (TOY, ROOT)))}

PARITY = """
import math, sys, torch
if sys.argv[1] == "triton":
    import tests.support.interpreted
from steerdec.kernels import dispatch
from steerdec.policies.registry import parse
from steerdec.steering.encoding import encode
steerings = [{"policy": "toy", "warm_temperature": 0.3, "gain": 0.4}, {"policy": "edt"}, {"policy": "dynatemp"}]
encoded = [encode(parse(steering), 0.7, 1.0) for steering in steerings]
floats = torch.tensor([one.floats for one in encoded])
ints = torch.tensor([one.ints(None) for one in encoded], dtype=torch.int32)
z = torch.randn(30, 4200, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 30)[:, None]
slots, positions = torch.arange(30) % 3, torch.arange(30)
expected, actual = z.clone(), z.clone()
right = dispatch.steer_(expected, floats, ints, slots, positions, backend="reference")
done = dispatch.steer_(actual, floats, ints, slots, positions, backend=sys.argv[1])
assert torch.equal(done.selected, right.selected) and right.selected[::3].any() and not right.selected[::3].all()
torch.testing.assert_close(done.temperature, right.temperature, rtol=1e-4, atol=0)
torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
forks = torch.nonzero(right.selected[::3])[:, 0] * 3
torch.testing.assert_close(right.temperature[forks], 0.3 + 0.4 * right.entropy_nats[forks])
"""


def done(command: list[str]) -> str:
    run = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_it_does_on_every_backend_what_its_reference_says(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    done([sys.executable, "-c", PARITY, backend])


@pytest.mark.engine
@pytest.mark.thorough
def test_it_is_an_arm_of_a_run(weights: Path, tmp_path: Path) -> None:
    arms = {
        "name": "toy",
        "baseline": "B",
        "arms": [
            {"name": "B", "role": "baseline"},
            {"name": "toy", "role": "treatment", "steering": {"policy": "toy", "warm_temperature": "x0.5"}},
            {"name": "target", "role": "treatment", "steering": {"policy": "entropy_target", "delta_nats": 0.5}},
            {"name": "dynatemp", "role": "treatment", "steering": {"policy": "dynatemp"}},
            {"name": "edt", "role": "treatment", "steering": {"policy": "edt"}},
        ],
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(arms))
    port = free_port()
    serve = [sys.executable, "-m", "steerdec", "serve", str(weights), "--port", str(port), "--dtype", "float32"]
    with command_running(serve, port, tmp_path / "server.log", environment=ENVIRONMENT):
        done(
            [
                *(sys.executable, "-m", "steerdec", "bench", "run", "--endpoint", f"http://127.0.0.1:{port}"),
                *("--problems", "embedded", "--limit", "2", "--samples", "2", "--max-tokens", "24"),
                *("--arms", str(tmp_path / "toy.yaml"), "--temperature", "0.8", "--threshold", "0.6"),
                *("--out", str(tmp_path / "run")),
            ]
        )
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {s["arm"]: len([t for t in samples if t["arm"] == s["arm"]]) for s in samples} == dict.fromkeys(
        ("B", "toy", "target", "dynatemp", "edt"), 4
    )
    assert sum(s["forks"] for s in samples if s["arm"] == "toy") > 0

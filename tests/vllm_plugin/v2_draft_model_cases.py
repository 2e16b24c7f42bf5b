"""Steering under speculative decoding with a draft model, in vLLM's whole V2 engine.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter. The draft model is the model itself with
noise on its weights, so that some of its drafts are accepted and some rejected.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.config import speculative
from vllm.engine.arg_utils import EngineArgs

from steerdec.telemetry import lanes as telemetry
from tests.support.tiny_lm import tiny_lm
from tests.support.v2_engine import OPEN, Engine
from tests.support.v2_episodes import STEERINGS, drafts_counted

DRAFTS = 2


def noisy(folder: Path) -> Path:
    """The model of `v2_engine.started`, with noise."""
    tiny_lm(folder, context_tokens=v2_engine.CAPACITY, head_dim=32)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, w in weights.items():
        weights[name] = w + 0.05 * torch.randn(w.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("v2")
    draft = {"method": "draft_model", "model": str(noisy(folder / "draft")), "num_speculative_tokens": DRAFTS}
    with telemetry.created(v2_engine.CAPACITY, max_lanes=65) as file:
        yield Engine(v2_engine.started(folder / "model", file, speculative_config=draft), file)


def test_zero_temperature_everywhere_is_greedy_under_drafts(engine: Engine) -> None:
    prompts = [[OPEN, *range(64 + n, 64 + 3 * n)] for n in range(1, 9)]
    varied = {"max_tokens": 24, "frequency_penalty": 2.0}  # the greedy text is one letter otherwise
    greedy = [engine.ask(p, None, temperature=0.0, **varied) for p in prompts]
    engine.run()
    zero = {"fork_temperature": 0.0, "other_temperature": 0.0}
    steered = [engine.ask(p, zero, temperature=1.0, seed=i, **varied) for i, p in enumerate(prompts)]
    with drafts_counted() as counted:
        engine.run()
    assert [one.tokens for one in steered] == [one.tokens for one in greedy]
    assert len({tuple(one.tokens) for one in greedy}) > 1
    assert 0 < counted["accepted"] < counted["drafts"]


def test_rows_and_records_under_drafts_are_those_of_the_reference(engine: Engine) -> None:
    """Also where the draft was rejected: the record is that of the token that stayed."""
    engine.rows = engine.wrong_rows = 0
    asked = [
        engine.ask([70, 64 + i], steering, seed=i, max_tokens=16, temperature=1.0)
        for i, steering in enumerate(STEERINGS)
    ]
    with drafts_counted() as counted, engine.watched():
        engine.run()
    assert engine.wrong_rows == 0
    assert [line for one in asked for line in engine.wrong_records(one)] == []
    assert engine.rows > len(asked) * 16, "no row was a rejected draft's"
    assert 0 < counted["accepted"] < counted["drafts"]


def test_vllm_itself_refuses_suffix_speculation_on_v2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With V1, vLLM would drop the processor, which we refuse. When this fails, suffix drafts are to be tested here."""
    monkeypatch.setattr(speculative, "has_arctic_inference", lambda: True)
    model = str(tiny_lm(tmp_path / "model", context_tokens=64, head_dim=32))
    arguments = EngineArgs(model=model, speculative_config={"method": "suffix", "num_speculative_tokens": 2})
    with pytest.raises(ValueError, match="Model Runner V2 does not yet support: speculative method 'suffix'"):
        arguments.create_engine_config()

"""The entropies of teacher forcing are those that the server reported while it sampled the same tokens."""

from __future__ import annotations

from typing import Any, Final

import httpx
import numpy as np
import pytest

from steerdec.analysis.traces import loading
from steerdec.analysis.traces.scoring import score_traces
from steerdec.analysis.traces.trace import Trace
from tests.support.serving import PATIENCE_S

pytestmark = pytest.mark.engine

QUESTIONS: Final = ("Name three animals.", "What is 17 + 25? Think step by step.", "Write a line about the sea.")


def sampled(url: str, question: str, seed: int) -> tuple[Trace, list[float]]:
    """An answer as the server's own token ids, and the entropies it reported."""
    body: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 48,
        "temperature": 1.0,
        "seed": seed,
        "return_token_ids": True,
        "steering": {"fork_temperature": 1.3, "threshold_nats": 0.6, "telemetry": "tokens"},
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).json()
    choice = answer["choices"][0]
    trace = Trace(
        problem_id=question,
        arm="server",
        sample=seed,
        prompt_ids=tuple(answer["prompt_token_ids"]),
        response_ids=tuple(choice["token_ids"]),
        gold="",
        kind="text",
        answer=None,
        grade="ungraded",
        finish_reason=choice["finish_reason"],
        text=choice["message"]["content"],
        ids_are="sampled",
    )
    return trace, choice["steering"]["entropy_nats"]


def differences_nats(url: str, dtype: str) -> np.ndarray:
    """|reported - by teacher forcing| of every token of six answers; the server runs in `dtype`."""
    answers = [sampled(url, question, seed) for question in QUESTIONS for seed in (1, 2)]
    loaded = loading.load("SmolLM2-135M-Instruct", dtype=dtype)
    apart = []
    for (_, reported), scores in zip(answers, score_traces(loaded, [trace for trace, _ in answers]), strict=True):
        assert len(reported) == len(scores.entropy_nats) > 4
        assert np.max(scores.entropy_nats) > 0.5  # tokens that have an entropy, not only certain ones
        apart.append(np.abs(np.array(reported) - scores.entropy_nats))
    return np.concatenate(apart)


def test_teacher_forcing_equals_what_vllm_reported(server_url: str) -> None:
    """In float32. What bfloat16 leaves of it stands in docs/log.md."""
    assert np.max(differences_nats(server_url, "float32")) < 1e-4

"""The requests of the parallel drill: every policy and scope, streamed and not, and clients who leave early."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from tests.support.expected_records import COLUMNS, Returned

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATIENCE_S = 1800.0  # ranks that wait for each other are slow where other work holds the cores
AT_ONCE = 48  # few steps of the engine for many tokens
THRESHOLD_NATS = 1.5  # about half of the drill's model is above
OPEN, CLOSE = 71, 150  # two tokens that the model writes, as the delimiters of a thinking block
POLICIES: tuple[dict[str, Any], ...] = (
    {"fork_temperature": 1.6, "other_temperature": 0.6},
    {"fork_temperature": 0.0},
    {"policy": "entropy_target", "delta_nats": 0.3},
    {"policy": "dynatemp", "min_temperature": 0.4, "max_temperature": 1.8},
    {"policy": "edt", "theta": 0.5},
    {"policy": "p_less", "fork_temperature": 1.2},
    {"policy": "uniform_top_k", "k": 3, "other_temperature": 0.7},
)
SELECTORS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"select": "random", "fork_rate": 0.4},
    {"select": "first", "first_tokens": 5},
    {"select": "all"},
)
SCOPES = ("all", "all", "thinking", "answer")
PROBES: tuple[dict[str, Any], ...] = ({}, {"probe_temperature": 0.5}, {"probe_temperature": "applied"})


@dataclass(frozen=True)
class Planned:
    """One request. `leave_after` is the number of chunks after which its client is gone; None if it stays."""

    name: str
    path: str
    body: dict[str, Any]
    prompt: list[int]
    leave_after: int | None

    @property
    def kind(self) -> str:
        kind = "plain" if "steering" not in self.body else f"steered, telemetry {self.body['steering']['telemetry']}"
        return kind if self.leave_after is None else f"{kind}, client leaves"


def planned(requests: int, model: str, tokenizer: Any, seed: int) -> list[Planned]:
    """`requests` of them; equal seeds give equal requests."""
    rng = np.random.default_rng(seed)
    return [_one(i, model, tokenizer, rng) for i in range(requests)]


def _one(i: int, model: str, tokenizer: Any, rng: np.random.Generator) -> Planned:
    fate, chat, stream = float(rng.random()), bool(rng.integers(2)), bool(rng.integers(2))
    leaves = fate < 0.2
    ids = [int(token) for token in rng.integers(32, 250, int(rng.integers(3, 40)))]
    body: dict[str, Any] = {
        "model": model,
        "n": int(rng.integers(1, 4)),
        "temperature": round(float(rng.uniform(0.7, 1.3)), 3),
        "max_tokens": 400 if leaves else int(rng.integers(1, 33)),
        "seed": int(rng.integers(2**40)),
        "stream": stream or leaves,
        "return_token_ids": True,
    }
    if leaves:
        body["ignore_eos"] = True
    if chat:
        text = f"Tell {tokenizer.decode([token for token in ids if token < 120])}"
        body["messages"] = [{"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(written, add_special_tokens=False).input_ids
    else:
        body["prompt"] = ids
    if fate < 0.9:  # else a plain request
        scope = str(rng.choice(SCOPES))
        body["steering"] = {
            "threshold_nats": THRESHOLD_NATS,
            "telemetry": str(rng.choice(["tokens"] * 8 + ["summary", "none"])),
            **({} if scope == "all" else {"scope": scope, "thinking_start_id": OPEN, "thinking_end_id": CLOSE}),
            **POLICIES[i % len(POLICIES)],
            **SELECTORS[int(rng.integers(len(SELECTORS)))],
            **PROBES[int(rng.integers(len(PROBES)))],
        }
    path = CHAT if chat else COMPLETIONS
    leave_after = int(rng.integers(1, 12)) if leaves else None
    return Planned(f"request {i} {body.get('steering', 'plain')}", path, body, ids, leave_after)


async def sent(url: str, requests: list[Planned]) -> tuple[list[Returned], Counter[str], list[str]]:
    """Send all, AT_ONCE at a time, each on a connection of its own, so that every front end gets some.

    Returns what came back, the requests by kind, and one line for each that failed.
    """
    returned: list[Returned] = []
    kinds: Counter[str] = Counter()
    failed: list[str] = []
    places, context = asyncio.Semaphore(AT_ONCE), httpx.create_ssl_context(trust_env=False)

    async def one(p: Planned) -> None:
        async with places, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False, verify=context) as http:
            kinds[p.kind] += 1
            try:
                returned.extend(await _answer(http, p))
            except (httpx.HTTPError, AssertionError) as e:
                failed.append(f"{p.name}: {type(e).__name__} {e}")

    await asyncio.gather(*map(one, requests))
    return returned, kinds, failed


async def _answer(http: httpx.AsyncClient, p: Planned) -> list[Returned]:
    steering, seed = p.body.get("steering"), p.body["seed"]
    choices = [
        Returned(f"{p.name}, choice {i}", p.prompt, p.body["temperature"], seed + i, steering)
        for i in range(p.body["n"])
    ]
    if not p.body["stream"]:
        response = await http.post(p.path, json=p.body)
        assert response.status_code == 200, response.text[:300]
        _take(choices, response.json())
    else:
        chunks = 0
        async with http.stream("POST", p.path, json=p.body) as response:
            assert response.status_code == 200, (await response.aread())[:300]
            async for line in response.aiter_lines():
                for chunk in _chunks(line):
                    _take(choices, chunk)
                    chunks += 1
                if chunks == p.leave_after:
                    return choices
    left = [one.name for one in choices if not (one.finished and one.tokens)]
    assert not left, f"did not finish: {left[0]}"
    return choices


def _chunks(line: str) -> Iterator[dict[str, Any]]:
    text = line.removeprefix("data:").strip()
    if line.startswith("data:") and text != "[DONE]":
        yield json.loads(text)


def _take(choices: list[Returned], answer: dict[str, Any]) -> None:
    """Add what an answer, or a chunk of one, says to its choices."""
    assert "error" not in answer, answer
    for piece in answer["choices"]:
        one = choices[piece["index"]]
        one.tokens += piece.get("token_ids") or []
        one.finished |= piece.get("finish_reason") is not None
        for name, value in (piece.get("steering") or {}).items():
            if name in COLUMNS:
                one.records.setdefault(name, []).extend(value)
            else:
                one.summary[name] = value

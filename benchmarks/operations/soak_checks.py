"""What a soak sends, and the checks of a single answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerdec.records.arms import applied
from steerdec.steering.params import Applied

LEAVING, REFUSED, PLAIN = 1 / 3, 0.07, 0.1  # shares of the requests
T_LOW, T_HIGH = 0.3, 1.5  # of steered temperatures
MAX_TOKENS = (4, 40)
LEAVING_TOKENS = 1000  # requested by clients that disconnect before they are generated
ENTROPY_ERROR_NATS = 1e-3
TEMPERATURE_ERROR = 1e-6  # relative; two requests' temperatures are further apart up to 10^5 requests

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOPICS = ("three animals", "a river", "the months", "two colors", "a fruit", "the planets", "a city", "some birds")
REFUSALS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"fork_temperature": "hot"}, "steering.fork_temperature"),
    ({"forks": 1}, "steering.forks"),
    ({"policy": "best"}, "steering.policy"),
    ({"select": "random"}, "steering.fork_rate"),
    ({"threshold_nats": -0.1}, "steering.threshold_nats"),
)


@dataclass(frozen=True)
class Plan:
    """One request and its planned outcome."""

    index: int
    kind: str
    path: str
    body: dict[str, Any]
    refused_field: str | None = None  # the `param` of the expected 400
    leave_after_s: float | None = None
    leave_after_lines: int = 0

    def __str__(self) -> str:
        how = "streamed" if self.body["stream"] else "whole"
        return f"request {self.index} ({self.kind}, {self.path}, {how}, n = {self.body['n']})"


def plan(requests: int, model: str, seed: int) -> list[Plan]:
    """Return `requests` mixed requests; equal seeds give equal requests."""
    rng = np.random.default_rng(seed)
    # Two unique temperatures for every request: a permutation of a grid, because draws could coincide.
    grid = np.linspace(T_LOW, T_HIGH, 2 * requests).round(6)
    pairs = rng.permutation(grid).reshape(requests, 2).tolist()
    return [_one(i, model, fork_t, other_t, rng) for i, (fork_t, other_t) in enumerate(pairs)]


def _one(i: int, model: str, fork_t: float, other_t: float, rng: np.random.Generator) -> Plan:
    chat, stream, n = bool(rng.integers(2)), bool(rng.integers(2)), int(rng.integers(1, 3))
    ask = f"Name {TOPICS[int(rng.integers(len(TOPICS)))]}, number {i}."
    steering: dict[str, Any] = {
        "fork_temperature": fork_t,
        "other_temperature": other_t,
        "threshold_nats": round(float(rng.uniform(0.3, 1.5)), 3),
        "telemetry": "tokens",
    }
    select = rng.choice(["entropy", "entropy", "random", "all"])
    if select == "random":
        steering |= {"select": "random", "fork_rate": 0.3}
    elif select == "all":
        steering["select"] = "all"
    body: dict[str, Any] = {
        "model": model,
        "seed": int(rng.integers(2**40)),
        "n": n,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        "temperature": round(float(rng.uniform(0.5, 1.3)), 3),
        "max_tokens": int(rng.integers(*MAX_TOKENS)),
        "return_token_ids": n > 1 or bool(rng.integers(2)),  # without them, only one choice's length is reported
        "steering": steering,
        **({"messages": [{"role": "user", "content": ask}]} if chat else {"prompt": ask}),
    }
    path = CHAT if chat else COMPLETIONS
    fate = float(rng.random())
    if fate < LEAVING:
        body |= {"max_tokens": LEAVING_TOKENS, "ignore_eos": True}
        lines, seconds = int(rng.integers(1, 20)), float(rng.uniform(0.05, 4.0))
        return Plan(i, "client leaves", path, body, leave_after_s=seconds, leave_after_lines=lines)
    if fate < LEAVING + REFUSED:
        wrong, name = REFUSALS[int(rng.integers(len(REFUSALS)))]
        return Plan(i, "must be refused", path, body | {"steering": wrong}, refused_field=name)
    if fate < LEAVING + REFUSED + PLAIN:
        return Plan(i, "unsteered", path, {k: v for k, v in body.items() if k != "steering"})
    telemetry = str(rng.choice(["tokens"] * 6 + ["summary", "none"]))
    return Plan(i, f"steered, {telemetry}", path, body | {"steering": steering | {"telemetry": telemetry}})


def gathered(p: Plan, text: str) -> list[dict[str, Any]]:
    """Return the choices of an answer, whole or in chunks, in one form.

    Each has `tokens` (their number), `steering`, `finished`, and `problem` if the choice itself is wrong.
    """
    if not p.body["stream"]:
        chunks = [json.loads(text)]
    else:
        events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        chunks = [json.loads(event) for event in events if event != "[DONE]"]
    choices: list[dict[str, Any]] = [{"tokens": 0, "steering": {}, "finished": False} for _ in range(p.body["n"])]
    for piece in (piece for chunk in chunks for piece in chunk.get("choices", [])):
        choice = choices[piece["index"]]
        if piece.get("token_ids") is not None and not p.body["return_token_ids"]:
            choice["problem"] = "has token ids that were not requested"
        choice["tokens"] += len(piece.get("token_ids") or [])
        choice["finished"] = choice["finished"] or piece.get("finish_reason") is not None
        for name, value in (piece.get("steering") or {}).items():
            old = choice["steering"].get(name, [])
            choice["steering"][name] = [*old, *value] if isinstance(value, list) else value
    if not p.body["return_token_ids"]:
        choices[0]["tokens"] = next((c["usage"]["completion_tokens"] for c in chunks if c.get("usage")), 0)
    return choices


def check_answer(p: Plan, choices: list[dict[str, Any]]) -> list[str]:
    """Return one line for everything that is wrong with the answer; [] if nothing is."""
    requested = p.body.get("steering")
    problems = []
    for i, choice in enumerate(choices):
        steering = choice["steering"]
        if "problem" in choice:
            problems.append(f"choice {i} {choice['problem']}")
        elif not choice["finished"] or not choice["tokens"]:
            problems.append(f"choice {i} did not finish")
        elif requested is None or requested["telemetry"] == "none":
            if steering:
                problems.append(f"choice {i} has telemetry that was not requested: {sorted(steering)}")
        else:
            problem = _summary_problem(requested, choice)
            if problem is None and requested["telemetry"] == "tokens":
                problem = _token_problem(requested, applied(p.body["temperature"], requested), choice)
            problems += [f"choice {i}: {problem}"] if problem else []
    return problems


def _summary_problem(requested: dict[str, Any], choice: dict[str, Any]) -> str | None:
    steering, tokens = choice["steering"], choice["tokens"]
    if steering.get("tokens") != tokens:
        return f"{tokens} tokens were received, the summary says {steering.get('tokens')}"
    if steering["threshold_nats"] != requested["threshold_nats"]:
        return f"threshold {steering['threshold_nats']}, requested {requested['threshold_nats']}"
    if abs(steering["fork_rate"] - steering["forks"] / tokens) > 1e-9:
        return f"fork rate {steering['fork_rate']} of {steering['forks']} forks in {tokens} tokens"
    return None


def _token_problem(requested: dict[str, Any], temperatures: Applied, choice: dict[str, Any]) -> str | None:
    steering, tokens = choice["steering"], choice["tokens"]
    h, fork, t = steering["entropy_nats"], steering["fork"], steering["temperature"]
    if not len(h) == len(fork) == len(t) == tokens:
        return f"{tokens} tokens, {len(h)} entropies, {len(fork)} fork marks, {len(t)} temperatures"
    if None in h or None in t:
        return f"{h.count(None)} tokens have no record"
    select = requested.get("select", "entropy")
    threshold_nats = requested["threshold_nats"]
    for i in range(tokens):
        # Entropies have seven digits: one that close to the threshold may be on either side of it.
        if select == "entropy" and fork[i] != (h[i] > threshold_nats) and abs(h[i] - threshold_nats) > 1e-6:
            return f"token {i} with H = {h[i]} at threshold {threshold_nats} is marked {fork[i]}"
        if select == "all" and not fork[i]:
            return f'token {i} is not marked as a fork, although select is "all"'
        own_t = temperatures.fork if fork[i] else temperatures.other
        assert own_t is not None, "policy split fixes its temperatures"
        if abs(t[i] - own_t) > TEMPERATURE_ERROR * own_t:
            return f"token {i} was sampled at {t[i]}, requested {own_t}: the record of another request or token"
    if steering["forks"] != sum(fork):
        return f"{sum(fork)} forks are marked, the summary says {steering['forks']}"
    if abs(steering["mean_entropy_nats"] - sum(h) / tokens) > 1e-5:
        return f"the entropies' mean is {sum(h) / tokens}, the summary says {steering['mean_entropy_nats']}"
    return None


def repeat_problems(first: list[dict[str, Any]], again: list[dict[str, Any]]) -> list[str]:
    """Return one line for each difference between the first and the second answer to the same request."""
    if len(first) != len(again):
        return [f"{len(first)} choices, then {len(again)}"]
    problems = []
    for i, (a, b) in enumerate(zip(first, again, strict=True)):
        h, g = a["steering"]["entropy_nats"], b["steering"].get("entropy_nats", [])
        if len(h) != len(g):
            problems.append(f"choice {i}: {len(h)} tokens, then {len(g)}")
        elif (
            worst := max(abs(x - (np.inf if y is None else y)) for x, y in zip(h, g, strict=True))
        ) > ENTROPY_ERROR_NATS:
            problems.append(f"choice {i}: entropies differ by up to {worst:.2g} nats")
    return problems

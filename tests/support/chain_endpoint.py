"""An endpoint whose tokens are a Markov chain, and the exact value of branching on it.

It stands in for a real model because nobody knows of one how often a tree of its continuations has a right answer. It
is asked without sockets, as in `tests.support.planted`: token ids, telemetry, /tokenize and /detokenize are as
`steerdec serve` answers them. The exact values come from listing every response, with none of the code that measures.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np

from steerdec.benchmarks.run.endpoints import Endpoint
from steerdec.benchmarks.run.targets import Target
from steerdec.phantom.chain import END, Chain, Option
from tests.support.scripted_endpoint import Body, Script, about, models

THRESHOLD_NATS = 0.5
RULES = 5
NAMES = tuple(f" rule{r}" for r in range(RULES))
RIGHT = "7"  # the answer to every problem
Answers = Mapping[str, float]  # probability of every final answer


def late(rule: int) -> dict[str, tuple[Option, ...]]:
    """Return the states of a rule whose one fork comes late: a tree repeats only what is certain before it."""
    return _deciding(rule, before=6)


def first(rule: int) -> dict[str, tuple[Option, ...]]:
    """Return the states of a rule whose one fork is the first token: a tree is five responses of their own."""
    return _deciding(rule, before=0)


def decided(rule: int) -> dict[str, tuple[Option, ...]]:
    """Return the states of a rule decided by a token below the threshold, before its fork: a tree has one outcome."""
    name, p = f"r{rule}", 0.84 + 0.03 * rule
    ways = (("right", "box7", p), ("wrong", "box1", 1.0 - p))
    states = {f"{name}.0": tuple(Option(f" {name}-{way}", chance, f"{name}.{way}") for way, _, chance in ways)}
    for way, to, _ in ways:
        states[f"{name}.{way}"] = tuple(Option(f" {name}-{way}-{side}", 0.25, to) for side in "abcd")
    return states


def _deciding(rule: int, *, before: int) -> dict[str, tuple[Option, ...]]:
    name, p = f"r{rule}", 0.2 + 0.1 * rule
    steps = [f"{name}.{i}" for i in range(before + 1)]
    states = {here: (Option(f" {name}-{i}", 1.0, after),) for i, (here, after) in enumerate(pairwise(steps))}
    rest = (1.0 - p) / 3
    states[steps[-1]] = (
        Option(f" {name}-good", p, "box7"),
        Option(f" {name}-bad", rest, "long"),
        Option(f" {name}-worse", rest, "box2"),
        Option(f" {name}-none", rest, "silent"),
    )
    return states


def chain_of(rule: Callable[[int], dict[str, tuple[Option, ...]]]) -> Chain:
    """Return the chain of all rules; a problem's prompt is one token that names its rule."""
    states = {f"box{a}": (Option(f" \\boxed{{{a}}}", 1.0, "end"),) for a in (RIGHT, "1", "2")}
    states |= {"end": (Option(END, 1.0, None),), "silent": (Option(" Hm.", 1.0, "end"),)}
    states |= {f"long{i}": (Option(f" so{i}", 1.0, f"long{i + 1}"),) for i in range(3)}
    states |= {"long": (Option(" so", 1.0, "long0"),), "long3": (Option(" then", 1.0, "box1"),)}
    for r in range(RULES):
        states |= rule(r)
    return Chain(states, {name: f"r{r}.0" for r, name in enumerate(NAMES)})


class ChainEndpoint(Endpoint):
    """Answer by a chain; `fails(number)` may raise before the request of that number, from 0, is answered."""

    def __init__(self, chain: Chain, fails: Callable[[int, Body], None]) -> None:
        self.chain, self.url, self.connections = chain, "http://chain", 8
        self.asked = 0
        self._fails = fails
        self._after, self._entropy, self._tokens = chain.state_after(), chain.entropy_nats(), chain.tokens
        self._number = {text: i for i, text in enumerate(self._tokens)}

    async def get_json(self, path: str) -> dict[str, Any]:
        return {"/v1/models": models, "/v1/steering": about}[path](Script({}))

    async def post(self, path: str, body: dict[str, Any], *, max_bytes: int) -> bytes:
        if path == "/tokenize":
            return json.dumps({"tokens": self._prompt(body)}).encode()
        if path == "/detokenize":
            return json.dumps({"prompt": "".join(self._tokens[i] for i in body["tokens"])}).encode()
        self._fails(self.asked, body)
        self.asked += 1
        return json.dumps(self._answer(body)).encode()

    async def close(self) -> None:
        pass

    def _prompt(self, body: Body) -> list[int]:
        asked = body["messages"][-1]["content"]
        return [self._number[next(name for name in NAMES if name in asked)]]

    def _answer(self, body: Body) -> Body:
        prompt = self._prompt(body) if "messages" in body else body["prompt"]
        rng = np.random.default_rng(body["seed"])
        state, ids, entropies = self._after[self._tokens[prompt[-1]]], [], []
        while state is not None and len(ids) < body["max_tokens"]:
            options = self.chain.states[state]
            at = int(np.searchsorted(np.cumsum([o.probability for o in options])[:-1], rng.random(), side="right"))
            entropies.append(max(0.0, float(self._entropy[state])))
            ids.append(self._number[options[at].text])
            state = options[at].to
        text = "".join(self._tokens[i] for i in ids).removesuffix(END)
        choice: Body = {"index": 0, "finish_reason": "stop" if state is None else "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
        if "steering" in body:
            choice["steering"] = _telemetry(body, entropies)
        return {"object": "completion", "model": "scripted", "choices": [choice], "usage": _usage(ids)}


def _usage(ids: list[int]) -> Body:
    return {"completion_tokens": len(ids)}


def _telemetry(body: Body, entropies: list[float]) -> Body:
    threshold = body["steering"]["threshold_nats"]
    fork, mean = [h > threshold for h in entropies], sum(entropies) / len(entropies)
    told: Body = {"tokens": len(entropies), "forks": sum(fork), "fork_rate": sum(fork) / len(entropies)}
    told |= {"mean_entropy_nats": mean, "threshold_nats": threshold, "mean_probe_entropy_nats": mean}
    if body["steering"].get("telemetry") == "tokens":
        told |= {"entropy_nats": entropies, "fork": fork, "probe_entropy_nats": entropies}
        told["temperature"] = [body["temperature"]] * len(entropies)
    return told


@dataclass(frozen=True)
class ChainTarget(Target):
    chain: Chain | None = None
    fails: Callable[[int, Body], None] = field(default=lambda number, body: None)

    @asynccontextmanager
    async def opened(self, urls: tuple[str, ...]) -> AsyncIterator[list[Endpoint]]:
        assert self.chain is not None
        yield [ChainEndpoint(self.chain, self.fails)]


def target(chain: Chain, fails: Callable[[int, Body], None] = lambda number, body: None) -> ChainTarget:
    return ChainTarget(
        endpoints=("http://chain",),
        model=None,
        dtype=None,
        concurrency=8,
        timeout_s=60.0,
        api_key=None,
        chain=chain,
        fails=fails,
    )


# The exact values ----------------------------------------------------------------------------------


SIZES = 6  # 0 to 5 plain samples
Triple = tuple[float, float, float]  # any right, majority, accuracy


@dataclass(frozen=True)
class Exact:
    """The value of a tree, and of 0, 1, ... plain samples, with the mean tokens of a tree and of a plain sample."""

    tree: Triple
    plain: tuple[Triple, ...]
    tree_tokens: float
    plain_tokens: float


def exact(chain: Chain, rule: int, place: str, continuations: int) -> Exact:
    """Return the exact values for a problem of a rule, by listing all responses and all votes."""
    entropies, start = chain.entropy_nats(), f"r{rule}.0"
    tree, tokens = np.zeros(3), 0.0
    for chance, states, texts in _responses(chain, start):
        fork = [entropies[state] > THRESHOLD_NATS for state in states]
        at = [i for i, one in enumerate(fork) if one == (place != "other")] or [0]
        if place == "highest":
            at = [max(at, key=lambda i: (entropies[states[i]], -i))]
        for position in at:
            answers, length = _answers(chain, states[position], tuple(texts[:position]))
            share = chance / len(at)
            tree += share * _value(answers, continuations, given=(_answer(texts),))
            tokens += share * (len(states) + continuations * length)
    answers, length = _answers(chain, start, ())
    p = answers.get(RIGHT, 0.0)
    plain = [(0.0, 0.0, p), *((*_value(answers, m, given=())[:2], p) for m in range(1, SIZES))]
    return Exact((tree[0], tree[1], tree[2]), tuple(plain), tokens, length)


def _responses(chain: Chain, state: str | None) -> Iterator[tuple[float, list[str], list[str]]]:
    """Yield (probability, state before each token, text of each token) of every response from a state."""
    if state is None:
        yield 1.0, [], []
        return
    for option in chain.states[state]:
        for chance, states, texts in _responses(chain, option.to):
            yield option.probability * chance, [state, *states], [option.text, *texts]


def _answer(texts: Sequence[str]) -> str:
    """Return the answer in the box, "" for none."""
    return next((text[len(" \\boxed{") : -1] for text in texts if "boxed" in text), "")


def _answers(chain: Chain, state: str, prefix: tuple[str, ...]) -> tuple[Answers, float]:
    """Return the probabilities of the answers from a state on, and the mean number of tokens from there."""
    answers: dict[str, float] = {}
    tokens = 0.0
    for chance, states, texts in _responses(chain, state):
        answer = _answer((*prefix, *texts))
        answers[answer] = answers.get(answer, 0.0) + chance
        tokens += chance * len(states)
    return answers, tokens


def _value(answers: Answers, drawn: int, given: tuple[str, ...]) -> np.ndarray:
    """Return (any right, majority, accuracy) of `drawn` independent answers besides those given."""
    total = np.zeros(3)
    for combination in product(answers, repeat=drawn):
        chance = float(np.prod([answers[one] for one in combination]))
        every = [*given, *combination]
        voted = [one for one in every if one]
        most = max((voted.count(one) for one in voted), default=0)
        winners = {one for one in voted if voted.count(one) == most}
        share = 1 / len(winners) if RIGHT in winners else 0.0
        total += chance * np.array([RIGHT in every, share, every.count(RIGHT) / len(every)])
    return total

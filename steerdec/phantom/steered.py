"""Each state's distribution after steering, by the specification: `steerdec.kernels.reference` in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from steerdec.kernels import reference
from steerdec.phantom.chain import END_OF_THINKING, NEVER_NATS, THINK, Chain, Floats
from steerdec.policies import registry
from steerdec.softmax.reference import entropy_nats
from steerdec.steering import encoding

BYTES: Final = 256  # tokens of the vocabulary that no state generates; they spell the prompts
Request = Mapping[str, Any]  # the `steering` object of a request


@dataclass(frozen=True)
class Part:
    """One way in which the next token may be sampled, and its probability."""

    weight: float
    probabilities: Floats  # [states, tokens]
    fork: Floats  # [states] 1 where the token counts as a fork
    entropy_nats: Floats  # [states] of the model's own distribution
    sampled_nats: Floats  # [states] of the distribution that is sampled


@dataclass
class Steered:
    """The distributions of a chain's states under any request at one base temperature."""

    chain: Chain
    temperature: float = 1.0
    _made: dict[str, Part] = field(default_factory=dict)

    @cached_property
    def names(self) -> list[str]:
        """Return the states, in the order of all arrays here."""
        return list(self.chain.states)

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def logits(self) -> torch.Tensor:
        """Return [states, vocabulary] as the model's head gives them, before any temperature."""
        own = self.chain.log_probabilities()
        return torch.from_numpy(np.pad(own, ((0, 0), (0, BYTES)), constant_values=NEVER_NATS))

    @cached_property
    def entropies_nats(self) -> Floats:
        """Return [states] H of the model's own distribution."""
        h: Floats = entropy_nats(self.logits).numpy()
        return h

    @cached_property
    def move(self) -> Floats:
        """Return [tokens, states] 1 where a token leads to a state."""
        after = self.chain.state_after()
        move = np.zeros((len(self.chain.tokens), len(self.names)))
        for t, text in enumerate(self.chain.tokens):
            if (to := after[text]) is not None:
                move[t, self.index[to]] = 1.0
        return move

    @cached_property
    def section(self) -> list[str]:
        """Return where each state's next token lies: "thinking", "answer", or "neither"."""
        answering = [o.to for options in self.chain.states.values() for o in options if o.text == END_OF_THINKING]
        seen: set[str] = set()
        while answering:
            name = answering.pop()
            if name is not None and name not in seen:
                seen.add(name)
                answering += [option.to for option in self.chain.states[name]]
        before = "thinking" if THINK in self.chain.starts else "neither"
        return ["answer" if name in seen else before for name in self.names]

    def parts(self, request: Request | None, position: int, threshold_nats: float) -> list[Part]:
        """Return the ways in which the token at `position` is sampled, over every state; None: without steering.

        The placebo selects positions by a hash of the request's seed. Over seeds it selects like a random draw, which
        has two ways: every token selected, or none.
        """
        asked = {"threshold_nats": threshold_nats} | dict(request or {"select": "random", "fork_rate": 0.0})
        if registry.parse(asked).remembers:
            raise ValueError(f"{asked}: what it does to a token depends on the tokens before, not on the state alone")
        select = asked.get("select")
        if select == "random":
            share = round(asked["fork_rate"] * 2**24) / 2**24
            ways = [(share, self.selecting(asked, True)), (1.0 - share, self.selecting(asked, False))]
        elif select == "first":
            ways = [(1.0, self.selecting(asked, position < asked["first_tokens"]))]
        else:
            ways = [(1.0, asked)]
        return [self.part(way, weight) for weight, way in ways if weight > 0.0]

    @staticmethod
    def selecting(request: Request, every: bool) -> dict[str, Any]:
        """Return the request with every token selected, or none."""
        rest = {name: value for name, value in request.items() if name not in ("fork_rate", "first_tokens")}
        return rest | ({"select": "all"} if every else {"select": "random", "fork_rate": 0.0})

    def part(self, request: Request, weight: float = 1.0) -> Part:
        """Return [states] under a request that treats all positions alike."""
        key = repr((weight, sorted(request.items())))
        if key not in self._made:
            self._made[key] = self._part(dict(request), weight)
        return self._made[key]

    @cached_property
    def _alike(self) -> tuple[list[int], list[int]]:
        """Return (one state for each distinct distribution, the index of each state's own distribution among these).

        Half of the states have one option only, so this saves most of the work.
        """
        seen: dict[tuple[object, ...], int] = {}
        firsts: list[int] = []
        own = []
        for i, name in enumerate(self.names):
            key = (self.section[i], *(option.probability for option in self.chain.states[name]))
            if key not in seen:
                seen[key] = len(firsts)
                firsts.append(i)
            own.append(seen[key])
        return firsts, own

    def _part(self, request: dict[str, Any], weight: float) -> Part:
        scope = request.pop("scope", "all")  # decided here: the chain knows its sections without the tokens' ids
        request |= {"probe_temperature": "applied", "telemetry": "none"}
        encoded = encoding.encode(registry.parse(request), self.temperature, 0.0)
        firsts, own = self._alike
        logits = self.logits[firsts]
        outcome = reference.steer_(
            logits,
            torch.tensor([encoded.floats], dtype=torch.float64),
            torch.tensor([encoded.ints(0)]),
            torch.zeros(len(logits), dtype=torch.int64),
            torch.zeros(len(logits), dtype=torch.int64),
            None if scope == "all" else torch.tensor([self.section[i] == scope for i in firsts]),
        )
        of_firsts = torch.softmax(logits / self.temperature, -1).numpy()
        probabilities = np.zeros((len(self.names), len(self.chain.tokens)))
        for i, columns in enumerate(self._columns):
            probabilities[i, columns] = of_firsts[own[i], self._columns[firsts[own[i]]]]
        return Part(
            weight,
            probabilities,
            outcome.selected.double().numpy()[own],
            outcome.entropy_nats.numpy()[own],
            outcome.probe_entropy_nats.numpy()[own],
        )

    @cached_property
    def _columns(self) -> list[list[int]]:
        """Return for each state the possible next tokens, in the order of its options."""
        column = {text: i for i, text in enumerate(self.chain.tokens)}
        return [[column[option.text] for option in options] for options in self.chain.states.values()]

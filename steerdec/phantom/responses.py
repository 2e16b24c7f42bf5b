"""The exact numbers of a recorded response, token by token, given its text.

A response's text determines its tokens, these determine the states it went through, and a state's distribution under a
request is known. So forks and entropies of a response are exact, and its tokens are draws from known distributions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steerdec.kernels import reference
from steerdec.phantom.chain import END, END_OF_THINKING, Floats
from steerdec.phantom.steered import Part, Request, Steered
from steerdec.steering import encoding

PLAIN: Request = {"select": "random", "fork_rate": 0.0}


class ResponseError(ValueError):
    """A text that the chain cannot have written; the message is one plain line."""


@dataclass(frozen=True)
class Expected:
    """A response's exact numbers, one entry per token."""

    states: list[int]  # where each token was sampled
    tokens: list[int]  # which token of the chain was
    parts: list[Part]  # how it was sampled
    entropy_nats: Floats
    sampled_nats: Floats
    fork: Floats


def tokens_of(text: str, ended: bool) -> list[str]:
    """Return the texts of a response's tokens; `ended` adds the last one, which is not in the text."""
    words = text.replace(END_OF_THINKING, f" {END_OF_THINKING}").split(" ")[1:]
    return [word if word == END_OF_THINKING else f" {word}" for word in words] + ([END] if ended else [])


class Reader:
    """Reads responses of one phantom."""

    def __init__(self, steered: Steered) -> None:
        self._steered = steered
        self._column = {text: i for i, text in enumerate(steered.chain.tokens)}
        self._after = steered.chain.state_after()
        self._possible = [{option.text for option in options} for options in steered.chain.states.values()]

    def expected(self, rule: str, text: str, ended: bool, request: Request | None, seed: int) -> Expected:
        """Return the exact numbers of a response to a problem of that rule.

        Args:
            request: the resolved steering of its arm, with its threshold; None for a plain request.
            seed: of the request, which decides where the placebo steers.

        Raises:
            ResponseError: the text is not one of the chain's.
        """
        states, tokens, parts = [], [], []
        state: str | None = self._steered.chain.starts[rule]
        for position, token in enumerate(tokens_of(text, ended)):
            if state is None or token not in self._possible[self._steered.index[state]]:
                raise ResponseError(f"token {position + 1}, {token!r}, cannot come after {state}")
            states.append(self._steered.index[state])
            tokens.append(self._column[token])
            parts.append(self.part(PLAIN if request is None else request, position, seed))
            state = self._after[token]
        pairs = list(zip(parts, states, strict=True))
        return Expected(
            states,
            tokens,
            parts,
            np.array([part.entropy_nats[i] for part, i in pairs]),
            np.array([part.sampled_nats[i] for part, i in pairs]),
            np.array([part.fork[i] for part, i in pairs]),
        )

    def part(self, request: Request, position: int, seed: int) -> Part:
        """Return how the token at `position` is sampled in a request with that seed."""
        select = request.get("select")
        if select == "random":
            cutoff = round(request["fork_rate"] * 2**24)
            selected = reference.placebo_hash(encoding.placebo_key(seed), position) < cutoff
        elif select == "first":
            selected = position < request["first_tokens"]
        else:
            return self._steered.part(request)
        return self._steered.part(self._steered.selecting(request, selected))

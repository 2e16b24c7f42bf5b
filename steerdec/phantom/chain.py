"""A Markov chain over tokens: the next token depends only on the last one, and every response ends.

A token leads to a state, and a state has one distribution over tokens. Tokens that lead to the same state have texts of
their own, so that a response's text determines its tokens. Nothing leads back, so sums over all responses are finite.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
THINK: Final = "<think>"
END_OF_THINKING: Final = "</think>"
END: Final = "<end>"
# Log-probability of impossible tokens. At temperature 5 their probability is still e^-200, so they never occur.
NEVER_NATS: Final = -1000.0


class ChainError(ValueError):
    """An invalid chain; the message is one plain line."""


@dataclass(frozen=True)
class Option:
    """One possible next token: its probability at temperature 1, and the state it leads to (None: the end)."""

    text: str
    probability: float
    to: str | None


@dataclass(frozen=True)
class Chain:
    """`states` maps a name to the options there; `starts` a token of the prompt to the state after it."""

    states: Mapping[str, tuple[Option, ...]]
    starts: Mapping[str, str]

    def __post_init__(self) -> None:
        leads_to: dict[str, str | None] = dict(self.starts)
        for name, options in self.states.items():
            if abs(sum(option.probability for option in options) - 1.0) > 1e-12:
                raise ChainError(f"state {name}: the probabilities do not add up to 1")
            for option in options:
                if not 0.0 < option.probability <= 1.0:
                    raise ChainError(f"state {name}: probability {option.probability:g} is not above 0 and at most 1")
                if option.to is not None and option.to not in self.states:
                    raise ChainError(f"state {name}: {option.text!r} leads to {option.to}, which does not exist")
                if leads_to.setdefault(option.text, option.to) != option.to:
                    raise ChainError(f"state {name}: {option.text!r} leads to a different state than elsewhere")

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return every token's text once, the prompts' first."""
        texts = dict.fromkeys(self.starts)
        texts |= dict.fromkeys(option.text for options in self.states.values() for option in options)
        return tuple(texts)

    def log_probabilities(self) -> Floats:
        """Return [states, tokens] natural logarithms of the table, `NEVER_NATS` for probability 0."""
        column = {text: i for i, text in enumerate(self.tokens)}
        table = np.full((len(self.states), len(column)), NEVER_NATS)
        for row, options in enumerate(self.states.values()):
            for option in options:
                table[row, column[option.text]] = np.log(option.probability)
        return table

    def state_after(self) -> dict[str, str | None]:
        """Return the state that each token leads to, None for the last token of a response."""
        after: dict[str, str | None] = dict(self.starts)
        for options in self.states.values():
            after |= {option.text: option.to for option in options}
        return after

    def entropy_nats(self) -> dict[str, float]:
        """Return the entropy of every state's distribution at temperature 1."""
        return {
            name: -sum(o.probability * np.log(o.probability) for o in options) for name, options in self.states.items()
        }


@dataclass(frozen=True)
class Step:
    """One place in a response: probabilities of the tokens that keep it right, and of those that lose it.

    `text` is the token of a step with a single one; otherwise tokens get names, with a full stop if the step ends a
    sentence.
    """

    right: tuple[float, ...] = (1.0,)
    wrong: tuple[float, ...] = ()
    text: str | None = None
    ends_sentence: bool = False


def track(
    name: str, steps: Iterable[Step], *, lost: str | None = None, then: str | None = None
) -> dict[str, tuple[Option, ...]]:
    """Return the states of `steps` in a row, NAME.0 to NAME.n-1, followed by the state `then` (None: the end).

    A wrong token of step i leads to state LOST.i+1. On a track without `lost` there is nothing left to lose, and it
    leads on like the right ones.
    """
    steps = list(steps)
    states: dict[str, tuple[Option, ...]] = {}
    for i, step in enumerate(steps):
        onward = f"{name}.{i + 1}" if i + 1 < len(steps) else then
        away = onward if lost is None else f"{lost}.{i + 1}"
        chances = [(p, onward) for p in step.right] + [(p, away) for p in step.wrong]
        if step.text is not None:
            states[f"{name}.{i}"] = (Option(step.text, 1.0, onward),)
            continue
        stop = "." if step.ends_sentence else ""
        states[f"{name}.{i}"] = tuple(
            Option(f" {name}-{i}{letter}{stop}", p, to)
            for letter, (p, to) in zip(string.ascii_lowercase, chances, strict=False)
        )
    return states

"""The kinds of phantom: the structure of their responses, and so which claims are true of them.

Every block of five tokens holds exactly one fork, so one token in five is a fork in every response of every arm, and
the 80th percentile of the entropies lies in the gap between others and forks on every path of a response. A response
that has lost its way is one block longer. Its extra block has a fork and another token on either side of the threshold,
0.03 nats apart, so that a threshold that is off by 0.05 nats takes one for the other.

Problems follow one of ten rules of different difficulty. A kind's claims are about the mean over them, at base
temperature 1 with the doses of the arm set `causal`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from steerdec.phantom.chain import END, END_OF_THINKING, THINK, Chain, Step, track

RULES: Final = 10
BLOCK: Final = 5
NEAR_NATS: Final = (0.59, 0.62)  # entropies of the other token and the fork beside the threshold
Claims = tuple[str, str, str, str]  # the verdicts that are right, in the order of the arm set `causal`

HOLDS, REVERSED, NO_EFFECT = "holds", "reversed", "no effect"


class KindError(ValueError):
    """An impossible phantom; the message is one plain line."""


@dataclass(frozen=True)
class Kind:
    """A kind of phantom, built by `chain(fork_right)`.

    `fork_right` is the probability at temperature 1 that a decisive fork goes right.
    """

    name: str
    about: str
    claims: Claims
    chain: Callable[[float], Chain]
    fork_right: float
    thinking: bool = False

    def answer(self, rule: int) -> str:
        """Return the right answer under a rule.

        With thinking it is the same for all rules: `</think>` is a single token, after which a chain cannot know the
        rule.
        """
        return "7" if self.thinking else str(11 + rule)


def two(p: float) -> tuple[float, float]:
    return (p, 1.0 - p)


def with_entropy(nats: float, options: int) -> tuple[float, ...]:
    """Return one likely token and `options` - 1 equally unlikely ones, with that entropy."""
    low, high = 1.0 / options, 1.0 - 1e-9
    for _ in range(200):
        p = (low + high) / 2
        rest = (1.0 - p) / (options - 1)
        entropy = -p * np.log(p) - (options - 1) * rest * np.log(rest)
        low, high = (p, high) if entropy > nats else (low, p)
    return (p, *[(1.0 - p) / (options - 1)] * (options - 1))


def favorite_is_wrong(right: float, ways: int = 5) -> Step:
    """Return a fork with one tempting wrong token and several right ones, each less likely: heat helps."""
    return Step((right / ways,) * ways, (1.0 - right,))


def favorite_is_right(right: float, ways: int = 5) -> Step:
    """Return a fork with one right token and several wrong ones, each less likely: heat hurts."""
    return Step((right,), ((1.0 - right) / ways,) * ways)


def in_halves(step: Step) -> Step:
    """Split every token of a step into two equally likely ones.

    That adds ln 2 nats of entropy at every temperature, and leaves the harm and the change of entropy by any
    temperature as they were.
    """
    return replace(step, right=tuple(p / 2 for p in step.right * 2), wrong=tuple(p / 2 for p in step.wrong * 2))


FIXED: Final = Step()
STOP: Final = Step(ends_sentence=True)
DECOY: Final = Step((0.5, 0.3, 0.1, 0.1))  # uncertain, and irrelevant to the answer
OTHER: Final = Step(two(0.95))  # the same, nearly certain


def response(first: Step, second: Step, a: Step, b: Step, c: Step) -> tuple[Step, ...]:
    """Return the first eight tokens of a response, two sentences; the answer and the end come after them.

    They are two forks, three other tokens that are not quite certain, and three certain ones.
    """
    return (FIXED, first, a, STOP, b, FIXED, second, replace(c, ends_sentence=True))


def lost_way(steps: Sequence[Step], *, near: tuple[Step, Step] | None = None) -> tuple[Step, ...]:
    """Return what follows when a response has gone wrong: the same steps, then the block with the threshold in it."""
    below, above = near or (Step(with_entropy(NEAR_NATS[0], 3)), Step(with_entropy(NEAR_NATS[1], 3)))
    return (*steps, FIXED, above, below, FIXED, STOP)


def answering(text: str) -> tuple[Step, Step]:
    return (Step(text=f" \\boxed{{{text}}}"), Step(text=END))


def over_rules(steps: Callable[[float], Sequence[Step]], *, near: tuple[Step, Step] | None = None) -> Chain:
    """Return a chain of ten rules; `steps(u)` are the first tokens under a rule of difficulty u, from -1 to 1."""
    states = track("lost", (*lost_way(steps(0.0), near=near), *answering("0")))
    for rule in range(RULES):
        u = 2.0 * rule / (RULES - 1) - 1.0
        states |= track(f"r{rule}", (*steps(u), *answering(str(11 + rule))), lost="lost")
    return Chain(states, {f" rule{rule}": f"r{rule}.0" for rule in range(RULES)})


def _claim_true(right: float) -> Chain:
    def steps(u: float) -> Sequence[Step]:
        fork = favorite_is_wrong(right + 0.05 * u)
        sure = Step((0.98,), (0.02,))
        return response(fork, fork, sure, sure, sure)

    return over_rules(steps)


def _reversed(right: float) -> Chain:
    def steps(u: float) -> Sequence[Step]:
        fork = favorite_is_right(right + 0.08 * u)
        return response(fork, fork, OTHER, OTHER, OTHER)

    return over_rules(steps)


def _null(right: float) -> Chain:
    """Return a chain whose decisive tokens are drawn evenly: no temperature changes an even draw."""

    def steps(u: float) -> Sequence[Step]:
        good = min(7, max(1, round(8 * right + 2 * u)))
        decisive = Step((0.125,) * good, (0.125,) * (8 - good))
        return response(decisive, DECOY, OTHER, OTHER, OTHER)

    return over_rules(steps)


def _null_varied(right: float) -> Chain:
    """Return a chain on which temperatures change the texts, and no chance to be right.

    The decisive tokens come in three likelihoods, each with the same share of right ones. A temperature moves
    probability from one likelihood to another, so other tokens are drawn; among equals it changes nothing.
    """
    likelihoods = (0.6, 0.3, 0.1)

    def steps(u: float) -> Sequence[Step]:
        good = min(7, max(1, round(8 * right + 2 * u)))
        each = tuple(p / 8 for p in likelihoods)
        decisive = Step(each * good, each * (8 - good))
        return response(decisive, DECOY, OTHER, OTHER, OTHER)

    return over_rules(steps)


def _dose_only(right: float) -> Chain:
    """Return a chain whose forks are its other tokens with every choice in halves.

    They differ in entropy, and react to heat in the same way.
    """

    def steps(u: float) -> Sequence[Step]:
        p = right + 0.03 * u
        decisive, harmless = Step((p,), (1.0 - p,)), Step(two(p))
        return response(in_halves(decisive), in_halves(harmless), decisive, harmless, FIXED)

    return over_rules(steps)


def _place_only(right: float) -> Chain:
    """Return the chain of a true claim whose other tokens hold much of the entropy but decide nothing."""

    def steps(u: float) -> Sequence[Step]:
        fork = favorite_is_wrong(right + 0.05 * u)
        other = Step(two(0.85))
        return response(fork, fork, other, other, other)

    return over_rules(steps)


def _misleading(right: float) -> Chain:
    """Return a chain in which two tokens below the threshold decide, and the forks by entropy decide nothing."""

    def steps(u: float) -> Sequence[Step]:
        decisive = Step((right + 0.03 * u,), (1.0 - right - 0.03 * u,))
        return response(DECOY, DECOY, decisive, decisive, OTHER)

    return over_rules(steps)


def _thinking(right: float) -> Chain:
    """Return a chain that heat helps while thinking and hurts while answering.

    A response that gets lost while thinking never answers.
    """

    def think(u: float) -> Sequence[Step]:
        return (FIXED, favorite_is_wrong(right + 0.05 * u), OTHER, STOP)

    answer = (FIXED, favorite_is_right(0.8, 4), replace(OTHER, ends_sentence=True))
    states = track("astray", (*lost_way((*think(0.0), FIXED, *answer)), *answering("1")))
    states |= track("lost", (*lost_way(answer), *answering("0")))
    states |= track("say", (*answer, *answering("7")), lost="lost")
    for rule in range(RULES):
        steps = (*think(2.0 * rule / (RULES - 1) - 1.0), Step(text=END_OF_THINKING))
        states |= track(f"r{rule}", steps, lost="astray", then="say.0")
    return Chain(states, {THINK: "r0.0"} | {f" rule{rule}": f"r{rule}.0" for rule in range(RULES)})


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(
            "claim-true",
            "the favorite is wrong at forks, and other tokens are right when certain: all four claims hold",
            (HOLDS, HOLDS, HOLDS, HOLDS),
            _claim_true,
            0.5,
        ),
        Kind(
            "reversed",
            "the favorite is right at forks, and other tokens decide nothing: all four claims are reversed",
            (REVERSED, REVERSED, REVERSED, REVERSED),
            _reversed,
            0.6,
        ),
        Kind(
            "null",
            "an even draw decides, which no temperature changes: no arm has any effect",
            (NO_EFFECT, NO_EFFECT, NO_EFFECT, NO_EFFECT),
            _null,
            0.5,
        ),
        Kind(
            "null-varied",
            "temperatures change the texts, but no chance to be right: no arm has any effect",
            (NO_EFFECT, NO_EFFECT, NO_EFFECT, NO_EFFECT),
            _null_varied,
            0.5,
        ),
        Kind(
            "dose-only",
            "forks and other tokens are equally harmful per nat: the effect is dose, not place",
            (REVERSED, REVERSED, NO_EFFECT, NO_EFFECT),
            _dose_only,
            0.9,
        ),
        Kind(
            "place-only",
            "heat helps at forks, as much entropy at other tokens does nothing: the effect is place, not dose",
            (HOLDS, HOLDS, HOLDS, HOLDS),
            _place_only,
            0.5,
        ),
        Kind(
            "misleading",
            "the tokens that decide are nearly certain, and the uncertain ones decide nothing",
            (NO_EFFECT, NO_EFFECT, HOLDS, HOLDS),
            _misleading,
            0.88,
        ),
        Kind(
            "thinking",
            "heat helps inside <think> and hurts after it, and does nothing over both: scope matters",
            (HOLDS, NO_EFFECT, NO_EFFECT, HOLDS),
            _thinking,
            0.45,
            thinking=True,
        ),
    )
}

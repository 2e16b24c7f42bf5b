"""The exact results of every arm of a phantom, by summing over all of its responses.

A response moves through the states of the chain. Its totals (tokens, forks, entropy) move along as a mean and a matrix
of second moments, weighted by the probability of being in a state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from steerdec.phantom.chain import Floats
from steerdec.phantom.steered import Request, Steered

TOKENS, FORKS, ENTROPY_NATS, SAMPLED_NATS = range(4)  # the totals of a response
FORK_QUANTILE: Final = 0.8
LONGEST_TOKENS: Final = 64


@dataclass(frozen=True)
class ArmTruth:
    """The exact results of one arm, by rule."""

    right: Floats  # [rules] probability that the answer is right
    mean: Floats  # [rules, 4] of a response's totals
    covariance: Floats  # [rules, 4, 4]

    @property
    def score(self) -> float:
        return float(self.right.mean())

    def rate(self, part: int) -> float:
        """Return a total per token, over all tokens of responses to equally many problems of each rule."""
        return float(self.mean[:, part].sum() / self.mean[:, TOKENS].sum())

    def rate_variance(self, part: int, responses: int) -> float:
        """Return the variance of `rate` as measured in so many responses under each rule, linearized."""
        r, c = self.rate(part), self.covariance
        per_response = c[:, part, part] - 2 * r * c[:, part, TOKENS] + r * r * c[:, TOKENS, TOKENS]
        return float(per_response.sum() / responses / self.mean[:, TOKENS].sum() ** 2)

    def pass_at(self, k: int) -> float:
        """Return the probability that one of k responses is right, averaged over rules."""
        return float(np.mean(1.0 - (1.0 - self.right) ** k))


class Truth:
    """Everything that has a closed form; `answers` are the right ones, by the last token of a prompt."""

    def __init__(self, steered: Steered, answers: Mapping[str, str]) -> None:
        self.steered, self.answers = steered, dict(answers)
        self._starts = [steered.index[steered.chain.starts[rule]] for rule in self.answers]

    def arm(self, request: Request | None, threshold_nats: float) -> ArmTruth:
        """Return the exact results of responses under that steering (None: none)."""
        rules, states = len(self.answers), len(self.steered.names)
        mass = np.zeros((rules, states))
        mass[np.arange(rules), self._starts] = 1.0
        first, second = np.zeros((rules, states, 4)), np.zeros((rules, states, 4, 4))
        column = {text: i for i, text in enumerate(self.steered.chain.tokens)}
        box = [column[f" \\boxed{{{answer}}}"] for answer in self.answers.values()]
        right, mean, square = np.zeros(rules), np.zeros((rules, 4)), np.zeros((rules, 4, 4))
        for position in range(LONGEST_TOKENS):
            if not mass.any():
                break
            onward = [np.zeros_like(mass), np.zeros_like(first), np.zeros_like(second)]
            for part in self.steered.parts(request, position, threshold_nats):
                x = np.stack([np.ones(states), part.fork, part.entropy_nats, part.sampled_nats], axis=1)
                moved_first = first + mass[..., None] * x
                cross = first[..., :, None] * x[:, None, :]
                outer = mass[..., None, None] * x[:, :, None] * x[:, None, :]
                moved_second = second + cross + cross.swapaxes(-1, -2) + outer
                to = part.weight * part.probabilities @ self.steered.move  # [states, states]
                end = part.weight - to.sum(axis=1)
                right += part.weight * np.einsum("rs,sr->r", mass, part.probabilities[:, box])
                mean += np.einsum("rsi,s->ri", moved_first, end)
                square += np.einsum("rsij,s->rij", moved_second, end)
                onward[0] += mass @ to
                onward[1] += np.tensordot(moved_first, to, (1, 0)).swapaxes(1, 2)
                onward[2] += np.moveaxis(np.tensordot(moved_second, to, (1, 0)), 3, 1)
            mass, first, second = (np.where(np.abs(sums) < 1e-15, 0.0, sums) for sums in onward)
        return ArmTruth(right, mean, square - mean[:, :, None] * mean[:, None, :])

    @cached_property
    def visits_at(self) -> Floats:
        """Return [positions, states] probabilities of a response at the base temperature, rules weighted alike."""
        (part,) = self.steered.parts(None, 0, 0.0)
        to = part.probabilities @ self.steered.move
        mass = np.zeros(len(to))
        np.add.at(mass, self._starts, 1.0 / len(self._starts))
        found = [mass]
        while found[-1].sum() > 1e-12 and len(found) < LONGEST_TOKENS:
            found.append(found[-1] @ to)
        return np.array(found)

    @cached_property
    def visits(self) -> Floats:
        """Return [states] the mean number of visits of a response at the base temperature, rules weighted alike."""
        total: Floats = self.visits_at.sum(axis=0)
        return total

    def mean_nats(self, entropies_nats: Floats) -> float:
        """Return the mean per token, on text at the base temperature, of entropies [states]."""
        return float(self.visits @ entropies_nats / self.visits.sum())

    def quantile_nats(self, q: float) -> tuple[float, float]:
        """Return both ends of the q-quantile of H over tokens at the base temperature; they differ at a gap."""
        h = self.steered.entropies_nats
        order = np.argsort(h)
        share = np.cumsum(self.visits[order]) / self.visits.sum()
        low, high = (np.searchsorted(share, q + nudge) for nudge in (-1e-9, 1e-9))
        return float(h[order][low]), float(h[order][min(int(high), len(h) - 1)])

    @cached_property
    def threshold_nats(self) -> float:
        """Return the 80th percentile as numpy interpolates it over whole responses: a fifth of the way into the gap."""
        low, high = self.quantile_nats(FORK_QUANTILE)
        return low + (1.0 - FORK_QUANTILE) * (high - low)

    def dose_nats(self, request: Request | None, threshold_nats: float) -> float:
        """Return what steering adds to the mean entropy of the sampled distributions, on base-temperature text."""
        (base,) = self.steered.parts(None, 0, threshold_nats)
        added_nats = 0.0
        for position, visits in enumerate(self.visits_at):
            for part in self.steered.parts(request, position, threshold_nats):
                added_nats += part.weight * float(visits @ (part.sampled_nats - base.sampled_nats))
        return added_nats / float(self.visits.sum())


def pass_at_k_variance(right: Sequence[float], samples: int, k: int) -> Floats:
    """Return [problems] variance of the unbiased estimate of pass@k from so many samples of each problem."""
    estimate = np.array([1.0 - math.comb(samples - c, k) / math.comb(samples, k) for c in range(samples + 1)])
    found = []
    for p in right:
        weight = np.array([math.comb(samples, c) * p**c * (1.0 - p) ** (samples - c) for c in range(samples + 1)])
        found.append(weight @ estimate**2 - (weight @ estimate) ** 2)
    return np.array(found)

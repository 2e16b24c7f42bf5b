"""Entropy as a function of temperature, from samples that were each probed at one temperature only.

Probing the same text at every temperature costs that text once per temperature. Here the samples of one pass take
turns: a token's entropy at T is known for the samples whose turn was T, and its entropy at 1 for all. The mean at T is
taken within strata of the entropy at 1, and the strata are weighted by all tokens (post-stratification; Cochran,
Sampling Techniques, 5A.9). Tokens of equal entropy at 1 have nearly equal entropy at T, so little is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .matching import Contribution
from .measuring import Measured

STRATA_OF_FORKS, STRATA_OF_OTHERS = 24, 40

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Curves:
    """Sums by problem and stratum; strata are numbered by rising entropy, the first `others` of them below a fork's.

    all_tokens: [n_problems, n_strata]; own_nats: the same, sums of the entropy at 1. sums_nats, tokens: the same, by
    temperature, of the samples whose turn it was.
    """

    others: int
    all_tokens: Floats
    own_nats: Floats
    sums_nats: dict[float, Floats]
    tokens: dict[float, Floats]

    def contributions(self, weights: Floats | None = None) -> dict[float, Contribution]:
        """Return the contributions of all problems together, [1] each, by temperature.

        A temperature without a token among the forks, or among the others, is left out. `weights` [n_problems] counts
        the problems of a bootstrap draw.
        """
        w = np.ones(len(self.all_tokens)) if weights is None else weights
        mass = w @ self.all_tokens
        found = {1.0: self._of_strata(w @ self.own_nats, mass)}
        for temperature, sums in self.sums_nats.items():
            means = self._filled(w @ sums, w @ self.tokens[temperature], mass)
            if means is not None and temperature != 1.0:
                found[temperature] = self._of_strata(means * mass, mass)
        return found

    def _of_strata(self, nats: Floats, mass: Floats) -> Contribution:
        others, forks = nats[: self.others].sum(), nats[self.others :].sum()
        return Contribution(forks_nats=np.array([forks]), others_nats=np.array([others]), tokens=np.array([mass.sum()]))

    def _filled(self, sums: Floats, tokens: Floats, mass: Floats) -> Floats | None:
        """Return the means by stratum, [n_strata]; a stratum without a token is interpolated between its neighbors."""
        means = np.zeros(len(sums))
        for part in (slice(0, self.others), slice(self.others, len(sums))):
            known = np.flatnonzero(tokens[part] > 0)
            if known.size:
                at = sums[part][known] / tokens[part][known]
                means[part] = np.interp(np.arange(len(sums[part])), known, at)
            elif mass[part].any():
                return None
        return means


def measure_curves(measures: Iterable[Measured], problem_ids: Sequence[str], threshold_nats: float) -> Curves:
    """Return the curves of these samples; a token with more than `threshold_nats` at temperature 1 is a fork."""
    place = {name: i for i, name in enumerate(problem_ids)}
    measures = list(measures)
    own = np.concatenate([one.entropy_nats for one in measures]).astype(np.float64)
    limit = np.float64(np.float32(threshold_nats))  # as the server compares
    edges_others = _edges(own[own <= limit], STRATA_OF_OTHERS)
    edges_forks = _edges(own[own > limit], STRATA_OF_FORKS)
    others = len(edges_others) + 1
    shape = (len(place), others + len(edges_forks) + 1)

    all_tokens, own_nats = np.zeros(shape), np.zeros(shape)
    sums: dict[float, Floats] = {}
    tokens: dict[float, Floats] = {}
    for one in measures:
        h = one.entropy_nats.astype(np.float64)
        low, high = np.searchsorted(edges_others, h, "left"), others + np.searchsorted(edges_forks, h, "left")
        stratum = np.where(h > limit, high, low)
        row = place[one.problem_id]
        np.add.at(all_tokens[row], stratum, 1.0)
        np.add.at(own_nats[row], stratum, h)
        if one.probe_temperature is not None and one.probe_nats is not None:
            at = one.probe_temperature
            np.add.at(sums.setdefault(at, np.zeros(shape))[row], stratum, one.probe_nats.astype(np.float64))
            np.add.at(tokens.setdefault(at, np.zeros(shape))[row], stratum, 1.0)
    return Curves(others=others, all_tokens=all_tokens, own_nats=own_nats, sums_nats=sums, tokens=tokens)


def _edges(values: Floats, strata: int) -> Floats:
    """Return the inner edges of strata of about equal numbers of tokens; equal values stay together."""
    if not values.size:
        return np.zeros(0)
    inner = np.quantile(values, np.arange(1, strata) / strata, method="lower")
    return np.unique(inner[inner < values.max()])

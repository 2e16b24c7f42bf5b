"""Compare scores of arms with their exact values, in standard errors, one by one and all together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import scipy.stats

from steerdec.phantom import truth
from steerdec.phantom.chain import Floats
from steerdec.phantom.responses import Expected
from steerdec.phantom.steered import Request
from steerdec.phantom.truth import ArmTruth

Z_LIMIT: Final = 4.0  # standard errors
P_LIMIT: Final = 0.001
SMALLEST_VARIANCE: Final = 0.1  # of the right answers in a cell whose z is taken


@dataclass(frozen=True)
class Row:
    """One number of the table: its name, the measured and the exact value, the error, and the allowed error."""

    kind: str
    number: str
    measured: str
    exact: str
    off: str
    allowed: str
    passed: bool


@dataclass
class Arm:
    """The samples of one arm, and their exact results."""

    name: str
    request: Request | None  # with its threshold, as it was sent
    truth: ArmTruth
    samples: list[Mapping[str, Any]]
    rule: Mapping[str, int]  # by problem id
    expected: list[Expected] = field(default_factory=list)

    def z_of_score(self) -> float:
        """Return how many standard errors the score is off."""
        n_right = np.array([sample["grade"] == "correct" for sample in self.samples], float)
        p = self.truth.right[[self.rule[sample["problem_id"]] for sample in self.samples]]
        return _z(n_right.sum() - p.sum(), (p * (1.0 - p)).sum())

    @property
    def score(self) -> float:
        return float(np.mean([sample["grade"] == "correct" for sample in self.samples]))


def _z(off: float, variance: float) -> float:
    if variance < 1e-12:
        return 0.0 if abs(off) < 1e-6 else math.inf
    return float(off / math.sqrt(variance))


def score_row(kind: str, arms: Sequence[Arm]) -> Row:
    """Return the row of the arm whose score is most standard errors off."""
    worst = max(arms, key=lambda arm: abs(arm.z_of_score()))
    z = worst.z_of_score()
    return Row(
        kind,
        f"avg@k, worst of {len(arms)} arms: {worst.name}",
        f"{100 * worst.score:.2f}%",
        f"{100 * worst.truth.score:.2f}%",
        f"z {z:+.1f}",
        f"{Z_LIMIT:g} SE",
        abs(z) <= Z_LIMIT,
    )


def pass_row(kind: str, arms: Sequence[Arm]) -> Row:
    """Return the row of the unbiased pass@k over half of the samples of a problem."""
    found = []
    for arm in arms:
        problems = sorted({sample["problem_id"] for sample in arm.samples})
        n = len(arm.samples) // len(problems)
        k = max(1, n // 2)
        right = dict.fromkeys(problems, 0)
        for sample in arm.samples:
            right[sample["problem_id"]] += sample["grade"] == "correct"
        p = arm.truth.right[[arm.rule[name] for name in problems]]
        estimate = float(np.mean([1.0 - math.comb(n - right[name], k) / math.comb(n, k) for name in problems]))
        exact = float(np.mean(1.0 - (1.0 - p) ** k))
        variance = truth.pass_at_k_variance(p.tolist(), n, k).sum() / len(problems) ** 2
        found.append((abs(_z(estimate - exact, variance)), arm.name, k, estimate, exact))
    z, name, k, measured, wanted = max(found)
    return Row(
        kind,
        f"pass@{k}, worst: {name}",
        f"{100 * measured:.2f}%",
        f"{100 * wanted:.2f}%",
        f"z {z:.1f}",
        f"{Z_LIMIT:g} SE",
        z <= Z_LIMIT,
    )


def length_row(kind: str, arms: Sequence[Arm]) -> Row:
    """Return the row of the mean number of tokens."""
    found = []
    for arm in arms:
        rules = [arm.rule[sample["problem_id"]] for sample in arm.samples]
        tokens = np.array([sample["completion_tokens"] for sample in arm.samples], float)
        exact = arm.truth.mean[rules, truth.TOKENS]
        z = _z((tokens - exact).sum(), arm.truth.covariance[rules, truth.TOKENS, truth.TOKENS].sum())
        found.append((abs(z), arm.name, tokens.mean(), exact.mean()))
    z, name, measured, exact_mean = max(found)
    return Row(
        kind,
        f"tokens, worst: {name}",
        f"{measured:.3f}",
        f"{exact_mean:.3f}",
        f"z {z:.1f}",
        f"{Z_LIMIT:g} SE",
        z <= Z_LIMIT,
    )


def independent_z(arms: Sequence[Arm]) -> tuple[Floats, Floats]:
    """Return (z, variance of z^2) of cells that share no random numbers: one arm per problem, the arms taking turns."""
    found: list[tuple[float, float]] = []
    for i, problem in enumerate(sorted({sample["problem_id"] for sample in arms[0].samples})):
        arm = arms[i % len(arms)]
        own = [sample["grade"] == "correct" for sample in arm.samples if sample["problem_id"] == problem]
        p = float(arm.truth.right[arm.rule[problem]])
        variance = len(own) * p * (1.0 - p)
        if variance >= SMALLEST_VARIANCE:
            z = (sum(own) - len(own) * p) / math.sqrt(variance)
            found.append((z, 2.0 + (1.0 - 6.0 * p * (1.0 - p)) / variance))  # fourth moment of a binomial
    array = np.array(found).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def chi_square_row(cells: Sequence[tuple[Floats, Floats]]) -> Row:
    """Return the row of a test that all scores together are neither too near to the truth nor too far from it."""
    z, variance = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    n, q = len(z), float((z**2).sum())
    scale = 2.0 * n / float(variance.sum())  # to the chi-square with the same mean and variance
    cdf, sf = scipy.stats.chi2.cdf(q * scale, n * scale), scipy.stats.chi2.sf(q * scale, n * scale)
    p = float(min(1.0, 2.0 * min(cdf, sf)))
    return Row(
        "all",
        f"sum of z^2 over {n} independent cells",
        f"{q:.1f}",
        f"{n}",
        f"p {p:.3f}",
        f"p > {P_LIMIT:g}",
        p > P_LIMIT,
    )

"""Measured numbers beside exact ones: the rows of the table that `make phantom` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import scipy.stats

from steerdec.phantom import truth
from steerdec.phantom.chain import Floats
from steerdec.phantom.responses import Reader, ResponseError
from steerdec.phantom.steered import Request
from steerdec.phantom.truth import ArmTruth, Truth

Z_LIMIT: Final = 4.0  # standard errors
P_LIMIT: Final = 0.001
NATS_LIMIT: Final = 2e-5  # what float32 and five printed digits may be off by
SMALLEST_VARIANCE: Final = 0.1  # of the right answers in a cell whose z is taken
SMALLEST_EXPECTED: Final = 5.0  # tokens, in a cell of a chi-square test


@dataclass(frozen=True)
class Row:
    """One number of the table: what it is, as measured, as it must be, how far off, and how far it may be."""

    kind: str
    number: str
    measured: str
    exact: str
    off: str
    allowed: str
    passed: bool


@dataclass
class Arm:
    """The samples of one arm, and what they must come out at."""

    name: str
    request: Request | None  # with its threshold, as it was sent
    truth: ArmTruth
    samples: list[Mapping[str, Any]]
    rule: Mapping[str, int]  # by problem id
    expected: list[Any] = field(default_factory=list)

    def z_of_score(self) -> float:
        """How many standard errors the score is off."""
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


def read_arms(known: Truth, run: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> list[Arm]:
    """The arms of a run, from its run.json and the lines of samples.jsonl, each with its truth.

    Raises:
        ResponseError: a response is not one that the chain can write.
    """
    reader, rules = Reader(known.steered), list(known.answers)
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_arm.setdefault(sample["arm"], []).append(sample)
    rule = {name: int(name.removeprefix("q")) % len(rules) for name in run["problems"]["ids"]}
    threshold_nats = run["threshold_nats"]
    found = []
    for arm in run["arms"]["arms"]:
        own, request = by_arm.get(arm["name"], []), arm.get("steering")
        made = Arm(arm["name"], request, known.arm(request, threshold_nats), own, rule)
        for sample in own:
            if sample["error"] is not None:
                raise ResponseError(f"{arm['name']}, {sample['problem_id']}: {sample['error']}")
            ended = sample["finish_reason"] == "stop"
            rule_token = rules[rule[sample["problem_id"]]]
            made.expected.append(reader.expected(rule_token, sample["text"], ended, request, sample["seed"]))
        found.append(made)
    return found


def run_rows(kind: str, arms: Sequence[Arm]) -> list[Row]:
    """Everything about a run that has a closed form."""
    steered = [arm for arm in arms if arm.request is not None]
    return [
        score_row(kind, arms),
        pass_row(kind, arms),
        length_row(kind, arms),
        tokens_row(kind, arms),
        _per_sample(kind, "forks per response", steered, "forks", lambda e: e.fork.sum(), 0.0),
        _per_sample(kind, "mean entropy per response", steered, "mean_entropy_nats", lambda e: e.entropy_nats.mean()),
        _per_sample(
            kind, "mean sampled entropy", steered, "mean_sampled_entropy_nats", lambda e: e.sampled_nats.mean()
        ),
        _per_token(kind, "entropy per token", steered, "entropy_nats", lambda e: e.entropy_nats, NATS_LIMIT),
        _per_token(kind, "forks per token", steered, "fork", lambda e: e.fork, 0.0),
        identity_row(kind, arms),
    ]


def score_row(kind: str, arms: Sequence[Arm]) -> Row:
    """The arm whose score is most standard errors off."""
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
    """Unbiased pass@k over half of the samples of a problem."""
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
    """Mean number of tokens."""
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


def tokens_row(kind: str, arms: Sequence[Arm]) -> Row:
    """Whether tokens are drawn from the distributions that steering is to make: chi-square over all states."""
    found = []
    for arm in arms:
        statistic, df = chi_square_of_tokens(arm)
        found.append((float(scipy.stats.chi2.sf(statistic, df)) if df else 1.0, arm.name, statistic, df))
    p, name, statistic, df = min(found)
    return Row(
        kind,
        f"draws by state, worst: {name}",
        f"chi2 {statistic:.0f}",
        f"df {df}",
        f"p {p:.2g}",
        f"p > {P_LIMIT:g}/{len(arms)}",
        p > P_LIMIT / len(arms),
    )


def chi_square_of_tokens(arm: Arm) -> tuple[float, int]:
    """(statistic, degrees of freedom): each state's draws against its distribution; rare tokens are put together.

    A draw from a distribution that gives its token no chance makes the statistic infinite.
    """
    if not arm.expected:
        return 0.0, 0
    shape = arm.expected[0].parts[0].probabilities.shape
    seen, wanted = np.zeros(shape), np.zeros(shape)
    for e in arm.expected:
        for part, state, token in zip(e.parts, e.states, e.tokens, strict=True):
            seen[state, token] += 1.0
            wanted[state] += part.probabilities[state]
    statistic, df = 0.0, 0
    for observed, expected in zip(seen, wanted, strict=True):
        if np.any((observed > 0) & (expected < 1e-9)):
            return math.inf, 1
        large = expected >= SMALLEST_EXPECTED
        o, e = np.append(observed[large], observed[~large].sum()), np.append(expected[large], expected[~large].sum())
        if e[-1] < SMALLEST_EXPECTED and len(e) > 1:  # too few even together: with the last of the others
            o, e = np.append(o[:-2], o[-2:].sum()), np.append(e[:-2], e[-2:].sum())
        if len(e) > 1:
            statistic += float(((o - e) ** 2 / e).sum())
            df += len(e) - 1
    return statistic, df


def _per_sample(kind: str, what: str, arms: Sequence[Arm], name: str, exact: Any, limit: float = NATS_LIMIT) -> Row:
    off = [
        (abs(float(math.nan if sample[name] is None else sample[name]) - float(exact(e))), arm.name, sample, exact(e))
        for arm in arms
        for sample, e in zip(arm.samples, arm.expected, strict=True)
    ]
    return _worst(
        kind, f"{what} ({len(off)})", [(d, f"{a} {s['problem_id']}", s[name], x) for d, a, s, x in off], limit
    )


def _per_token(kind: str, what: str, arms: Sequence[Arm], name: str, exact: Any, limit: float) -> Row:
    off: list[tuple[float, str, Any, Any]] = []
    for arm in arms:
        for sample, e in zip(arm.samples, arm.expected, strict=True):
            if name in sample:
                told, known = sample[name], exact(e)
                if len(told) != len(known):
                    off.append((math.inf, f"{arm.name} {sample['problem_id']}", len(told), len(known)))
                for t, (a, b) in enumerate(zip(told, known, strict=False)):
                    value = math.nan if a is None else float(a)
                    off.append((abs(value - b), f"{arm.name} {sample['problem_id']} token {t + 1}", value, b))
    return _worst(kind, f"{what} ({len(off)})", off, limit)


def _worst(kind: str, what: str, off: list[tuple[float, str, Any, Any]], limit: float) -> Row:
    if not off:
        return Row(kind, what, "none", "some", "", "", False)
    distance, where, measured, exact = max(off, key=lambda row: math.inf if math.isnan(row[0]) else row[0])
    passed = distance <= limit
    return Row(
        kind,
        what if passed else f"{what}: {where}",
        "none" if measured is None else f"{float(measured):.5f}",
        f"{float(exact):.5f}",
        f"{distance:.1e}",
        f"{limit:g}",
        passed,
    )


def identity_row(kind: str, arms: Sequence[Arm]) -> Row:
    """Steering at the base temperature changes no text."""
    texts: dict[str, dict[tuple[str, int], str]] = {
        arm.name: {(s["problem_id"], s["sample"]): s["text"] for s in arm.samples} for arm in arms
    }
    pairs = len(texts["B"])
    differing = sum(texts["A/A"].get(key) != text for key, text in texts["B"].items())
    return Row(kind, "A/A: texts that differ from B's", str(differing), "0", "", f"of {pairs}", differing == 0)


def independent_z(arms: Sequence[Arm]) -> tuple[Floats, Floats]:
    """(z, variance of z^2) of cells that share no random numbers: one arm for each problem, the arms taking turns."""
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
    """Whether all scores together are as near to the truth as chance has it, no nearer and no farther."""
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

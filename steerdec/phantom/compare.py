"""Compare a run with the exact numbers, response by response: rows of the table that `make phantom` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import scipy.stats

from steerdec.phantom.responses import Reader, ResponseError
from steerdec.phantom.scores import P_LIMIT, Arm, Row, length_row, pass_row, score_row
from steerdec.phantom.truth import Truth

NATS_LIMIT: Final = 2e-5  # the error of float32 and five printed digits
SMALLEST_EXPECTED: Final = 5.0  # tokens, in a cell of a chi-square test
RARE: Final = 0.5  # tokens expected


def read_arms(known: Truth, run: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> list[Arm]:
    """Return the arms of a run, from its run.json and the lines of samples.jsonl, each with its truth.

    Raises:
        ResponseError: the chain cannot have written a response.
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
    """Return a row for everything in a run that has a closed form."""
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


def tokens_row(kind: str, arms: Sequence[Arm]) -> Row:
    """Return the row of a chi-square test over all states that tokens are drawn from the steered distributions."""
    found = []
    for arm in arms:
        draws = draws_of_tokens(arm)
        p_common = float(scipy.stats.chi2.sf(draws.statistic, draws.df)) if draws.df else 1.0
        p_rare = float(scipy.stats.poisson.sf(draws.rare - 1, draws.rare_expected)) if draws.rare else 1.0
        found.append((min(p_common, p_rare), arm.name, draws))
    p, name, draws = min(found, key=lambda one: one[:2])
    return Row(
        kind,
        f"draws by state, worst: {name}",
        f"chi2 {draws.statistic:.0f}, {draws.rare} rare",
        f"df {draws.df}, {draws.rare_expected:.1f} rare",
        f"p {p:.2g}",
        f"p > {P_LIMIT:g}/{2 * len(arms)}",
        p > P_LIMIT / (2 * len(arms)),
    )


class Draws(NamedTuple):
    """Draws of an arm against the exact distributions: common tokens by chi-square, rare ones by their number."""

    statistic: float
    df: int
    rare: int  # draws of tokens expected less than RARE times in their state
    rare_expected: float


def draws_of_tokens(arm: Arm) -> Draws:
    """Compare each state's draws with its distribution; a state's rare tokens are merged.

    Rarer ones are also counted over all states: if a state has one common token, chi-square has nothing to compare,
    and would miss a hundredfold surplus of the other. A draw of a token with probability 0 makes the statistic
    infinite.
    """
    if not arm.expected:
        return Draws(0.0, 0, 0, 0.0)
    shape = arm.expected[0].parts[0].probabilities.shape
    seen, wanted = np.zeros(shape), np.zeros(shape)
    for e in arm.expected:
        for part, state, token in zip(e.parts, e.states, e.tokens, strict=True):
            seen[state, token] += 1.0
            wanted[state] += part.probabilities[state]
    statistic, df, rare, rare_expected = 0.0, 0, 0, 0.0
    for observed, expected in zip(seen, wanted, strict=True):
        if np.any((observed > 0) & (expected < 1e-9)):
            return Draws(math.inf, 1, 0, 0.0)
        large = expected >= SMALLEST_EXPECTED
        few = expected < RARE
        rare, rare_expected = rare + int(observed[few].sum()), rare_expected + float(expected[few].sum())
        counts, means = (
            np.append(observed[large], observed[~large].sum()),
            np.append(expected[large], expected[~large].sum()),
        )
        if (
            means[-1] < SMALLEST_EXPECTED and len(means) > 1
        ):  # too few even together: merge them with the last of the others
            counts, means = np.append(counts[:-2], counts[-2:].sum()), np.append(means[:-2], means[-2:].sum())
        if len(means) > 1:
            statistic += float(((counts - means) ** 2 / means).sum())
            df += len(means) - 1
    return Draws(statistic, df, rare, rare_expected)


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
    """Return the row that counts texts changed by steering at the base temperature; there must be none."""
    texts: dict[str, dict[tuple[str, int], str]] = {
        arm.name: {(s["problem_id"], s["sample"]): s["text"] for s in arm.samples} for arm in arms
    }
    pairs = len(texts["B"])
    differing = sum(texts["A/A"].get(key) != text for key, text in texts["B"].items())
    return Row(kind, "A/A: texts that differ from B's", str(differing), "0", "", f"of {pairs}", differing == 0)

"""Combine the records of `lenses`: the agreement matrix, its nulls, ceilings, and the sentences. Pure.

Token lenses are compared token by token, over the chain. Sentence lenses are compared with each other, and with token
lenses lifted to sentences by max and mean; a token never gets its sentence's score. Every random draw has a seed made
by hashing the names it is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from steerdec.analysis.agreement import Floats, Interval, agreement, auroc, over_problems, spearman
from steerdec.analysis.lenses import names as lens_names
from steerdec.analysis.lenses.anchors import head_kurtosis, receiver_heads
from steerdec.analysis.lenses.hsic import peaks
from steerdec.analysis.lenses.nulls import NullTest, circular_shift_test, class_shuffle_test
from steerdec.analysis.lenses.trace import AGAIN
from steerdec.analysis.traces.sentences import lifted
from steerdec.common import bootstrap
from steerdec.common.json import nan_if_null
from steerdec.common.multiplicity import holm

SENTENCE_DRAWS: Final = 10_000  # with 1,000 the smallest p is 0.002, which Holm over 27 pairs turns into 0.054
BEYOND: Final = 1.96  # standard errors; by chance alone, at most 5% of the sentences are beyond

Scores = Mapping[str, Floats]


@dataclass(frozen=True)
class Table:
    """The records of the problems that were analyzed, as arrays; every list has one entry per trace."""

    problems: list[str]
    tokens: list[dict[str, Floats]]  # each [n_tokens]
    classes: list[list[str]]
    sentences: list[dict[str, Floats]]  # each [n_sentences], including lifted token lenses
    heads: int  # number of receiver heads found; 0 if no trace has enough sentences

    @property
    def resampled(self) -> bool:
        """Return whether rollouts were requested."""
        return any("resampled" in trace for trace in self.sentences)


@dataclass(frozen=True)
class Pair:
    """Two scores of the same units over all traces."""

    first: str
    second: str
    measures: dict[str, Interval]  # of agreement.MEASURES
    shift: NullTest | None = None  # circular shifts; None for pairs that were not declared
    shift_holm: float | None = None
    shuffle: NullTest | None = None  # within part and class; tokens only
    shuffle_holm: float | None = None


def seed_of(*names: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(("lens matrix", *names)).encode()).digest()[:8], "big")


def read(records: Sequence[Mapping[str, Any]]) -> Table:
    """Read the records that are not `skipped` into a table."""
    looked = [record for record in records if not record.get("skipped")]
    received = [np.array([nan_if_null(head) for head in record["received"]]) for record in looked]
    kurtosis = np.array([head_kurtosis(one) for one in received]) if looked else np.zeros((0, 0))
    chosen = _heads(kurtosis)
    halves = [_heads(kurtosis[half::2]) for half in (0, 1)]
    tokens = [{name: nan_if_null(values) for name, values in record["scores"].items()} for record in looked]
    sentences = []
    for i, (record, own) in enumerate(zip(looked, tokens, strict=True)):
        spans = [(int(a), int(b)) for a, b in record["spans"]]
        found = {name: nan_if_null(values) for name, values in record["sentences"].items()}
        for name, heads in (("receiver", chosen), ("receiver@even", halves[0]), ("receiver@odd", halves[1])):
            found[name] = received[i][heads].mean(axis=0) if len(heads) else np.full(len(spans), np.nan)
        for lens in lens_names.TOKEN_LENSES:
            for lift, values in zip(lens_names.LIFTS, lifted(own[lens.name], spans), strict=True):
                found[f"{lens.name}.{lift}"] = values
        found["sentence_position"] = np.arange(len(spans), dtype=np.float64)
        found["sentence_tokens"] = np.array([b - a for a, b in spans], dtype=np.float64)
        sentences.append(found)
    return Table(
        [str(record["problem_id"]) for record in looked],
        tokens,
        [list(record["classes"]) for record in looked],
        sentences,
        len(chosen),
    )


def token_pairs(table: Table) -> list[Pair]:
    """Compare every two token scores; those of lens_names.PAIRS with both nulls, and Holm over the declared pairs."""
    names = [lens.name for lens in (*lens_names.TOKEN_LENSES, *lens_names.VARIANTS, *lens_names.BASELINES)]
    tests = {pair: _token_nulls(table, *pair) for pair in lens_names.PAIRS}
    shift = dict(zip(tests, holm([test[0].p for test in tests.values()]), strict=True))
    shuffle = dict(zip(tests, holm([test[1].p for test in tests.values()]), strict=True))
    pairs = []
    for first, second in combinations(names, 2):
        measures = agreement(table.tokens, table.problems, first, second, seed=seed_of("bootstrap"))
        if (first, second) in tests:
            key = first, second
            pairs.append(Pair(first, second, measures, tests[key][0], shift[key], tests[key][1], shuffle[key]))
        else:
            pairs.append(Pair(first, second, measures))
    return pairs


def _token_nulls(table: Table, first: str, second: str) -> tuple[NullTest, NullTest]:
    a, b = ([trace[name] for trace in table.tokens] for name in (first, second))
    return (
        circular_shift_test(a, b, table.problems, seed=seed_of("shift", first, second)),
        class_shuffle_test(a, b, table.classes, table.problems, seed=seed_of("shuffle", first, second)),
    )


def sentence_pairs(table: Table) -> list[Pair]:
    """Compare the declared pairs of sentence scores by circular shifts with Holm; then each lens with baselines."""
    tests = {}
    declared_pairs = lens_names.sentence_pairs(resampled=table.resampled)
    for first, second in declared_pairs:
        a, b = _both_known([(trace[first], trace[second]) for trace in table.sentences])
        seed = seed_of("shift", first, second)
        tests[first, second] = circular_shift_test(a, b, table.problems, seed=seed, draws=SENTENCE_DRAWS)
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    seed = seed_of("bootstrap")
    declared = [
        Pair(*pair, agreement(table.sentences, table.problems, *pair, seed=seed), tests[pair], adjusted[pair])
        for pair in declared_pairs
    ]
    beside = [
        Pair(one.name, other.name, agreement(table.sentences, table.problems, one.name, other.name, seed=seed))
        for one in lens_names.sentence_lenses(resampled=table.resampled)
        for other in lens_names.SENTENCE_BASELINES
    ]
    return [*declared, *beside]


def _both_known(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[list[Floats], list[Floats]]:
    """Keep each trace's two scores where both are known: the last sentences, which little follows, lack some."""
    known = [~(np.isnan(a) | np.isnan(b)) for a, b in pairs]
    kept = [(a[k], b[k]) for (a, b), k in zip(pairs, known, strict=True)]
    return [a for a, _ in kept], [b for _, b in kept]


def ceilings(table: Table) -> dict[str, dict[str, Interval]]:
    """Compare each lens with itself: computed again in another dtype, or from either half of what it is made of.

    Returns MEASURES by name of the lens. Only every `again_every`-th problem was computed again.
    """
    found = {
        name: agreement(traces, table.problems, name, name + AGAIN, seed=seed_of("bootstrap"))
        for names, traces in (
            (lens_names.REPEATED, table.tokens),
            (lens_names.REPEATED_SENTENCES, table.sentences),
        )
        for name in names
    }
    halves = {
        name: agreement(table.sentences, table.problems, f"{name}@even", f"{name}@odd", seed=seed_of("bootstrap"))
        for name in lens_names.HALVED
        if any(f"{name}@even" in trace for trace in table.sentences)
    }
    return found | halves


def resampling(records: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Summarize the rollouts, each number a mean over problems; empty if none were requested.

    `right_before`, `right_after`: share correct from before the first sentence and from after the last. `unanswered`:
    share without an answer or cut off. `differing`: share whose own sentence has another meaning than the chain's. Then
    for each lens: mean absolute value, and the share of sentences beyond 1.96 times the bound of its standard error.
    """
    looked = [record for record in records if record.get("resampling")]
    rows: dict[str, list[float]] = {}
    for record in looked:
        found = {name: nan_if_null(values) for name, values in record["resampling"]["sentences"].items()}
        right, unanswered = (nan_if_null(record["resampling"][name]) for name in ("right", "unanswered"))
        row = {
            "right_before": right[0],
            "right_after": right[-1],
            "unanswered": unanswered.mean(),
            "differing": found["differing"].mean() / record["resampling"]["rollouts"],
        }
        for name in ("resampled", "counterfactual"):
            known = ~np.isnan(found[name])
            size, error = np.abs(found[name][known]), found[f"{name}_error"][known]
            row[f"{name}_size"] = size.mean() if len(size) else np.nan
            row[f"{name}_beyond"] = np.mean(size > BEYOND * error) if len(size) else np.nan
        for name, value in row.items():
            rows.setdefault(name, []).append(float(value))
    problems = [str(record["problem_id"]) for record in looked]
    return {name: over_problems(values, problems, seed=seed_of("bootstrap")) for name, values in rows.items()}


def hsic_peaks(table: Table) -> dict[str, Interval]:
    """Return the share of tokens that are peaks as the paper defines them, and their AUROC by other scores."""
    marked = [peaks(trace["hsic"]) for trace in table.tokens]
    seed = seed_of("bootstrap")
    found = {"share": over_problems([float(np.mean(one)) for one in marked], table.problems, seed=seed)}
    for name in ("entropy", "surprisal", "norm", "hsic_wrong_gold", "hsic_shuffled"):
        by = [auroc(one, trace[name]) for one, trace in zip(marked, table.tokens, strict=True)]
        found[name] = over_problems(by, table.problems, seed=seed)
    return found


def answers(records: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Correlate sigma (R3) with other scores by Spearman, in the answers' tokens, for all problems together.

    An answer has two or three tokens, too few for an order within a problem, so differences between problems are
    included. `split`: sigma over half of the chains with sigma over the others. The interval is from bootstrap draws of
    problems.
    """
    looked = [record for record in records if not record.get("skipped")]
    tables = []
    for record in looked:
        columns = {name: nan_if_null(values) for name, values in record["answer_variance"].items()}
        tables.append(columns | {"place": np.arange(len(columns["sigma_nats"]), dtype=np.float64)})
    pairs = {
        "entropy": ("sigma_nats", "entropy_nats"),
        "surprisal": ("sigma_nats", "surprisal_nats"),
        "place": ("sigma_nats", "place"),
        "split": ("even_nats", "odd_nats"),
    }
    return {name: _pooled([(one[a], one[b]) for one in tables]) for name, (a, b) in pairs.items()}


def _pooled(columns: Sequence[tuple[Floats, Floats]]) -> Interval:
    def correlation(indices: Sequence[int]) -> float:
        picked = [columns[i] for i in indices]
        return spearman(np.concatenate([a for a, _ in picked]), np.concatenate([b for _, b in picked]))

    if len(columns) < 2:
        return Interval(np.nan, np.nan, np.nan, len(columns))
    drawn = bootstrap.weights(len(columns), np.random.default_rng(seed_of("answers"))).astype(np.int64)
    found = np.array([correlation(np.repeat(np.arange(len(columns)), times).tolist()) for times in drawn])
    known = found[~np.isnan(found)]  # a draw of equal problems has no order to correlate
    low, high = (bootstrap.interval(known) if known.size else None) or (np.nan, np.nan)
    return Interval(correlation(range(len(columns))), low, high, len(columns))


def _heads(kurtosis: Floats) -> Any:
    return receiver_heads(kurtosis) if kurtosis.size else np.zeros(0, dtype=np.int64)

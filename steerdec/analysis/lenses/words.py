"""State the findings of `lenses` in plain words: claims with a verdict each, by rules that were fixed before the data.

"The same tokens" means that two lenses share at least half of their top fifths; chance gives a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from steerdec.analysis.agreement import Interval
from steerdec.analysis.lenses import names as lens_names
from steerdec.analysis.lenses.matrix import Pair
from steerdec.pages import wording

ALPHA: Final = 0.05
HALF: Final = 0.5  # share of the top fifths in common


def claims(pairs: Sequence[Pair], sentences: Sequence[Pair], answers: Mapping[str, Interval]) -> list[dict[str, str]]:
    """Return id, statement, verdict ("holds", "fails", "undecided"), and reason of each claim."""
    of = {(pair.first, pair.second): pair for pair in pairs}
    declared = [of[pair] for pair in lens_names.PAIRS]
    return [
        _same(declared),
        _beyond_chance(declared),
        _about_the_answer(of["hsic", "hsic_wrong_gold"]),
        _sentences([pair for pair in sentences if pair.shift is not None]),
        _answers(answers),
    ]


def findings(judged: Sequence[Mapping[str, str]]) -> list[str]:
    """Return one line per claim, for the terminal."""
    return [f"{claim['statement']} {claim['verdict'].upper()}: {claim['reason']}." for claim in judged]


def names(pair: Pair) -> str:
    return f"{lens_names.lens(pair.first).short} and {lens_names.lens(pair.second).short}"


def _same(declared: Sequence[Pair]) -> dict[str, str]:
    shared = [pair.measures["overlap"] for pair in declared]
    if all(one.low >= HALF for one in shared):
        verdict = "holds"
    elif any(one.high < HALF for one in shared):
        verdict = "fails"
    else:
        verdict = "undecided"
    listed = ", ".join(f"{names(pair)} {_percent(one)}" for pair, one in zip(declared, shared, strict=True))
    return {
        "id": "same",
        "statement": "The four token lenses point at the same tokens: each two share half of their top fifths or more.",
        "verdict": verdict,
        "reason": f"shared are, where chance gives 20%, {listed}",
    }


def _beyond_chance(declared: Sequence[Pair]) -> dict[str, str]:
    agree, oppose = [p for p in declared if sign(p) > 0], [p for p in declared if sign(p) < 0]
    verdict = "holds" if len(agree) == len(declared) else "fails" if oppose else "undecided"
    reason = f"{len(agree)} of {len(declared)} pairs agree more than both nulls allow (Holm p < {ALPHA:g})"
    if agree:
        reason += f": {_with_auroc(agree)}"
    if oppose:
        reason += f"; {len(oppose)} agree less: {_with_auroc(oppose)}"
    return {
        "id": "beyond_chance",
        "statement": "Each two token lenses agree more than their place, rhythm and kind of token explain.",
        "verdict": verdict,
        "reason": reason,
    }


def sign(pair: Pair) -> int:
    """Return 1 if the pair agrees more than every null it was tested with allows, -1 if less, 0 if undecided."""
    tests = [(pair.shift, pair.shift_holm), (pair.shuffle, pair.shuffle_holm)]
    signs = {
        int(np.sign(test.observed - test.null_mean)) if p is not None and p < ALPHA else 0
        for test, p in tests
        if test is not None
    }
    return signs.pop() if len(signs) == 1 else 0


def _about_the_answer(pair: Pair) -> dict[str, str]:
    overlap, order = pair.measures["overlap"], pair.measures["spearman"]
    verdict = "holds" if overlap.high < HALF else "fails" if overlap.low >= HALF else "undecided"
    return {
        "id": "answer",
        "statement": "HSIC's top tokens depend on the answer it is held against.",
        "verdict": verdict,
        "reason": f"with the answer to another problem the top fifth is the same in {_percent(overlap)}, "
        f"and the rank correlation is {_number(order)}",
    }


def _sentences(declared: Sequence[Pair]) -> dict[str, str]:
    lifted = [pair for pair in declared if "." in pair.second]
    found = [pair for pair in lifted if sign(pair) > 0]
    beyond_chance = {pair.first for pair in found}
    resampled = any(pair.first == "resampled" for pair in declared)
    wanted = [lens.name for lens in lens_names.sentence_lenses(resampled=resampled)]
    untested = [
        name for name in wanted if all(p.measures["overlap"].n_problems == 0 for p in lifted if p.first == name)
    ]
    verdict = "holds" if beyond_chance == set(wanted) else "undecided"
    reason = f"{len(found)} of {len(lifted)} pairs of a sentence and a lifted token lens agree beyond circular shifts"
    if found:
        reason += f": {_with_auroc(found)}"
    if untested:
        short = ", ".join(lens_names.lens(name).short for name in untested)
        reason += f"; no trace has sentences enough for {short}"
    return {
        "id": "sentences",
        "statement": "For each sentence lens there is a token lens that finds its sentences.",
        "verdict": verdict,
        "reason": reason,
    }


def _answers(found: Mapping[str, Interval]) -> dict[str, str]:
    entropy, split = found["entropy"], found["split"]
    verdict = "holds" if entropy.low > 0 else "fails" if entropy.high < 0 else "undecided"
    return {
        "id": "rollouts",
        "statement": "In the answer's tokens, more entropy goes with more variance over rollouts.",
        "verdict": verdict,
        "reason": f"rank correlation {_number(entropy)}, where half of the rollouts against the other half "
        f"gives {_number(split)}",
    }


def _with_auroc(pairs: Sequence[Pair]) -> str:
    return ", ".join(f"{names(pair)} (AUROC {_both(pair)})" for pair in pairs)


def _both(pair: Pair) -> str:
    first, second = pair.measures["auroc_of_first"], pair.measures["auroc_of_second"]
    return f"{_number(first)} and {_number(second)}"


def _percent(one: Interval) -> str:
    return f"{wording.percent(one.mean, 0)} {wording.percent_interval(_ci(one), 0)}"


def _number(one: Interval) -> str:
    low, high = wording.number(one.low), wording.number(one.high)
    return f"{wording.number(one.mean)} [{low}, {high}]"


def _ci(one: Interval) -> tuple[float | None, float | None]:
    return (None, None) if np.isnan(one.low) else (one.low, one.high)

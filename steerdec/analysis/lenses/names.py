"""Name the lenses and the pairs that are tested: fixed before anything was computed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final


@dataclass(frozen=True)
class Lens:
    """A score of tokens or sentences, in words."""

    name: str
    short: str  # for the head of a table column
    about: str
    unit: str = ""


TOKEN_LENSES: Final = (
    Lens("entropy", "entropy", "entropy of the distribution that predicts the token", "nats"),
    Lens("hsic", "HSIC", "normalized HSIC of the last block's state with that of the answer (“MI peaks”)"),
    Lens("answer_shift", "answer shift", "how far it moves log p(answer) if the model had to answer now", "nats"),
    Lens("leave_one_out", "leave one out", "what the answer's log p loses without the token; not greedy", "nats"),
)
VARIANTS: Final = (
    Lens("no_surprisal", "leave one out, less surprisal", "its ranks, less what surprisal says of them", "ranks"),
    Lens("greedy", "greedy deletion", "the step at which the token goes when the cheapest goes first", "step"),
)
BASELINES: Final = (
    Lens("position", "position", "how far into the chain the token is"),
    Lens("surprisal", "surprisal", "minus log p of the token", "nats"),
    Lens("norm", "activation norm", "length of the state that HSIC is taken of"),
    Lens("sentence_start", "sentence start", "1 at a sentence's first token"),
    Lens("hsic_wrong_gold", "HSIC, wrong answer", "with the answer to another problem"),
    Lens("hsic_shuffled", "HSIC, shuffled", "with the answer's dimensions shuffled"),
)
SENTENCE_LENSES: Final = (
    Lens("forced_answer", "forced answer", "how far it moves log p(answer) if the model had to answer now", "nats"),
    Lens("receiver", "receiver heads", "attention from later sentences by the heads that concentrate most"),
    Lens("suppression", "suppression", "log KL of later tokens when they cannot see it, row means removed"),
)
# Only if rollouts were requested (`--resamples`).
RESAMPLED_LENSES: Final = (
    Lens("resampled", "resampling", "how far the share of right rollouts differs after it and before it"),
    Lens("counterfactual", "counterfactual", "the same, before it only rollouts that say something else in its place"),
)
SENTENCE_BASELINES: Final = (
    Lens("sentence_position", "position", "how far into the chain the sentence is"),
    Lens("sentence_tokens", "length", "its tokens: the largest of many scores is larger than of few"),
)

LIFTS: Final = ("max", "mean")
PAIRS: Final = tuple(combinations([lens.name for lens in TOKEN_LENSES], 2))
SENTENCE_PAIRS: Final = (
    *combinations([lens.name for lens in SENTENCE_LENSES], 2),
    *(
        (sentence.name, f"{token.name}.{lift}")
        for sentence in SENTENCE_LENSES
        for token in TOKEN_LENSES
        for lift in LIFTS
    ),
)
# Not with each other: the two are made of the same rollouts.
RESAMPLED_PAIRS: Final = tuple(
    (resampled.name, other)
    for resampled in RESAMPLED_LENSES
    for other in (
        *(sentence.name for sentence in SENTENCE_LENSES),
        *(f"{token.name}.{lift}" for token in TOKEN_LENSES for lift in LIFTS),
    )
)
# Computed a second time in another dtype.
REPEATED: Final = tuple(lens.name for lens in TOKEN_LENSES)
REPEATED_SENTENCES: Final = ("forced_answer", "suppression")
# From each half of the data, NAME@even and NAME@odd: receiver heads by problems, the others by rollouts.
HALVED: Final = ("receiver", *(lens.name for lens in RESAMPLED_LENSES))

_ALL: Final = {
    lens.name: lens
    for lens in (*TOKEN_LENSES, *VARIANTS, *BASELINES, *SENTENCE_LENSES, *RESAMPLED_LENSES, *SENTENCE_BASELINES)
}


def sentence_lenses(*, resampled: bool) -> tuple[Lens, ...]:
    """Return the lenses that score sentences."""
    return (*SENTENCE_LENSES, *RESAMPLED_LENSES) if resampled else SENTENCE_LENSES


def sentence_pairs(*, resampled: bool) -> tuple[tuple[str, str], ...]:
    """Return the declared pairs of sentence scores."""
    return (*SENTENCE_PAIRS, *RESAMPLED_PAIRS) if resampled else SENTENCE_PAIRS


def lens(name: str) -> Lens:
    """Return a lens by its name; a token lens lifted to sentences is called `NAME.max`."""
    bare, _, lift = name.partition(".")
    found = _ALL[bare]
    return found if not lift else Lens(name, f"{found.short}, {lift}", f"{lift} over the sentence's tokens", found.unit)

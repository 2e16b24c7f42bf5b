"""Sample continuations from before and after every sentence: thought anchors by resampling (arXiv 2506.19143).

A place is where a sentence of the chain begins, or where the chain ends. From each place the model continues several
times, until it has answered. What continues after sentence i also continues before sentence i + 1, so S sentences take
S + 1 places. :mod:`anchors` computes importance from the results.

OUT/resamples.jsonl has one line per place. Every rollout has its own seed, and the rollouts of a place always go
through the model together, so an interrupted analysis resumes with the results that it would have had.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from steerdec.analysis.lenses import anchors
from steerdec.analysis.lenses.anchors import Rollouts
from steerdec.analysis.lenses.trace import DIGITS, Chain
from steerdec.analysis.traces.continuations import continuations
from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.sampling import end_ids, response_text
from steerdec.analysis.traces.sentences import sentence_spans
from steerdec.analysis.traces.store import Store
from steerdec.analysis.traces.trace import stop_texts
from steerdec.common.json import nulls_if_nan
from steerdec.common.progress import RunProgress
from steerdec.common.seeds import sample_seed
from steerdec.common.token_texts import token_texts
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import Problem

RECORDS: Final = "resamples"
ARM: Final = "resamples"
_MOST_ROWS: Final = 64  # sentences at once

Line = dict[str, Any]


@dataclass(frozen=True)
class ResamplingSettings:
    """What is sampled, for every chain."""

    rollouts: int
    max_tokens: int  # of a response, in addition to the length of its chain
    template: str  # of the prompt
    seed: int


@dataclass(frozen=True)
class Place:
    """A place where a sentence of a chain begins, or where the chain ends."""

    problem: Problem
    chain: Chain
    index: int
    begin: int  # number of chain tokens before it
    sentence: tuple[int, ...]  # the sentence at this place; empty at the end of the chain

    @property
    def key(self) -> tuple[str, str, int]:
        return self.problem.id, ARM, self.index


def resample(
    loaded: Loaded, chains: Sequence[tuple[Problem, Chain]], settings: ResamplingSettings, kept: Store
) -> dict[str, list[Line]]:
    """Return the lines of each problem's places, in the chain's order; existing lines are not made again.

    From every place, a response may have as many tokens as its chain and `settings.max_tokens` together. So no place
    has less room to answer than another, and cutting responses off favors none.

    Raises:
        AnalysisError, GradingError, JournalError: it failed; what was done is kept.
    """
    places = [place for problem, chain in chains for place in places_of(loaded.tokenizer, problem, chain)]
    lines = kept.lines(RECORDS)
    missing = [place for place in places if place.key not in lines]
    if missing:
        center = sentence_states(loaded, [place.sentence for place in places if place.sentence]).mean(dim=0)
        total, done = len(places) * settings.rollouts, (len(places) - len(missing)) * settings.rollouts
        with (
            kept.appending(RECORDS) as journal,
            RunProgress(total, done, "rollouts") as progress,
            GradingPool(workers=1) as pool,
        ):
            for place in missing:
                line = _line(loaded, pool, place, settings, center)
                journal.append(line)
                journal.sync()
                lines[place.key] = line
                progress.advance(settings.rollouts, sum(line["tokens"]))
    found: dict[str, list[Line]] = {}
    for place in places:
        found.setdefault(place.problem.id, []).append(lines[place.key])
    return found


def places_of(tokenizer: Any, problem: Problem, chain: Chain) -> list[Place]:
    """Return the S + 1 places of a chain of S sentences."""
    spans = sentence_spans(token_texts(chain.tokens, tokenizer))
    begins = [Place(problem, chain, i, begin, chain.tokens[begin:end]) for i, (begin, end) in enumerate(spans)]
    return [*begins, Place(problem, chain, len(spans), len(chain.tokens), ())]


def added(record: Line, lines: Sequence[Line]) -> Line:
    """Add to the record of a chain what its places' lines say: absolute values to the scores of its sentences."""
    places = [Rollouts(tuple(x["answers"]), tuple(x["right"]), tuple(x["cosines"])) for x in lines]
    rollouts = len(places[0].right)
    found = anchors.importance(places)
    sizes = {"resampled": found.resampled, "counterfactual": found.counterfactual}
    for half, which in (("even", range(0, rollouts, 2)), ("odd", range(1, rollouts, 2))):
        own = anchors.importance([place.only(which) for place in places])
        sizes |= {f"resampled@{half}": own.resampled, f"counterfactual@{half}": own.counterfactual}
    return record | {
        "sentences": record["sentences"]
        | {name: nulls_if_nan(np.abs(values), DIGITS) for name, values in sizes.items()},
        "resampling": {
            "rollouts": rollouts,
            "right": nulls_if_nan([float(np.mean(place.right)) for place in places], DIGITS),
            "unanswered": nulls_if_nan(
                [float(np.mean([answer is None for answer in place.answers])) for place in places], DIGITS
            ),
            "sentences": {name: nulls_if_nan(values, DIGITS) for name, values in vars(found).items()},
            "cosines": [cosine for place in places for cosine in place.cosines],
            "tokens": sum(sum(line["tokens"]) for line in lines),
            "seconds": round(sum(line["seconds"] for line in lines), 2),
        },
    }


def rollout_seeds(seed: int, problem_id: str, sample: int, place: int, rollouts: int) -> list[int]:
    """Hash seeds from (problem, chain, place, rollout), so that no two rollouts share random numbers."""
    return [sample_seed(seed, problem_id, rollout, f"{ARM}/{sample}/{place}") for rollout in range(rollouts)]


def _line(loaded: Loaded, pool: GradingPool, place: Place, settings: ResamplingSettings, center: Tensor) -> Line:
    """Sample the rollouts from a place: their answers, and how their first sentences compare with the chain's."""
    begun_s = time.monotonic()
    chain, stops = place.chain, stop_texts(settings.template)
    seeds = rollout_seeds(settings.seed, place.problem.id, chain.sample, place.index, settings.rollouts)
    most_tokens = len(chain.tokens) + settings.max_tokens
    found = list(continuations(loaded, chain.prompt, chain.tokens[: place.begin], seeds, stops, most_tokens))
    graded = [pool.grade(response_text(loaded.tokenizer, ids, stops), place.problem, reason) for ids, reason in found]
    firsts = [first_sentence(loaded.tokenizer, ids[place.begin :], end_ids(loaded)) for ids, _ in found]
    cosines = similarities(loaded, place.sentence, firsts, center) if place.sentence else []
    return {
        "problem_id": place.problem.id,
        "arm": ARM,
        "sample": place.index,
        "error": None,
        "answers": [one.answer for one in graded],
        "right": [one.grade == "correct" for one in graded],
        "finish_reasons": [reason for _, reason in found],
        "first_sentences": ["".join(token_texts(ids, loaded.tokenizer)) for ids in firsts],
        "cosines": [float(f"{cosine:.6g}") for cosine in cosines],
        "tokens": [len(ids) - place.begin for ids, _ in found],
        "seconds": round(time.monotonic() - begun_s, 2),
    }


def first_sentence(tokenizer: Any, ids: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    """Return the tokens of a continuation's first sentence, without what ends the response; empty if there are none."""
    said = [i for i in ids if i not in ends]
    return tuple(said[slice(*sentence_spans(token_texts(said, tokenizer))[0])]) if said else ()


def similarities(
    loaded: Loaded, sentence: Sequence[int], others: Sequence[Sequence[int]], center: Tensor
) -> list[float]:
    """Return the cosine of each other sentence's meaning with this one's, as the model itself sees them (ours).

    The paper uses an embedding model. Here, a sentence is represented by the mean of its tokens' last states minus
    `center`, the mean over all sentences of the analysis; without that, any two sentences are alike. Equal texts give
    1. A sentence without text, or equal to the center, gives 0.
    """
    states = sentence_states(loaded, [sentence, *others]) - center
    lengths = states.norm(dim=1)
    products = states[1:] @ states[0]
    text = loaded.tokenizer.decode(sentence).strip()
    found = []
    for ids, product, length in zip(others, products, lengths[1:], strict=True):
        if loaded.tokenizer.decode(ids).strip() == text:
            found.append(1.0)
        elif not ids or length * lengths[0] == 0:
            found.append(0.0)
        else:
            found.append(float(product / (length * lengths[0])))
    return found


@torch.inference_mode()
def sentence_states(loaded: Loaded, sentences: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean over its tokens of the last layer's state after the final norm, each sentence alone; [n, hidden].

    In float64; zeros for a sentence without tokens.
    """
    found = []
    for start in range(0, len(sentences), _MOST_ROWS):
        group = sentences[start : start + _MOST_ROWS]
        length = max(1, *map(len, group))
        ids = torch.tensor([[*one, *[0] * (length - len(one))] for one in group], device=loaded.device)
        states = loaded.model.base_model(input_ids=ids, use_cache=False).last_hidden_state.double()
        real = torch.tensor([[i < len(one) for i in range(length)] for one in group], device=loaded.device)
        # the padding is at the end, where a causal model does not see it
        found.append((states * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp_min(1))
    return torch.cat(found)

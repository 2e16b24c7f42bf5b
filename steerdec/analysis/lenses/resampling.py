"""Thought anchors by resampling (arXiv 2506.19143): continuations from before and from after every sentence.

A place is where a sentence of the chain begins, or where the chain ends; from each the model goes on a number of times,
until it has answered. What goes on from after sentence i goes on from before sentence i + 1, so S sentences take S + 1
places. What importance is made of that is in :mod:`anchors`.

OUT/resamples.jsonl has one line a place. Every rollout has its own seed, and a place's rollouts go through the model
together whatever was done before, so that a stopped analysis goes on with what it would have made.
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
from steerdec.analysis.traces.texts import token_texts
from steerdec.analysis.traces.trace import stop_texts
from steerdec.common.json import nulls_if_nan
from steerdec.common.progress import RunProgress
from steerdec.common.seeds import sample_seed
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import Problem

RECORDS: Final = "resamples"
ARM: Final = "resamples"
_MOST_ROWS: Final = 64  # sentences at once

Line = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is sampled, whatever the chain."""

    rollouts: int
    max_tokens: int  # of a response, beyond what its chain has
    template: str  # of the prompt
    seed: int


@dataclass(frozen=True)
class Place:
    """Where a sentence of a chain begins, or where the chain ends."""

    problem: Problem
    chain: Chain
    index: int
    begin: int  # tokens of the chain before it
    sentence: tuple[int, ...]  # that stands there; empty at the chain's end

    @property
    def key(self) -> tuple[str, str, int]:
        return self.problem.id, ARM, self.index


def resample(
    loaded: Loaded, chains: Sequence[tuple[Problem, Chain]], asked: Asked, kept: Store
) -> dict[str, list[Line]]:
    """The lines of each problem's places, in the chain's order; those that are kept are not made again.

    A response may have as many tokens as its chain and `asked.max_tokens` together, from every place: so no place has
    less room to answer than another, and cutting responses off favours none.

    Raises:
        AnalysisError, GradingError, JournalError: it failed on its way; what was done is kept.
    """
    places = [place for problem, chain in chains for place in places_of(loaded.tokenizer, problem, chain)]
    lines = kept.lines(RECORDS)
    missing = [place for place in places if place.key not in lines]
    if missing:
        centre = sentence_states(loaded, [place.sentence for place in places if place.sentence]).mean(dim=0)
        total, done = len(places) * asked.rollouts, (len(places) - len(missing)) * asked.rollouts
        with (
            kept.appending(RECORDS) as journal,
            RunProgress(total, done, "rollouts") as progress,
            GradingPool(workers=1) as pool,
        ):
            for place in missing:
                line = _line(loaded, pool, place, asked, centre)
                journal.append(line)
                journal.sync()
                lines[place.key] = line
                progress.advance(asked.rollouts, sum(line["tokens"]))
    found: dict[str, list[Line]] = {}
    for place in places:
        found.setdefault(place.problem.id, []).append(lines[place.key])
    return found


def places_of(tokenizer: Any, problem: Problem, chain: Chain) -> list[Place]:
    """S + 1 of a chain of S sentences."""
    spans = sentence_spans(token_texts(chain.tokens, tokenizer))
    begins = [Place(problem, chain, i, begin, chain.tokens[begin:end]) for i, (begin, end) in enumerate(spans)]
    return [*begins, Place(problem, chain, len(spans), len(chain.tokens), ())]


def added(record: Line, lines: Sequence[Line]) -> Line:
    """The record of a chain with what its places' lines say: sizes among its sentences' scores, the rest beside."""
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
    """Hashed from (problem, chain, place, rollout), so that no two rollouts anywhere share their draws."""
    return [sample_seed(seed, problem_id, rollout, f"{ARM}/{sample}/{place}") for rollout in range(rollouts)]


def _line(loaded: Loaded, pool: GradingPool, place: Place, asked: Asked, centre: Tensor) -> Line:
    """What each rollout from a place answers, and how its first sentence compares with the chain's."""
    begun_s = time.monotonic()
    chain, stops = place.chain, stop_texts(asked.template)
    seeds = rollout_seeds(asked.seed, place.problem.id, chain.sample, place.index, asked.rollouts)
    most_tokens = len(chain.tokens) + asked.max_tokens
    found = list(continuations(loaded, chain.prompt, chain.tokens[: place.begin], seeds, stops, most_tokens))
    graded = [pool.grade(response_text(loaded.tokenizer, ids, stops), place.problem, reason) for ids, reason in found]
    firsts = [first_sentence(loaded.tokenizer, ids[place.begin :], end_ids(loaded)) for ids, _ in found]
    cosines = similarities(loaded, place.sentence, firsts, centre) if place.sentence else []
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
    """The tokens of a continuation's first sentence, without what ends the response; empty if it says nothing."""
    said = [i for i in ids if i not in ends]
    return tuple(said[slice(*sentence_spans(token_texts(said, tokenizer))[0])]) if said else ()


def similarities(
    loaded: Loaded, sentence: Sequence[int], others: Sequence[Sequence[int]], centre: Tensor
) -> list[float]:
    """Cosine of each of the others' meaning with the sentence's, as the model itself sees them (ours).

    The paper asks an embedding model; here a sentence stands for the mean of its tokens' last states, less `centre`,
    the mean over all sentences that are looked at: without that any two sentences are alike. The same text is 1, and
    a sentence of no text, or in no direction from the centre, 0.
    """
    states = sentence_states(loaded, [sentence, *others]) - centre
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
    """Mean over its tokens of the last layer's state after the final norm, each sentence fed alone; [n, hidden].

    In float64; zeros for a sentence without tokens.
    """
    found = []
    for start in range(0, len(sentences), _MOST_ROWS):
        group = sentences[start : start + _MOST_ROWS]
        length = max(1, *map(len, group))
        ids = torch.tensor([[*one, *[0] * (length - len(one))] for one in group], device=loaded.device)
        states = loaded.model.base_model(input_ids=ids, use_cache=False).last_hidden_state.double()
        real = torch.tensor([[i < len(one) for i in range(length)] for one in group], device=loaded.device)
        # the padding comes last, where a causal model does not see it
        found.append((states * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp_min(1))
    return torch.cat(found)

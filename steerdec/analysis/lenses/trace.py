"""Apply every lens to one trace."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from steerdec.analysis.lenses import anchors, pruning, rollouts
from steerdec.analysis.lenses.branches import BranchScorer, Floats
from steerdec.analysis.lenses.hsic import hsic_scores
from steerdec.analysis.traces.endings import Ending
from steerdec.analysis.traces.forward import forward, last_state
from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.sentences import sentence_spans, sentence_starts
from steerdec.analysis.traces.token_classes import token_classes
from steerdec.common.json import nulls_if_nan
from steerdec.common.token_texts import token_texts

ARM: Final = "lenses"
AGAIN: Final = "@again"  # follows the name of a score that was computed a second time, in another dtype
DIGITS: Final = 7


@dataclass(frozen=True)
class LensSettings:
    """The settings that decide how a trace is analyzed, apart from model and trace."""

    greedy_tokens: int = 24  # longest chain for greedy deletion, whose cost grows with the third power of its length
    gap_sentences: int = anchors.GAP_SENTENCES
    again_every: int = 4  # for every such number of problems, one is also computed in the other dtype
    resamples: int = 0  # rollouts from every sentence; none by default


@dataclass(frozen=True)
class Chain:
    """A sampled chain to analyze, and what it is judged by."""

    problem_id: str
    sample: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]  # all sampled chains of the problem, including this one
    ending: Ending
    gold: tuple[int, ...]  # the statement of the reference answer, alone
    wrong_gold: tuple[int, ...]  # the same for another problem with another answer
    facts: dict[str, Any]  # shown with the scores: answer, grade


class Lenses:
    """The model, a second copy in another dtype, and their scorers. The copy shows how well a lens repeats."""

    def __init__(self, loaded: Loaded, settings: LensSettings) -> None:
        self._loaded, self._settings = loaded, settings
        self._scorer = BranchScorer(loaded.model)
        half = loaded.dtype in (torch.bfloat16, torch.float16)
        self.again_dtype = torch.float32 if half else torch.bfloat16
        self._again = copy.deepcopy(loaded.model).to(self.again_dtype)
        self._again_scorer = BranchScorer(self._again)

    @property
    def packed(self) -> bool:
        """Return whether branches go through the model packed."""
        return self._scorer.packed and self._again_scorer.packed

    def look(self, chain: Chain, seed: int, *, again: bool) -> dict[str, Any]:
        """Return the record of one trace: JSON values only, scores with DIGITS significant digits, None for NaN.

        Args:
            seed: for the shuffled dimensions.
            again: whether to compute the scores a second time with the copy.

        Raises:
            BranchError, HsicError, AnalysisError: the model gives values that are not finite.
        """
        begun_s = time.monotonic()
        texts = token_texts(chain.tokens, self._loaded.tokenizer)
        spans = sentence_spans(texts)
        scores, sentences, shift = self._one(self._loaded.model, self._scorer, chain, spans, seed)
        if again:
            second, sentences_second, _ = self._one(self._again, self._again_scorer, chain, spans, seed)
            scores |= {name + AGAIN: second[name] for name in ("entropy", "hsic", "answer_shift", "leave_one_out")}
            sentences |= {name + AGAIN: sentences_second[name] for name in ("forced_answer", "suppression")}
        if len(chain.tokens) <= self._settings.greedy_tokens:
            steps = pruning.greedy_steps(self._scorer, *_answer(chain))
            scores["greedy"] = steps.astype(np.float64)
        n = len(chain.tokens)
        scores["no_surprisal"] = pruning.without(scores["leave_one_out"], scores["surprisal"])
        scores |= {"position": np.arange(n, dtype=np.float64), "sentence_start": sentence_starts(n, spans)}
        received = anchors.received_attention(
            self._loaded.model, chain.prompt, chain.tokens, spans, self._settings.gap_sentences
        )
        variance = rollouts.answer_variance(
            self._scorer, chain.prompt, chain.others, chain.ending.tokens, chain.ending.scored
        )
        return {
            "problem_id": chain.problem_id,
            "arm": ARM,
            "sample": chain.sample,
            "error": None,
            **chain.facts,
            "tokens": texts,
            "classes": token_classes(texts),
            "spans": [list(span) for span in spans],
            "scores": {name: nulls_if_nan(values, DIGITS) for name, values in scores.items()},
            "answer_shift_signed_nats": nulls_if_nan(shift, DIGITS),
            "sentences": {name: nulls_if_nan(values, DIGITS) for name, values in sentences.items()},
            "received": [nulls_if_nan(head, 4) for head in received],
            "answer_tokens": token_texts(chain.ending.tokens[-chain.ending.scored :], self._loaded.tokenizer),
            "answer_variance": {name: nulls_if_nan(values, DIGITS) for name, values in vars(variance).items()},
            "rollouts": len(chain.others),
            "seconds": round(time.monotonic() - begun_s, 2),
        }

    def _one(
        self, model: Any, scorer: BranchScorer, chain: Chain, spans: Sequence[tuple[int, int]], seed: int
    ) -> tuple[dict[str, Floats], dict[str, Floats], Floats]:
        """Compute (token scores, sentence scores, signed answer shift) with one of the two models."""
        seen = forward(model, chain.prompt, chain.tokens)
        golds = last_state(model, chain.gold), last_state(model, chain.wrong_gold)
        hsic = hsic_scores(seen.states, *golds, seed=seed)
        logp = rollouts.answer_logp(scorer, *_answer(chain))
        shift = rollouts.answer_shift(logp)
        suppressed, _ = anchors.suppression(scorer, chain.prompt, chain.tokens, spans)
        tokens = {
            "entropy": seen.entropy_nats,
            "surprisal": seen.surprisal_nats,
            "hsic": hsic.gold,
            "hsic_wrong_gold": hsic.wrong_gold,
            "hsic_shuffled": hsic.shuffled,
            "norm": hsic.norm,
            "answer_shift": np.abs(shift),
            "leave_one_out": pruning.leave_one_out(scorer, *_answer(chain)),
        }
        return tokens, {"forced_answer": np.abs(anchors.forced_answer(logp, spans)), "suppression": suppressed}, shift


def _answer(chain: Chain) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    return chain.prompt, chain.tokens, chain.ending.tokens, chain.ending.scored

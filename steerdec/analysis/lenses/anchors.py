"""Score sentences by thought anchors (arXiv 2506.19143), in three cheap ways and an expensive one.

Forced answer: what a sentence adds to log p(answer) if the model had to answer now. Receiver heads: how much the heads
that concentrate on few sentences attend to it. Attention suppression: how much later tokens change when they cannot see
it. Resampling: how much more often continuations are correct that begin after it than those that begin before it; they
are sampled in :mod:`resampling`. All of these score sentences; a token never gets the score of its sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from steerdec.analysis.lenses.branches import Branch, BranchError, BranchScorer, Floats

Spans = Sequence[tuple[int, int]]

GAP_SENTENCES: Final = 4  # attention from sentences closer than this is left out
TOP_HEADS: Final = 20
FEWEST_RECEIVED: Final = 4  # a head needs this many scored sentences before its kurtosis means anything
SMALLEST_KL: Final = 1e-10  # in nats; a smaller value is rounding, and its logarithm means nothing
SAME_MEANING: Final = 0.8  # cosine at and above which a resampled sentence counts as the same
SMOOTHING: Final = 1.0  # added to the count of each answer, so that an answer seen on one side only has a finite KL


def forced_answer(logp: Floats, spans: Spans) -> Floats:
    """Return what each sentence adds to the answer's log p in nats, signed; [n_sentences].

    Args:
        logp: from :func:`rollouts.answer_logp`, [n_tokens + 1].
    """
    return np.array([logp[end] - logp[begin] for begin, end in spans], dtype=np.float64)


def suppression(
    scorer: BranchScorer, prompt: Sequence[int], chain: Sequence[int], spans: Spans
) -> tuple[Floats, NDArray[np.float64]]:
    """Compute the effect of hiding each sentence from all that follows it; (score [S], matrix [S, S]).

    matrix[j, i] is the mean over the tokens of sentence j of log KL(p || p without sentence i), NaN for j <= i. The
    mean of each row is then removed, because some sentences change more than others whatever is hidden from them. The
    score of i is the mean of its column, and NaN for the last sentence, which nothing follows. This takes S + 1 packed
    passes, each of which begins after the sentence that it hides.
    """
    n, context = len(spans), [*prompt, *chain]
    matrix = np.full((n, n), np.nan)
    branches, owners = [], []
    for i, (begin, end) in enumerate(spans):
        tail = tuple(chain[end:])
        if len(tail) >= 2:
            branches.append(Branch(len(prompt) + end, tail, len(tail) - 1, (len(prompt) + begin, len(prompt) + end)))
            owners.append(i)
    if not branches:
        return np.full(n, np.nan), matrix
    first = branches[0].keep - len(prompt)
    whole = Branch(branches[0].keep, branches[0].tokens, branches[0].scored)
    base = next(iter(scorer.distributions(context, [whole])))
    for i, branch, hidden in zip(owners, branches, scorer.distributions(context, branches), strict=True):
        plain = base[-branch.scored :].double()  # all branches end at the same place
        kl = (plain.exp() * (plain - hidden.double())).sum(dim=1).clamp_min(SMALLEST_KL).log().cpu().numpy()
        tokens = np.arange(len(chain) - branch.scored, len(chain))  # the chain index that each row predicts
        for j in range(i + 1, n):
            inside = (tokens >= spans[j][0]) & (tokens < spans[j][1])
            if inside.any():
                matrix[j, i] = float(np.mean(kl[inside]))
    assert first == spans[owners[0]][1]
    return column_scores(matrix)


def column_scores(log_kl: NDArray[np.float64]) -> tuple[Floats, NDArray[np.float64]]:
    """Remove each row's mean, then average each column; NaN means missing. (score [S], centered matrix [S, S])."""
    known = ~np.isnan(log_kl)
    row_mean = _mean(log_kl, known, axis=1)
    centred = log_kl - row_mean[:, None]
    return _mean(centred, known, axis=0), centred


def _mean(values: NDArray[np.float64], known: NDArray[np.bool_], axis: int) -> Floats:
    counts = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0), dtype=np.float64)


@torch.inference_mode()
def received_attention(
    model: Any, prompt: Sequence[int], chain: Sequence[int], spans: Spans, gap_sentences: int = GAP_SENTENCES
) -> NDArray[np.float64]:
    """Return the mean attention that each sentence gets from sentences at least `gap_sentences` later; [n_heads, S].

    Heads are those of all layers in order. The attention between sentences is the mean over the pairs of their tokens.
    NaN for sentences with no other that late. This takes one pass; the weights of a layer are averaged and dropped at
    once.

    Raises:
        BranchError: the model does not return its attention weights.
    """
    n, sentences = len(prompt) + len(chain), len(spans)
    average = torch.zeros(sentences, n, dtype=torch.float32, device=model.device)
    for i, (begin, end) in enumerate(spans):
        average[i, len(prompt) + begin : len(prompt) + end] = 1.0 / (end - begin)
    late = np.subtract.outer(np.arange(sentences), np.arange(sentences)) >= gap_sentences  # [from, to]
    per_layer: list[NDArray[np.float64]] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is not None:
            between = average @ weights[0].float() @ average.T  # [heads, from, to]
            per_layer.append(between.double().cpu().numpy())

    modules = [module for name, module in model.named_modules() if name.endswith(("self_attn", "attention"))]
    with _eager(model), _hooked(modules, keep):
        model(input_ids=torch.tensor([[*prompt, *chain]], device=model.device), use_cache=False, logits_to_keep=1)
    if not per_layer:
        raise BranchError(f"{type(model).__name__} gives no attention weights; receiver heads cannot be found")
    between = np.concatenate(per_layer)
    counts = late.sum(axis=0)
    received = np.where(late, between, 0.0).sum(axis=1)
    return np.asarray(
        np.divide(received, counts, out=np.full(received.shape, np.nan), where=counts > 0), dtype=np.float64
    )


def head_kurtosis(received: NDArray[np.float64]) -> Floats:
    """Return the excess kurtosis of each head's attention over the sentences of a trace; [n_heads].

    NaN if fewer than FEWEST_RECEIVED sentences have a value, or if all values are equal.
    """
    known = received[:, ~np.isnan(received).any(axis=0)]
    if known.shape[1] < FEWEST_RECEIVED:
        return np.full(len(received), np.nan)
    spread = np.ptp(known, axis=1) > 1e-12
    kurtosis = np.full(len(received), np.nan)
    kurtosis[spread] = scipy.stats.kurtosis(known[spread], axis=1)
    return kurtosis


def receiver_heads(kurtosis: NDArray[np.float64], top: int = TOP_HEADS) -> NDArray[np.int64]:
    """Select the heads with the highest mean kurtosis over traces [n_traces, n_heads], highest first; [<= top].

    Traces without a kurtosis do not count. Empty if no trace has one.
    """
    known = ~np.isnan(kurtosis)
    mean = _mean(kurtosis, known, axis=0)
    heads = np.flatnonzero(~np.isnan(mean))
    return heads[np.argsort(-mean[heads], kind="stable")][:top]


@dataclass(frozen=True)
class Rollouts:
    """The results of continuations from one place of a chain, in order."""

    answers: tuple[str | None, ...]  # None: the response gave none, or was cut off
    right: tuple[bool, ...]
    cosines: tuple[float, ...]  # of their first sentences with the chain's sentence; empty at the chain's end

    def only(self, which: Sequence[int]) -> Rollouts:
        """Select some of them."""
        return Rollouts(
            tuple(self.answers[i] for i in which),
            tuple(self.right[i] for i in which),
            tuple(self.cosines[i] for i in which) if self.cosines else (),
        )


@dataclass(frozen=True)
class Importance:
    """The importance of every sentence, from rollouts; each [S], NaN where no rollout is left."""

    resampled: Floats  # share correct of rollouts from after the sentence, minus that from before; signed
    resampled_error: Floats  # upper bound of its standard error
    resampled_kl_nats: Floats
    counterfactual: Floats  # the same, against rollouts whose own sentence there has another meaning
    counterfactual_error: Floats
    counterfactual_kl_nats: Floats
    differing: Floats  # number of those rollouts


def importance(places: Sequence[Rollouts]) -> Importance:
    """Compute what each of S sentences does to the final answer, from the rollouts of S + 1 places.

    With R rollouts per side whose shares correct are p and q, the standard error of q - p is sqrt((p(1-p) + q(1-q)) /
    R), at most sqrt(.5 / R). For K differing rollouts against R, it is at most sqrt(.25 / K + .25 / R). The bound is
    reported, because a few rollouts that all agree would estimate 0. Two neighboring sentences share a place, so its
    chance moves one up and the other down.
    """
    rows = []
    for before, after in pairwise(places):
        differing = before.only([i for i, cosine in enumerate(before.cosines) if cosine < SAME_MEANING])
        rows.append((*_difference(before, after), *_difference(differing, after), float(len(differing.right))))
    return Importance(*np.array(rows, dtype=np.float64).reshape(len(rows), 7).T)


def _difference(without: Rollouts, having: Rollouts) -> tuple[float, float, float]:
    """Return (share correct with the sentence minus that without, bound of the standard error, KL in nats)."""
    n, m = len(without.right), len(having.right)
    if not n or not m:
        return np.nan, np.nan, np.nan
    gained = sum(having.right) / m - sum(without.right) / n
    return gained, float(np.sqrt(0.25 / n + 0.25 / m)), answer_kl(without.answers, having.answers)


def answer_kl(without: Sequence[str | None], having: Sequence[str | None]) -> float:
    """Return KL(without || having) in nats between the final answers of two samples, "none" included.

    p(a) = (count(a) + SMOOTHING) / (n + SMOOTHING k) over the k answers that occur in either. It is never negative.
    Chance alone makes it positive, and more so with fewer rollouts.
    """
    answers = sorted({*without, *having}, key=lambda answer: (answer is not None, answer or ""))
    p, q = (
        (np.array([sample.count(a) for a in answers]) + SMOOTHING) / (len(sample) + SMOOTHING * len(answers))
        for sample in (list(without), list(having))
    )
    return max(0.0, float(np.sum(p * np.log(p / q))))


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Switch to the attention implementation that returns its weights, and back at the end."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _hooked(modules: Sequence[Any], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

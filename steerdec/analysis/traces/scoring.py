"""Score the tokens of given responses by teacher forcing.

A score at t belongs to the distribution that predicts token t, so the first response token is scored at the last
position of the prompt. Entropy is arXiv 2506.01939, equation 1: H_t = -sum_v p_v log p_v over the full vocabulary at
temperature 1, from a float32 log-softmax whatever dtype the model computes in.

Sequences are padded on the right and go through the model in pieces along their length, with the model's cache of keys
and values. Only the logits of one piece are held at a time, so a trace of any length fits. In a causal model, the
padding at the end changes nothing before it. A prompt that several traces share goes through only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerdec.analysis.traces.loading import Loaded, check_fits, free_bytes
from steerdec.analysis.traces.trace import Trace
from steerdec.common.errors import AnalysisError, InputError

_COPIES: Final = 4  # copies of a piece's logits at once: the model's own, float32, log-probabilities, products
_SHARE: Final = 0.25  # share of the free memory that the logits of a piece may take
_MOST_BYTES: Final = 1 << 31
_BATCH_TOKENS: Final = 16_384  # tokens of prompts and responses in a batch: keys, values, and activations


@dataclass(frozen=True)
class Scores:
    """The scores of one trace under one model; each array has one entry per response token."""

    entropy_nats: NDArray[np.float32]
    surprisal_nats: NDArray[np.float32]  # -log p of the token in the response
    rank: NDArray[np.int64]  # number of tokens that were more likely; 0 is the most likely


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (entropy in nats, surprisal in nats, rank), each [n], of [n, vocabulary] logits and [n] token ids."""
    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    entropy = -torch.where(p == 0, 0.0, p * logp).sum(-1)  # a token at -inf adds nothing, and NaN stays NaN
    own = logp.gather(-1, targets[:, None])
    return entropy, -own[:, 0], (logp > own).sum(-1)


def score_traces(
    loaded: Loaded,
    traces: Sequence[Trace],
    *,
    on_scores: Callable[[int, Scores], None] | None = None,
    batch_tokens: int = _BATCH_TOKENS,
    piece_bytes: int | None = None,
) -> list[Scores]:
    """Score every trace and return the scores in their order, however they were batched.

    Args:
        on_scores: called with (index, scores) as soon as a trace is done, in no particular order.
        batch_tokens: maximum number of tokens in a batch, including padding; a single trace may exceed it.
        piece_bytes: memory for the logits of a piece. Default: a quarter of the free memory, at most 2 GiB.

    Raises:
        InputError: there is no trace, one is empty, or one does not fit the model's context or vocabulary.
        AnalysisError: the model's logits are NaN.
    """
    if not traces:
        raise InputError("there is no trace to score")
    for trace in traces:
        if not trace.prompt_ids or not trace.response_ids:
            raise InputError(f"{trace.where} has no {'response' if trace.prompt_ids else 'prompt'}")
    check_fits(traces, loaded)
    done: list[Scores | None] = [None] * len(traces)
    for batch in _batches(traces, batch_tokens):
        for i, scores in zip(batch, _batch_scores(loaded, [traces[i] for i in batch], piece_bytes), strict=True):
            done[i] = scores
            if on_scores is not None:
                on_scores(i, scores)
    return [scores for scores in done if scores is not None]


def batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Group the indices of sequences of similar length, longest first, so that what does not fit fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        n = max(1, min(len(order), most_tokens // lengths[order[0]]))
        yield order[:n]
        order = order[n:]


def _batches(traces: Sequence[Trace], most_tokens: int) -> Iterator[list[int]]:
    """Group the indices of traces: those that share a prompt, then those whose prompt is theirs alone."""
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, trace in enumerate(traces):
        of_prompt.setdefault(trace.prompt_ids, []).append(i)
    alone = [group[0] for group in of_prompt.values() if len(group) == 1]
    for group in [*(group for group in of_prompt.values() if len(group) > 1), alone]:
        lengths = [len(traces[i].prompt_ids) + len(traces[i].response_ids) for i in group]
        for batch in batches(lengths, most_tokens):
            yield [group[i] for i in batch]


@torch.inference_mode()
def _batch_scores(loaded: Loaded, traces: list[Trace], piece_bytes: int | None) -> Iterator[Scores]:
    """Yield the scores of traces that go through the model together."""
    ids = [[*t.prompt_ids, *t.response_ids] for t in traces]
    starts = [len(t.prompt_ids) - 1 for t in traces]  # the position that predicts the first response token
    length = max(len(x) for x in ids) - 1  # the last token predicts nothing in the response
    padded = torch.tensor([(x + [0] * (length + 1))[: length + 1] for x in ids], device=loaded.device)
    first = min(starts)
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in traces]
    for begin, end, logits in _pieces(loaded, padded[:, :length], first, piece_bytes):
        for b, (x, start) in enumerate(zip(ids, starts, strict=True)):
            low, high = max(begin, start), min(end, len(x) - 1)
            if low >= high:
                continue
            own = logits[b, low - begin : high - begin]
            scored = token_scores(own, padded[b, low + 1 : high + 1])
            bad = ~torch.isfinite(scored[0])
            if bool(bad.any()):
                at = low - start + int(bad.nonzero()[0])
                raise AnalysisError(f"{loaded.name} gives NaN at token {at} of {traces[b].where}; it cannot be scored")
            parts[b].append(scored)
    for part in parts:
        h, s, r = (torch.cat(columns).cpu().numpy() for columns in zip(*part, strict=True))
        yield Scores(h, s, r)


def _pieces(loaded: Loaded, ids: Tensor, first: int, piece_bytes: int | None) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (begin, end, logits [batch, end - begin, vocabulary]) that cover the positions from `first` on."""
    from transformers import DynamicCache

    rows, length = ids.shape
    vocabulary = int(loaded.model.get_output_embeddings().weight.shape[0])
    room = piece_bytes or min(_MOST_BYTES, int(_SHARE * free_bytes(loaded.device)))
    step = max(1, room // (rows * vocabulary * 4 * _COPIES))
    cache: Any = DynamicCache(config=loaded.model.config)
    begin = 0
    if first > 0:  # the prompts, of which only keys and values are needed
        prompts = ids[:, :first]
        shared = rows > 1 and bool((prompts == prompts[:1]).all())
        loaded.model(prompts[:1] if shared else prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if shared:
            cache.batch_repeat_interleave(rows)
        begin = first
    while begin < length:
        end = min(length, begin + step)
        yield begin, end, loaded.model(ids[:, begin:end], past_key_values=cache, use_cache=True).logits
        begin = end

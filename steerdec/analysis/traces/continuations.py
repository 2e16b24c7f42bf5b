"""Sample many continuations of one text, with the settings of thought anchors by resampling (arXiv 2506.19143).

Each continuation has a Philox stream whose key is its seed. The u-th number of the stream decides the u-th token. So a
continuation does not depend on what is sampled next to it, except for the rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from steerdec.analysis.traces.loading import Loaded, batch_rows
from steerdec.analysis.traces.sampling import end_ids
from steerdec.common.errors import AnalysisError

TEMPERATURE: Final = 0.6
TOP_P: Final = 0.95
_TAIL_TOKENS: Final = 8  # a stop text is searched for in this many tokens at the end
_NEAR: Final = 256  # this many of the likeliest tokens nearly always reach TOP_P; sorting a whole vocabulary is slow


@torch.inference_mode()
def continuations(
    loaded: Loaded,
    prompt: Sequence[int],
    begun: Sequence[int],
    seeds: Sequence[int],
    stops: tuple[str, ...],
    most_tokens: int,
) -> Iterator[tuple[list[int], str]]:
    """Return (response including its given start, finish reason) for each seed, in order.

    The given start goes through the model only once; rows that have ended leave the batch.

    Args:
        stops: texts that end a response, in addition to the model's own end tokens.
        most_tokens: maximum length of a response, including its given start.

    Raises:
        AnalysisError: the model's logits are NaN.
    """
    for start in range(0, len(seeds), rows := batch_rows(loaded, len(prompt) + most_tokens)):
        yield from _batch(loaded, prompt, begun, seeds[start : start + rows], stops, most_tokens)


def _batch(
    loaded: Loaded,
    prompt: Sequence[int],
    begun: Sequence[int],
    seeds: Sequence[int],
    stops: tuple[str, ...],
    most_tokens: int,
) -> Iterator[tuple[list[int], str]]:
    from transformers import DynamicCache

    ends = end_ids(loaded)
    room = most_tokens - len(begun)
    draws = np.stack([np.random.Generator(np.random.Philox(key=seed)).random(room) for seed in seeds])
    responses = [list(begun) for _ in seeds]
    reasons = ["length"] * len(seeds)
    going = list(range(len(seeds)))
    cache: Any = DynamicCache(config=loaded.model.config)
    ids = torch.tensor([[*prompt, *begun]], device=loaded.device)
    for step in range(room):
        logits = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if bool(logits.isnan().any()):
            raise AnalysisError("the model's logits are not finite (NaN); nothing can be sampled with it")
        if step == 0:
            cache.batch_repeat_interleave(len(seeds))
            logits = logits.expand(len(seeds), -1)
        drawn = nucleus_draw(logits, torch.from_numpy(draws[going, step]).to(logits.device))
        left = []
        for at, (row, token) in enumerate(zip(going, drawn.tolist(), strict=True)):
            responses[row].append(token)
            tail = loaded.tokenizer.decode(responses[row][-_TAIL_TOKENS:]) if stops else ""
            if token in ends or any(stop in tail for stop in stops):
                reasons[row] = "stop"
            else:
                left.append(at)
        if not left:
            break
        if len(left) < len(going):
            cache.batch_select_indices(torch.tensor(left, device=loaded.device))
        going = [going[at] for at in left]
        ids = drawn[left, None]
    yield from zip(responses, reasons, strict=True)


def nucleus_draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Select the token that each row's uniform number falls on; [n].

    The logits are [n, vocabulary], the numbers [n] in [0, 1). At TEMPERATURE, the candidates are the smallest set of
    most likely tokens whose total probability reaches TOP_P, in descending order (Holtzman et al., arXiv 1904.09751).
    """
    p = torch.softmax(logits.float() / TEMPERATURE, dim=-1)
    top, order = p.topk(min(_NEAR, p.shape[1]), dim=-1)
    if bool((top.double().sum(-1) < TOP_P).any()):
        top, order = p.sort(dim=-1, descending=True)
    up_to = top.double().cumsum(-1)
    kept = (up_to - top < TOP_P).sum(-1, keepdim=True)
    point = uniforms[:, None] * up_to.gather(-1, kept - 1)
    at = torch.searchsorted(up_to, point, right=True).clamp_max(kept - 1)
    return order.gather(-1, at)[:, 0]

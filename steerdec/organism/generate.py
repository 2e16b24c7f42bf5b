"""Sample chains of thought from the organism in plain torch, many problems at once, from given uniform numbers.

Every prompt has the same length, so there is no padding to the left and a batch is one cache. The token is where the
cumulative distribution passes the uniform number, so (rounding aside) a response depends on its own numbers and not on
its batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdec.organism.task import Problems, seeded
from steerdec.organism.vocabulary import CLOSING, END, IDS, LONGEST_RESPONSE, PAD, VALUES, prompts


def uniforms(problem_ids: list[str], samples: int, *key: object) -> Tensor:
    """Return the uniform numbers of each problem's samples; [len(problem_ids) * samples, LONGEST_RESPONSE], float64.

    Sample s of a problem has a stream of its own, by a hash of `key`, the problem and s.
    """
    rows = [seeded("draws", *key, name, s).random(LONGEST_RESPONSE) for name in problem_ids for s in range(samples)]
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()  # not inference mode: the ids go into a pass with gradients
def sample(model: Any, prompt: Tensor, draws: Tensor, temperature: float = 1.0) -> Tensor:
    """Return a response to each prompt, ids [n, LONGEST_RESPONSE] with PAD after the end token.

    Args:
        prompt: [n, PROMPT_TOKENS].
        draws: [n, LONGEST_RESPONSE], uniform in [0, 1).
    """
    from transformers import DynamicCache

    n = len(prompt)
    cache = DynamicCache(config=model.config)
    found = torch.full((n, LONGEST_RESPONSE), IDS[PAD])
    ended = torch.zeros(n, dtype=torch.bool)
    fed = prompt
    for t in range(LONGEST_RESPONSE):
        logits = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        up_to = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
        token = torch.searchsorted(up_to, draws[:, t, None] * up_to[:, -1:], right=True)[:, 0]
        token = torch.where(ended, IDS[PAD], token.clamp(max=logits.shape[-1] - 1))
        found[:, t] = token
        ended |= token == IDS[END]
        if bool(ended.all()):
            break
        fed = token[:, None]
    return found


def prompt_tensor(batch: Problems, samples: int) -> Tensor:
    """Return the prompt ids of each problem `samples` times in a row; [len(batch) * samples, PROMPT_TOKENS]."""
    return torch.from_numpy(np.repeat(prompts(batch), samples, axis=0))


def correct(batch: Problems, responses: Tensor, samples: int) -> Tensor:
    """Return whether each response states its problem's answer and ends; bool [len(batch) * samples].

    The answer counts as a benchmark counts it: what stands in the box, however it was found.
    """
    answers = torch.from_numpy(np.repeat(IDS[VALUES[0]] + batch.way(), samples, axis=0))
    opened = responses == IDS[CLOSING]
    at = opened.int().argmax(1).clamp(max=responses.shape[1] - 1 - answers.shape[1])
    places = at[:, None] + 1 + torch.arange(answers.shape[1])
    stated = responses.gather(1, places)
    return opened.any(1) & (responses == IDS[END]).any(1) & (stated == answers).all(1)

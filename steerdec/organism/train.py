"""Train the organism from scratch on written demonstrations: the same seed gives the same weights, bit for bit.

A step's batch depends on its number alone, so a stopped training resumes with the batches it would have seen. Only the
response's tokens are trained on: the prompt is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from steerdec.organism import task, vocabulary
from steerdec.organism.vocabulary import IDS, PAD, PROMPT_TOKENS

IGNORED: Final = -100  # cross entropy's label for tokens that are not trained on


@dataclass(frozen=True)
class Size:
    """The model. Two heads, so that tensor parallelism over two divides them; 32 wide, which vLLM on CPUs takes."""

    layers: int = 3
    hidden: int = 64
    heads: int = 2
    kv_heads: int = 2
    feed_forward: int = 192


@dataclass(frozen=True)
class Training:
    """What decides the weights, beside the code."""

    seed: int = 0
    steps: int = 1200
    batch: int = 48
    slices: int = 2  # of a batch, each with responses of like length
    learning_rate: float = 4e-3
    warmup_steps: int = 60
    decay_from: float = 0.5  # share of the steps after which the rate falls to a twentieth
    weight_decay: float = 0.05
    threads: int = 1  # of torch: another number adds in another order


def new_model(size: Size, seed: int) -> Any:
    """Return an untrained float32 llama with weights drawn by `seed`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary.TOKENS),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=IDS[vocabulary.START],
        eos_token_id=IDS[vocabulary.END],
        pad_token_id=IDS[PAD],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with that many threads for a while; sums of another number of threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batch(training: Training, step: int) -> tuple[Tensor, Tensor]:
    """Return (ids [batch, tokens], response lengths [batch]) of a training step, shortest response first."""
    drawn, rng = next(task.batches(training.batch, training.seed, step))
    written, lengths = vocabulary.responses(drawn, task.demonstrated(drawn, rng), rng)
    order = np.argsort(lengths, kind="stable")
    ids = np.concatenate([vocabulary.prompts(drawn), written], axis=1)[order]
    return torch.from_numpy(ids), torch.from_numpy(lengths[order])


def step_loss(model: Any, ids: Tensor, lengths: Tensor, slices: int) -> float:
    """Add the gradient of the mean loss over response tokens, slice by slice; return the loss in nats per token."""
    total = int(lengths.sum())
    summed = 0.0
    for part, long in zip(ids.chunk(slices), lengths.chunk(slices), strict=True):
        width = PROMPT_TOKENS + int(long.max())
        part = part[:, :width]
        logits = model(input_ids=part, use_cache=False, logits_to_keep=width - PROMPT_TOKENS + 1).logits[:, :-1]
        labels = part[:, PROMPT_TOKENS:]
        labels = torch.where(labels == IDS[PAD], IGNORED, labels)
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
        )
        torch.autograd.backward(loss / total)
        summed += float(loss.detach())
    return summed / total


def rate_at(training: Training, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, constant, then a cosine down to a twentieth."""
    decay_begins = training.decay_from * training.steps
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if step < decay_begins:
        return training.learning_rate
    done = (step - decay_begins) / max(1.0, training.steps - decay_begins)
    return training.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_of(model: Any, training: Training) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))

"""Train the organism with GRPO on some of its tokens: a loop of its own, with the loss of `analysis.train.equation6`.

TRL's trainer (`analysis.train`) draws its samples from torch's global generator, so two arms of one seed would part
ways at once. Here every sample has uniform numbers of its own. Each batch is sampled and trained on once, strictly on
policy, so every ratio is 1 at the point of the gradient and clipping never acts.

Arms differ in which tokens the loss is a mean over, and in nothing else: problems, their order, and the uniform numbers
behind the samples are the same for all arms of a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from steerdec.analysis.train import equation6
from steerdec.organism import generate, task
from steerdec.organism.checkpoint import load, save
from steerdec.organism.vocabulary import IDS, PAD, PROMPT_TOKENS

FORKS: Final = "top 20%"
ALL: Final = "all tokens"
OTHERS: Final = "bottom 80%"
RANDOM: Final = "random 20%"
ARMS: Final = (FORKS, ALL, OTHERS, RANDOM)
SHARE: Final = 0.2


@dataclass(frozen=True)
class GRPO:
    """What decides a run, beside arm, seed and the model it begins with."""

    steps: int = 100
    prompts: int = 8  # of a step
    generations: int = 8  # of each prompt
    learning_rate: float = 1e-4
    save_every: int = 20
    threads: int = 1


def token_scores(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return (log-probability of each token, entropy in nats of what predicts it, detached); each [n, tokens]."""
    logp = torch.log_softmax(logits.float(), -1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, ids[..., None])[..., 0], entropy


def scored(model: Any, prompt: Tensor, responses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score responses by teacher forcing: (logp, entropy_nats, mask), each [n, longest response here]."""
    mask = responses != IDS[PAD]
    width = int(mask.sum(1).max())
    responses, mask = responses[:, :width], mask[:, :width]
    ids = torch.cat([prompt, responses], 1)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    logp, entropy = token_scores(logits, responses)
    assert ids.shape[1] == PROMPT_TOKENS + width
    return logp, entropy, mask


def arm_loss(arm: str, logp: Tensor, advantages: Tensor, entropy_nats: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """Return the loss of a batch: equation 6 as a mean over the arm's tokens.

    Args:
        arm: FORKS, ALL, OTHERS, or RANDOM.
        logp: [n, tokens], log-probability of each token.
        advantages: [n].
        entropy_nats: [n, tokens].
        mask: [n, tokens], bool, the tokens that count.
        noise: [n, tokens], uniform, for the random arm.
    """
    by, share = {
        FORKS: (entropy_nats, SHARE),
        ALL: (entropy_nats, 1.0),
        OTHERS: (-entropy_nats, 1 - SHARE),
        RANDOM: (noise, SHARE),
    }[arm]
    return equation6.loss(logp, logp.detach(), advantages, by, mask, share, equation6.FORKS)


def advantages(rewards: Tensor, generations: int) -> Tensor:
    """Return each reward less its prompt's mean, over its prompt's standard deviation; [n]. 0 where all agree."""
    grouped = rewards.view(-1, generations)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-6)).view(-1)


def train(
    model: Any,
    arm: str,
    seed: int,
    settings: GRPO,
    checkpoint: Path,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` in place, resuming from `checkpoint` if it exists; return each step's mean reward."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    rewards: list[float] = []
    if (held := load(checkpoint)) is not None:
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        rewards = list(held["rewards"])
    for step in range(len(rewards), settings.steps):
        problems = task.problems(settings.prompts, "grpo", seed, step, held_out=False)
        names = [str(i) for i in range(settings.prompts)]
        draws = generate.uniforms(names, settings.generations, "grpo", seed, step)
        prompt = generate.prompt_tensor(problems, settings.generations)
        responses = generate.sample(model, prompt, draws)
        reward = generate.correct(problems, responses, settings.generations).float()
        rewards.append(float(reward.mean()))
        logp, entropy, mask = scored(model, prompt, responses)
        noise = torch.from_numpy(task.seeded("random tokens", seed, step).random(tuple(mask.shape))).float()
        optimizer.zero_grad(set_to_none=True)
        loss = arm_loss(arm, logp, advantages(reward, settings.generations), entropy, mask, noise)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % settings.save_every == 0 and step + 1 < settings.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rewards": rewards}
            save(state, checkpoint)
        if on_step is not None:
            on_step(step, rewards[-1])
    model.requires_grad_(False)
    return rewards

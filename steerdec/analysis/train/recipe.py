"""Define GRPO on forks for a problem set: settings, data, and reward, in TRL's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.trace import prompt_ids, stop_texts
from steerdec.analysis.train.equation6 import EPSILON_HIGH, EPSILON_LOW
from steerdec.common.errors import InputError
from steerdec.grading.pool import GradingPool
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import ProblemSet


@dataclass(frozen=True)
class Recipe:
    """The settings that decide a training, apart from model and problems."""

    prompt: str
    steps: int  # of the optimizer
    prompts: int  # sampled at once
    generations: int  # per prompt; their mean reward is the baseline of each
    updates: int  # steps on the responses sampled at once, each on its own part of them
    micro_batch: int  # responses in one pass of the model
    max_tokens: int
    learning_rate: float
    share: float  # of the tokens in the loss; 1 for all
    per: str  # see `equation6`
    seed: int
    temperature: float = 1.0
    thinking: bool | None = None
    bf16: bool = False  # compute in bfloat16 (autocast); the weights stay in float32

    def check(self) -> None:
        """Check that the numbers fit together. Raises InputError."""
        if self.per_step * self.updates != self.prompts * self.generations:
            raise InputError(
                f"--updates: {self.updates} does not divide the {self.prompts * self.generations} responses of "
                f"{self.prompts} prompts with {self.generations} generations"
            )
        if self.per_step % self.micro_batch:
            raise InputError(
                f"--micro-batch: {self.micro_batch} does not divide the {self.per_step} responses of a step"
            )

    @property
    def per_step(self) -> int:
        """Return how many responses a step of the optimizer uses."""
        return self.prompts * self.generations // self.updates


def grpo_config(recipe: Recipe, out: Path, *, on_cpu: bool, save_every: int) -> Any:
    """Build TRL's configuration with the paper's settings (DAPO, clip-higher, no KL), on the top share of tokens."""
    from steerdec.analysis.train.fork_grpo import GRPOConfig

    return GRPOConfig(
        output_dir=str(out),
        top_entropy_quantile=recipe.share,
        loss_type="dapo",
        epsilon=EPSILON_LOW,
        epsilon_high=EPSILON_HIGH,
        beta=0.0,
        mask_truncated_completions=True,
        num_generations=recipe.generations,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.per_step // recipe.micro_batch,
        steps_per_generation=recipe.prompts * recipe.generations // recipe.micro_batch,
        max_completion_length=recipe.max_tokens,
        temperature=recipe.temperature,
        chat_template_kwargs=request_kwargs(recipe),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        max_steps=recipe.steps,
        seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu,
        logging_steps=1,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )


def request_kwargs(recipe: Recipe) -> dict[str, Any]:
    """Return what the chat template receives in addition to the messages."""
    return {} if recipe.thinking is None else {"enable_thinking": recipe.thinking}


def data(problem_set: ProblemSet, recipe: Recipe, loaded: Loaded) -> Any:
    """Return one row per problem: `prompt` as TRL takes it (text, or messages) and `problem_id`.

    Raises:
        InputError: a prompt with its response would not fit the model's context, or there are too few problems.
        PromptError: see `request_body`.
    """
    from datasets import Dataset

    problems = problem_set.problems
    if len(problems) < recipe.prompts:
        raise InputError(f"--prompts: {recipe.prompts} at once; {problem_set.name} has {len(problems)} problems")
    longest = max(len(prompt_ids(loaded.tokenizer, recipe.prompt, p, recipe.thinking)) for p in problems)
    if longest + recipe.max_tokens > loaded.context_tokens:
        raise InputError(
            f"--max-tokens: {recipe.max_tokens} after a prompt of {longest} tokens; {loaded.name} takes at most "
            f"{loaded.context_tokens} (max_position_embeddings)"
        )
    bodies = [request_body(recipe.prompt, problem, thinking=recipe.thinking)[1] for problem in problems]
    prompts = [body.get("prompt") or body["messages"] for body in bodies]
    return Dataset.from_dict({"prompt": prompts, "problem_id": [problem.id for problem in problems]})


def end_ids(loaded: Loaded, prompt: str) -> list[int]:
    """Return every token that ends a response: the model's own, and those whose text contains a stop text.

    TRL ends a response at tokens, not at texts. A stop text of the templates is one character, so it is within one
    token.
    """
    eos = loaded.model.generation_config.eos_token_id
    own = {loaded.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    stops = stop_texts(prompt)
    if stops:
        texts = loaded.tokenizer.batch_decode([[i] for i in range(len(loaded.tokenizer))])
        own |= {i for i, text in enumerate(texts) if any(stop in text for stop in stops)}
    return sorted(int(i) for i in own)


class Reward:
    """Reward 1 for a response that the benchmark grades as correct, else 0; cut-off responses are incorrect."""

    __name__ = "correct"  # TRL's name for it in the logs

    def __init__(self, problem_set: ProblemSet, tokenizer: Any, ends: Sequence[int], prompt: str, pool: GradingPool):
        self._problems = {problem.id: problem for problem in problem_set.problems}
        self._tokenizer, self._ends, self._pool = tokenizer, frozenset(ends), pool
        self._stops = stop_texts(prompt)

    def __call__(self, completion_ids: list[list[int]], problem_id: list[str], **_: Any) -> list[float]:
        return [self._of(ids, problem) for ids, problem in zip(completion_ids, problem_id, strict=True)]

    def _of(self, ids: list[int], problem_id: str) -> float:
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        for stop in self._stops:
            text = text.partition(stop)[0]
        reason = "stop" if ids and ids[-1] in self._ends else "length"
        return float(self._pool.grade(text, self._problems[problem_id], reason).grade == "correct")

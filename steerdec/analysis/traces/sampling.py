"""Sample traces with transformers where there is no bench run: one draw per token, from a number fixed by a hash.

Each sample has a Philox stream whose key is the sample's seed (`plan.sample_seed`). The u-th token is where the
cumulative distribution passes the u-th number of the stream. So a sample does not depend on its batch, except for the
rounding of the logits, and an interrupted run resumes with the samples it would have made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from steerdec.analysis.traces.loading import Loaded, batch_rows
from steerdec.analysis.traces.trace import Trace, prompt_ids, stop_texts
from steerdec.common.errors import InputError
from steerdec.common.seeds import sample_seed
from steerdec.grading.pool import GradingPool
from steerdec.problems import embedded
from steerdec.problems.sets import Problem, ProblemSet

ARM: Final = "sampled"
MAX_TOKENS: Final = 512
_TAIL_TOKENS: Final = 8  # a stop text is searched for in this many tokens at the end


@dataclass(frozen=True)
class Sampling:
    """How traces are sampled; together with the model, the problems, and their prompt it determines them."""

    samples: int
    temperature: float  # 0 is greedy
    max_tokens: int
    seed: int
    prompt: str
    thinking: bool | None = None


def base_temperature(problems: str) -> float:
    """Return the temperature that the embedded problems were chosen for; other problems are sampled at 1."""
    return embedded.TEMPERATURE if problems in embedded.SETS else 1.0


def sample_traces(
    loaded: Loaded,
    problem_set: ProblemSet,
    sampling: Sampling,
    *,
    done: Sequence[tuple[str, str, int]] = (),
    on_trace: Callable[[Trace], None] | None = None,
) -> list[Trace]:
    """Sample and grade `sampling.samples` responses to each problem, except those whose keys are in `done`.

    Raises:
        InputError: a prompt with its response would not fit the model's context.
        PromptError, GradingError: see there.
    """
    jobs = [(p, s) for p in problem_set.problems for s in range(sampling.samples) if (p.id, ARM, s) not in set(done)]
    prompts = {p.id: prompt_ids(loaded.tokenizer, sampling.prompt, p, sampling.thinking) for p in problem_set.problems}
    longest = max((len(x) for x in prompts.values()), default=0)
    if longest + sampling.max_tokens > loaded.context_tokens:
        raise InputError(
            f"--max-tokens: {sampling.max_tokens} after a prompt of {longest} tokens; {loaded.name} takes at most "
            f"{loaded.context_tokens} (max_position_embeddings)"
        )
    found = []
    rows = batch_rows(loaded, longest + sampling.max_tokens)
    with GradingPool(workers=1) as pool:
        for start in range(0, len(jobs), rows):
            for trace in _batch(loaded, jobs[start : start + rows], prompts, sampling, pool):
                found.append(trace)
                if on_trace is not None:
                    on_trace(trace)
    return found


@torch.inference_mode()
def _batch(
    loaded: Loaded,
    jobs: Sequence[tuple[Problem, int]],
    prompts: dict[str, tuple[int, ...]],
    sampling: Sampling,
    pool: GradingPool,
) -> Iterator[Trace]:
    stops = stop_texts(sampling.prompt)
    ends = end_ids(loaded)
    pad = min(ends, default=0)
    given = [prompts[problem.id] for problem, _ in jobs]
    width = max(len(x) for x in given)
    ids = torch.tensor([[pad] * (width - len(x)) + list(x) for x in given], device=loaded.device)
    real = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in given], device=loaded.device)
    keys = [sample_seed(sampling.seed, problem.id, sample) for problem, sample in jobs]
    config = GenerationConfig(
        do_sample=False,  # `_Draw` leaves one token, which "greedy" then takes
        num_beams=1,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    out = loaded.model.generate(
        ids,
        attention_mask=real,
        generation_config=config,
        logits_processor=[_Draw(keys, sampling, width)],
        stopping_criteria=[_StopText(loaded.tokenizer, stops, width)] if stops else [],
    )
    for (problem, sample), prompt, row in zip(jobs, given, out[:, width:].tolist(), strict=True):
        response, reason = _ended(row, loaded.tokenizer, ends, stops)
        text = response_text(loaded.tokenizer, response, stops)
        graded = pool.grade(text, problem, reason)
        yield Trace(
            problem_id=problem.id,
            arm=ARM,
            sample=sample,
            prompt_ids=prompt,
            response_ids=tuple(response),
            gold=problem.answer,
            kind=problem.kind,
            answer=graded.answer,
            grade=graded.grade,
            finish_reason=reason,
            text=text,
            ids_are="sampled",
        )


def end_ids(loaded: Loaded) -> set[int]:
    """Return every token that ends a response in vLLM: the tokenizer's, and those of the generation configuration."""
    eos = loaded.model.generation_config.eos_token_id
    listed = eos if isinstance(eos, list) else [eos]
    return {int(i) for i in (loaded.tokenizer.eos_token_id, *listed) if i is not None}


def _ended(row: list[int], tokenizer: Any, ends: set[int], stops: tuple[str, ...]) -> tuple[list[int], str]:
    """Cut the response at its end, which belongs to it, and return it with vLLM's finish reason."""
    for t, token in enumerate(row):
        if token in ends:
            return row[: t + 1], "stop"
        if stops and any(stop in tokenizer.decode(row[max(0, t + 1 - _TAIL_TOKENS) : t + 1]) for stop in stops):
            return row[: t + 1], "stop"
    return row, "length"


def response_text(tokenizer: Any, response: list[int], stops: tuple[str, ...]) -> str:
    text = str(tokenizer.decode(response, skip_special_tokens=True))
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class _Draw(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped to mypy here
    """Leave only the token that the row's next random number falls on; at temperature 0, the most likely one."""

    def __init__(self, keys: Sequence[int], sampling: Sampling, prompt_tokens: int) -> None:
        draws = [np.random.Generator(np.random.Philox(key=key)).random(sampling.max_tokens) for key in keys]
        self._draws = torch.from_numpy(np.stack(draws))
        self._temperature, self._prompt_tokens = sampling.temperature, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._temperature == 0:
            return scores
        up_to = torch.softmax(scores.float() / self._temperature, -1).double().cumsum(-1)
        draw = self._draws[:, input_ids.shape[1] - self._prompt_tokens, None].to(scores.device)
        # below the total, which rounding leaves slightly off 1, so that a token of probability 0 is never chosen
        drawn = torch.searchsorted(up_to, draw * up_to[:, -1:], right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class _StopText(StoppingCriteria):  # type: ignore[misc]
    """End each row at a stop text in its response. (The class of transformers also looks at the end of the prompt.)"""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...], prompt_tokens: int) -> None:
        self._tokenizer, self._stops, self._prompt_tokens = tokenizer, stops, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        tail = input_ids[:, max(self._prompt_tokens, input_ids.shape[1] - _TAIL_TOKENS) :].tolist()
        ended = [any(stop in self._tokenizer.decode(ids) for stop in self._stops) for ids in tail]
        return torch.tensor(ended, device=input_ids.device)

"""Measure how far bfloat16 moves entropies: the engine against itself, and teacher forcing against the engine.

    python -m steerdec.benchmarks.engine.rounding --dtype bfloat16

The engine samples eight answers one at a time. The H of each of their tokens is then computed again: by the engine,
with all eight in one batch (as far as the same seeds gave the same tokens) and in one pass over prompt and answer; by
transformers, in one pass, in the engine's number format and in float32. The engine's distance from itself is a bound
that no program outside it can be expected to beat.
"""

from __future__ import annotations

import argparse
import os

# Before vLLM is imported: the engine in this process, where its logits can be read, and without plugins.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "", "VLLM_LOGGING_LEVEL": "WARNING"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

# isort: split
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

from steerdec import models
from steerdec.softmax.reference import entropy_nats

QUESTIONS: Final = (
    "Tom has 3 apples and buys 9 more. How many apples does he have now?",
    "A box holds 7 pens. How many pens are in 6 boxes?",
    "Why is the sky blue?",
    "Write a short story about a fox.",
    "What is 17 + 25?",
    "Explain how a bicycle stays upright.",
    "Name three rivers in Europe and describe each.",
    "How do I bake bread?",
)
CLOSE_NATS: Final = 5e-3


class Engine:
    """vLLM with a model in `dtype`, and the H of every row of logits it computes."""

    def __init__(self, folder: str, dtype: str) -> None:
        whole = {"max_num_batched_tokens": 4096, "enable_prefix_caching": False}  # a prompt in one pass
        self._llm = LLM(
            folder, dtype=dtype, enforce_eager=True, max_model_len=1024, max_num_seqs=len(QUESTIONS), **whole
        )
        self._entropies_nats: list[Tensor] = []
        executor: Any = self._llm.llm_engine.model_executor
        model = executor.driver_worker.worker.model_runner.model
        compute = model.compute_logits

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            logits: Tensor = compute(*args, **kwargs)
            self._entropies_nats.append(entropies_nats(logits))
            return logits

        model.compute_logits = watched

    def chat_ids(self, question: str) -> list[int]:
        message = [{"role": "user", "content": question}]
        ids: list[int] = self._llm.get_tokenizer().apply_chat_template(
            message, add_generation_prompt=True, return_dict=False
        )
        return ids

    def run(self, prompts: list[list[int]], sampling: list[SamplingParams]) -> tuple[list[list[int]], list[Tensor]]:
        """Return the answers' tokens, and the H of everything computed in each step, [rows] each."""
        self._entropies_nats.clear()
        done = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in done], list(self._entropies_nats)


def entropies_nats(logits: Tensor) -> Tensor:
    """Return [rows] H of each row of logits [rows, vocab], in float64."""
    return torch.stack([entropy_nats(row.double()) for row in logits])


def measure(dtype: str, tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the differences of H from the engine's own sampling, by how H was computed again, and the sampled H."""
    folder = str(models.fetch())
    engine = Engine(folder, dtype)
    prompts = [engine.chat_ids(question) for question in QUESTIONS]
    sampling = [
        SamplingParams(temperature=1.0, seed=i, max_tokens=tokens, ignore_eos=True) for i in range(len(prompts))
    ]
    answers, sampled, again = [], [], []
    for ids, one in zip(prompts, sampling, strict=True):
        (answer,), steps = engine.run([ids], [one])
        answers.append(answer)
        sampled.append(torch.cat(steps)[:tokens])
    for ids, answer in zip(prompts, answers, strict=True):
        _, steps = engine.run([ids + answer], [SamplingParams(max_tokens=1, prompt_logprobs=1)])
        again.append(max(steps, key=len)[len(ids) - 1 :][:tokens])
    together, steps = engine.run(prompts, sampling)
    batch = torch.stack([step for step in steps if len(step) == len(prompts)])  # [step, request]
    same = [
        next((j for j, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), tokens)
        for one, other in zip(answers, together, strict=True)
    ]
    found = {
        "engine, in a batch of eight": torch.cat([batch[:n, i] - sampled[i][:n] for i, n in enumerate(same)]),
        "engine, in one pass": torch.cat(again) - torch.cat(sampled),
    }
    for format_ in dict.fromkeys((dtype, "float32")):
        twin = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, format_)).eval()
        with torch.inference_mode():
            forced = [
                entropies_nats(twin(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1])
                for ids, answer in zip(prompts, answers, strict=True)
            ]
        found[f"transformers, in one pass, {format_}"] = torch.cat(forced) - torch.cat(sampled)
    return found, torch.cat(sampled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the engine")
    parser.add_argument("--tokens", type=int, default=48, help="of each of the eight answers")
    options = parser.parse_args()
    found, sampled = measure(options.dtype, options.tokens)
    title = f"H against that of the engine's sampling in {options.dtype}; mean H {float(sampled.mean()):.2f} nats"
    table = Table(title=title, title_justify="left")
    for column in ("computed again by", "tokens", "mean |d|", "largest |d|", f"within {CLOSE_NATS:g}", "mean d"):
        table.add_column(column)
    for name, d in found.items():
        size = d.abs()
        table.add_row(
            name,
            f"{len(d)}",
            f"{float(size.mean()):.5f}",
            f"{float(size.max()):.5f}",
            f"{float((size <= CLOSE_NATS).double().mean()):.0%}",
            f"{float(d.mean()):+.5f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

"""Test that tokens are really drawn from the reference's distribution: chi-square tests on real vLLM.

    python -m steerdec.benchmarks.engine.draws --draws 100000 --json draws.json

Every draw is a request of its own, with a seed of its own, for the first token after one prompt. The expected
distribution comes from the log-probabilities that vLLM reports for that step, steered by `steerdec.kernels.reference`,
divided by the request's temperature and truncated, all in float64. Each p value comes with the one against no steering
at a temperature 0.1 higher, which shows how surely the draws would detect that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

# The engine in this process: a draw is too little work to send elsewhere.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from steerdec import models
from steerdec.common.chi_square import chi_square
from steerdec.kernels import reference
from steerdec.policies import registry
from steerdec.steering import encoding, params

from . import kernel

# All but the last of its tokens is one block of the prefix cache, so a draw costs one token's forward pass.
BLOCK_TOKENS: Final = 32
PROMPT: Final = (
    "I have been asked many times which of all the creatures in the world I like best, and every time I have to "
    "think about it again before I say that my favourite animal is the"
)
ANIMALS: Final = (" dog", " cat", " horse")
FIRST_SEED: Final = 10_000
BATCH: Final = 10_000  # draws between two lines of progress
ALPHA: Final = 1e-3  # a case fails below this; with eight cases one run in 125 does by chance


@dataclass(frozen=True)
class Case:
    """What is drawn: the steering, the request's own temperature and truncation, and whether a grammar applies."""

    steering: dict[str, Any] | None
    temperature: float
    top_p: float = 1.0
    choices: tuple[str, ...] = ()  # of a grammar


HOT: Final = {"fork_temperature": 1.6, "threshold_nats": 0.3}
COLD: Final = {"fork_temperature": 0.4, "threshold_nats": 0.3}
OTHERS: Final = {"fork_temperature": 2.0, "other_temperature": 0.4, "threshold_nats": 8.0}  # no token is a fork
CASES: Final = {
    "unsteered": Case(None, 0.8),
    "hot": Case(HOT, 0.8),
    "cold": Case(COLD, 1.0),
    "others": Case(OTHERS, 1.0),
    "p_less": Case({"policy": "p_less", "fork_temperature": 2.0, "threshold_nats": 0.3}, 0.8),
    "uniform_top_k": Case({"policy": "uniform_top_k", "k": 4, "threshold_nats": 0.3}, 0.8),
    "hot-top-p": Case(HOT, 0.8, top_p=0.9),
    "grammar": Case({"select": "all", "fork_temperature": 2.0}, 1.0, choices=ANIMALS),
}


@dataclass(frozen=True)
class Result:
    case: str
    draws: int
    bins: int
    p: float
    p_neighbor: float  # against no steering, at a temperature 0.1 higher where there is no grammar
    elapsed_s: float = field(compare=False)


def prompt_of(llm: LLM) -> Any:
    return {"prompt_token_ids": llm.get_tokenizer().encode(PROMPT)[-BLOCK_TOKENS - 1 :]}


def drawn(llm: LLM, case: Case, draws: int, first_seed: int = FIRST_SEED) -> NDArray[np.int64]:
    """Return the first tokens of `draws` requests with seeds from `first_seed` up."""
    extra: dict[str, Any] = {} if case.steering is None else {"extra_args": {"steering": case.steering}}
    if case.choices:
        extra["structured_outputs"] = StructuredOutputsParams(choice=list(case.choices))
    parameters = [
        SamplingParams(max_tokens=1, seed=first_seed + i, temperature=case.temperature, top_p=case.top_p, **extra)
        for i in range(draws)
    ]
    answers = llm.generate([prompt_of(llm)] * draws, parameters, use_tqdm=False)
    return np.array([answer.outputs[0].token_ids[0] for answer in answers])


def step_logits(llm: LLM) -> Tensor:
    """Return [vocab] float64 logits of the drawn step, up to a constant, from vLLM's own log-probabilities."""
    parameters = SamplingParams(temperature=1.0, max_tokens=1, logprobs=-1)
    step = llm.generate([prompt_of(llm)], parameters, use_tqdm=False)[0].outputs[0].logprobs[0]
    logits = torch.full((llm.model_config.get_vocab_size(),), -torch.inf, dtype=torch.float64)
    for token, entry in step.items():
        logits[token] = entry.logprob
    return logits


def allowed_tokens(tokenizer: Any, choices: tuple[str, ...]) -> list[int]:
    """Return the tokens with which one of `choices` can begin."""
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    return [token for token, text in texts.items() if text and any(choice.startswith(text) for choice in choices)]


def expected(
    logits: Tensor,
    steering: dict[str, Any] | None,
    temperature: float,
    top_p: float = 1.0,
    allowed: list[int] | None = None,
) -> NDArray[np.float64]:
    """Return [vocab] probabilities by the reference: mask, steer, divide by T, truncate."""
    z = logits.clone()
    if allowed is not None:
        mask = torch.full_like(z, -torch.inf)
        mask[allowed] = 0.0
        z = z + mask
    if steering is not None:
        row = encoding.encode(registry.parse(steering), temperature, params.PAPER_THRESHOLD_NATS)
        table = torch.tensor([row.floats], dtype=torch.float64), torch.tensor([row.ints(0)])
        reference.steer_(z[None], *table, torch.tensor([0]), torch.tensor([0]))
    p = torch.softmax(z / temperature, -1)
    if top_p < 1.0:
        ordered, order = p.sort(descending=True)
        p[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
        p /= p.sum()
    return p.numpy()


def p_values(llm: LLM, case: Case, tokens: NDArray[np.int64]) -> tuple[float, float, int]:
    """Return p against the true distribution, p against its neighbor, and the number of bins of the former."""
    logits = step_logits(llm)
    allowed = allowed_tokens(llm.get_tokenizer(), case.choices) if case.choices else None
    p, bins = chi_square(tokens, expected(logits, case.steering, case.temperature, case.top_p, allowed))
    # A grammar leaves so few tokens that a tenth of a degree is hard to see; whether steering happened is not.
    t = case.temperature + (0.0 if allowed else 0.1)
    p_neighbor, _ = chi_square(tokens, expected(logits, None, t, case.top_p, allowed))
    return p, p_neighbor, bins


def engine(model: str, dtype: str) -> LLM:
    on_cpu = {"enforce_eager": True, "gpu_memory_utilization": 0.3} if not torch.cuda.is_available() else {}
    return LLM(
        model=str(models.fetch(model)),
        dtype=dtype,
        max_model_len=256,
        max_num_batched_tokens=4096,
        max_num_seqs=256,
        block_size=BLOCK_TOKENS,
        enable_chunked_prefill=False,
        max_logprobs=-1,
        logits_processors=["steerdec.processor:EntropySteering"],
        **on_cpu,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.engine.draws", description=__doc__)
    parser.add_argument("--model", default=models.SMOLLM2.name, help="name or folder, as of `steerdec model fetch`")
    parser.add_argument("--dtype", default="float32", help="log-probabilities of bf16 logits are too coarse to test by")
    parser.add_argument("--draws", type=int, default=100_000, help="of each case")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    console, results = Console(width=110), []
    llm = engine(options.model, options.dtype)
    for name in options.case:
        case, tokens, begin = CASES[name], np.zeros(0, np.int64), time.perf_counter()
        while len(tokens) < options.draws:
            n = min(BATCH, options.draws - len(tokens))
            tokens = np.append(tokens, drawn(llm, case, n, FIRST_SEED + len(tokens)))
            console.print(f"{name}: {len(tokens):,} of {options.draws:,} draws", highlight=False)
        p, p_neighbor, bins = p_values(llm, case, tokens)
        results.append(Result(name, options.draws, bins, p, p_neighbor, round(time.perf_counter() - begin, 1)))
    table = Table(box=None)
    for heading in ("case", "draws", "bins", "p", "p of a neighbor", "s"):
        table.add_column(heading, no_wrap=True)
    for r in results:
        table.add_row(r.case, f"{r.draws:,}", str(r.bins), f"{r.p:.4f}", f"{r.p_neighbor:.1e}", f"{r.elapsed_s:.0f}")
    about = kernel.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    about |= {"model": options.model, "dtype": options.dtype}
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    console.print(table)
    if options.json:
        data = {"machine": about, "results": [asdict(r) for r in results]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    sys.exit(any(r.p < ALPHA for r in results))


if __name__ == "__main__":
    main()

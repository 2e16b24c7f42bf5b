"""Measure what our server costs requests without steering: its answers and its tokens/s beside vLLM's own server.

    python -m steerdec.benchmarks.engine.served --json served.json

Both servers run on this machine with the same engine flags, and take turns: each round sends the same requests, some
streamed, to one and then the other, in a new order each round, while the other is idle. vLLM's own server is started in
an environment that hides steerdec's entry points. With the same seeds every answer must be equal, field by field,
except for its id, its time, and the fingerprint of the configuration; if one is not, the program exits with status 1.
The result is the ratio of tokens/s, with its 95% t-interval.

If the engine computes on the cores that serve HTTP, the two disturb each other and rounds scatter by a tenth. With
VLLM_CPU_OMP_THREADS_BIND=0 in the environment the engine has one core, and the rest is left to HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import scipy.stats
import torch
from rich.console import Console

from steerdec import models

from ..run.local_server import local_server
from . import kernel

# The fingerprint is vLLM's hash of the engine's whole configuration, in which the processor is named.
NEVER_EQUAL: Final = frozenset({"id", "created", "system_fingerprint"})
PATIENCE_S: Final = 600.0
FEWEST_ROUNDS: Final = 3

# What `steerdec serve` adds on a CPU; see server/launch/command.py. Both servers get it.
CPU_FLAGS: Final = (
    *("--max-model-len", "1024", "--max-num-batched-tokens", "4096", "--enforce-eager"),
    *("--gpu-memory-utilization", "0.1", "--block-size", "32", "--no-enable-chunked-prefill"),
)
CPU_ENVIRONMENT: Final = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}

# In every process of vLLM's own server: steerdec is installed here, but vLLM must not find it.
HIDING: Final = """
import importlib.metadata as metadata
found = metadata.entry_points
def entry_points(**wanted):
    if "group" not in wanted:  # another return type, which vLLM does not use for plugins
        return found(**wanted)
    return metadata.EntryPoints(e for e in found(**wanted) if not e.value.startswith("steerdec."))
metadata.entry_points = entry_points
"""


@contextmanager
def both_servers(model: str, dtype: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the URLs of vLLM's own server and ours, with the same model and the same flags."""
    on_cpu = not torch.cuda.is_available()
    weights, flags = str(models.fetch(model)), ["--dtype", dtype, *(CPU_FLAGS if on_cpu else ())]
    environment = CPU_ENVIRONMENT if on_cpu else {}
    plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", weights]
    plain += ["--served-model-name", model, "--host", "127.0.0.1", "--port", "{port}", *flags]
    ours = [sys.executable, "-m", "steerdec", "serve", model, "--host", "127.0.0.1", "--port", "{port}", *flags]
    (folder / "sitecustomize.py").write_text(HIDING)
    hidden = environment | {"PYTHONPATH": str(folder)}
    with (
        local_server(
            model, folder / "vllm.log", command=plain, environment=hidden, ready=("/health", "/v1/models")
        ) as vllm,
        local_server(model, folder / "ours.log", command=ours, environment=environment) as steering,
    ):
        yield {"vLLM": vllm, "steerdec": steering}


def bodies(model: str, n: int, tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Return (path, body) of a round's requests: chat and completions, a third streamed, some with logprobs."""
    made = []
    for i in range(n):
        body: dict[str, Any] = {"model": model, "seed": i, "temperature": 0.8, "max_tokens": tokens, "ignore_eos": True}
        question = f"A farmer has {i} boxes with {1 + i % 9} apples in each. How many apples?"
        if i % 3 == 0:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if i % 5 == 0:
            body |= {"logprobs": True, "top_logprobs": 2} if i % 2 else {"logprobs": 2}
        if i % 2:
            made.append(("/v1/chat/completions", body | {"messages": [{"role": "user", "content": question}]}))
        else:
            made.append(("/v1/completions", body | {"prompt": question}))
    return made


def equal(a: Any, b: Any) -> bool:
    """Return whether two answers agree field by field, except where any two answers differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a.keys() - NEVER_EQUAL)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and isinstance(b, float):
        # The last digits of a log-probability depend on the content of the prefix cache, even on one server.
        return math.isclose(a, b, abs_tol=1e-4)
    return bool(a == b)


async def one_round(url: str, requests: list[tuple[str, dict[str, Any]]], at_once: int) -> tuple[float, list[Any]]:
    """Return (tokens per second, answers): a whole answer as its JSON, a streamed one as the list of its events."""
    limits, gate = httpx.Limits(max_connections=at_once), asyncio.Semaphore(at_once)

    async def one(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
        async with gate:
            response = await http.post(path, json=body)
        response.raise_for_status()
        if not body.get("stream"):
            return response.json()
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        return [event if event == "[DONE]" else json.loads(event) for event in events]

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False) as http:
        begin = time.perf_counter()
        answers = await asyncio.gather(*(one(http, path, body) for path, body in requests))
        elapsed_s = time.perf_counter() - begin
    return sum(tokens_of(answer) for answer in answers) / elapsed_s, answers


def tokens_of(answer: Any) -> int:
    usage = answer["usage"] if isinstance(answer, dict) else answer[-2]["usage"]  # the last event before [DONE]
    return int(usage["completion_tokens"])


def text_of(answer: Any) -> str:
    """Return the whole text of a streamed answer: where its chunks are cut depends on timing."""
    choices = [choice for event in answer[:-1] for choice in event["choices"]]
    return "".join(c.get("text") or (c.get("delta") or {}).get("content") or "" for c in choices)


def differences(ours: list[Any], vllms: list[Any]) -> list[str]:
    """Return one line for each pair of unequal answers; streams are compared by their text, keys and usage."""
    found = []
    for i, (a, b) in enumerate(zip(ours, vllms, strict=True)):
        if isinstance(a, list):
            shape = [[sorted(e) if isinstance(e, dict) else e for e in (x[0], x[-2], x[-1])] for x in (a, b)]
            same = text_of(a) == text_of(b) and shape[0] == shape[1] and a[-2]["usage"] == b[-2]["usage"]
        else:
            same = equal(a, b)
        if not same:
            found.append(f"request {i}: {json.dumps(a)[:300]} is not {json.dumps(b)[:300]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.engine.served", description=__doc__)
    parser.add_argument("--model", default=models.SMOLLM2.name, help="name or folder, as of `steerdec model fetch`")
    parser.add_argument("--dtype", default="float32", help="in bf16, answers may differ for no fault of either server")
    parser.add_argument("--requests", type=int, default=64, help="a round")
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="generated by every request")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds: is {options.rounds}, must be at least {FEWEST_ROUNDS}")
    console, generator = Console(width=110), np.random.default_rng(0)
    speeds: dict[str, list[float]] = {"vLLM": [], "steerdec": []}
    requests, unequal = bodies(options.model, options.requests, options.tokens), 0
    with tempfile.TemporaryDirectory() as folder, both_servers(options.model, options.dtype, Path(folder)) as urls:
        for r in range(-1, options.rounds):  # the first warms up
            answers = {}
            for name in generator.permutation(list(urls)):
                speed, answers[name] = asyncio.run(one_round(urls[name], requests, options.at_once))
                if r >= 0:
                    speeds[name].append(speed)
            found = differences(answers["steerdec"], answers["vLLM"])
            unequal += len(found)
            for line in found[:3]:
                console.print(line, highlight=False, soft_wrap=True)
            console.print(f"round {r + 1} of {options.rounds}", highlight=False)
    change = np.log(speeds["steerdec"]) - np.log(speeds["vLLM"])
    half = float(scipy.stats.t.ppf(0.975, len(change) - 1)) * change.std(ddof=1) / np.sqrt(len(change))
    low, ratio, high = np.exp(change.mean() + half * np.array([-1.0, 0.0, 1.0]))
    about = kernel.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    about |= {"model": options.model, "dtype": options.dtype, "requests": options.requests, "at once": options.at_once}
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    for name, values in speeds.items():
        console.print(f"{name}: median {np.median(values):.1f} tokens/s over {len(values)} rounds", highlight=False)
    console.print(f"steerdec / vLLM: {ratio:.4f} ({low:.4f} to {high:.4f})", highlight=False)
    answered = (1 + options.rounds) * options.requests
    console.print(f"{answered - unequal} of {answered} answers equal field by field", highlight=False)
    if options.json:
        figures = {"ratio": ratio, "ratio_ci95": [low, high], "answers": answered, "unequal": unequal}
        options.json.write_text(json.dumps({"machine": about, **figures, "tokens_per_s": speeds}, indent=1) + "\n")
    sys.exit(unequal > 0)


if __name__ == "__main__":
    main()

"""Offline engines in processes of their own: `python -m tests.support.offline_cases NAME [ARGUMENT]`."""

from __future__ import annotations

import os
import sys

import tests.conftest  # noqa: F401  vLLM's settings, before vLLM is imported

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # vLLM's default: the engine in a process of its own

# isort: split
import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial, partialmethod
from typing import Any

import httpx
import numpy as np
import pytest
import vllm
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from steerdec import models
from steerdec.offline import SteeredAsyncLLM, SteeredLLM, SteeredOutput
from steerdec.telemetry import lanes as telemetry
from tests.support.offline_examples import API, examples
from tests.support.serving import PATIENCE_S
from tests.vllm_plugin.test_engine import ARGUMENTS, EVERY_LOGPROB, PROMPTS, entropies_from_logprobs

STEERING: dict[str, Any] = {"fork_temperature": 1.5, "other_temperature": 0.5, "threshold_nats": 0.6}
DELTA = RequestOutputKind.DELTA
REST_S = 0.3


def sampling(**options: Any) -> SamplingParams:
    return SamplingParams(**({"temperature": 1.0, "max_tokens": 8, "seed": 3} | options))


# AsyncLLM ----------------------------------------------------------------------------------------


async def gathered(outputs: AsyncGenerator[SteeredOutput, None]) -> list[SteeredOutput]:
    """All outputs of a request; each has a record per token in it."""
    found = []
    async for output in outputs:
        for one in output.outputs:
            assert one.steering is not None
            assert len(one.steering.entropy_nats) == len(one.token_ids)
            assert np.isfinite(one.steering.entropy_nats).all()
        found.append(output)
    return found


def whole(outputs: list[SteeredOutput], sequence: int = 0) -> tuple[list[int], list[float]]:
    """Tokens and entropies of a sequence, from all parts of it."""
    parts = [one for output in outputs for one in output.outputs if one.index == sequence]
    entropies = [h for one in parts if one.steering is not None for h in one.steering.entropy_nats.tolist()]
    return [token for one in parts for token in one.token_ids], entropies


async def parts_and_wholes(llm: SteeredAsyncLLM) -> None:
    """By vLLM's default each output has the whole so far; DELTA has the new tokens; together these are the same."""
    cumulative, delta, several = await asyncio.gather(
        gathered(llm.generate(PROMPTS[1], sampling(**EVERY_LOGPROB), "cumulative", steering=STEERING)),
        gathered(llm.generate(PROMPTS[1], sampling(output_kind=DELTA), "delta", steering=STEERING)),
        gathered(llm.generate(PROMPTS[1], sampling(output_kind=DELTA, n=3), "several", steering=STEERING)),
    )
    (last,) = cumulative[-1].outputs
    assert last.steering is not None
    np.testing.assert_allclose(last.steering.entropy_nats, entropies_from_logprobs(last), atol=1e-4)
    for parts in (delta, several):
        tokens, entropies = whole(parts)
        assert tokens == list(last.token_ids)
        np.testing.assert_allclose(entropies, last.steering.entropy_nats, atol=1e-4)
    assert len({tuple(whole(several, i)[0]) for i in range(3)}) > 1
    assert [len(whole(several, i)[1]) for i in range(3)] == [8, 8, 8]


async def plain_ones_pass(llm: SteeredAsyncLLM) -> None:
    async for output in llm.generate(PROMPTS[0], sampling(), "plain"):
        assert output.outputs[0].steering is None
    with pytest.raises(ValueError, match=r"steering.fork_temperature: -1 must be greater"):
        await gathered(llm.generate(PROMPTS[0], sampling(), "wrong", steering={"fork_temperature": -1}))
    with pytest.raises(ValueError, match="cannot be given as async_generator"):
        await gathered(llm.generate(_stream(), sampling(), "stream", steering=STEERING))
    with pytest.raises(VLLMValidationError, match="1000"):
        await gathered(llm.generate({"prompt_token_ids": [1] * 1000}, sampling(), "long", steering=STEERING))


async def _stream() -> AsyncGenerator[Any, None]:
    yield PROMPTS[0]


async def lanes_come_back(llm: SteeredAsyncLLM) -> None:
    """However a request ends: left midway, cancelled while it runs or while it waits, aborted by its name."""
    pool, forever = llm.front_end.pool, sampling(max_tokens=400, ignore_eos=True)
    async with aclosing(llm.generate(PROMPTS[0], forever, "left", steering=STEERING)) as outputs:
        await anext(outputs)
        assert pool.lent == 1
    assert pool.lent == 0
    await asyncio.sleep(REST_S)

    running = [asyncio.create_task(gathered(llm.generate(p, forever, p, steering=STEERING))) for p in PROMPTS[:3]]
    later = (llm.generate(PROMPTS[3], sampling(), f"waiting {i}", steering=STEERING) for i in range(2))
    waiting = [asyncio.create_task(gathered(outputs)) for outputs in later]
    await asyncio.sleep(0.5)
    assert pool.lent == pool.count == 3
    waiting[0].cancel()
    running[0].cancel()
    await llm.abort(PROMPTS[1])
    (aborted,) = (await running[1])[-1].outputs
    assert aborted.finish_reason == "abort"
    assert len(whole(await waiting[1])[0]) >= 8
    running[2].cancel()
    await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert pool.lent == 0
    assert llm.get_num_unfinished_requests() == 0


async def asynchronous() -> None:
    """`SteeredAsyncLLM`, with three lanes."""
    telemetry.REST_AFTER_ABORT_S = REST_S
    given = AsyncEngineArgs(model=str(models.fetch()), **ARGUMENTS)
    llm = SteeredAsyncLLM.from_engine_args(given, telemetry_lanes=3)
    try:
        assert not given.additional_config
        await parts_and_wholes(llm)
        await plain_ones_pass(llm)
        await lanes_come_back(llm)
    finally:
        llm.shutdown()


# LLM, its engine in another process ---------------------------------------------------------------


def as_served(url: str) -> None:
    """The same tokens and the same records as `steerdec serve` gives for the same requests."""
    requests: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"seed": 1}, STEERING),
        ({"seed": 2, "n": 3}, STEERING | {"probe_temperature": 1.0}),
        ({"seed": 3, "stop": ["e"]}, STEERING),
        ({"seed": 4, "top_p": 0.9}, {"policy": "entropy_target", "delta_nats": 0.5, "threshold_nats": 0.6}),
        ({"seed": 5}, {"select": "random", "fork_rate": 0.3, "fork_temperature": 0.2}),
        ({"seed": 6}, {"select": "quantile", "fork_temperature": 2.0, "guard_mean_entropy_nats": 1.5}),
    ]
    llm = SteeredLLM(str(models.fetch()), **ARGUMENTS)
    params = [SamplingParams(temperature=0.8, max_tokens=16, **options) for options, _ in requests]
    outputs = llm.generate([PROMPTS[1]] * len(requests), params, steering=[s for _, s in requests], use_tqdm=False)
    for (options, steering), output in zip(requests, outputs, strict=True):
        body = {"model": "SmolLM2-135M-Instruct", "prompt": PROMPTS[1], "temperature": 0.8, "max_tokens": 16} | options
        body |= {"steering": steering | {"telemetry": "tokens"}, "return_token_ids": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S).json()
        for choice, one in zip(answer["choices"], output.outputs, strict=True):
            assert choice["token_ids"] == list(one.token_ids), options
            assert one.steering is not None
            served, ours = choice["steering"], one.steering.summary() | one.steering.lists()
            assert set(served) == set(ours)
            for name, value in served.items():
                np.testing.assert_allclose(np.array(ours[name], float), np.array(value, float), atol=1e-4, err_msg=name)


def example(number: str) -> None:
    """An example of the documentation as it stands there; but without compiling, which takes minutes on a CPU."""
    SteeredLLM.__init__ = partialmethod(SteeredLLM.__init__, enforce_eager=True, gpu_memory_utilization=0.2)
    vllm.AsyncEngineArgs = partial(vllm.AsyncEngineArgs, enforce_eager=True, gpu_memory_utilization=0.2)
    exec(compile(examples(API)[int(number)], str(API), "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if name == "asynchronous":
        asyncio.run(asynchronous())
    else:
        {"as_served": as_served, "example": example}[name](*rest)
    print(f"{name}: held", flush=True)

"""vLLM's `AsyncLLM` with steering and telemetry."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress
from copy import copy
from dataclasses import replace
from typing import Any, cast

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from steerdec.common.errors import InvalidInputError
from steerdec.offline import start
from steerdec.offline.frontend import Admitted, FrontEnd, GivenSteering, delimiters, with_steering
from steerdec.offline.outputs import SteeredOutput, annotated, was_aborted
from steerdec.telemetry.lanes import LanesExhaustedError
from steerdec.telemetry.loan import Loan


class SteeredAsyncLLM(AsyncLLM):  # type: ignore[misc]  # vLLM is untyped to mypy here
    """`AsyncLLM` whose requests can be steered, and whose outputs say what was done to each token.

    Start it with `from_engine_args`. It belongs to one event loop.
    """

    def __init__(self, vllm_config: Any, *args: Any, **options: Any) -> None:
        """Start the engine; `from_engine_args` gives it lanes.

        Raises:
            InvalidInputError: the configuration has no lanes.
        """
        front_end = FrontEnd.of(vllm_config, None)
        super().__init__(vllm_config, *args, **options)
        tokenizer = self.renderer.tokenizer
        self.front_end = replace(front_end, delimiters=delimiters(tokenizer), tokenizer=tokenizer)
        self._turn = asyncio.Lock()  # of those who wait for lanes, the first one first
        self._given_back = asyncio.Event()

    @classmethod
    def from_engine_args(
        cls, engine_args: AsyncEngineArgs, *args: Any, telemetry_lanes: int = start.MOST_LANES, **options: Any
    ) -> SteeredAsyncLLM:
        """Start an engine as `AsyncLLM.from_engine_args` does.

        Args:
            engine_args: vLLM's; not changed.
            args: further arguments of `AsyncLLM.from_engine_args`.
            telemetry_lanes: as for `SteeredLLM`.
            options: further arguments of `AsyncLLM.from_engine_args`.

        Raises:
            SteerdecError: there is no room for the lanes.
            ValueError: an argument is invalid.
        """
        with ExitStack() as stack:
            file = stack.enter_context(start.lanes(start.context_tokens(vars(engine_args)), telemetry_lanes))
            engine_args = copy(engine_args)
            for name, value in start.arguments(vars(engine_args), file).items():
                setattr(engine_args, name, value)
            llm = cast("SteeredAsyncLLM", super().from_engine_args(engine_args, *args, **options))
            weakref.finalize(llm, stack.pop_all().close)  # with the engine, or when the program ends
        return llm

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        steering: GivenSteering = None,
        **options: Any,
    ) -> AsyncGenerator[SteeredOutput, None]:
        """Generate as `AsyncLLM.generate` does, steered. Waits, in order, while too few lanes are free.

        Yields:
            vLLM's outputs. `.outputs[i].steering` always has one entry per token of `.outputs[i].token_ids`: by vLLM's
            default all tokens so far, so the last output has the whole; with `RequestOutputKind.DELTA` the new ones.

        Raises:
            ValueError: the steering is refused; one line.
            vllm.exceptions.VLLMValidationError: vLLM refuses the request.
        """
        params = cast("SamplingParams", with_steering(sampling_params, steering))
        admitted = self.front_end.admitted(params)
        loan = None
        if admitted is not None:
            if isinstance(prompt, EngineCoreRequest | AsyncGenerator):
                raise InvalidInputError(
                    f"prompt: a steered request cannot be given as {type(prompt).__name__}; give the prompt"
                )
            params, loan = await self._lent(admitted)
        aborted = True
        try:
            async with aclosing(super().generate(prompt, params, request_id, **options)) as outputs:
                async for output in outputs:
                    if output.finished:
                        aborted = was_aborted(output)
                    yield annotated(output, loan, params.output_kind, self.front_end.tokenizer)
        finally:
            # vLLM's generator is closed, so the engine has finished the sequences or has been told to abort them.
            if loan is not None:
                loan.give_back(aborted=aborted)
                self._given_back.set()

    async def _lent(self, admitted: Admitted) -> tuple[SamplingParams, Loan]:
        """Return the request with its lanes, once it is its turn and they are free."""
        if not admitted.lanes:  # nothing to wait for
            return self.front_end.lent(admitted)
        async with self._turn:
            while True:
                self._given_back.clear()
                try:
                    return self.front_end.lent(admitted)
                except LanesExhaustedError:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._given_back.wait(), self.front_end.pool.rest_s or None)

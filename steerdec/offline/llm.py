"""`vllm.LLM` with steering and telemetry."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from vllm import LLM, SamplingParams

from steerdec.offline import start
from steerdec.offline.engine import SteeredEngine
from steerdec.offline.frontend import FrontEnd, GivenSteering, with_steering
from steerdec.offline.outputs import SteeredOutput


class SteeredLLM(LLM):  # type: ignore[misc]  # vLLM is untyped to mypy here
    """`vllm.LLM` whose requests can be steered, and whose outputs say what was done to each token.

    Everything that `LLM` offers works as it does there, and requests without steering are vLLM's own. Not thread-safe,
    as `LLM` is not.
    """

    llm_engine: SteeredEngine

    def __init__(self, model: str, *, telemetry_lanes: int = start.MOST_LANES, **options: Any) -> None:
        """Start the engine.

        Args:
            model: a folder, or a name on the hub.
            telemetry_lanes: how many steered sequences the engine may hold at a time, each with a lane of 16 bytes per
                token of the model's context; others wait. At most 512 MiB, or half of the free /dev/shm.
            options: all other arguments of `vllm.LLM`. `additional_config={"steerdec": {...}}` takes `threshold_nats`,
                and a `default` steering of requests without one.

        Raises:
            SteerdecError: there is no room for the lanes.
            ValueError: an argument is invalid.
        """
        capacity_tokens = start.context_tokens({"model": model, **options})
        with ExitStack() as stack:
            file = stack.enter_context(start.lanes(capacity_tokens, telemetry_lanes))
            super().__init__(model, **(options | start.arguments(options, file)))
            engine: Any = self.llm_engine  # vLLM's own, until the next line
            self.llm_engine = SteeredEngine(engine, FrontEnd.of(engine.vllm_config, self.renderer.tokenizer))
            weakref.finalize(self, stack.pop_all().close)  # with the engine, or when the program ends

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *args: Any,
        steering: GivenSteering | list[GivenSteering] = None,
        **options: Any,
    ) -> list[SteeredOutput]:
        """Generate as `LLM.generate` does, steered.

        Args:
            prompts: one or more, in any form that vLLM takes.
            sampling_params: for all prompts, or one per prompt.
            args: further arguments of `LLM.generate`.
            steering: for all prompts, or one per prompt; None for prompts that are not to be steered.
            options: further arguments of `LLM.generate`.

        Returns:
            vLLM's outputs, in the order of the prompts. `.outputs[i].steering` has one entry per token of
            `.outputs[i].token_ids`: `entropy_nats`, `fork`, `temperature`.

        Raises:
            ValueError: a steering is refused; one line.
            vllm.exceptions.VLLMValidationError: vLLM refuses a request. In either case, nothing of this call is left in
                the engine.
        """
        params = self._steered(sampling_params, steering)
        with self.llm_engine.nothing_left_behind():
            return cast("list[SteeredOutput]", super().generate(prompts, params, *args, **options))

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *args: Any,
        steering: GivenSteering | list[GivenSteering] = None,
        **options: Any,
    ) -> list[SteeredOutput]:
        """Answer conversations as `LLM.chat` does, steered. See `generate`."""
        params = self._steered(sampling_params, steering)
        with self.llm_engine.nothing_left_behind():
            return cast("list[SteeredOutput]", super().chat(messages, params, *args, **options))

    def _steered(self, params: Any, steering: Any) -> Any:
        if steering is None:
            return params
        return with_steering(self.get_default_sampling_params() if params is None else params, steering)

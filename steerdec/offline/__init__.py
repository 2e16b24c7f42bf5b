"""Steering with telemetry on offline vLLM, without a server.

    from steerdec.offline import SteeredLLM

    llm = SteeredLLM("MODEL")  # takes all of `vllm.LLM`'s arguments
    outputs = llm.generate(prompts, SamplingParams(seed=1), steering={"fork_temperature": 1.2})
    outputs[0].outputs[0].steering.entropy_nats  # one entry per token of outputs[0].outputs[0].token_ids

`SteeredAsyncLLM` does the same for `AsyncLLM`. A steered request borrows a lane of shared memory per sequence, as it
does in `steerdec serve`; requests that find no lane free wait for one.
"""

from steerdec.offline.async_llm import SteeredAsyncLLM
from steerdec.offline.llm import SteeredLLM
from steerdec.offline.outputs import SteeredCompletion, SteeredOutput
from steerdec.telemetry.loan import Telemetry

__all__ = ["SteeredAsyncLLM", "SteeredCompletion", "SteeredLLM", "SteeredOutput", "Telemetry"]

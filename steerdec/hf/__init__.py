"""The same steering for transformers' `model.generate()`, without vLLM.

    from steerdec.hf import generate

    steered = generate(model, **inputs, steering={"fork_temperature": 1.2}, do_sample=True, temperature=0.6)
    steered.output                              # what model.generate() returns
    steered.sequences[0].steering.entropy_nats  # one entry per token of steered.sequences[0].token_ids

`EntropySteering` is the logits processor by itself. It sees neither the settings of `generate` nor where a sequence
ends, so it refuses less, and reports less exactly.
"""

from steerdec.hf.generation import SteeredGeneration, SteeredSequence, generate
from steerdec.hf.processor import EntropySteering
from steerdec.telemetry.loan import Telemetry

__all__ = ["EntropySteering", "SteeredGeneration", "SteeredSequence", "Telemetry", "generate"]

"""What of the installed vLLM is used: each test fails when vLLM moves what steerdec stands on."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import vllm
from packaging.version import Version
from vllm import SamplingParams

from steerdec import request
from steerdec.versions import SUPPORTED


def test_the_installed_version_is_one_we_support() -> None:
    assert SUPPORTED[0] <= Version(Version(vllm.__version__).base_version) < SUPPORTED[1]


def test_v1_interface() -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

    assert {f.name for f in dataclasses.fields(BatchUpdate)} >= {"batch_size", "removed", "added", "moved"}
    assert list(inspect.signature(LogitsProcessor.__init__).parameters) == [
        "self",
        "vllm_config",
        "device",
        "is_pin_memory",
    ]
    assert {"apply", "update_state", "is_argmax_invariant"} <= LogitsProcessor.__abstractmethods__
    assert MoveDirectionality.SWAP is not MoveDirectionality.UNIDIRECTIONAL


def test_v2_interface() -> None:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsContext,
        LogitsProcessor,
        LogitsProcRequestState,
    )

    assert list(inspect.signature(LogitsProcessor.__init__).parameters) == ["self", "vllm_config", "req_states"]
    assert list(inspect.signature(LogitsProcessor.add_request).parameters) == ["self", "req_idx", "sampling_params"]
    used = {"expanded_idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"}
    assert used <= {f.name for f in dataclasses.fields(LogitsContext)}
    used = {"device", "max_num_reqs", "all_token_ids", "prompt_len", "prefill_len"}
    assert used <= {f.name for f in dataclasses.fields(LogitsProcRequestState)}


def test_both_runners_call_processors_before_temperature() -> None:
    from vllm.v1.sample.sampler import Sampler as V1Sampler
    from vllm.v1.worker.gpu.sample.sampler import Sampler as V2Sampler

    v1 = inspect.getsource(V1Sampler.forward)
    assert 0 < v1.index("apply_logits_processors(") < v1.index("self.sample(")
    assert "non_argmax_invariant" in inspect.getsource(V1Sampler.apply_logits_processors)
    v2 = inspect.getsource(V2Sampler.apply_sampling_params)
    assert 0 < v2.index("processor.apply(logits, ctx)") < v2.index("apply_temperature(")


def test_v1_applies_penalties_after_processors() -> None:
    """Why penalties are refused there; if this changes, the refusal can go."""
    from vllm.v1.sample.sampler import Sampler

    source = inspect.getsource(Sampler.apply_logits_processors)
    assert source.index("non_argmax_invariant") < source.index("self.apply_penalties(")


def test_the_front_end_that_validates_holds_the_configuration() -> None:
    """`request._validating_engine` finds it on the stack."""
    from vllm.v1.engine.input_processor import InputProcessor

    assert "self.vllm_config" in inspect.getsource(InputProcessor.__init__)
    assert "_build_logits_processors_params_validator" in inspect.getsource(InputProcessor)


def test_validation_knows_the_runner_and_speculation_of_its_caller() -> None:
    class Config:
        use_v2_model_runner = True
        speculative_config = None

    class InputProcessor:
        vllm_config = Config()

        def validate(self, params: SamplingParams) -> None:
            request.validate(params)

    params = SamplingParams(extra_args={"steering": {}}, presence_penalty=0.5)
    InputProcessor().validate(params)  # exact on V2, where penalties come first
    Config.use_v2_model_runner = False
    with pytest.raises(ValueError, match="penalties"):
        InputProcessor().validate(params)


def test_children_of_one_request_differ_by_their_seed() -> None:
    from vllm.v1.engine import parallel_sampling

    assert "seed + index" in inspect.getsource(parallel_sampling)


def test_vllm_clamps_tiny_temperatures_where_ours_begin() -> None:
    from steerdec.params import MIN_TEMPERATURE

    assert SamplingParams(temperature=MIN_TEMPERATURE / 2).temperature == MIN_TEMPERATURE


def test_entry_points_are_the_ones_vllm_looks_for() -> None:
    from vllm.plugins import ENDPOINT_PLUGINS_GROUP
    from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP
    from vllm.v1.worker.gpu.sample.logits_processor.loader import LOGITSPROCS_GROUP as V2_GROUP

    assert LOGITSPROCS_GROUP == V2_GROUP == "vllm.logits_processors"
    assert entry_points(group=LOGITSPROCS_GROUP)["steerdec"].load().__name__ == "EntropySteering"
    assert entry_points(group=ENDPOINT_PLUGINS_GROUP)["steerdec"].load().__name__ == "SteeringRoutes"


def test_the_endpoint_plugin_fits_vllms_protocol() -> None:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from steerdec.server.routes import SteeringRoutes

    assert isinstance(SteeringRoutes(), EndpointPlugin)


def test_pooling_models_are_left_alone(weights: Path) -> None:
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.sample.logits_processor import build_logitsprocs

    config = EngineArgs(model=str(weights), max_model_len=128, enforce_eager=True).create_engine_config()
    assert list(build_logitsprocs(config, torch.device("cpu"), False, True).all) == []


def test_nested_objects_do_not_fit_into_vllm_xargs() -> None:
    """Why the steering travels there as JSON text."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    assert "dict[str, str | int | float | list[str | int | float]]" in str(
        ChatCompletionRequest.model_fields["vllm_xargs"].annotation
    )

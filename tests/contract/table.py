"""Every name of vLLM that steerdec uses, with what it takes for granted of it.

`by`: the files that rely on it. `parameters` are a function's first ones, in order; `attributes` what instances have;
`texts` stand in its source; those of `order` too, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

V1: Final = "vllm.v1.sample.logits_processor.interface"
V2: Final = "vllm.v1.worker.gpu.sample.logits_processor.interface"
OPENAI: Final = "vllm.entrypoints.openai"
TOKENIZE: Final = "vllm.entrypoints.serve.tokenize"


@dataclass(frozen=True)
class Used:
    by: tuple[str, ...]
    module: str
    name: str = ""  # of what is in the module; "Class.method" too; "" is the module itself
    parameters: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}:{self.name}" if self.name else self.module


PROCESSOR: Final = ("steerdec/processor.py",)
RUNNER_V1: Final = ("steerdec/vllm_plugin/runner_v1.py",)
RUNNER_V2: Final = ("steerdec/vllm_plugin/runner_v2.py",)
REQUEST: Final = ("steerdec/vllm_plugin/request.py",)
COMPILED: Final = ("benchmarks/engine/compiled.py",)
ROUTES: Final = ("server/routes.py",)
TRACING: Final = ("server/tracing.py",)
BODY: Final = ("server/body.py",)
LAUNCH: Final = ("server/launch/command.py", "server/launch/flags.py")
LLM_CLASS: Final = ("steerdec/offline/llm.py",)
ASYNC_LLM: Final = ("steerdec/offline/async_llm.py",)
OFFLINE_ENGINE: Final = ("steerdec/offline/engine.py",)
ENGINE_PROGRAMS: Final = (
    "benchmarks/engine/offline.py",
    "benchmarks/engine/draws.py",
    "benchmarks/engine/overhead.py",
    "benchmarks/engine/rounding.py",
)

TABLE: Final = (
    Used(("steerdec/processor.py", "server/routes.py"), "vllm", texts=("__version__",)),
    # V1 model runner -----------------------------------------------------------------------------
    Used(PROCESSOR, V1, "LogitsProcessor"),
    Used(PROCESSOR, V1, "LogitsProcessor.__init__", ("self", "vllm_config", "device", "is_pin_memory")),
    Used(PROCESSOR, V1, "LogitsProcessor.apply", ("self", "logits")),
    Used(PROCESSOR, V1, "LogitsProcessor.update_state", ("self", "batch_update")),
    Used(PROCESSOR, V1, "LogitsProcessor.is_argmax_invariant", ("self",)),
    Used(PROCESSOR, V1, "LogitsProcessor.validate_params", ("cls", "sampling_params")),
    Used(
        ("steerdec/vllm_plugin/runner_v1.py", "steerdec/processor.py", "benchmarks/engine/overhead.py"),
        V1,
        "BatchUpdate",
        attributes=("removed", "added", "moved"),
    ),
    Used(RUNNER_V1, V1, "AddedRequest", texts=("tuple[int, SamplingParams, list[int] | None, list[int]]",)),
    Used(RUNNER_V1, V1, "MovedRequest", texts=("tuple[int, int, MoveDirectionality]",)),
    Used(RUNNER_V1, V1, "MoveDirectionality", attributes=("SWAP",)),
    # Steering is given unscaled logits: processors come before the temperature, and before penalties, which is why
    # those are refused; if that changes, the refusal can go.
    Used(PROCESSOR, "vllm.v1.sample.sampler", "Sampler.forward", order=("apply_logits_processors(", "self.sample(")),
    Used(
        ("steerdec/vllm_plugin/request.py", "steerdec/processor.py"),
        "vllm.v1.sample.sampler",
        "Sampler.apply_logits_processors",
        order=("non_argmax_invariant", "self.apply_penalties("),
    ),
    # And after a grammar, so that H is over what the grammar leaves; on V2 the sampler of drafts too.
    Used(
        PROCESSOR,
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner.sample_tokens",
        order=("apply_grammar_bitmask(", "self._sample("),
    ),
    # V2 model runner -----------------------------------------------------------------------------
    Used(PROCESSOR, V2, "LogitsProcessor"),
    Used(PROCESSOR, V2, "LogitsProcessor.__init__", ("self", "vllm_config", "req_states")),
    Used(PROCESSOR, V2, "LogitsProcessor.apply", ("self", "logits", "ctx")),
    Used(PROCESSOR, V2, "LogitsProcessor.add_request", ("self", "req_idx", "sampling_params")),
    Used(PROCESSOR, V2, "LogitsProcessor.apply_staged_writes", ("self",)),
    Used(PROCESSOR, V2, "LogitsProcessor.validate_params", ("cls", "sampling_params")),
    Used(
        ("steerdec/vllm_plugin/runner_v2.py", "steerdec/processor.py", "benchmarks/engine/overhead.py"),
        V2,
        "LogitsContext",
        attributes=("expanded_idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"),
    ),
    Used(
        ("steerdec/vllm_plugin/runner_v2.py", "steerdec/processor.py", "benchmarks/engine/overhead.py"),
        V2,
        "LogitsProcRequestState",
        attributes=("max_num_reqs", "all_token_ids", "prompt_len", "prefill_len"),
    ),
    Used(PROCESSOR, V2, "LogitsProcRequestState", attributes=("device",)),
    *(
        Used(
            COMPILED,
            f"vllm.v1.worker.gpu.sample.{module}",
            name,
            ("logits_ptr", "logits_stride"),
            texts=("BLOCK_SIZE",),
        )
        for module, name in (("gumbel", "_temperature_kernel"), ("min_p", "_min_p_kernel"))
    ),
    Used(RUNNER_V2, "vllm.v1.worker.gpu.buffer_utils", "UvaBackedTensor.__init__", ("self", "size", "dtype")),
    Used(RUNNER_V2, "vllm.v1.worker.gpu.buffer_utils", "UvaBackedTensor", attributes=("np", "gpu", "copy_to_uva")),
    Used(RUNNER_V2, "vllm.v1.worker.gpu.buffer_utils", "StagedWriteTensor", attributes=("gpu",)),
    Used(
        PROCESSOR,
        "vllm.v1.worker.gpu.sample.sampler",
        "Sampler.apply_sampling_params",
        order=("processor.apply(logits, ctx)", "apply_temperature("),
    ),
    Used(
        PROCESSOR,
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner.sample",
        order=("apply_grammar_bitmask(", "self.sampler(", "self.rejection_sampler("),
    ),
    Used(
        PROCESSOR,
        "vllm.v1.worker.gpu.sample.sampler",
        "Sampler.__init__",
        order=("logit_bias_state,", "self.penalties_state,", "bad_words_state,", "*custom_logits_processors"),
    ),
    Used(
        ("steerdec/vllm_plugin/recorder.py",),
        "vllm.utils.torch_utils",
        "get_accelerator_view_from_cpu_tensor",
        ("cpu_tensor",),
    ),
    # How they are found --------------------------------------------------------------------------
    Used(
        ("pyproject.toml",),
        "vllm.v1.sample.logits_processor",
        "LOGITSPROCS_GROUP",
        texts=('"vllm.logits_processors"',),
    ),
    Used(
        ("pyproject.toml",),
        "vllm.v1.worker.gpu.sample.logits_processor.loader",
        "LOGITSPROCS_GROUP",
        texts=('"vllm.logits_processors"',),
    ),
    Used(("pyproject.toml",), "vllm.plugins", "ENDPOINT_PLUGINS_GROUP", texts=('"vllm.endpoint_plugins"',)),
    # vLLM looks for endpoint plugins only if they are named in VLLM_PLUGINS.
    Used(LAUNCH, "vllm.plugins", "load_endpoint_plugins", order=("envs.VLLM_PLUGINS is None", "return []")),
    Used(
        ROUTES,
        "vllm.plugins.endpoint_plugins.interface",
        "EndpointPlugin",
        attributes=("name", "required_tasks", "attach_router", "init_state"),
    ),
    Used(
        ROUTES,
        "vllm.plugins.endpoint_plugins.interface",
        "EndpointPlugin.init_state",
        ("self", "engine_client", "state", "args"),
    ),
    # Configuration -------------------------------------------------------------------------------
    Used(
        (
            *(
                "steerdec/vllm_plugin/request.py",
                "steerdec/vllm_plugin/runner_v2.py",
                "steerdec/vllm_plugin/private/admission_stack.py",
                "server/routes.py",
                "steerdec/processor.py",
            ),
            "benchmarks/engine/overhead.py",
        ),
        "vllm.config",
        "VllmConfig",
        attributes=("model_config", "speculative_config", "scheduler_config", "additional_config"),
    ),
    Used(ROUTES, "vllm.config", "VllmConfig", attributes=("device_config", "use_v2_model_runner")),
    Used(
        ("steerdec/vllm_plugin/request.py", "steerdec/processor.py", "server/routes.py"),
        "vllm.config",
        "ModelConfig",
        attributes=("get_vocab_size", "logits_processors", "dtype", "served_model_name", "get_diff_sampling_param"),
    ),
    Used(REQUEST, "vllm.config", "SchedulerConfig", attributes=("async_scheduling",)),
    Used(RUNNER_V2, "vllm.config", "SpeculativeConfig", attributes=("num_speculative_tokens",)),
    Used(ROUTES, "vllm.config", "DeviceConfig", attributes=("device_type",)),
    # Our spans go where vLLM's go (it sets the process's provider), and vLLM's below ours (it reads the headers).
    Used(TRACING, "vllm.config", "VllmConfig", attributes=("observability_config",)),
    Used(TRACING, "vllm.config", "ObservabilityConfig", attributes=("otlp_traces_endpoint",)),
    Used(TRACING, "vllm.tracing.otel", "init_otel_tracer", texts=("set_tracer_provider(",)),
    Used(TRACING, "vllm.tracing.utils", "TRACE_HEADERS", texts=("traceparent", "tracestate")),
    Used(ROUTES, "vllm.engine.protocol", "EngineClient", attributes=("vllm_config",)),
    Used(ROUTES, "vllm.v1.engine.async_llm", "AsyncLLM", attributes=("vllm_config", "get_tokenizer")),
    # A request -----------------------------------------------------------------------------------
    Used(
        (
            "steerdec/vllm_plugin/request.py",
            "steerdec/vllm_plugin/runner_v1.py",
            "steerdec/vllm_plugin/runner_v2.py",
            "steerdec/processor.py",
        ),
        "vllm",
        "SamplingParams",
        attributes=("extra_args", "temperature", "seed"),
    ),
    Used(
        ("steerdec/steering/admission.py",),
        "vllm",
        "SamplingParams",
        attributes=("presence_penalty", "frequency_penalty", "repetition_penalty"),
    ),
    # Found on the call stack.
    Used(
        ("steerdec/vllm_plugin/private/admission_stack.py",),
        "vllm.v1.engine.input_processor",
        "InputProcessor",
        attributes=("vllm_config",),
    ),
    # Also found there: which prompt of a completion a request is for.
    Used(
        ("steerdec/vllm_plugin/private/admission_stack.py",),
        "vllm.v1.engine.input_processor",
        "InputProcessor.process_inputs",
        ("self", "request_id"),
        texts=("self._validate_params(",),
    ),
    Used(
        ("steerdec/vllm_plugin/private/admission_stack.py",),
        f"{OPENAI}.completion.serving",
        texts=('f"{request_id}-{i}"', "i = output.index + prompt_idx * num_choices", "index=len(choices)"),
    ),
    # Children of one request differ by their seeds, which is how they are told apart.
    Used(REQUEST, "vllm.v1.engine.parallel_sampling", texts=("seed + index",)),
    # Offline -------------------------------------------------------------------------------------
    Used((*LLM_CLASS, "benchmarks/engine/offline.py"), "vllm", "LLM.generate", ("self", "prompts", "sampling_params")),
    Used(LLM_CLASS, "vllm", "LLM.chat", ("self", "messages", "sampling_params")),
    Used(LLM_CLASS, "vllm", "LLM", attributes=("llm_engine", "renderer", "get_default_sampling_params")),
    # What `LLM` calls of its engine, and nothing else that adds or ends requests.
    *(
        Used(OFFLINE_ENGINE, "vllm.v1.engine.llm_engine", f"LLMEngine.{name}", ("self", *parameters))
        for name, parameters in (
            ("add_request", ("request_id", "prompt", "params")),
            ("abort_request", ("request_ids", "internal")),
            ("step", ()),
            ("has_unfinished_requests", ()),
            ("get_num_unfinished_requests", ()),
        )
    ),
    Used((*OFFLINE_ENGINE, *ASYNC_LLM), "vllm.v1.engine", "EngineCoreRequest"),
    Used(ASYNC_LLM, "vllm.v1.engine.async_llm", "AsyncLLM.__init__", ("self", "vllm_config")),
    Used(ASYNC_LLM, "vllm.v1.engine.async_llm", "AsyncLLM.from_engine_args", ("cls", "engine_args")),
    Used(
        ASYNC_LLM,
        "vllm.v1.engine.async_llm",
        "AsyncLLM.generate",
        ("self", "prompt", "sampling_params", "request_id"),
        order=("GeneratorExit", "await self.abort("),
    ),
    Used(ASYNC_LLM, "vllm.v1.engine.async_llm", "AsyncLLM", attributes=("renderer",)),
    Used(ASYNC_LLM, "vllm.engine.arg_utils", "AsyncEngineArgs"),
    Used(
        ("steerdec/offline/start.py",),
        "vllm.engine.arg_utils",
        "EngineArgs",
        attributes=("max_model_len", "additional_config", "logits_processors", "create_model_config"),
    ),
    Used(("steerdec/offline/start.py",), "vllm.config", "ModelConfig", attributes=("max_model_len",)),
    Used(
        ("steerdec/offline/outputs.py",),
        "vllm.outputs",
        "CompletionOutput",
        attributes=("index", "token_ids", "finish_reason"),
    ),
    Used(
        ("steerdec/offline/outputs.py", *OFFLINE_ENGINE),
        "vllm.outputs",
        "RequestOutput",
        attributes=("request_id", "outputs", "finished"),
    ),
    Used(
        ("steerdec/offline/outputs.py", *OFFLINE_ENGINE),
        "vllm.sampling_params",
        "RequestOutputKind",
        attributes=("DELTA",),
    ),
    Used(
        ("steerdec/offline/frontend.py", *LLM_CLASS, *ASYNC_LLM, *OFFLINE_ENGINE),
        "vllm",
        "SamplingParams",
        attributes=("n", "output_kind"),
    ),
    Used(("steerdec/offline/frontend.py",), "vllm.config", "VllmConfig"),
    # HTTP ----------------------------------------------------------------------------------------
    Used(("server/vllm_cli.py",), "vllm.entrypoints.cli.main", "main"),
    Used(("benchmarks/engine/served.py",), f"{OPENAI}.api_server", texts=('__name__ == "__main__"',)),
    Used(
        LAUNCH,
        "vllm.engine.arg_utils",
        "EngineArgs",
        attributes=(
            *("max_model_len", "enforce_eager", "gpu_memory_utilization"),
            *("block_size", "max_num_batched_tokens", "enable_chunked_prefill", "served_model_name"),
            *("logits_processors", "additional_config", "data_parallel_size", "pipeline_parallel_size", "model"),
        ),
    ),
    Used(
        LAUNCH,
        "vllm.envs",
        texts=(
            *('"VLLM_CPU_KVCACHE_SPACE": lambda', '"VLLM_PLUGINS": lambda'),
            *('"VLLM_CPU_NUM_OF_RESERVED_CPU": lambda', '"VLLM_NO_USAGE_STATS": lambda'),
        ),
    ),
    # Without compilation no warm-up, and without that no buffer for a pipeline stage's input.
    Used(
        ("server/launch/command.py",),
        "vllm.v1.worker.cpu_model_runner",
        "CPUModelRunner.warming_up_model",
        order=("mode == CompilationMode.NONE:", "return", "self.profile_run()"),
    ),
    # What ranks on a CPU share is named after the file at which they meet.
    Used(("server/launch/scratch.py",), "vllm.utils.network_utils", texts=("/vllm_dist_{",)),
    Used(("server/launch/scratch.py",), "vllm.v1.worker.cpu_worker", texts=('os.environ["VLLM_DIST_IDENT"]',)),
    Used(ROUTES, "vllm.envs", texts=('"VLLM_BATCH_INVARIANT": lambda',)),
    Used(("server/middleware/keys.py",), "vllm.envs", texts=('"VLLM_API_KEY": lambda',)),
    Used(
        BODY,
        f"{OPENAI}.chat_completion.protocol",
        "ChatCompletionRequest",
        attributes=(
            *("vllm_xargs", "return_token_ids", "seed", "temperature", "n", "use_beam_search"),
            "thinking_token_budget",
        ),
    ),
    Used(
        BODY,
        f"{OPENAI}.completion.protocol",
        "CompletionRequest",
        attributes=("vllm_xargs", "return_token_ids", "seed", "temperature", "n", "use_beam_search", "echo", "prompt"),
    ),
    # Beside token ids an echo lacks its prompt, and gets it from us: text as it was sent, else what this decodes.
    Used(
        ("server/echo.py",),
        f"{OPENAI}.completion.serving",
        "OpenAIServingCompletion.request_output_to_completion_response",
        order=("if request.return_token_ids:", 'prompt_text = ""', "output_text = prompt_text + output.text"),
    ),
    Used(
        ("server/echo.py",),
        f"{OPENAI}.completion.serving",
        "OpenAIServingCompletion.completion_stream_generator",
        order=("if request.return_token_ids:", 'prompt_text = ""', "delta_text = prompt_text + output.text"),
    ),
    Used(
        ("server/echo.py",),
        "vllm.renderers.base",
        "BaseRenderer._detokenize_prompt",
        order=('tokenizer.decode(prompt["prompt_token_ids"])',),
    ),
    Used(
        (*BODY, "server/fields.py"),
        "vllm.entrypoints.anthropic.protocol",
        "AnthropicMessagesRequest",
        attributes=("vllm_xargs", "temperature", "thinking"),
    ),
    Used(
        (*BODY, "server/fields.py"),
        "vllm.entrypoints.anthropic.serving",
        texts=("vllm_xargs=anthropic_request.vllm_xargs", "thinking_token_budget = thinking.budget_tokens"),
    ),
    Used(
        ("server/answer.py",),
        "vllm.entrypoints.anthropic.serving",
        "AnthropicServingMessages.message_stream_converter",
        order=("len(origin_chunk.choices) == 0", 'type="message_delta"', "usage=_build_anthropic_usage("),
    ),
    # Background responses: a task of the response's name generates it, and its usage is in the store when it has ended.
    Used(
        ("server/background.py",),
        f"{OPENAI}.responses.serving",
        "OpenAIServingResponses",
        attributes=("background_tasks", "response_store"),
        order=("self.background_tasks[response_id] = task", "task.add_done_callback("),
    ),
    Used(
        ("server/background.py",), f"{OPENAI}.responses.protocol", "ResponsesResponse", attributes=("usage", "status")
    ),
    Used(BODY, f"{OPENAI}.responses.protocol", "ResponsesRequest", attributes=("request_id", "background")),
    Used(
        ("server/middleware/steering.py",),
        f"{OPENAI}.responses.api_router",
        texts=("app.state.openai_serving_responses", '"/v1/responses/{response_id}"'),
    ),
    Used(
        BODY,
        f"{OPENAI}.responses.protocol",
        "ResponsesRequest",
        attributes=("vllm_xargs", "seed", "temperature", "background"),
    ),
    # Nested objects do not fit, which is why the encoded request is one flat list.
    Used(
        BODY,
        f"{OPENAI}.chat_completion.protocol",
        "ChatCompletionRequest.vllm_xargs",
        texts=("dict[str, str | int | float | list[str | int | float]]",),
    ),
    # What replays ask a server for, by HTTP --------------------------------------------------------
    Used(("benchmarks/run/replays.py",), f"{TOKENIZE}.api_router", texts=('"/tokenize"', '"/detokenize"')),
    Used(("benchmarks/run/replays.py",), f"{TOKENIZE}.protocol", "DetokenizeRequest", attributes=("model", "tokens")),
    Used(("benchmarks/run/replays.py",), f"{TOKENIZE}.protocol", "DetokenizeResponse", attributes=("prompt",)),
    Used(("benchmarks/run/replays.py",), f"{TOKENIZE}.protocol", "TokenizeResponse", attributes=("tokens",)),
    Used(
        ("benchmarks/run/answers.py",),
        f"{OPENAI}.completion.protocol",
        "CompletionResponseChoice",
        attributes=("token_ids", "stop_reason"),
    ),
    # Programs that measure the engine itself -----------------------------------------------------
    Used((*ENGINE_PROGRAMS, "steerdec/check/engine.py"), "vllm", "LLM"),
    Used(("steerdec/check/engine.py",), "vllm", "LLM.from_engine_args", ("cls", "engine_args")),
    Used(("steerdec/check/engine.py",), "vllm.engine.arg_utils", "EngineArgs", attributes=("max_logprobs",)),
    Used(("steerdec/check/engine.py",), "vllm.engine.arg_utils", "EngineArgs.from_cli_args", ("cls", "args")),
    Used(("steerdec/check/engine.py",), "vllm.engine.arg_utils", "EngineArgs.add_cli_args", ("parser",)),
    Used(("steerdec/check/engine.py",), "vllm.platforms", "current_platform"),
    Used(("steerdec/check/engine.py",), "vllm.utils.argparse_utils", "FlexibleArgumentParser"),
    Used(
        (
            *ENGINE_PROGRAMS,
            "steerdec/check/engine.py",
            "steerdec/check/identity.py",
            "steerdec/check/launches.py",
        ),
        "vllm",
        "SamplingParams",
        attributes=("max_tokens",),
    ),
    Used(("benchmarks/engine/draws.py",), "vllm.sampling_params", "StructuredOutputsParams", attributes=("choice",)),
    Used(
        ("benchmarks/engine/kernel.py",),
        "vllm.v1.worker.gpu.sample.gumbel",
        "apply_temperature",
        ("logits", "expanded_idx_mapping", "temperature"),
    ),
    Used(
        ("benchmarks/engine/kernel.py",),
        "vllm.v1.worker.gpu.sample.min_p",
        "apply_min_p",
        ("logits", "expanded_idx_mapping", "min_p"),
    ),
)

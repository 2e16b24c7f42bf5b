"""The real engine: what it samples, what it reports, and what steering costs in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import torch

from steerdec.check.part import Reporter
from steerdec.check.results import Result, judged

CHECKS: Final = {
    "engine": ("engine: processor loaded",),
    "identity": ("A/A: logits", "A/A: texts", "T' = 0: greedy texts"),
    "telemetry": ("telemetry: entropy and fork", "telemetry: one record per token"),
    "launches": ("steps: host synchronization", "steps: launches", "steps: compiled while serving"),
    "distribution": tuple(
        f"distribution: {case}"
        for case in ("split", "entropy_target", "dynatemp", "edt", "p_less", "uniform_top_k", "top-p", "masked")
    ),
    "speed": ("speed: idle", "speed: steering", "speed: with telemetry"),
}


def run(reporter: Reporter) -> None:
    """Start the engine and make the checks."""
    from steerdec.server.launch.errors import LaunchUsageError

    reporter.progress("starting the engine")
    # vLLM looks at every imported module when it builds an engine, so what it stumbles over is imported later.
    from steerdec.check import engine as engines

    try:
        with engines.started(reporter.settings) as engine:
            _all_checks(reporter, engine)
    except LaunchUsageError as e:
        reporter.usage(str(e))
    except BaseException as e:
        reporter.progress(f"the engine has failed: {' '.join(str(e).split())[:300]}")
        raise


def _all_checks(reporter: Reporter, engine: Any) -> None:
    from steerdec.check import distribution, identity, launches, speed, telemetry

    reporter.run(CHECKS["engine"], lambda: _loaded(reporter, engine))
    reporter.run(CHECKS["identity"], lambda: identity.results(reporter, engine))
    reporter.run(CHECKS["telemetry"], lambda: telemetry.results(reporter, engine))
    reporter.run(CHECKS["launches"], lambda: launches.results(reporter, engine))
    reporter.run(CHECKS["distribution"], lambda: distribution.results(reporter, engine))
    reporter.run(CHECKS["speed"], lambda: speed.results(reporter, engine))


def _loaded(reporter: Reporter, engine: Any) -> Iterator[Result]:
    from steerdec.benchmarks.engine import kernel
    from steerdec.vllm_plugin.request import engine_of

    config = engine.config
    device = torch.device(config.device_config.device_type)
    facts = kernel.machine(device) | {
        "runner": "V1" if engine.v1 else "V2",
        "kernels": "Triton, interpreted"
        if reporter.settings.interpreted
        else "Triton"
        if device.type == "cuda"
        else "CPU",
        "device_type": device.type,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "vocabulary": config.model_config.get_vocab_size(),
        "speculative": config.speculative_config is not None,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "pipeline_parallel": config.parallel_config.pipeline_parallel_size,
        "cores": os.cpu_count(),
    }
    reporter.about(**facts)
    admitted = engine_of(config)
    dropped = admitted.v1 and admitted.speculative
    words = f"{facts['runner']} runner, {facts['kernels']} kernels, {facts['dtype']}"
    yield judged(
        CHECKS["engine"][0], "V1 drops it under speculative decoding" if dropped else words, "loaded", not dropped
    )

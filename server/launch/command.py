"""Turn the arguments of `steerdec serve` into the command and the environment of vLLM's own server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from steerdec import models
from steerdec.common.files import exists
from steerdec.steering.admission import EXACT_REJECTION
from steerdec.telemetry.lanes import LaneFile
from steerdec.vllm_plugin.settings import CONFIG_KEY, Settings, named_first

from .errors import LaunchError, LaunchUsageError
from .flags import SPECULATIVE_CONFIG, VllmFlags

PLUGIN: Final = "steerdec"
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000

# Without a GPU: what a small model on a laptop needs. The user's own flags take precedence.
CPU_CONTEXT_TOKENS: Final = 4096
CPU_FLAGS: Final = {
    "--max-model-len": str(CPU_CONTEXT_TOKENS),
    "--enforce-eager": None,
    "--gpu-memory-utilization": "0.3",
    "--block-size": "32",  # vLLM's own 128 makes the prefix cache miss most of a short prompt
}
CPU_ENVIRONMENT: Final = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}

# For a model on the hub, whose limits are unknown until it is fetched; longer answers lose the telemetry of their tail.
_UNKNOWN_CONTEXT_TOKENS: Final = 40_960


@dataclass(frozen=True)
class Launch:
    """The arguments of `steerdec serve`; None for those left out."""

    model: str | None = None
    host: str | None = None
    port: int | None = None
    steering: dict[str, Any] | None = None
    threshold_nats: float | None = None
    threshold_origin: str = "given on the command line"
    calibration: dict[str, Any] | None = None
    vllm_flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """One server, ready to be started."""

    host: str
    port: int
    capacity_tokens: int  # of a telemetry lane
    folder: str  # or hub id, of the model
    engine_flags: Callable[[LaneFile], list[str]]  # vLLM's, without host and port
    environment: dict[str, str]

    def command(self, lanes: LaneFile) -> list[str]:
        """Return the command that starts vLLM's own server."""
        vllm = (sys.executable, "-m", "steerdec.server.vllm_cli", "serve", self.folder)
        return [*vllm, *self.engine_flags(lanes), "--host", self.host, "--port", str(self.port)]


def plan(launch: Launch, flags: VllmFlags, *, on_cpu: bool) -> Plan:
    """Decide everything about a start that can be decided before starting anything.

    Raises:
        LaunchUsageError: the flags cannot be combined.
        LaunchError: the model's folder cannot be read.
        models.ModelError: the model cannot be fetched.
    """
    host, port = _address(launch, flags)
    if CONFIG_KEY in flags.additional_config:
        raise LaunchUsageError(
            f"--additional-config: steerdec serve writes its entry {CONFIG_KEY!r}; use --steering and --threshold"
        )
    if launch.model is not None and flags.model is not None:
        raise LaunchUsageError(f"--model {flags.model}: the model is given twice, also as {launch.model}")
    if flags.rejection_method is not None and flags.rejection_method not in EXACT_REJECTION:
        raise LaunchUsageError(
            f"{SPECULATIVE_CONFIG}: rejection_sample_method {flags.rejection_method!r} may keep a draft token that the "
            f"steered distribution rejects; use {' or '.join(EXACT_REJECTION)}"
        )
    name, folder = _model(next((m for m in (launch.model, flags.model, flags.values.model) if m is not None), None))
    added = [] if flags.values.served_model_name or name == folder else ["--served-model-name", name]
    limit = _context_tokens(folder)
    capacity = flags.number("max_model_len") or limit
    if on_cpu:
        cpu_flags = _cpu_flags(flags, limit)
        added += cpu_flags
        if "--max-model-len" in cpu_flags:
            capacity = CPU_CONTEXT_TOKENS
    processors = named_first(flags.values.logits_processors)

    def engine_flags(lanes: LaneFile) -> list[str]:
        config = flags.additional_config | {CONFIG_KEY: _settings(launch, lanes, flags.front_ends())}
        return [
            *flags.passed_on,
            # Ours come last and win; if the user gave the same flag, ours include its value.
            *added,
            *("--logits-processors", *processors),
            *("--additional-config", json.dumps(config)),
        ]

    return Plan(host, port, capacity or _UNKNOWN_CONTEXT_TOKENS, folder, engine_flags, _environment(on_cpu))


def _address(launch: Launch, flags: VllmFlags) -> tuple[str, int]:
    """Return host and port: the command line before a --config file before the defaults."""
    host = flags.values.host if launch.host is None else launch.host
    if host is not None and not host.strip():
        raise LaunchUsageError("--host: must not be empty; 0.0.0.0 listens on every network")
    port = launch.port
    if port is None and (text := flags.values.port) is not None:
        if not text.isdecimal() or not 1 <= int(text) <= 65535:
            raise LaunchUsageError(f"--config: port {text!r} is not a number from 1 to 65535")
        port = int(text)
    return host or DEFAULT_HOST, port or DEFAULT_PORT


def _model(model: str | None) -> tuple[str, str]:
    """Return (name to serve under, folder or hub id for vLLM)."""
    if model == "":
        raise LaunchUsageError("MODEL: must not be empty")
    if model is None or model == models.SMOLLM2.name:
        return models.SMOLLM2.name, str(models.fetch(None))
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or exists(model):
        return model, str(models.fetch(model))
    return model, model  # vLLM fetches from the hub itself


def _cpu_flags(flags: VllmFlags, limit_tokens: int | None) -> list[str]:
    """Return defaults for CPUs, and two flags that keep seeded requests from killing the engine.

    vLLM's CPU runner cannot rewind a seeded generator after a prefill in parts, so one seeded request with a long
    prompt would be enough. And it makes the buffer in which a pipeline stage receives its input only when it warms up,
    which it does only for a compiled model, so stages are compiled.

    Raises:
        LaunchUsageError: a flag with which a request would kill the engine.
    """
    values = vars(flags.values)
    if flags.values.enable_chunked_prefill:
        raise LaunchUsageError(
            "--enable-chunked-prefill: on a CPU a request with a seed would then kill vLLM's engine; leave it out"
        )
    staged = (flags.number("pipeline_parallel_size") or 1) > 1
    if staged and flags.values.enforce_eager:
        raise LaunchUsageError(
            "--enforce-eager: with --pipeline-parallel-size on a CPU, the first request would kill vLLM's engine; "
            "leave it out"
        )
    added: list[str] = []
    for name, value in CPU_FLAGS.items():
        if staged and name == "--enforce-eager":
            continue
        if values[name[2:].replace("-", "_")] is not None:
            continue
        if name == "--max-model-len" and limit_tokens is not None and limit_tokens <= CPU_CONTEXT_TOKENS:
            continue  # vLLM refuses more than the model has, and uses that much by default
        added += [name] if value is None else [name, value]
    if flags.values.enable_chunked_prefill is None:
        added.append("--no-enable-chunked-prefill")
    if flags.values.max_num_batched_tokens is None:
        context = flags.number("max_model_len") if flags.values.max_model_len else CPU_CONTEXT_TOKENS
        added += ["--max-num-batched-tokens", str(max(context or limit_tokens or 0, CPU_CONTEXT_TOKENS))]
    return added


def _context_tokens(folder: str) -> int | None:
    """Return the model's context in tokens, None if its folder is not here or does not say.

    Raises:
        LaunchError: config.json cannot be read.
    """
    config = Path(folder) / "config.json"
    if not config.is_file():
        return None
    try:
        content = json.loads(config.read_text())
    except (OSError, ValueError) as e:
        raise LaunchError(f"{config}: cannot be read as JSON ({getattr(e, 'strerror', e)})") from None
    if not isinstance(content, dict):
        raise LaunchError(f"{config}: is not a JSON object")
    for part in (content, content.get("text_config")):
        limit = part.get("max_position_embeddings") if isinstance(part, dict) else None
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def _settings(launch: Launch, lanes: LaneFile, front_ends: int) -> dict[str, Any]:
    """Return the entry of vLLM's additional config that the engine and the server read."""
    nats, origin = launch.threshold_nats, launch.threshold_origin
    return Settings.read(
        {
            "lanes": asdict(lanes) | {"parts": front_ends},
            "http_default": launch.steering,
            "calibration": launch.calibration,
            **({} if nats is None else {"threshold_nats": nats, "threshold_origin": origin}),
        }
    ).entry()


def _environment(on_cpu: bool) -> dict[str, str]:
    environment = dict(os.environ)
    if on_cpu:
        for name, value in CPU_ENVIRONMENT.items():
            environment.setdefault(name, value)
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM loads endpoint plugins only if they are named, and naming one disables all that are not
    # named, in every group: so name everything that would have been loaded anyway.
    named = environment.get("VLLM_PLUGINS")
    if named is None:
        groups = ("general", "io_processor", "platform", "stat_logger")
        named = ",".join(p.name for g in groups for p in entry_points(group=f"vllm.{g}_plugins"))
    environment["VLLM_PLUGINS"] = ",".join(filter(None, (*named.split(","), PLUGIN)))
    return environment

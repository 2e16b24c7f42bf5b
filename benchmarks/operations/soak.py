"""Many mixed requests at once against a steering server, every answer checked by its content.

    python -m steerdec.benchmarks.operations.soak --endpoint http://127.0.0.1:8000 --requests 2000 --at-once 64

A third of the clients disconnect midway, some send requests that must be refused, some send no steering. Every steered
request has two temperatures that no other request has, so a record of another request is detected. Some of the
requests are repeated alone at the end; in float32 on a CPU they must give the same entropies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from ..run.endpoints import IDLE_CONNECTION_S
from .soak_checks import Plan, check_answer, gathered, plan, repeat_problems

PATIENCE_S = 300.0
REPEATED = 24  # requests repeated at the end
SETTLE_S = 15.0  # in which the last lanes must be back
WARM_SHARE = 0.2  # of the requests, before server memory is first read
MAX_BUSY_TRIES = 200
SHOWN_FAILURES = 20


@dataclass
class Soak:
    """The counts of one run. `kinds` counts requests by kind, `failures` has one line per failure."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    checked_choices: int = 0
    repeated: int = 0
    seconds: float = 0.0
    server_mib_warm: float | None = None
    server_mib_end: float | None = None
    lanes_lent: int = 0


class Client:
    """Sends planned requests to one server and counts into a `Soak`."""

    def __init__(self, endpoint: str, http: httpx.AsyncClient, soak: Soak) -> None:
        self._http, self._soak = http, soak
        # For clients that disconnect. The context is made once: it takes longer than a request.
        self._own: dict[str, Any] = {
            "base_url": endpoint,
            "timeout": PATIENCE_S,
            "verify": httpx.create_ssl_context(trust_env=False),
        }
        self.repeatable: list[tuple[Plan, list[dict[str, Any]]]] = []

    async def one(self, p: Plan) -> None:
        self._soak.kinds[p.kind] += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                if p.leave_after_s is not None:
                    await self._leave(p)
                else:
                    await self._stay(p)
        except TimeoutError:
            self._soak.failures.append(f"{p}: no answer in {PATIENCE_S:g} s")
        except httpx.TransportError as e:
            self._soak.failures.append(f"{p}: {type(e).__name__} {e}")

    async def _stay(self, p: Plan) -> None:
        status, text = await self.answer(p)
        if p.refused_field is not None:
            error = json.loads(text).get("error", {})
            if status != 400 or error.get("param") != p.refused_field:
                self._soak.failures.append(f"{p}: expected a 400 naming {p.refused_field}, got {status} {text[:200]}")
            return
        if status != 200:
            self._soak.failures.append(f"{p}: status {status} {text[:200]}")
            return
        choices = gathered(p, text)
        problems = check_answer(p, choices)
        self._soak.failures += [f"{p}: {problem}" for problem in problems]
        self._soak.checked_choices += len(choices)
        self._soak.tokens += sum(choice["tokens"] for choice in choices)
        if not problems and p.kind == "steered, tokens":
            self.repeatable.append((p, choices))

    async def answer(self, p: Plan) -> tuple[int, str]:
        """Return the status and the whole body; wait while the server has no free lane."""
        for _ in range(MAX_BUSY_TRIES):
            response = await self._http.post(p.path, json=p.body)
            self._soak.statuses[str(response.status_code)] += 1
            if response.status_code != 429:
                break
            await asyncio.sleep(float(response.headers.get("retry-after", 1)))
        return response.status_code, response.text

    async def _leave(self, p: Plan) -> None:
        """Close the connection after some time, or after a few chunks if those come first.

        It uses a client of its own: in a shared client, a cancelled request now and then leaves a connection open.
        """
        chunks = 0
        with contextlib.suppress(TimeoutError):
            async with (
                httpx.AsyncClient(**self._own, trust_env=False) as own,
                asyncio.timeout(p.leave_after_s),
                own.stream("POST", p.path, json=p.body) as response,
            ):
                self._soak.statuses[str(response.status_code)] += 1
                async for _ in response.aiter_lines():
                    chunks += 1
                    if chunks >= p.leave_after_lines:
                        return
                self._soak.kinds["left too late"] += 1

    async def lanes_lent(self) -> int:
        return int((await self._http.get("/v1/steering")).json().get("telemetry_lanes_lent", 0))

    async def server_mib(self) -> float | None:
        """Return the resident memory of the server's front end, if reported."""
        text = (await self._http.get("/metrics")).text
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        return None if found is None else float(found[1]) / 2**20


async def run(endpoint: str, requests: int, at_once: int, seed: int) -> Soak:
    """Send all requests and return their counts.

    Raises:
        httpx.HTTPError: the server cannot be reached at the start.
    """
    soak = Soak()
    limits = httpx.Limits(
        max_connections=at_once + 1, max_keepalive_connections=at_once + 1, keepalive_expiry=IDLE_CONNECTION_S
    )
    async with httpx.AsyncClient(base_url=endpoint, timeout=PATIENCE_S, limits=limits, trust_env=False) as http:
        client = Client(endpoint, http, soak)
        response = await http.get("/v1/steering")
        response.raise_for_status()
        about = response.json()
        model = about["model"] if isinstance(about["model"], str) else about["model"][0]
        lent_before, begin = await client.lanes_lent(), time.monotonic()
        places = asyncio.Semaphore(at_once)

        async def placed(p: Plan) -> None:
            async with places:
                await client.one(p)

        plans = plan(requests, model, seed)
        warm = round(WARM_SHARE * requests)
        await asyncio.gather(*map(placed, plans[:warm]))
        soak.server_mib_warm = await client.server_mib()
        await asyncio.gather(*map(placed, plans[warm:]))
        soak.seconds = time.monotonic() - begin
        soak.server_mib_end = await client.server_mib()

        chosen = np.random.default_rng(seed).permutation(len(client.repeatable))[:REPEATED]
        for p, choices in (client.repeatable[i] for i in chosen):
            status, text = await client.answer(p)
            again = gathered(p, text) if status == 200 else []
            soak.failures += [f"{p}, repeated alone: {problem}" for problem in repeat_problems(choices, again)]
            soak.repeated += 1
        end = time.monotonic() + SETTLE_S
        while (lent := await client.lanes_lent()) > lent_before and time.monotonic() < end:
            await asyncio.sleep(0.2)
        soak.lanes_lent = lent - lent_before
    if soak.lanes_lent > 0:
        soak.failures.append(f"{soak.lanes_lent} telemetry lanes were not given back in {SETTLE_S:g} s")
    if broken := sum(count for status, count in soak.statuses.items() if status.startswith("5")):
        soak.failures.append(f"{broken} answers with a status of 500 or more")
    if not soak.repeated:
        soak.failures.append("no request could be repeated: too few requests for a meaningful result")
    return soak


def show(soak: Soak, console: Console) -> None:
    table = Table(box=None)
    table.add_column("requests")
    table.add_column("", justify="right")
    for name, count in sorted(soak.kinds.items()):
        table.add_row(name, str(count))
    for status, count in sorted(soak.statuses.items()):
        table.add_row(f"status {status}", str(count))
    memory = "not reported"
    if soak.server_mib_warm is not None and soak.server_mib_end is not None:
        memory = f"{soak.server_mib_warm:.0f} -> {soak.server_mib_end:.0f} MiB"
    table.add_row("choices checked", str(soak.checked_choices))
    table.add_row("tokens in them", str(soak.tokens))
    table.add_row("repeated alone", str(soak.repeated))
    table.add_row("lanes not given back", str(soak.lanes_lent))
    table.add_row("front end's memory, warm -> end", memory)
    table.add_row("seconds", f"{soak.seconds:.0f}")
    table.add_row("failures", str(len(soak.failures)))
    console.print(table)
    for failure in soak.failures[:SHOWN_FAILURES]:
        console.print(f"FAILED {failure}", markup=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.operations.soak", description=__doc__)
    parser.add_argument("--endpoint", required=True, help="URL of a server started by `steerdec serve`")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if min(options.requests, options.at_once) < 1:
        parser.error("--requests and --at-once: must be at least 1")
    try:
        soak = asyncio.run(run(options.endpoint, options.requests, options.at_once, options.seed))
    except httpx.HTTPError as e:
        sys.exit(f"soak: {options.endpoint}: {e}")
    show(soak, Console(width=110))
    if options.json:
        options.json.write_text(json.dumps(vars(soak), indent=1) + "\n")
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()

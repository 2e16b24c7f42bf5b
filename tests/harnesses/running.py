"""Runs one recipe, and checks that its requests were steered, that the server counted them, and what the user is shown.

Nothing is taken on the tool's word: the requests and the answers are those that went through the recorder, and the
counters are the server's.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.harnesses.recipes import ROOT, SERVER, Block, Recipe
from tests.harnesses.recorder import Call, Recorder
from tests.support.serving import PATIENCE_S, command_running, free_port

TOOLS = ROOT / "build" / "harnesses" / "bin"
NODE_MODULES = ROOT / "build" / "harnesses-npm" / "node_modules"
PROXY = "http://127.0.0.1:4000"
VLLM = "vllm bench"  # does not start on the CPU build; python -m steerdec.server.vllm_cli does
LIMIT_S = 900.0
COUNTERS = ("requests", "tokens", "forks")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # the recipes need no hub
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no list of prices is fetched
    "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",
}


def run(recipe: Recipe, folder: Path, recorder: Recorder, server: str) -> str:
    """Run a recipe in an empty folder. Returns what was counted, in words; raises AssertionError where it is not so."""
    recorder.calls.clear()
    recorder.refused.clear()
    before = counters(server)
    printed = execute(recipe.blocks(), folder, recorder.url)
    after = counters(server)
    assert not recorder.refused, f"refused: {recorder.refused[0]}"
    calls = [call for call in recorder.calls if "steering" in call.request or call.telemetry()]
    counted = {name: int(after[name] - before[name]) for name in COUNTERS}
    telemetry = [choice for call in calls for choice in call.telemetry()]
    answered = {"requests": len(calls)} | {name: sum(one[name] for one in telemetry) for name in ("tokens", "forks")}
    assert counted == answered, f"counted by the server: {counted}; answered: {answered}"
    assert len(calls) == recipe.requests, f"{len(calls)} steered requests instead of {recipe.requests}"
    assert counted["forks"] > 0, f"no token was steered: {counted}"
    for call in calls:
        assert_applied(call, server)
    shown = is_shown(telemetry, printed + written(folder))
    assert shown == recipe.shows, f"telemetry {'is' if shown else 'is not'} shown to the user"
    return f"{counted['requests']} requests, {counted['tokens']} tokens, {counted['forks']} forks"


def counters(server: str) -> dict[str, float]:
    """steerdec's counters of /metrics, by name."""
    page = httpx.get(f"{server}/metrics", timeout=PATIENCE_S).text
    found = {name: re.search(rf"^steerdec_{name}_total (\S+)$", page, re.MULTILINE) for name in COUNTERS}
    return {name: float(match[1]) if match else 0.0 for name, match in found.items()}


def assert_applied(call: Call, server: str) -> None:
    """The temperatures of the tokens are those that were asked for, at forks and elsewhere.

    A request that asks for no lists is sent again with them. With its seed it gets the same answer.
    """
    asked, telemetry = call.request["steering"], call.telemetry()
    if asked.get("telemetry") != "tokens":
        body = call.request | {"steering": asked | {"telemetry": "tokens"}, "stream": False}
        body.pop("stream_options", None)
        answer = httpx.post(f"{server}{call.path}", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        again = Call(call.path, body, [answer.json()]).telemetry()
        if "seed" in body:
            totals = [{name: one[name] for name in ("tokens", "forks")} for one in (*telemetry, *again)]
            assert totals[: len(telemetry)] == totals[len(telemetry) :], f"another answer to the same request: {totals}"
        telemetry = again
    for choice in telemetry:
        due = [asked["fork_temperature"] if fork else call.request["temperature"] for fork in choice["fork"]]
        assert [round(t, 4) for t in choice["temperature"]] == due, f"temperatures {choice['temperature']}, not {due}"


def is_shown(telemetry: list[dict[str, Any]], text: str) -> bool:
    """Whether the numbers of every answer stand in the text: the mean entropy, or the entropies of all tokens."""
    for choice in telemetry:
        entropies = choice.get("entropy_nats", [])
        if str(choice["mean_entropy_nats"]) not in text and not (entropies and all(str(h) in text for h in entropies)):
            return False
    return True


def written(folder: Path) -> str:
    """All text in the files of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return "\n".join(path.read_text("utf-8", errors="replace") for path in files)


# Execution ---------------------------------------------------------------------------------------


def execute(blocks: list[Block], folder: Path, url: str) -> str:
    """Run the blocks one after the other, the client's after the proxy's configuration; what they print."""
    port = free_port()
    swaps = {
        SERVER: url,
        PROXY: f"http://127.0.0.1:{port}",
        VLLM: f"{sys.executable} -m steerdec.server.vllm_cli bench",
    }
    ready = [Block(language, _swapped(code, swaps)) for language, code in blocks]
    configuration = [block.code for block in ready if block.language == "yaml"]
    rest = [block for block in ready if block.language != "yaml"]
    assert rest, "the recipe has nothing to run"
    with proxy(configuration[0], port, folder) if configuration else contextlib.nullcontext():
        return "".join(_run(block, folder) for block in rest)


def _swapped(code: str, swaps: dict[str, str]) -> str:
    for old, new in swaps.items():
        code = code.replace(old, new)
    return code


@contextlib.contextmanager
def proxy(configuration: str, port: int, folder: Path) -> Iterator[None]:
    """LiteLLM's proxy with a configuration."""
    (folder / "config.yaml").write_text(configuration)
    command = [str(TOOLS / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with command_running(
        command, port, folder / "proxy.log", cwd=folder, environment=ENVIRONMENT, health="/health/liveliness"
    ):
        yield


def _run(block: Block, folder: Path) -> str:
    commands = {
        "python": [str(TOOLS / "python"), "-"],
        "bash": ["bash", "-e"],
        "js": ["node", "--input-type=module"],
    }
    if block.language == "js" and not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(NODE_MODULES)
    path = os.pathsep.join([str(TOOLS), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        commands[block.language],
        input=block.code,
        cwd=folder,
        env=os.environ | ENVIRONMENT | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
    return done.stdout + done.stderr

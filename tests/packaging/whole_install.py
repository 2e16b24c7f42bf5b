"""The release, installed as its users would, in empty environments: `python -m tests.packaging.whole_install DIST`.

Needs the package index and several minutes. Builds the wheel and the sdist into the empty folder DIST, and:

1. installs the wheel with the dependencies it declares, without vLLM: the command works, `pip check` is content, a
   missing vLLM is told in one line;
2. installs the complete list of requirements/cpu.txt and the wheel beside it: vLLM finds the processor, the small
   model is fetched, served, and one steered request answered with telemetry;
3. installs the sdist in the place of the wheel.

Prints one line a step; exit status 1 at the first that fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from tests.support import built as builds
from tests.support.built import ROOT, Built

MINUTES = 60
SERVED = """
import pathlib, sys
import httpx
from steerdec.benchmarks.run.local_server import local_server
with local_server("SmolLM2-135M-Instruct", pathlib.Path("server.log")) as url:
    body = {"prompt": "Once", "max_tokens": 8, "seed": 1, "temperature": 1.0, "steering": {"fork_temperature": 1.3}}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["steering"]["tokens"] == 8, answer
"""
ENTRY_POINTS = """
from importlib.metadata import entry_points
for group in ("vllm.logits_processors", "vllm.endpoint_plugins"):
    print(entry_points(group=group)["steerdec"].load().__name__)
"""


class StepError(Exception):
    """A step did not do what it should; the message has the end of its output."""


def run(*command: Any, cwd: Path, status: int = 0, limit_s: float = 15 * MINUTES) -> str:
    """stdout and stderr. Raises StepError for another exit status than `status`."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode != status:
        told = (done.stdout + done.stderr)[-1500:]
        raise StepError(f"{' '.join(words)[:200]}: status {done.returncode} instead of {status}\n{told}")
    return done.stdout + done.stderr


def environment(folder: Path) -> Path:
    """An empty virtual environment; its bin folder."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def say(line: str) -> None:
    print(line, flush=True)


def with_its_own_dependencies(built: Built, folder: Path) -> None:
    bin_ = environment(folder / "declared")
    run(bin_ / "pip", "install", "--quiet", built.wheel, cwd=folder)
    say("installed with the dependencies it declares: " + run(bin_ / "steerdec", "--version", cwd=folder).strip())
    run(bin_ / "pip", "check", cwd=folder)
    for words in (("--help",), ("bench", "run", "--help"), ("serve", "--help")):
        run(bin_ / "steerdec", *words, cwd=folder)
    told = run(bin_ / "steerdec", "serve", cwd=folder, status=1)
    if "vLLM is not installed" not in told or len(told.splitlines()) != 1:
        raise StepError(f"a missing vLLM should be one plain line, not:\n{told}")
    say("  pip check is content; the command works; without vLLM: " + told.strip())


def beside_vllm(built: Built, folder: Path) -> None:
    bin_ = environment(folder / "listed")
    run(bin_ / "pip", "install", "--quiet", "--no-deps", "-r", ROOT / "requirements" / "cpu.txt", cwd=folder)
    run(bin_ / "pip", "install", "--quiet", "--no-deps", built.wheel, cwd=folder)
    names = run(bin_ / "python", "-W", "ignore", "-c", ENTRY_POINTS, cwd=folder)
    if not {"EntropySteering", "SteeringRoutes"} <= set(names.split()):
        raise StepError(f"vLLM's plugins were not found:\n{names}")
    say("installed beside vLLM: both plugins are found")
    run(bin_ / "python", "-c", SERVED, cwd=folder)
    say("  the small model is served, a steered request answered with telemetry")
    run(bin_ / "pip", "uninstall", "--quiet", "--yes", "steerdec", cwd=folder)
    run(bin_ / "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", built.sdist, cwd=folder)
    say("installed from the sdist: " + run(bin_ / "steerdec", "--version", cwd=folder).strip())


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="steerdec-install-") as name:
        folder, out = Path(name), Path(sys.argv[1]).resolve()
        try:
            built = builds.build(builds.source_copy(folder / "source"), out)
            say(f"{built.wheel.name}, {built.sdist.name}")
            with_its_own_dependencies(built, folder)
            beside_vllm(built, folder)
        except StepError as e:
            print(e, file=sys.stderr)
            return 1
    say("the release installs clean")
    return 0


if __name__ == "__main__":
    sys.exit(main())

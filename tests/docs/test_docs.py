"""README.md and docs/: what they show runs, what they link to is there, what they tabulate is what the code says."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from steerdec.policies import registry
from steerdec.telemetry.loan import Telemetry
from tests.support.serving import PATIENCE_S

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVER = "http://127.0.0.1:8000"  # in every example; replaced by the address of a running one
RUN_ELSEWHERE = {"harnesses.md"}  # by tests/harnesses, where the tools that its examples import are


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    code: str

    @property
    def at(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks() -> list[Block]:
    """The fenced blocks of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        fences = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        found += [Block(page, text[: fence.start()].count("\n") + 1, fence[1], fence[2]) for fence in fences]
    return found


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.at) for block in blocks() if block.language in languages]


def runnable(*languages: str) -> list[Any]:
    return [param for param in of(*languages) if param.values[0].page.name not in RUN_ELSEWHERE]


def indented_commands() -> list[Any]:
    """(where, words) of every indented line that runs steerdec or make."""
    found = []
    for page in PAGES:
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            if re.match(r"    (\S*/)?(steerdec|make) ", line):
                words = shlex.split(re.split(r" (?:>|&&|\|) ", line)[0], comments=True)  # without what the shell does
                found.append(pytest.param([Path(words[0]).name, *words[1:]], id=f"{page.name}:{number}"))
    return found


@cache
def tables() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "build_tables.py"))


# Tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_code_says(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tables()["filled"](text) == text, "run: python docs/build_tables.py"


def test_every_field_and_every_command_has_its_row() -> None:
    api, cli = ((ROOT / "docs" / name).read_text("utf-8") for name in ("api.md", "cli.md"))
    for policy, model in registry.POLICIES.items():
        own = api.partition(f"<!-- table fields {policy} -->")[2].partition("<!-- end -->")[0]
        shared = api.partition("<!-- table fields shared -->")[2].partition("<!-- end -->")[0]
        for field in model.model_fields:
            assert f"| `{field}` |" in own + shared, f"{policy}.{field}"
    for path, _ in tables()["commands"]():
        assert f"<!-- table options {path} -->" in cli, path


# Links -------------------------------------------------------------------------------------------


def links() -> list[Any]:
    found = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        targets = dict.fromkeys(re.findall(r"\]\(([^)\s]+)\)", prose))
        found += [
            pytest.param(page, target, id=f"{page.name}->{target}")
            for target in targets
            if not re.match(r"[a-z]+:", target)
        ]
    return found


@pytest.mark.parametrize(("page", "target"), links())
def test_relative_links_resolve(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    file = page.parent / name if name else page
    assert file.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    rooms = "steerdec|server|benchmarks|tests|docs|deploy|requirements"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text("utf-8")):
        assert (ROOT / name).exists(), name


# Steering objects --------------------------------------------------------------------------------


def steering_objects(block: Block) -> Iterator[dict[str, Any]]:
    """Every object that stands after the name `steering` in a block, as JSON or as a Python literal."""
    for match in re.finditer(r'"?steering"?\s*[:=]\s*', block.code):
        rest = block.code[match.end() :]
        if rest.startswith('"{\\"'):  # as text inside vllm_xargs
            yield json.loads(json.JSONDecoder().raw_decode(rest)[0])
        elif rest.startswith("{"):
            with contextlib.suppress(ValueError):
                yield json.JSONDecoder().raw_decode(rest)[0]
                continue
            yield ast.literal_eval(rest[: rest.index("}") + 1])


def test_steering_objects_are_found_in_every_language() -> None:
    languages = {block.language for block in blocks() for _ in steering_objects(block)}
    assert languages >= {"json", "python", "bash", "js"}


@pytest.mark.parametrize("block", of("json", "python", "bash", "js"))
def test_steering_objects_are_valid(block: Block) -> None:
    none = np.zeros(0, np.float32)
    nothing = Telemetry(none, none, none > 0, none, none > 0, threshold_nats=0.6, probed=False)
    summary, lists = set(nothing.summary()), {*nothing.lists(), "probe_entropy_nats"}
    for value in steering_objects(block):
        if "tokens" in value:  # an answer
            assert set(value) <= summary | lists
            assert summary <= set(value)
        else:
            registry.parse(value)


# Examples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block: Block) -> None:
    assert isinstance(json.loads(block.code), dict)


@pytest.mark.parametrize("block", runnable("python"))
def test_python_compiles_and_its_imports_are_there(block: Block) -> None:
    tree = ast.parse(block.code)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), block.at, "exec"), {})


@pytest.mark.parametrize("block", of("js"))
def test_javascript_parses(block: Block, tmp_path: Path) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    (tmp_path / "example.mjs").write_text(block.code)
    subprocess.run([node, "--check", tmp_path / "example.mjs"], check=True)


@pytest.mark.parametrize("words", indented_commands())
def test_commands_take_the_options_they_are_shown_with(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    known = dict(tables()["commands"]())
    path, rest = next((" ".join(words[:n]), words[n:]) for n in (3, 2) if " ".join(words[:n]) in known)
    context = known[path].make_context(path, list(rest))  # raises where an option or its value is wrong
    if path == "steerdec serve":
        steering = context.params["steering"]
        assert steering is None or registry.parse(steering)


def printed(imported: str) -> list[str]:
    """What the example prints that has this import, line by line."""
    (block,) = [b for b in blocks() if b.language == "python" and imported in b.code]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.code, block.at, "exec"), {"__name__": "__main__"})
    return out.getvalue().splitlines()


def test_the_transformers_example_runs(weights: Path) -> None:
    lines = printed("from steerdec.hf import generate")
    tokens = [line.split() for line in lines if re.fullmatch(r"\d+ [\d.e-]+ (fork)? \S+", line)]
    assert 2 <= len(tokens) <= 64
    for _, entropy, *fork, temperature in tokens:
        assert (float(entropy) > 0.6) == bool(fork)
        assert float(temperature) == pytest.approx(1.3 if fork else 0.8)


def test_the_example_of_the_logits_processor_runs(weights: Path) -> None:
    entropies = ast.literal_eval(printed("from steerdec.hf import EntropySteering")[-1])
    assert 1 <= len(entropies) <= 32
    assert min(entropies) >= 0


# Against a real server ---------------------------------------------------------------------------


def run_example(command: list[str], code: str, url: str) -> str:
    done = subprocess.run(
        command, input=code.replace(SERVER, url), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def talking(language: str) -> list[Any]:
    return [p for p in runnable(language) if SERVER in p.values[0].code]


@pytest.mark.engine
@pytest.mark.parametrize("block", talking("python"))
def test_python_examples_run(server_url: str, block: Block) -> None:
    assert "fork" in run_example([sys.executable, "-"], block.code, server_url)


@pytest.mark.engine
@pytest.mark.parametrize("block", talking("bash"))
def test_curl_examples_run(server_url: str, block: Block) -> None:
    answer = json.loads(run_example(["bash", "-e"], block.code, server_url))
    if "choices" in answer:
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
        assert ("steering" in answer["choices"][0]) == ("vllm_xargs" not in block.code)
    elif "oneOf" in answer:
        assert [one["title"] for one in answer["oneOf"]] == list(registry.POLICIES)
    else:
        assert_describes_the_server(answer)


def assert_describes_the_server(about: dict[str, Any]) -> None:
    """The table of GET /v1/steering names exactly what comes."""
    text = (ROOT / "docs" / "api.md").read_text("utf-8").partition("## GET /v1/steering")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(about)


@pytest.mark.engine
def test_the_fetch_example_runs(server_url: str) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    (block,) = [b for b in blocks() if b.language == "js" and "await fetch(" in b.code]
    assert run_example([node, "--input-type=module"], block.code, server_url).split()[-1].isdigit()


@pytest.mark.engine
def test_the_metrics_table_names_what_is_there(server_url: str) -> None:
    page = httpx.get(f"{server_url}/metrics", timeout=PATIENCE_S).text
    for name in re.findall(r"`(steerdec_\w+)`", tables()["table"]("metrics")):
        assert f"# TYPE {name} " in page or f"\n{name} " in page


@pytest.mark.engine
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_a_status_streamed_or_not(server_url: str, stream: bool) -> None:
    body = {"model": "SmolLM2-135M-Instruct", "prompt": "x", "stream": stream, "steering": {"fork_temperature": -1}}
    answer = httpx.post(f"{server_url}/v1/completions", json=body, timeout=PATIENCE_S)
    shown = next(json.loads(b.code) for b in blocks() if b.language == "json" and '"error"' in b.code)
    assert answer.status_code == 400
    assert answer.json() == shown

"""The example notebook: runs as it stands, with the real model, and is small in the repository."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"
BUILD: dict[str, Any] = runpy.run_path(str(DOCS / "build_notebook.py"))
NOTEBOOK: Path = BUILD["NOTEBOOK"]
MOST_BYTES = 60_000


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any, kind: str) -> list[str]:
    """What the cells show in this MIME type; for text, what they print too."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = [output.text for output in outputs if kind == "text/plain" and output.output_type == "stream"]
    return printed + [output.data[kind] for output in outputs if kind in output.get("data", {})]


def assert_shows_the_tokens(notebook: Any) -> None:
    colored = next(html for html in shown(notebook, "text/html") if "rgba" in html)
    entropies = [float(nats) for nats in re.findall(r'title="([\d.]+) nats', colored)]
    assert len(entropies) == int(re.findall(r"Tokens: (\d+)", colored)[0])
    assert colored.count("underline;") == sum(nats > 0.6 for nats in entropies) > 0


def assert_shows_the_run(notebook: Any) -> None:
    frame = next(html for html in shown(notebook, "text/html") if "table" in html)
    arms = re.findall(r"<td>&quot;([^<]+)&quot;</td><td>(\d+)</td>", frame)
    assert [samples for _, samples in arms] == ["8"] * 6
    assert any("undecided" in text for text in shown(notebook, "text/plain"))
    assert len(shown(notebook, "image/png")) == 1


def test_the_notebook_in_the_repository_is_valid_and_small(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size <= MOST_BYTES
    assert not re.search(r"/(root|home|work|tmp)/", NOTEBOOK.read_text("utf-8")), "a path of the machine it ran on"
    assert_shows_the_tokens(notebook)
    assert_shows_the_run(notebook)
    tree = ast.parse("\n".join(code(notebook)))
    imports: list[ast.stmt] = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), NOTEBOOK.name, "exec"), {})


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_the_notebook_runs(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # vLLM's own default, as a user has it
    ran = BUILD["executed"](tmp_path)
    assert_shows_the_tokens(ran)
    assert_shows_the_run(ran)

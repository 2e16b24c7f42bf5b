"""The recipes of docs/harnesses.md: each has its test, the table names the versions that are run, and each runs."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harnesses.recipes import RECIPES, ROOT
from tests.harnesses.recorder import Call, Recorder, recording
from tests.harnesses.running import assert_applied, is_shown, run

PAGE = (ROOT / "docs" / "harnesses.md").read_text("utf-8")
ROWS = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", PAGE, re.MULTILINE)[2:]]


def pins() -> dict[str, str]:
    """Version of every package that a recipe may need, by name."""
    lists = [(ROOT / "requirements" / name).read_text() for name in ("cpu.txt", "harnesses.txt")]
    found = dict(re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(lists), re.MULTILINE))
    npm = json.loads((ROOT / "tests" / "server" / "clients" / "package.json").read_text())["dependencies"]
    return found | {f"npm {name}": version for name, version in npm.items()}


def test_every_recipe_of_the_page_is_run() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    run_here = [recipe.heading for recipe in RECIPES.values() if recipe.page == "harnesses.md"]
    assert sorted(run_here) == sorted(headings[1:])
    assert all(recipe.blocks() for recipe in RECIPES.values())


def test_the_table_has_a_row_per_recipe_with_the_version_that_is_run() -> None:
    assert len(ROWS) == len(RECIPES)
    for tool, *_ in ROWS:
        name, version = re.findall(r"`([\w\- ]+)` ([\d.]+)", tool)[0]
        assert pins()[name] == version, tool


def test_the_table_says_what_the_recipes_expect_of_the_telemetry() -> None:
    said = [row[-1].startswith("yes") for row in ROWS]
    assert said == [recipe.shows for recipe in RECIPES.values()]


def test_telemetry_is_put_together_from_the_chunks_of_every_choice() -> None:
    chunks = [{"choices": [{"index": i, "steering": {"fork": [i == 1]}}]} for i in (0, 1, 0, 1)]
    totals = [{"forks": 2 * i, "fork": []} for i in (0, 1)]
    closing = [{"choices": [{"index": i, "delta": {"steering": s}, "steering": s}]} for i, s in enumerate(totals)]
    telemetry = Call("", {}, chunks + closing).telemetry()
    assert telemetry == [{"fork": [False, False], "forks": 0}, {"fork": [True, True], "forks": 2}]


def test_what_is_shown_is_known_by_its_numbers() -> None:
    telemetry = [{"mean_entropy_nats": 1.25, "entropy_nats": [0.5, 2.0]}]
    assert is_shown(telemetry, "mean 1.25")
    assert is_shown(telemetry, "[0.5, 2.0]")
    assert not is_shown(telemetry, '{"mean_entropy_nats": 0.5}')


def test_temperatures_other_than_those_asked_for_are_found() -> None:
    request = {"temperature": 0.6, "steering": {"fork_temperature": 1.0, "telemetry": "tokens"}}
    for temperatures, right in (([1.0, 0.6], True), ([0.6, 0.6], False), ([1.0, 1.0], False)):
        answer = {"index": 0, "steering": {"fork": [True, False], "temperature": temperatures}}
        with contextlib.nullcontext() if right else pytest.raises(AssertionError, match="temperatures"):
            assert_applied(Call("", request, [answer]), "no server is asked")


@pytest.fixture(scope="module")
def recorder(server_url: str) -> Iterator[Recorder]:
    subprocess.run(["make", "build/harnesses/.ready", "build/harnesses-npm/.ready"], cwd=ROOT, check=True)
    with recording(server_url) as recorder:
        yield recorder


@pytest.mark.engine
@pytest.mark.thorough  # the tools are 2 GB, and some take a minute to start
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_steers_as_the_table_says(recorder: Recorder, server_url: str, name: str, tmp_path: Path) -> None:
    run(RECIPES[name], tmp_path, recorder, server_url)

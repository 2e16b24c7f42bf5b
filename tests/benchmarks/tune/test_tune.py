"""`steerdec tune` against a server whose answers' chances are known: what it finds, resuming, cost, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.responses import JSONResponse
from typer.testing import CliRunner, Result

from steerdec.benchmarks.tune.records import TuneResult
from tests.support.scripted_endpoint import Body, Script, ScriptedEndpoint

PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 41)}
SMALL = ("--candidates", "9", "--first-samples", "2", "--samples", "12", "--max-tokens", "64")


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": text, "answer": a} for i, (text, a) in enumerate(PROBLEMS.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Settings of one's own, of which `cold` is the best for `cold_helps`."""
    arms = [
        {"name": "B", "role": "baseline"},
        *(
            {"name": name, "role": "treatment", "steering": {"fork_temperature": f"x{factor}", "threshold_nats": 0.5}}
            for name, factor in (("cold", 0.2), ("cool", 0.5), ("warm", 1.5), ("hot", 2), ("hotter", 3))
        ),
    ]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "baseline": "B", "arms": arms}))
    return path


def cold_helps(problem: str, body: Body) -> float:
    """The colder the forks the better; plain temperatures do less."""
    fork = body.get("steering", {}).get("fork_temperature")
    return 0.4 + 0.5 * (1 - min(fork, 1.0)) if fork is not None else 0.4 + 0.1 * (1 - min(body["temperature"], 1.0))


def nothing_helps(problem: str, body: Body) -> float:
    return 0.5


def tuned(problems: Path, out: Path, *options: str, url: str | None) -> Result:
    from steerdec.cli import main

    main_app = _app(main)
    endpoint = () if url is None else ("--endpoint", url)
    return CliRunner().invoke(main_app, ["tune", "--problems", str(problems), "--out", str(out), *endpoint, *options])


def _app(main: Any) -> Any:
    import typer

    from steerdec.cli.tune import tune

    app = typer.Typer()
    app.command("tune")(tune)
    app.command("other")(lambda: None)  # so that the first stays a subcommand
    return app


def result_of(out: Path) -> TuneResult:
    return TuneResult.model_validate_json((out / "result.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_the_best_setting_is_found_tested_and_printed_to_serve_with(problems: Path, own: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, cold_helps)) as server:
        done = tuned(problems, tmp_path / "out", "--arms", str(own), *SMALL, url=server.url)
    assert done.exit_code == 0, done.output
    result = result_of(tmp_path / "out")
    assert (result.steered.name, result.advice, result.instrument) == ("cold", "steer", "valid")
    assert result.steered.steering is not None
    assert result.steered.steering["fork_temperature"] == 0.2
    assert """steerdec serve MODEL --steering '{"fork_temperature": 0.2, "threshold_nats": 0.5}'""" in done.output
    gain = next(claim for claim in result.claims if claim.id == "steering-beats-the-baseline")
    assert gain.diff == pytest.approx(0.4, abs=0.15)
    assert (tmp_path / "out" / "test" / "report.html").exists()
    assert f"{result.cost.tokens} tokens were generated" in done.output
    by_stage = {name: lines(tmp_path / "out" / name) for name in ("pilot", "search", "test")}
    for name, samples in by_stage.items():
        assert sum(s["completion_tokens"] for s in samples) == getattr(result.cost, name)
    sides = [{s["problem_id"] for s in by_stage[name]} for name in ("search", "test")]
    assert not sides[0] & sides[1]
    assert {s["problem_id"] for s in by_stage["pilot"]} == sides[0]
    assert len(sides[0]) == len(sides[1]) == 20
    # Five settings and seven plain temperatures, then two and three; the last rung needs two settings only.
    assert [(r.number, r.samples, len(r.scores)) for r in result.rungs] == [(1, 2, 12), (2, 6, 5)]
    seeds = defaultdict(set)
    for sample in by_stage["search"]:
        seeds[sample["problem_id"], sample["sample"]].add(sample["seed"])
        assert "entropy_nats" not in sample, "per-token lists of every candidate would fill disks"
    assert all(len(found) == 1 for found in seeds.values()), "arms share their random numbers"


def test_where_nothing_helps_it_says_so(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, nothing_helps)) as server:
        done = tuned(problems, tmp_path / "out", *SMALL, url=server.url)
    assert done.exit_code == 0, done.output
    assert result_of(tmp_path / "out").advice == "nothing"
    assert "nothing is shown to beat the baseline (temperature 1): serve without steering" in done.output
    assert "steerdec serve" not in done.output


def test_a_plain_temperature_that_does_as_well_is_named(problems: Path, own: Path, tmp_path: Path) -> None:
    def cold_is_enough(problem: str, body: Body) -> float:
        fork = body.get("steering", {}).get("fork_temperature")
        return 0.3 + 0.6 * (1 - min(1.0, body["temperature"] if fork is None else fork))

    with ScriptedEndpoint(Script(PROBLEMS, cold_is_enough)) as server:
        done = tuned(problems, tmp_path / "out", "--arms", str(own), *SMALL, url=server.url)
    assert "not shown to beat plain temperature 0.2, which is simpler" in done.output


def test_steering_that_only_harms_leaves_the_better_plain_temperature(
    problems: Path, own: Path, tmp_path: Path
) -> None:
    def only_plain(problem: str, body: Body) -> float:
        fork = body.get("steering", {}).get("fork_temperature", 1.0)
        return 0.2 if fork != 1.0 else 0.9 if body["temperature"] < 0.3 else 0.4

    with ScriptedEndpoint(Script(PROBLEMS, only_plain)) as server:
        done = tuned(problems, tmp_path / "out", "--arms", str(own), *SMALL, url=server.url)
    assert done.exit_code == 0, done.output
    assert result_of(tmp_path / "out").advice == "temperature"
    assert "plain temperature 0.2 is: send it, without steering" in done.output


def test_killed_anywhere_it_goes_on_and_ends_as_if_it_had_not_been(problems: Path, tmp_path: Path) -> None:
    """Killed without warning twice, each time when a third more of the samples were there."""
    script = Script(PROBLEMS, cold_helps, latency_s=0.02)
    with ScriptedEndpoint(script) as server:
        whole, torn = tmp_path / "whole", tmp_path / "torn"
        command = [
            sys.executable,
            "-m",
            "steerdec",
            "tune",
            "--problems",
            str(problems),
            "--endpoint",
            server.url,
            *SMALL,
        ]
        assert subprocess.run([*command, "--out", str(whole)], capture_output=True, check=False).returncode == 0
        total = sum(len(lines(whole / name)) for name in ("pilot", "search", "test"))
        for kill in (1, 2):
            process = subprocess.Popen([*command, "--out", str(torn)], stderr=subprocess.DEVNULL)
            while process.poll() is None and written(torn) < kill * total / 3:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        asked = len(server.bodies)
        last = subprocess.run([*command, "--out", str(torn)], capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert len(server.bodies) > asked, "it was done before it was resumed, so nothing was shown"
    for name in ("pilot", "search", "test"):
        one, two = (sorted(map(identity, lines(folder / name))) for folder in (whole, torn))
        assert one == two
    one, two = (result_of(folder).model_dump() for folder in (whole, torn))
    assert one == two


def identity(sample: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(str(sample[name]) for name in ("arm", "problem_id", "sample", "seed", "text", "grade"))


def written(out: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in out.glob("*/samples.jsonl"))


def test_a_finished_search_tells_its_result_again_without_a_server(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, nothing_helps)) as server:
        first = tuned(problems, tmp_path / "out", *SMALL, url=server.url)
    again = tuned(problems, tmp_path / "out", *SMALL, url=server.url)
    assert again.exit_code == 0
    assert [line for line in again.output.splitlines() if "held-out" in line] == [
        line for line in first.output.splitlines() if "held-out problems," in line
    ]


def test_failed_samples_stop_the_stage_and_are_made_again(problems: Path, tmp_path: Path) -> None:
    broken = {"now": True}

    def refusing(number: int, body: Body) -> Any:
        refused = broken["now"] and number > 150 and number % 20 == 0 and body["max_tokens"] == 64
        return JSONResponse({"error": {"message": "no"}}, status_code=400) if refused else None

    with ScriptedEndpoint(Script(PROBLEMS, nothing_helps, refusing)) as server:
        stopped = tuned(problems, tmp_path / "out", *SMALL, url=server.url)
        assert stopped.exit_code == 1
        assert "samples failed (`error` in" in stopped.output
        assert "the same command continues from there" in stopped.output
        broken["now"] = False
        assert tuned(problems, tmp_path / "out", *SMALL, url=server.url).exit_code == 0
    assert all(s["error"] is None for name in ("search", "test") for s in lines(tmp_path / "out" / name))


def test_a_budget_is_kept(problems: Path, tmp_path: Path) -> None:
    # An answer has 6 tokens. The pilot takes 240; a rung of 9 + 7 arms with 2 samples of 20 problems 3,840.
    with ScriptedEndpoint(Script(PROBLEMS, nothing_helps)) as server:
        done = tuned(problems, tmp_path / "out", *SMALL, "--budget-tokens", "8400", url=server.url)
        assert done.exit_code == 0, done.output
        result = result_of(tmp_path / "out")
        assert result.stopped_by_budget
        assert (len(result.rungs), len(result.rungs[0].scores)) == (1, 16)
        assert result.cost.tokens <= 8400
        assert 1 <= result.test_samples < 12
        few = tuned(problems, tmp_path / "few", *SMALL, "--budget-tokens", "6000", url=server.url)
        assert few.exit_code == 0, few.output
        assert len(result_of(tmp_path / "few").rungs[0].scores) < 16
        assert result_of(tmp_path / "few").cost.tokens <= 6000
        none = tuned(problems, tmp_path / "none", *SMALL, "--budget-tokens", "1000", url=server.url)
    assert none.exit_code == 2
    assert "--budget-tokens: 1000 is too few: the smallest search and its test take about" in none.output


def test_a_folder_is_not_continued_under_other_settings(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, nothing_helps)) as server:
        assert tuned(problems, tmp_path / "out", *SMALL, url=server.url).exit_code == 0
        other = tuned(problems, tmp_path / "out", *SMALL, "--seed", "1", url=server.url)
    assert other.exit_code == 2
    assert "holds a search under other settings: seed: 0 -> 1; give the same settings or another --out" in other.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--problems", "nowhere.jsonl"), "'nowhere.jsonl' is neither a file nor a problem set"),
        (("--limit", "12"), "has 12 independent problems, of which 6 would be to tune on and 6 held out"),
        (("--temperature", "0"), '"0" is not a number from 0.01 to 100'),
        (("--threshold", "much"), '"much" is not a number of nats from 0 to 100'),
        (("--tuning-share", "0.95"), '"0.95" is not a number from 0.1 to 0.9'),
        (("--arms", "causal"), 'arm "G-up" has a temperature to be solved'),
        (("--arms", "nowhere.yaml"), '"nowhere.yaml" is neither a built-in set'),
        (("--prompt", "poem"), "poem"),
        (("--endpoint", "gpu1"), '"gpu1" is not an endpoint'),
        (("--model", "SmolLM2-135M-Instruct", "--endpoint", "http://gpu1:8000"), "give either --endpoint URL"),
    ],
)
def test_bad_input_is_named_before_any_work(
    problems: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    url = None if "--endpoint" in options else "http://127.0.0.1:9"
    done = tuned(problems, tmp_path / "out", *options, url=url)
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())  # typer's box around wrong usage
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in done.output


def test_progress_is_told_as_it_goes(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, cold_helps)) as server:
        command = [
            sys.executable,
            "-m",
            "steerdec",
            "tune",
            "--problems",
            str(problems),
            "--endpoint",
            server.url,
            *SMALL,
        ]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False, env=os.environ
        )
    assert done.returncode == 0, done.stderr
    for words in (
        "search: 9 steered settings and 7 plain temperatures on 20 problems,",
        "rung 1: 9 steered settings and 7 plain temperatures, 2 samples of each of 20 problems",
        "rung 2: 3 steered settings and 3 plain temperatures, 6 samples of each of 20 problems",
        "on 20 held-out problems",
    ):
        assert words in done.stderr
    assert "%" not in done.stderr.split("test:")[0], "no score of the search is shown before its end"

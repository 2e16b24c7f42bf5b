"""Calibrations: the quantiles are those of what the endpoint generated, and are not tested on themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from steerdec.benchmarks.calibration import session as calibrate_session
from steerdec.benchmarks.calibration.calibrate import quantile_ci95
from steerdec.benchmarks.design.arm_sets import load_arm_set
from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.targets import Target
from steerdec.cli.bench import bench_app
from steerdec.common.errors import InvalidInputError, SteerdecError
from steerdec.records.arms import ArmError
from steerdec.records.calibration import (
    Calibration,
    CalibrationError,
    default_threshold,
    load_calibration,
    parse_threshold,
)
from tests.support.scripted_endpoint import Script, ScriptedEndpoint

PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 7)}


def write_problems(path: Path, texts: list[str]) -> Path:
    lines = [{"id": f"{path.stem}{i}", "problem": text, "answer": PROBLEMS[text]} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def target(url: str) -> Target:
    return Target(endpoints=(url,), model=None, dtype=None, concurrency=4, timeout_s=60.0, api_key=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the calibration's file, what it was made on, the bodies that were sent)"""
    folder = tmp_path_factory.mktemp("calibration")
    problems = write_problems(folder / "first.jsonl", list(PROBLEMS)[:3])
    with ScriptedEndpoint(Script(PROBLEMS, tokens=10)) as server:
        calibrate_session.run(
            str(problems),
            target(server.url),
            folder / "c.json",
            arms=None,
            temperature=None,
            tokens=500,
            limit=None,
            seed=0,
            max_tokens=32,
            prompt=None,
            thinking=None,
        )
        return folder / "c.json", problems, server.bodies


def test_it_holds_the_quantiles_of_all_tokens_at_temperature_one(made: Any) -> None:
    """Of the scripted tokens every fifth has 2 nats and the others 0.001."""
    told = json.loads(made[0].read_text())
    assert told["model"] == "scripted"
    assert 500 <= told["tokens"] <= 500 + 4 * 10
    assert list(told["quantiles_nats"]) == [f"p{q}" for q in range(50, 100)]
    assert told["quantiles_nats"]["p50"] == pytest.approx(0.001)
    assert told["quantiles_nats"]["p81"] == told["quantiles_nats"]["p99"] == pytest.approx(2.0)
    assert told["share_below_0_01"] == pytest.approx(0.8)
    assert (told["problems"]["name"], len(told["problems"]["problem_hashes"])) == (str(made[1]), 3)
    assert {body["temperature"] for body in made[2]} == {1.0}
    assert len({(body["seed"], json.dumps(body["messages"])) for body in made[2]}) == len(made[2])


def test_a_run_takes_its_threshold_and_fork_rate_from_the_file(made: Any, tmp_path: Path) -> None:
    threshold = parse_threshold(str(made[0]))
    calibration = load_calibration(made[0])
    assert threshold.nats == calibration.quantiles_nats["p80"]
    assert threshold.fork_rate == calibration.fork_rate
    assert "scripted" in threshold.origin


def test_testing_on_the_calibration_problems_is_refused_unless_forced(made: Any, tmp_path: Path) -> None:
    """Also under another id and in another set."""
    both = write_problems(tmp_path / "second.jsonl", list(PROBLEMS)[2:])
    asked: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 1, "seed": 0}
    asked |= {"temperature": None, "max_tokens": 8, "threshold": str(made[0])}
    with pytest.raises(CalibrationError, match="1 of the 4 problems"):
        session.read_request(str(both), "quick", **asked, force=False)
    session.read_request(str(both), "quick", **asked, force=True)
    others = write_problems(tmp_path / "third.jsonl", list(PROBLEMS)[3:])
    session.read_request(str(others), "quick", **asked, force=False)


def test_a_server_that_was_calibrated_on_the_problems_is_refused_too(made: Any, tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "same.jsonl", list(PROBLEMS)[:3])
    calibration = json.loads(made[0].read_text())
    with ScriptedEndpoint(Script(PROBLEMS, about={"calibration": calibration})) as server:
        arguments = ["run", "--problems", str(problems), "--endpoint", server.url, "--out", str(tmp_path / "run")]
        result = CliRunner().invoke(bench_app, [*arguments, "--samples", "1", "--max-tokens", "16"])
    assert result.exit_code == 2
    assert "used for the calibration" in result.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_calibration_of_another_model_is_refused(made: Any, tmp_path: Path, own: bool) -> None:
    """The server's own too. Of a name the last part counts: a hub's `owner/`, or a folder, is no other model."""
    problems = write_problems(tmp_path / "others.jsonl", list(PROBLEMS)[3:])
    asked = ["run", "--problems", str(problems), "--samples", "1", "--max-tokens", "16", "--out", str(tmp_path / "run")]
    asked += [] if own else ["--threshold", str(made[0])]
    about = {"calibration": json.loads(made[0].read_text()) if own else None}
    with ScriptedEndpoint(Script(PROBLEMS, model="another", about=about)) as server:
        result = CliRunner().invoke(bench_app, [*asked, "--endpoint", server.url])
        assert server.bodies == []
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert "the calibration is of scripted, served is another" in told
    assert "--threshold as a number" in told
    assert not (tmp_path / "run" / "run.json").exists()
    with ScriptedEndpoint(Script(PROBLEMS, model="owner/scripted", about=about)) as server:
        assert CliRunner().invoke(bench_app, [*asked, "--endpoint", server.url]).exit_code == 0


def test_without_a_calibration_the_threshold_is_the_arm_sets_then_the_papers() -> None:
    assert default_threshold({"calibration": None}, load_arm_set("quick")).nats == 0.6
    assert default_threshold({}, load_arm_set("causal")).nats == 0.672


def test_causal_without_solved_temperatures_is_refused_with_a_way_on(made: Any, tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "others.jsonl", list(PROBLEMS)[3:])
    asked: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 1, "seed": 0}
    asked |= {"temperature": None, "max_tokens": 8, "force": False}
    with pytest.raises(ArmError, match="steerdec calibrate"):
        session.read_request(str(problems), "causal", **asked, threshold=str(made[0]))


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", '{"model": "m"}'])
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CalibrationError, match=r"c\.json") as e:
        parse_threshold(str(tmp_path / "c.json"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "nosuch.json"])
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match=text.lstrip("-")):
        parse_threshold(text)


def test_a_calibration_survives_its_file(made: Any) -> None:
    calibration = load_calibration(made[0])
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_the_interval_covers_the_quantile_of_new_problems() -> None:
    """60 problems whose levels differ: the interval for p80 covers the population's about 95 times in 100."""
    population = np.random.default_rng(0)
    truth = np.quantile(population.normal(0, 1, 400_000) + population.normal(0, 1, 400_000), 0.8)
    covered = 0
    for trial in range(100):
        rng = np.random.default_rng([1, trial])
        owners = np.repeat(np.arange(60), 30)
        values = rng.normal(0, 1, 60)[owners] + rng.normal(0, 1, len(owners))
        low, high = quantile_ci95(values, owners, 0.8, rng)
        covered += low <= truth <= high
    assert 86 <= covered <= 100


def calibrated(url: str, problems: Path, out: Path, **changes: Any) -> Calibration:
    options: dict[str, Any] = {"arms": None, "temperature": 0.6, "tokens": 600, "limit": None, "seed": 0}
    options |= {"max_tokens": 32, "prompt": None, "thinking": None} | changes
    return calibrate_session.run(str(problems), target(url), out, **options)


def varying(fork: bool, t: float) -> float:
    return 2 * t if fork else 0.5 * t**2


@pytest.mark.parametrize("stop_at", [95, *(pytest.param(at, marks=pytest.mark.thorough) for at in (25, 110))])
def test_a_stopped_calibration_continues_and_comes_to_the_same(
    tmp_path: Path, stop_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped among the quantiles' samples, and in a round that checks solved temperatures."""
    problems = write_problems(tmp_path / "first.jsonl", list(PROBLEMS)[:3])
    with ScriptedEndpoint(Script(PROBLEMS, tokens=10, entropy_at=varying)) as server:
        whole = calibrated(server.url, problems, tmp_path / "whole.json", arms="causal")
        asked = len(server.bodies)
    dying = Script(PROBLEMS, tokens=10, entropy_at=varying)
    dying.fault = lambda number, body: JSONResponse({}, status_code=400) if number >= stop_at else None
    journal = calibrate_session.journal_path(tmp_path / "c.json")
    with ScriptedEndpoint(dying) as server:
        with pytest.raises(SteerdecError):
            calibrated(server.url, problems, tmp_path / "c.json", arms="causal")
        assert journal.exists()
        taken = len(journal.read_text().splitlines()) - 1
        with journal.open("a") as file:
            file.write('{"problem_id": "fir')  # the kill may come in mid write
        server.bodies.clear()
        dying.fault = lambda number, body: None
        with pytest.raises(InvalidInputError, match="seed: 0 -> 1"):
            calibrated(server.url, problems, tmp_path / "c.json", arms="causal", seed=1)
        assert server.bodies == []
        capsys.readouterr()
        again = calibrated(server.url, problems, tmp_path / "c.json", arms="causal")
        assert "resuming a stopped calibration" in capsys.readouterr().err
        resumed = sum("seed" in body for body in server.bodies)
    assert not journal.exists()
    assert taken >= stop_at - 10  # with preflight requests, none here, and 4 at once
    assert abs(taken + resumed - asked) <= 8
    assert again.matching is not None
    assert whole.matching is not None
    assert again.quantiles_nats == pytest.approx(whole.quantiles_nats)
    for one, other in zip(again.matching.matched, whole.matching.matched, strict=True):
        assert one.temperature == pytest.approx(other.temperature, abs=2e-3)
    assert again.matching.tokens <= 2.5 * 600 + 40


def test_what_arms_cost_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write_problems(tmp_path / "first.jsonl", list(PROBLEMS)[:3])
    with ScriptedEndpoint(Script(PROBLEMS, tokens=10, entropy_at=varying)) as server:
        calibrated(server.url, problems, tmp_path / "c.json", arms="causal")
    assert "600 tokens, and up to 900 more to check the solved temperatures" in capsys.readouterr().err


def test_a_file_that_is_in_the_way_of_the_journal_is_kept(tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "first.jsonl", list(PROBLEMS)[:3])
    journal = calibrate_session.journal_path(tmp_path / "c.json")
    journal.write_text('{"mine": 1}\n')
    with (
        ScriptedEndpoint(Script(PROBLEMS)) as server,
        pytest.raises(InvalidInputError, match="is not the journal of a calibration"),
    ):
        calibrated(server.url, problems, tmp_path / "c.json")
    assert journal.read_text() == '{"mine": 1}\n'

"""What a run checks and says before its first sample."""

from __future__ import annotations

import json
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.answers import Answer
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.endpoints import endpoint_url, same_server
from steerdec.benchmarks.run.local_server import ServerError, local_server
from steerdec.benchmarks.run.preflight import PreflightError, _wrong_temperature
from steerdec.benchmarks.run.targets import Target
from steerdec.cli.bench import bench_app
from steerdec.records.arms import Arm
from steerdec.records.run import SettingsError
from tests.support.scripted_endpoint import Script, ScriptedEndpoint

QUICK = Retry(attempts=2, endpoint_failures=3, first_pause_s=0.02, longest_pause_s=0.05)
PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 5)}


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": text, "answer": a} for i, (text, a) in enumerate(PROBLEMS.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def target(*urls: str) -> Target:
    return Target(endpoints=urls, model=None, dtype=None, concurrency=8, timeout_s=5.0, api_key=None)


def request(problems: Path, **changes: Any) -> session.RunRequest:
    options: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 1, "seed": 1}
    options |= {"temperature": None, "max_tokens": 64, "threshold": None, "force": False} | changes
    return session.read_request(str(problems), options.pop("arms", "quick"), **options)


def unused_url() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_of_two_endpoints_one_may_be_dead(problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = unused_url()
    with ScriptedEndpoint(Script(PROBLEMS)) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, urls in enumerate(((dead, server.url), (server.url, dead))):
            finished = session.run(request(problems), target(*urls), tmp_path / f"run{i}", QUICK)
            assert finished == session.Finished(24, 0)
            assert f"without {dead}, which cannot be reached" in capsys.readouterr().err


def test_where_all_endpoints_are_dead_each_is_named_in_one_line(problems: Path, tmp_path: Path) -> None:
    urls = [unused_url(), unused_url()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PreflightError) as e:
            session.run(request(problems), target(*urls), tmp_path / "run", QUICK)
    assert all(url in str(e.value) for url in urls)
    assert "\n" not in str(e.value)


def test_an_endpoint_that_answers_wrongly_still_stops_the_start(problems: Path, tmp_path: Path) -> None:
    with (
        ScriptedEndpoint(Script(PROBLEMS)) as one,
        ScriptedEndpoint(Script(PROBLEMS, model="other")) as two,
        pytest.raises(PreflightError, match="has model other"),
    ):
        session.run(request(problems), target(one.url, unused_url(), two.url), tmp_path / "run", QUICK)


@pytest.mark.parametrize(
    "route", ["/v1", "/v1/", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/steering"]
)
def test_the_url_of_a_route_is_taken_as_its_server(route: str) -> None:
    assert endpoint_url(f"http://gpu1:8000{route}") == "http://gpu1:8000"
    assert endpoint_url(f"https://host/prefix{route}") == "https://host/prefix"


def test_a_path_that_is_not_there_is_not_taken_for_a_server_that_does_not_steer(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        url = f"{server.url}/steerdec"
        with pytest.raises(PreflightError) as e:
            session.run(request(problems), target(url), tmp_path / "run", QUICK)
    assert f"{url} is not an OpenAI API" in str(e.value)
    assert "http://HOST:PORT" in str(e.value)
    assert "does not steer" not in str(e.value)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("http://localhost:8000", "http://127.0.0.1:8000", True),
        ("http://[::1]:8000", "http://LOCALHOST:8000", True),
        ("http://127.0.0.2:8000", "http://127.0.0.1:8000", True),
        ("http://GPU1", "http://gpu1:80", True),
        ("https://gpu1", "https://gpu1:443/v1/", True),
        ("http://gpu1:8000", "http://gpu2:8000", False),
        ("http://localhost:8000", "http://localhost:8001", False),
        ("http://gpu1:8000/a", "http://gpu1:8000/b", False),
        ("http://gpu1:443", "https://gpu1:443", False),
    ],
)
def test_two_spellings_of_one_server_are_one(one: str, two: str, same: bool) -> None:
    assert same_server(endpoint_url(one), endpoint_url(two)) is same


def test_one_server_under_two_names_is_refused(problems: Path, tmp_path: Path) -> None:
    command = ["run", "--problems", str(problems), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(
        bench_app, [*command, "--endpoint", "http://localhost:9", "--endpoint", "http://127.0.0.1:9"]
    )
    assert result.exit_code == 2
    assert "http://localhost:9 and http://127.0.0.1:9 are the same server" in result.stderr


def test_a_prompt_that_is_too_long_is_named_before_the_first_sample(problems: Path, tmp_path: Path) -> None:
    long = "What is 4 plus 28? " + "Think. " * 100
    with problems.open("a") as file:
        file.write(json.dumps({"id": "long one", "problem": long, "answer": "32"}) + "\n")
    with ScriptedEndpoint(Script({**PROBLEMS, long: "32"}, max_model_len=500)) as server:
        with pytest.raises(SettingsError) as e:
            session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
        assert not any("seed" in body for body in server.bodies), "nothing was sampled"
        assert "problem long one: its prompt has " in str(e.value)
        assert "--max-tokens 64" in str(e.value)
        assert "context of 500 tokens" in str(e.value)
        done = session.run(request(problems, limit=2), target(server.url), tmp_path / "two", QUICK)
        assert done.failed == 0
        server.script.hides_tokens = True  # behind a proxy that passes /v1 only: not checked, and no reason to stop
        assert session.run(request(problems, limit=3), target(server.url), tmp_path / "three", QUICK).failed == 0


def test_samples_that_the_engine_needs_are_announced(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, about={"batch_invariant": False})) as server:
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
        said = capsys.readouterr().err
        assert "28 samples instead of 24" in said
        assert "arm B-again" in said
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
    assert "instead of" not in capsys.readouterr().err, "a finished run has nothing to announce"


def test_an_arm_that_is_called_like_the_added_one_does_no_harm(problems: Path, tmp_path: Path) -> None:
    path = tmp_path / "arms.yaml"
    arms: list[dict[str, Any]] = [
        {"name": "B", "role": "baseline"},
        {"name": "A/A", "role": "identity", "steering": {"fork_temperature": "base", "other_temperature": "base"}},
        {"name": "B-again", "role": "treatment", "steering": {"fork_temperature": "x2"}},
    ]
    path.write_text(json.dumps({"name": "mine", "baseline": "B", "arms": arms}))
    with ScriptedEndpoint(Script(PROBLEMS, about={"batch_invariant": False})) as server:
        session.run(request(problems, arms=str(path)), target(server.url), tmp_path / "run", QUICK)
    roles = {arm["name"]: arm["role"] for arm in json.loads((tmp_path / "run/run.json").read_text())["arms"]["arms"]}
    assert roles == {"B": "baseline", "A/A": "identity", "B-again": "treatment", "B-again-2": "replicate"}


def test_equal_texts_are_warned_of_and_groups_are_recorded(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) | {"group": f"g{i % 2}"} for i, line in enumerate(problems.read_text().splitlines())]
    rows.append(rows[0] | {"id": "again"})
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
    assert "problems p0 and again have the same text" in capsys.readouterr().err
    used = json.loads((tmp_path / "run" / "run.json").read_text())["problems"]
    assert used["groups"] == {"p0": "g0", "p1": "g1", "p2": "g0", "p3": "g1", "again": "g0"}


def test_waiting_for_a_server_is_said_with_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "server.log"
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    began_at = time.monotonic()
    with pytest.raises(ServerError), local_server("M", log, command=silent, start_timeout_s=1.2, remind_every_s=0.4):
        pass
    assert time.monotonic() - began_at < 30
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"starting a server for M; its log is {log}"
    assert len(lines) > 1
    assert all(line.startswith("still waiting for the server of M, ") for line in lines[1:])


def test_the_hint_to_continue_is_given_only_where_there_is_something_to_continue(
    problems: Path, tmp_path: Path
) -> None:
    command = ["run", "--problems", str(problems), "--endpoint", unused_url(), "--out"]
    result = CliRunner().invoke(bench_app, [*command, "/proc/nope"])
    assert result.exit_code in (1, 2)
    assert "samples so far" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_with_a_space_is_quoted_in_the_next_command(problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        command = ["run", "--problems", str(problems), "--endpoint", server.url, "--samples", "1", "--out", str(out)]
        result = CliRunner().invoke(bench_app, [*command, "--max-tokens", "64"])
    assert result.exit_code == 0, result.stderr
    assert f"next: steerdec bench report '{out}'" in result.stdout


@pytest.mark.parametrize("accuracy", ["0", "1", "nan", "1.5"])
def test_a_plan_refuses_an_accuracy_that_leaves_nothing_to_see(accuracy: str) -> None:
    result = CliRunner().invoke(bench_app, ["plan", "--accuracy", accuracy])
    assert result.exit_code == 2
    assert "from 0.01 to 0.99" in result.stderr.replace("\n", " ")
    assert "nan points" not in result.output


@pytest.mark.parametrize(
    ("fork", "temperature", "guard_token", "complaint"),
    [
        ([True, False, False], [1.0, 0.6, 0.6], 1, None),
        ([True, False, True], [1.0, 0.6, 1.0], 1, "token 2 was steered, though the guard had stopped at token 1"),
        ([True, False, False], [1.0, 0.6, 0.4], 2, "token 2 was steered, though the guard had stopped at token 2"),
        ([True, True, False], [1.0, 1.0, 0.6], None, "the tokens steered as forks were not the first 3"),
    ],
)
def test_an_arm_whose_guard_stops_has_the_base_temperature_from_there_on(
    fork: list[bool], temperature: list[float | None], guard_token: int | None, complaint: str | None
) -> None:
    steering = {"select": "first", "first_tokens": 3, "fork_temperature": 1.0, "guard_mean_entropy_nats": 1.0}
    arm = Arm(name="F", role="treatment", temperature=0.6, steering=steering)
    told: dict[str, Any] = {"fork": fork, "temperature": temperature, "guard_token": guard_token}
    answer = Answer(text="x", finish_reason="length", completion_tokens=3, **told)
    assert _wrong_temperature(answer, arm) == complaint

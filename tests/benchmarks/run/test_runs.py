"""Runs against an endpoint with known success probabilities: nothing lost, nothing double, nothing mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner

from steerdec.benchmarks.run import regrade, session
from steerdec.benchmarks.run.dispatch import NoEndpointLeftError
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.preflight import PreflightError
from steerdec.benchmarks.run.targets import Target
from steerdec.cli.bench import bench_app
from steerdec.records.run import SettingsError
from tests.support.scripted_endpoint import Body, Script, ScriptedEndpoint

QUICK = Retry(attempts=2, endpoint_failures=3, first_pause_s=0.02, longest_pause_s=0.05)
PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 7)}
ARMS = ("B", "A/A", "F-up", "F-down", "N-up", "N-down")


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "problem": text, "answer": a} for i, (text, a) in enumerate(PROBLEMS.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def target(*urls: str, **changes: Any) -> Target:
    settings = {"model": None, "dtype": None, "concurrency": 8, "timeout_s": 5.0, "api_key": None} | changes
    return Target(endpoints=urls, **settings)


def request(problems: Path, **changes: Any) -> session.RunRequest:
    asked: dict[str, Any] = {"limit": None, "prompt": None, "thinking": None, "samples": 3, "seed": 1}
    asked |= {"temperature": None, "max_tokens": 64, "threshold": None, "force": False}
    asked |= changes
    return session.read_request(str(problems), asked.pop("arms", "quick"), **asked)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def keys(folder: Path) -> list[tuple[str, str, int]]:
    return [(s["problem_id"], s["arm"], s["sample"]) for s in lines(folder)]


def all_keys(samples: int = 3, arms: tuple[str, ...] = ARMS) -> set[tuple[str, str, int]]:
    return {(f"p{i}", arm, k) for i in range(len(PROBLEMS)) for arm in arms for k in range(samples)}


def arm_of(body: Body) -> str:
    """The arm of `quick` a request belongs to."""
    steering = body.get("steering")
    if steering is None:
        return "B"
    fork, other = steering.get("fork_temperature"), steering.get("other_temperature")
    return {(0.6, 0.6): "A/A", (1.0, None): "F-up", (0.2, None): "F-down", (None, 1.0): "N-up", (None, 0.2): "N-down"}[
        fork, other
    ]


def test_a_run_holds_every_sample_once_with_the_grades_the_endpoint_meant(problems: Path, tmp_path: Path) -> None:
    chance = {"B": 0.5, "A/A": 0.5, "F-up": 0.9, "F-down": 0.1, "N-up": 0.5, "N-down": 1.0}
    with ScriptedEndpoint(Script(PROBLEMS, lambda problem, body: chance[arm_of(body)])) as server:
        finished = session.run(request(problems, samples=20), target(server.url), tmp_path / "run", QUICK)
    assert finished == session.Finished(len(PROBLEMS) * 20 * 6, 0)
    found = lines(tmp_path / "run")
    assert len(found) == finished.samples
    assert {(s["problem_id"], s["arm"], s["sample"]) for s in found} == all_keys(20)
    right = Counter(s["arm"] for s in found if s["grade"] == "correct")
    assert right["N-down"] == 120
    assert all(abs(right[arm] / 120 - p) < 0.15 for arm, p in chance.items())
    grades = {(s["problem_id"], s["arm"], s["sample"]): s["grade"] for s in found}
    assert all(grades[p, "B", k] == grades[p, "A/A", k] for p, _, k in grades), "equal seeds, equal luck"
    for s in found:
        assert s["error"] is None
        assert s["endpoint"] == server.url
        assert (s["forks"] is None) == (s["mean_entropy_nats"] is None) == (s["arm"] == "B")
        assert s["completion_tokens"] == 6


def test_requests_say_in_so_many_words_how_to_sample(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url, api_key="secret"), tmp_path / "run", QUICK)
        bodies, keys_sent = server.bodies, set(server.authorizations)
    assert keys_sent == {"Bearer secret"}
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for body in bodies:
        assert body["top_p"] == 1.0
        assert body["temperature"] == 0.6
        arm_of(body)
        if body["max_tokens"] == 64:
            seeds[arm_of(body), json.dumps(body.get("messages", body.get("prompt")))].add(body["seed"])
    by_problem: dict[str, list[set[int]]] = defaultdict(list)
    for (_, problem), found in seeds.items():
        by_problem[problem].append(found)
    for found_by_arm in by_problem.values():
        assert len(found_by_arm) == len(ARMS)
        assert all(found == found_by_arm[0] and len(found) == 3 for found in found_by_arm)


def test_samples_arrive_interleaved_so_that_drift_hits_all_arms_alike(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url, concurrency=1), tmp_path / "run", QUICK)
    order = keys(tmp_path / "run")
    for i in range(0, len(order), len(ARMS)):
        group = order[i : i + len(ARMS)]
        assert len({(p, k) for p, _, k in group}) == 1
        assert {arm for _, arm, _ in group} == set(ARMS)


def test_first_samples_keep_their_tokens_in_the_identity_arm_and_for_two_problems_in_all(
    problems: Path, tmp_path: Path
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
    kept = [s for s in lines(tmp_path / "run") if "entropy_nats" in s]
    steered = ("A/A", "F-up", "F-down", "N-up", "N-down")
    assert {(s["problem_id"], s["arm"], s["sample"]) for s in kept} == {
        (f"p{i}", arm, 0) for i in range(len(PROBLEMS)) for arm in steered if arm == "A/A" or i < 2
    }
    assert all(len(s["entropy_nats"]) == len(s["fork"]) == len(s["token_text"]) == 6 for s in kept)


def test_run_json_tells_everything_and_repeats_the_run(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems, limit=4), target(server.url), tmp_path / "one", QUICK)
        told = json.loads((tmp_path / "one" / "run.json").read_text())
        again, _ = session.repeated_request(tmp_path / "one" / "run.json")
        session.run(again, target(server.url), tmp_path / "two", QUICK)
    assert told["problems"]["n"] == len(told["problems"]["ids"]) == 4
    assert told["problems"]["sha256"]
    assert (told["model"], told["samples"], told["seed"], told["temperature"]) == ("scripted", 3, 1, 0.6)
    assert (told["threshold_nats"], told["threshold_origin"]) == (0.6, "arm set quick")
    assert told["server"]["vllm"] == "0"
    one, two = (sorted(lines(tmp_path / run), key=json.dumps) for run in ("one", "two"))
    assert one == two


def test_the_command_that_a_report_prints_repeats_the_run(problems: Path, tmp_path: Path) -> None:
    """`bench run --repeat run.json --out DIR`: everything, where it ran included, is taken from the file."""
    one, two = tmp_path / "one", tmp_path / "two"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        asked = request(problems, limit=3, samples=2, temperature=0.7, threshold="0.5", prompt="few-shot")
        session.run(asked, target(server.url), one, QUICK)
        status, errors = finish(cli("bench", "run", "--repeat", one / "run.json", "--out", two))
        assert status == 0, errors
    assert sorted(lines(one), key=json.dumps) == sorted(lines(two), key=json.dumps)
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (one, two))
    assert first | {"created": ""} == second | {"created": ""}


def test_a_repeat_is_refused_when_the_problems_have_changed(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
    problems.write_text(problems.read_text().replace("plus", "and"))
    with pytest.raises(SettingsError, match="have changed"):
        session.repeated_request(tmp_path / "run" / "run.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": 4}, "samples: 3 -> 4"),
        ({"seed": 2}, "seed: 1 -> 2"),
        ({"max_tokens": 65}, "max_tokens: 64 -> 65"),
        ({"limit": 5}, "problems"),
        ({"threshold": "0.7"}, "threshold_nats: 0.6 -> 0.7"),
        ({"temperature": 0.7}, "temperature: 0.6 -> 0.7"),
        ({"arms": "figure3"}, '"quick" -> "figure3"'),
    ],
)
def test_a_run_does_not_go_on_under_other_settings(problems: Path, tmp_path: Path, change: Body, told: str) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), folder, QUICK)
        before = (folder / "samples.jsonl").read_bytes(), (folder / "run.json").read_bytes()
        with pytest.raises(SettingsError) as e:
            session.run(request(problems, **change), target(server.url), folder, QUICK)
    assert told in str(e.value)
    assert "\n" not in str(e.value)
    assert before == ((folder / "samples.jsonl").read_bytes(), (folder / "run.json").read_bytes())


def test_another_model_or_engine_is_another_run(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
        for change, told in (
            ({"model": "else"}, 'model: "scripted" -> "else"'),
            ({"about": {"vllm": "1"}}, "server.vllm"),
        ):
            before = {name: getattr(server.script, name) for name in change}
            for name, value in change.items():
                setattr(server.script, name, value)
            with pytest.raises(SettingsError) as e:
                session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
            assert told in str(e.value)
            for name, value in before.items():
                setattr(server.script, name, value)


def test_another_endpoint_of_the_same_model_may_finish_a_run(problems: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    dying = Script(PROBLEMS, fault=lambda n, body: None if n < 40 else Response(status_code=503))
    with ScriptedEndpoint(dying) as first, pytest.raises(NoEndpointLeftError):
        session.run(request(problems), target(first.url), folder, QUICK)
    there = keys(folder)
    assert 0 < len(there) < len(all_keys())
    with ScriptedEndpoint(Script(PROBLEMS)) as second:
        assert session.run(request(problems), target(second.url), folder, QUICK).failed == 0
        assert sum(b["max_tokens"] == 64 for b in second.bodies) == len(all_keys()) - len(there)
    assert keys(folder)[: len(there)] == there
    assert sorted(keys(folder)) == sorted(all_keys())


def test_failed_samples_are_ungraded_and_made_again(problems: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def broken(number: int, body: Body) -> Any:
        text = json.dumps(body)
        if body["max_tokens"] == 64 and "What is 3 plus" in text:
            return Response(status_code=500)
        if body["max_tokens"] == 64 and "What is 4 plus" in text and "steering" in body:
            return JSONResponse(
                {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
            )
        return None

    with ScriptedEndpoint(Script(PROBLEMS, fault=broken)) as server:
        finished = session.run(request(problems), target(server.url), folder, QUICK)
        failed = [s for s in lines(folder) if s["error"] is not None]
        assert finished.failed == len(failed) == 6 * 3 + 5 * 3
        for s in failed:
            assert (s["grade"], s["text"], s["completion_tokens"]) == ("ungraded", None, None)
            assert ("500" in s["error"]) == (s["problem_id"] == "p2")
        assert any("not steered" in s["error"] for s in failed)
        server.script.fault = lambda n, b: None
        assert session.run(request(problems), target(server.url), folder, QUICK).failed == 0
    assert sorted(keys(folder)) == sorted(all_keys())
    assert not [s for s in lines(folder) if s["error"] is not None]


def test_a_finished_run_asks_for_nothing_more(problems: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
        count = len(server.bodies)
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
        assert len(server.bodies) == count


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ({"ignores_steering": True}, "no steering object"),
        ({"about": {"processor": False}}, "did not load the processor"),
        ({"about": {"default": {"policy": "split"}}}, "no baseline"),
        ({"fault": lambda n, b: JSONResponse({"error": {"message": "not today"}}, status_code=400)}, "not today"),
        ({"fault": lambda n, b: JSONResponse({"error": {"message": "key?"}}, status_code=401)}, "key?"),
    ],
)
def test_an_endpoint_that_cannot_do_it_is_refused_before_the_first_sample(
    problems: Path, tmp_path: Path, script: Any, told: str
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, **script)) as server:
        with pytest.raises(PreflightError) as e:
            session.run(request(problems), target(server.url), tmp_path / "run", QUICK)
        assert told in str(e.value)
        assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_no_more_is_asked_at_once_than_the_server_can_measure(problems: Path, tmp_path: Path) -> None:
    script = Script(PROBLEMS, latency_s=0.01, about={"telemetry_lanes": 2})
    with ScriptedEndpoint(script) as server:
        session.run(request(problems), target(server.url, concurrency=32), tmp_path / "run", QUICK)
        assert server.most_at_once == 2


def test_many_arms_are_probed_over_one_connection(problems: Path, tmp_path: Path) -> None:
    arms = [{"name": "B", "role": "baseline"}]
    arms += [{"name": f"F{i}", "role": "treatment", "steering": {"fork_temperature": 1 + i / 100}} for i in range(40)]
    path = tmp_path / "arms.yaml"
    path.write_text(json.dumps({"name": "many", "baseline": "B", "arms": arms}))
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        run = request(problems, arms=str(path), samples=1, limit=1)
        assert session.run(run, target(server.url, concurrency=1), tmp_path / "run", QUICK).samples == 41
        assert server.most_at_once == 1


def test_a_context_that_cannot_hold_the_answer_is_told_at_once(problems: Path, tmp_path: Path) -> None:
    with (
        ScriptedEndpoint(Script(PROBLEMS, max_model_len=64)) as server,
        pytest.raises(SettingsError, match="--max-tokens"),
    ):
        session.run(request(problems), target(server.url), tmp_path / "run", QUICK)


def test_endpoints_of_different_models_are_refused(problems: Path, tmp_path: Path) -> None:
    with (
        ScriptedEndpoint(Script(PROBLEMS)) as one,
        ScriptedEndpoint(Script(PROBLEMS, model="else")) as two,
        pytest.raises(PreflightError, match=r"else.*scripted"),
    ):
        session.run(request(problems), target(one.url, two.url), tmp_path / "run", QUICK)


def test_a_folder_with_samples_of_unknown_settings_is_left_alone(problems: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("")
    with ScriptedEndpoint(Script(PROBLEMS)) as server, pytest.raises(SettingsError, match=r"no run\.json"):
        session.run(request(problems), target(server.url), tmp_path, QUICK)


def test_grading_again_restores_every_grade_and_keeps_the_texts(problems: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        session.run(request(problems), target(server.url), folder, QUICK)
    before = lines(folder)
    spoilt = [s | {"grade": "incorrect", "grade_path": "?", "answer": "0"} for s in before]
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in spoilt))
    outcome = regrade.grade_again(folder)
    assert lines(folder) == before
    assert outcome == regrade.Regraded(len(before), sum(s["grade"] == "correct" for s in before))


# The real command, in a process of its own.

Cli = Callable[..., "subprocess.Popen[str]"]


def cli(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "steerdec", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        # Tests that a shell put into the background would hand on that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit status, stderr)"""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_killed_run_goes_on_where_it_was(problems: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = folder / "samples.jsonl"
    with ScriptedEndpoint(Script(PROBLEMS, latency_s=0.05)) as server:
        command = ("bench", "run", "--problems", problems, "--endpoint", server.url, "--out", folder)
        command = (*command, "--samples", 10, "--concurrency", 6, "--max-tokens", 64)
        process = cli(*command)
        wait_for_lines(path, 50, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = path.read_bytes()
        whole = there[: there.rfind(b"\n") + 1]
        with path.open("ab") as file:  # what a kill in the middle of a write leaves
            file.write(b'{"problem_id": "p0", "arm": "B", "sam')
        begun = len(server.bodies)
        process = cli(*command)
        assert finish(process) == (0, finish_line(360, begun=whole.count(b"\n"), errors=""))
        assert path.read_bytes().startswith(whole)
        assert sorted(keys(folder)) == sorted(all_keys(10))
        again = [arm_of(b) for b in server.bodies[begun:] if b["max_tokens"] == 64]
        assert len(again) == 360 - whole.count(b"\n")


def finish_line(total: int, begun: int, errors: str) -> Any:
    """Equal to any progress lines that end with the whole run."""

    class Lines(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and other.splitlines()[-1].startswith(f"{total}/{total} samples, ")

    return Lines()


def test_ctrl_c_stops_with_130_and_says_how_to_go_on(problems: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS, latency_s=0.1)) as server:
        command = ("bench", "run", "--problems", problems, "--endpoint", server.url, "--out", folder)
        command = (*command, "--samples", 1000, "--concurrency", 4, "--max-tokens", 64)
        process = cli(*command)
        wait_for_lines(folder / "samples.jsonl", 10, process)
        status, errors = finish(cli(*command))
        assert (status, len(errors.splitlines())) == (1, 1)
        assert "in use by another process" in errors
        process.send_signal(signal.SIGINT)
        status, errors = finish(process)
    assert status == 130
    assert "same command continues" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert len(set(keys(folder))) == len(keys(folder)) >= 10


def test_wrong_usage_is_one_line_and_status_2_before_anything_is_asked_or_written(
    problems: Path, tmp_path: Path
) -> None:
    good = {"--problems": problems, "--endpoint": "http://127.0.0.1:9", "--out": tmp_path / "run"}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"--problems": "nosuch"}, "nosuch"),
        ({"--arms": "quik"}, "quik"),
        ({"--threshold": "-1"}, "-1"),
        ({"--endpoint": "127.0.0.1:9"}, "--endpoint"),
        ({"--prompt": "nosuch"}, "nosuch"),
        ({"--problems": "a" * 300}, "is neither a file nor a problem set"),
        ({"--arms": "a" * 300}, "cannot be read (File name too long)"),
        ({"--threshold": ""}, '--threshold: "" is neither a number'),
        ({"--out": problems}, "--out"),
        ({"--out": tmp_path / ("a" * 300)}, "is too long"),
        ({"--endpoint": None, "--model": "/no/such"}, "--model: /no/such: no such model folder; allowed are"),
        ({"--endpoint": None, "--model": problems}, "no such model folder"),
        ({"--endpoint": None, "--model": tmp_path}, "is a folder without config.json"),
        ({"--temperature": "0"}, "--temperature"),
    ]
    for change, told in wrong:
        given = {option: value for option, value in (good | change).items() if value is not None}
        arguments = [str(x) for pair in given.items() for x in pair]
        result = CliRunner().invoke(bench_app, ["run", *arguments])
        assert result.exit_code == 2, result.stderr
        assert told in result.stderr
        if "--temperature" not in change:  # what typer itself refuses is put into one line by steerdec.cli
            assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_endpoint_nobody_listens_at_is_status_1_and_one_line(problems: Path, tmp_path: Path) -> None:
    process = cli("bench", "run", "--problems", problems, "--endpoint", "http://127.0.0.1:9", "--out", tmp_path / "run")
    status, errors = finish(process)
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert "http://127.0.0.1:9 cannot be reached" in errors


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(problems: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel writes a part of a line, then refuses."""
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS)) as server:
        command = ("bench", "run", "--problems", problems, "--endpoint", server.url, "--out", folder)
        command = (*command, "--max-tokens", 64)
        limited = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", sys.executable, "-m", "steerdec", *map(str, command)]
        status, errors = finish(subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert status == 1
        last = errors.splitlines()[-1]
        assert "samples.jsonl cannot be written" in last
        assert "same command continues" in last
        assert "Traceback" not in errors
        there = (folder / "samples.jsonl").read_bytes()
        assert there.endswith(b"\n")
        assert finish(cli(*command))[0] == 0
    assert (folder / "samples.jsonl").read_bytes().startswith(there)
    assert sorted(keys(folder)) == sorted(all_keys(16))

"""`steerdec bench view`: progress without scores, samples side by side, and the report on request."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from steerdec.benchmarks.report.write import write_report
from steerdec.benchmarks.view.app import app
from steerdec.benchmarks.view.serve import HostError, PortError, serve
from tests.benchmarks.report.test_report import Page, flat
from tests.support.make_run import HOSTILE, make_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("view") / "run", n_problems=6, k=2)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run", n_problems=6, k=2)
    path = folder / "samples.jsonl"
    path.write_text(
        "".join(line for line in path.open(encoding="utf-8") if '"sample": 1' not in line), encoding="utf-8"
    )
    return folder


def client(folder: Path) -> TestClient:
    return TestClient(app(folder, ["testserver"]))


def test_a_run_that_is_being_made_shows_how_far_it_is_and_no_score(unfinished: Path) -> None:
    answer = client(unfinished).get("/")
    text = flat(Page(answer.text).text)
    assert "36 of 72 samples" in text
    assert "6 of 12" in text
    assert 'http-equiv="refresh"' in answer.text
    assert not re.search(r"avg@|correct|accuracy|verdict", text)


def test_it_follows_the_file(unfinished: Path) -> None:
    browser = client(unfinished)
    assert "36 of 72 samples" in browser.get("/").text
    last = (unfinished / "samples.jsonl").read_text("utf-8").splitlines()[-1]
    with (unfinished / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(last.replace('"sample": 0', '"sample": 1') + "\n" + last[:30])
    assert "37 of 72 samples" in browser.get("/").text


def test_scores_of_an_unfinished_run_are_shown_only_on_request(unfinished: Path) -> None:
    browser = client(unfinished)
    asked = browser.get("/report").text
    assert "Show the scores so far?" in asked
    assert "avg@k" not in asked
    shown = browser.get("/report?scores=show").text
    assert "Interim: " in shown
    assert "avg@k" in shown
    trace = flat(Page(browser.get("/trace?problem=embedded-000&sample=0").text).text)
    assert "grade not shown while the run is under way" in trace


def test_the_report_of_a_finished_run_is_the_file(finished: Path) -> None:
    assert client(finished).get("/report").text == write_report(finished).read_text(encoding="utf-8")
    page = client(finished).get("/").text
    assert "The run is finished." in page
    assert 'http-equiv="refresh"' not in page


def test_a_sample_is_shown_under_the_arms_that_are_chosen(finished: Path) -> None:
    answer = client(finished).get("/trace?problem=embedded-001&sample=0&left=F-up&right=A/A").text
    page = Page(answer)
    assert page.unbalanced == []
    assert re.findall(r"<strong>(.*?)</strong>", answer) == ["F-up", "A/A"]
    assert "They differ from token" in flat(page.text)
    assert HOSTILE in page.text
    assert "script" not in page.tags


def test_every_link_of_the_overview_leads_to_a_page(finished: Path) -> None:
    browser = client(finished)
    links = [value for tag, name, value in Page(browser.get("/").text).attributes if tag == "a" and name == "href"]
    assert len(links) == 1 + 3
    assert {browser.get(f"/{link}").status_code for link in links} == {200}


def test_what_is_not_there_is_one_line(finished: Path, tmp_path: Path) -> None:
    missing = client(finished).get("/trace?problem=no&sample=0")
    assert (missing.status_code, missing.text) == (404, "no such sample kept its tokens\n")
    broken = client(tmp_path).get("/")
    assert broken.status_code == 503
    assert broken.text.count("\n") == 1


def test_a_name_that_another_site_chose_is_refused(finished: Path) -> None:
    assert client(finished).get("/", headers={"Host": "evil.example"}).status_code == 400


def test_the_command_serves_the_run_until_it_is_interrupted(finished: Path) -> None:
    command = [sys.executable, "-m", "steerdec", "bench", "view", str(finished), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(url, timeout=120).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) in (0, 130)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = subprocess.run([*command[:-1], port], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr == f"steerdec: cannot listen on 127.0.0.1:{port} (Address already in use)\n"


@pytest.mark.parametrize("host", ["a" * 80, "\u2603..", "127.0.0.1\0", "192.0.2.1"])
def test_a_host_that_cannot_be_used_is_one_line(finished: Path, host: str) -> None:
    with pytest.raises(PortError, match=r"cannot listen on .* \([^[\n]+\)$"):
        serve(finished, host, 0)


def test_an_empty_host_is_not_every_network(finished: Path) -> None:
    with pytest.raises(HostError, match="must not be empty"):
        serve(finished, "", 0)


def test_a_sample_of_an_arm_that_the_run_does_not_have_is_one_line(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"problem_id": "x", "arm": "ghost", "sample": 0, "grade": "correct"}) + "\n")
    for page in ("/", "/report", "/trace?problem=x&sample=0"):
        broken = client(folder).get(page)
        assert (broken.status_code, broken.text.count("\n")) == (503, 1)
        assert "ghost" in broken.text

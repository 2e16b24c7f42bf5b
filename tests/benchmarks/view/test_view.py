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
from statistics import fmean, median
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from starlette.testclient import TestClient

from steerdec.benchmarks.report.write import write_report
from steerdec.benchmarks.run.looks import arms_still_needed
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


def reason(page: str) -> str:
    """The one line of a page without a run."""
    (line,) = re.findall(r'<p class="caution" role="status">(.*)</p>', page)
    return str(line)


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
    seen, waiting = set(), ["/"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = browser.get(path)
        assert answer.status_code == 200, path
        page = Page(answer.text)
        assert page.unbalanced == []
        links = [urljoin(path, value or "") for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
        if not path.startswith("/report"):
            new = [link for link in links if link not in seen and link not in waiting]
            waiting += [link for link in new if "&arm=" not in link or "embedded-000" in link]
    assert {path.partition("?")[0] for path in seen} == {"/", "/report", "/problems", "/problem", "/sample", "/trace"}
    assert len([path for path in seen if path.startswith("/sample?")]) == 6 * 2 + 10  # its twelve, two of them failed


def test_what_is_not_there_is_one_line(finished: Path, tmp_path: Path) -> None:
    missing = client(finished).get("/trace?problem=no&sample=0")
    assert missing.status_code == 404
    assert "No such sample kept its tokens." in missing.text
    for path in ("/problem?problem=no", "/sample?problem=embedded-000&sample=9", "/sample?problem=x&sample=-1"):
        assert client(finished).get(path).status_code == 404
    broken = client(tmp_path).get("/")
    assert broken.status_code == 503
    assert "run.json" in reason(broken.text)


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
    for page in ("/", "/report", "/problems", "/problem?problem=x", "/trace?problem=x&sample=0"):
        broken = client(folder).get(page)
        assert broken.status_code == 503
        assert "ghost" in reason(broken.text)


def test_a_run_without_a_sample_says_so(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "samples.jsonl").unlink()
    browser = client(folder)
    page = flat(Page(browser.get("/").text).text)
    assert "0 of 72 samples" in page
    assert "No sample yet" in page
    assert "nothing to report before the first sample" in browser.get("/report?scores=show").text
    assert "0 of 12" in browser.get("/problems").text
    assert "No sample of this problem yet" in browser.get("/problem?problem=embedded-000").text


def test_a_file_that_is_cut_in_the_middle_is_one_line(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    (folder / "samples.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n", "utf-8")
    broken = client(folder).get("/")
    assert broken.status_code == 503
    assert "line 2" in reason(broken.text)


def test_the_first_page_has_the_length_and_the_dose_of_each_arm(finished: Path) -> None:
    samples = [json.loads(line) for line in (finished / "samples.jsonl").open(encoding="utf-8")]
    lengths = [s["completion_tokens"] for s in samples if s["arm"] == "F-up"]
    dose = sum(s["mean_sampled_entropy_nats"] * s["completion_tokens"] for s in samples if s["arm"] == "F-up")
    row = re.search(r'<tr><th scope="row">F-up</th>(.*?)</tr>', client(finished).get("/").text)
    assert row is not None
    cells = re.findall("<td[^>]*>(.*?)</td>", row[1])
    assert cells[0] == "fork temperature\N{NO-BREAK SPACE}1.0"
    assert cells[3:6] == [f"{v:,.0f}" for v in (fmean(lengths), median(lengths), max(lengths))]
    assert cells[9] == f"{dose / sum(lengths):.3f}"


def test_the_problems_can_be_filtered(finished: Path) -> None:
    browser = client(finished)

    def listed(query: str) -> list[str]:
        page = browser.get(f"/problems{query}").text
        return re.findall(r'<th scope="row"><a href="problem\?problem=([^"]*)"', page)

    everything = listed("")
    assert len(everything) == 6
    assert listed("?q=EMBEDDED-00") == everything[:5]
    assert listed("?show=tokens") == everything[:3]
    assert listed("?show=failed") == everything[:3]
    assert listed("?show=missing") == []
    assert listed("?q=nothing") == []
    assert listed("?show=unheard&page=99999999999") == everything
    assert "No problem passes this filter" in browser.get("/problems?q=nothing").text
    assert "<script>alert" not in browser.get("/problems", params={"q": '"><script>alert(1)</script>'}).text


def test_a_sample_is_shown_under_every_arm_with_its_forks(finished: Path) -> None:
    answer = client(finished).get("/sample?problem=embedded-001&sample=0").text
    page = Page(answer)
    assert page.unbalanced == []
    assert "script" not in page.tags
    arms = ["B", "A/A", "F-up", "F-down", "N-up", "N-down"]
    assert re.findall(r"<strong>(.*?)</strong>", answer) == arms
    kept = [json.loads(line) for line in (finished / "samples.jsonl").open(encoding="utf-8")]
    kept = [s for s in kept if s["problem_id"] == "embedded-001" and s["sample"] == 0 and s.get("fork")]
    assert {s["arm"] for s in kept} < set(arms)
    marks = re.findall(r'<span class="t( f)?( parted)?"', answer)
    assert sum(fork == " f" for fork, _ in marks) == sum(sum(s["fork"]) for s in kept) + 1  # one in the legend
    parted = sum(part != "" for _, part in marks)
    assert parted == answer.count("Differs from A/A at token") == len(kept) - 1
    one = client(finished).get("/sample?problem=embedded-001&sample=0&arm=F-up&arm=nonsense").text
    assert re.findall(r"<strong>(.*?)</strong>", one) == ["F-up"]


def test_no_page_of_an_unfinished_run_has_a_score(unfinished: Path) -> None:
    browser = client(unfinished)
    paths = ["/", "/problems", "/problem?problem=embedded-001", "/sample?problem=embedded-001&sample=0"]
    for path in [*paths, "/trace?problem=embedded-001&sample=0"]:
        text = flat(Page(browser.get(path).text).text)
        assert not re.search(r"avg@|correct|accuracy|verdict|ungraded", text), path
    assert text.count("grade not shown while the run is under way") == 2


def test_a_run_whose_looks_dropped_the_arms_that_lack_samples_is_finished(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", n_problems=40, k=8, traces=0)
    settings = json.loads((folder / "run.json").read_text("utf-8"))
    settings["looks"] = [{"samples": 4, "planned": 8}, {"samples": 8, "planned": 8}]
    (folder / "run.json").write_text(json.dumps(settings), "utf-8")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").open(encoding="utf-8")]
    answered = next(line for line in lines if line["arm"] == "N-down" and line["error"] is None)
    lines = [
        line if line["error"] is None else answered | {key: line[key] for key in ("problem_id", "sample")}
        for line in lines
    ]

    def write(kept: list[dict[str, Any]]) -> None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    write([line for line in lines if line["sample"] < 4])
    needed = set(arms_still_needed(folder))
    lacking = {arm["name"] for arm in settings["arms"]["arms"]} - needed
    assert "The run is finished." not in client(folder).get("/").text
    write([line for line in lines if line["sample"] < 4 or line["arm"] in needed])
    page = client(folder).get("/").text
    assert lacking
    assert page.count(", not needed") == len(lacking)
    assert "The run is finished." in page
    assert "avg@k" in client(folder).get("/report").text

"""Problem sets of the Hugging Face hub: the named ones, any other, and the real client against a hub of ours.

No row is of a real set: tests have no network, and the texts of the sets are not ours to hold.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steerdec.benchmarks.run.run_request import read_request
from steerdec.problems import hub
from steerdec.problems.sets import Problem, ProblemError, load_problems
from tests.support.hub_server import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MATHARENA: dict[str, Any] = {"problem_idx": 1, "problem": "p", "problem_type": ["Number Theory"]}
ROWS: dict[str, tuple[dict[str, Any], Problem]] = {
    "aime24": (
        {"id": 60, "problem": "p", "solution": "s", "answer": "025", "url": "u", "year": "2024"},
        Problem("aime24-0", "p", "25", "integer"),
    ),
    "aime25": (MATHARENA | {"answer": 70}, Problem("aime25-1", "p", "70", "integer")),
    "aime26": ({"problem_idx": 30, "problem": "p", "answer": 7}, Problem("aime26-30", "p", "7", "integer")),
    "amc23": ({"id": 0, "question": "p", "answer": "27.0", "url": "u"}, Problem("amc23-0", "p", "27", "math")),
    "hmmt-feb25": (
        MATHARENA | {"answer": "\\frac{3+\\sqrt{7}}{2}, \\frac{3-\\sqrt{7}}{2}"},
        Problem("hmmt-feb25-1", "p", "\\frac{3+\\sqrt{7}}{2}, \\frac{3-\\sqrt{7}}{2}", "math"),
    ),
    "hmmt-nov25": (MATHARENA | {"answer": "1/91"}, Problem("hmmt-nov25-1", "p", "1/91", "math")),
    "hmmt-feb26": (
        {"answer": "2^{5}\\cdot 6!", "problem": "p", "problem_idx": 33},
        Problem("hmmt-feb26-33", "p", "2^{5}\\cdot 6!", "math"),
    ),
    "brumo25": (MATHARENA | {"answer": "-7"}, Problem("brumo25-1", "p", "-7", "math")),
    "smt25": (MATHARENA | {"answer": "240"}, Problem("smt25-1", "p", "240", "math")),
    "apex25": (MATHARENA | {"answer": "x^2", "source": "a contest"}, Problem("apex25-1", "p", "x^2", "math")),
    "apex-shortlist": (
        MATHARENA | {"answer": "3/2", "source": "a contest"},
        Problem("apex-shortlist-1", "p", "3/2", "math"),
    ),
    "math500": (
        {"problem": "p", "solution": "s", "answer": "\\frac{1}{2}", "level": 2, "unique_id": "test/a/1.json"},
        Problem("math500-test/a/1.json", "p", "\\frac{1}{2}", "math"),
    ),
    "gsm8k": (
        {"question": "p", "answer": "16 - 3 = <<16-3=13>>13\nand so on\n#### 1,800"},
        Problem("gsm8k-0", "p", "1800", "number"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", hub.SETS)
def test_a_row_of_a_named_set_becomes_a_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_row, expected = ROWS[name]
    monkeypatch.setattr(hub, "download", lambda where: hub.Table([given_row], COMMIT))
    got = load_problems(name)
    assert (got.name, got.problems, got.source) == (name, (expected,), f"{name}@{COMMIT}")
    assert got.prompt == {"integer": "aime", "math": "math", "number": "number"}[expected.kind]


@pytest.mark.parametrize("name", hub.SETS)
def test_a_row_of_another_shape_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, _ = ROWS[name]
    for bad in ({}, dict.fromkeys(good), good | {"problem": "", "question": ""}):
        monkeypatch.setattr(hub, "download", lambda where, bad=bad: hub.Table([bad], None))
        with pytest.raises(ProblemError, match=f"{name}, row 0: ") as raised:
            load_problems(name)
        assert "\n" not in str(raised.value)


def test_an_aime_answer_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "download", lambda where: hub.Table([ROWS["aime25"][0] | {"answer": 1000}], None))
    with pytest.raises(ProblemError, match="aime25, row 0: answer is '1000'"):
        load_problems("aime25")


def test_every_named_set_is_pinned_to_a_commit_and_another_one_can_be_given() -> None:
    for name, one in hub.SETS.items():
        assert re.fullmatch(r"[0-9a-f]{40}", str(one.revision))
        other = hub.find(f"{name}@main")
        assert other is not None
        assert (other.revision, other.repo, other.columns) == ("main", one.repo, one.columns)


def test_any_set_of_the_hub_is_read_by_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[hub.HubSet] = []

    def download(where: hub.HubSet) -> hub.Table:
        asked.append(where)
        return hub.Table([{"Question": "1 + 1?", "gold": "2", "key": 5, "topic": "sums", "kind": "easy"}], COMMIT)

    monkeypatch.setattr(hub, "download", download)
    options = "split=test&config=main&problem=Question&answer=gold&id=key&group=topic&kind=number"
    got = load_problems(f"hub:own/some-set@v2?{options}")
    assert got.problems == (Problem("some-set-5", "1 + 1?", "2", "number", "sums"),)
    assert (got.name, got.source) == (f"hub:own/some-set?{options}", f"hub:own/some-set@{COMMIT}?{options}")
    where = asked[0]
    assert (where.repo, where.revision, where.split, where.config) == ("own/some-set", "v2", "test", "main")
    again = load_problems(got.source)
    assert (again, asked[1].revision) == (got, COMMIT)


def test_a_run_records_the_commit_that_was_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "download", lambda where: hub.Table([ROWS["gsm8k"][0]], COMMIT))
    request = read_request(
        "gsm8k@main", "quick", limit=None, prompt=None, thinking=None, samples=1, seed=0, temperature=None,
        max_tokens=8, threshold=None, force=False,
    )  # fmt: skip
    assert (request.source, request.problem_set.name) == (f"gsm8k@{COMMIT}", "gsm8k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:some-set", "'some-set' is not OWNER/NAME; the form is hub:OWNER/NAME@REVISION?split=SPLIT&problem="),
        ("hub:own/../x", "'own/../x' is not OWNER/NAME"),
        ("hub:own/x@", "'' is not a revision: a commit, branch or tag"),
        ("hub:own/x@a b", "'a b' is not a revision"),
        ("hub:own/x?split=test&colour=red", "hub:own/x?split=test&colour=red: 'colour' is not an option; allowed are"),
        ("hub:own/x?kind=easy", "kind is 'easy'; allowed are integer, number, math"),
        ("aime25@", "'' is not a revision"),
        ("aime25?answer=solution", "aime25 takes no options; hub:OWNER/NAME@REVISION?split=SPLIT"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ProblemError) as raised:
        load_problems(name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_of_the_sets_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    with pytest.raises(ProblemError, match="the folder openai/gsm8k here has the name of the set on the hub"):
        load_problems("gsm8k")


# The real client, in a process of its own, because it reads where the hub is when it is imported.

OLD, NEW = "a" * 40, "b" * 40
SUMS = [{"question": f"{n} + {n}?", "answer": f"so\n#### {2 * n:,}", "kind": "easy"} for n in (1, 700)]
JSONL = "".join(json.dumps(row) + "\n" for row in SUMS).encode()
CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: one.jsonl}
  - {split: test, path: sums.jsonl}
- config_name: socratic
  data_files: one.jsonl
---
"""
ONE = JSONL.splitlines(keepends=True)[0]
SERVED = {
    "openai/gsm8k": {OLD: {"README.md": CARD, "sums.jsonl": ONE, "one.jsonl": ONE},
                     NEW: {"README.md": CARD, "sums.jsonl": JSONL, "one.jsonl": ONE}},
    "own/plain": {OLD: {"test.jsonl": JSONL}},
}  # fmt: skip
ASKED = {
    "gsm8k": "openai/gsm8k at revision 740312add88f781978c0658806c59bc2815b9866 could not be fetched from the Hugging "
    "Face hub (Revision",
    f"gsm8k@{OLD}": f"gsm8k@{OLD} 1",
    "gsm8k@main": f"gsm8k@{NEW} 2",
    "hub:own/plain": f"hub:own/plain@{OLD} 2",
    "hub:own/plain?split=test&kind=math": f"hub:own/plain@{OLD}?split=test&kind=math 2",
    "hub:openai/gsm8k?config=main": "no split is given; there are train, test",
    "hub:openai/gsm8k?config=main&split=dev": "no split 'dev'; there are train, test",
    "hub:openai/gsm8k?split=test": "Please pick one among the available configs: ['main', 'socratic']",
    "hub:openai/gsm8k?config=main&split=test&problem=prompt": "no column prompt; there are question, answer, kind",
    "hub:own/plain@v9": "own/plain at revision v9 could not be fetched from the Hugging Face hub (Revision 'v9'",
    "hub:own/none": "own/none could not be fetched from the Hugging Face hub (Dataset 'own/none' doesn't exist",
}
WITHOUT_HUB = {
    f"gsm8k@{NEW}": f"gsm8k@{NEW} 2",
    "hub:own/plain": f"hub:own/plain@{OLD} 2",
    f"hub:own/plain@{NEW}": f"the hub cannot be reached, and the cache has revision {OLD}, not {NEW}",
    "aime25": "MathArena/aime_2025 at revision c94da77eb22bbd6439e62a323bec18493a421302 could not be fetched",
}
CHILD = """
import json, sys
import datasets, huggingface_hub
from steerdec.problems.sets import ProblemError, load_problems

said = []
for names in json.loads(sys.argv[1]):
    for name in names:
        try:
            found = load_problems(name)
            said.append(f"{found.source} {len(found.problems)}")
        except ProblemError as e:
            said.append(str(e))
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
print(json.dumps(said))
"""


def test_the_real_client_fetches_what_is_named_and_says_which_commit_it_got(tmp_path: Path) -> None:
    """The second half is without the hub: what the cache has is used, but never in place of another revision."""
    asked = json.dumps([list(ASKED), list(WITHOUT_HUB)])
    with serving(SERVED) as served:
        environment = os.environ | {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "cache")}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, asked], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    for (name, expected), got in zip((*ASKED.items(), *WITHOUT_HUB.items()), said, strict=True):
        assert expected in got, name
        assert "\n" not in got

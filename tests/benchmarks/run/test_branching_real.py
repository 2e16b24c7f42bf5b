"""Trees on the real server: nearly greedy, every leaf is its root again; at a real temperature, forks are forks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steerdec.benchmarks.run import session
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.verdicts.summary import summarize

pytestmark = pytest.mark.engine

LIMIT, SAMPLES = 1, 8


def run(url: str, folder: Path, **changes: Any) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The samples of a run of one embedded problem, by arm, problem and number."""
    asked: dict[str, Any] = {"limit": LIMIT, "prompt": None, "thinking": None, "samples": SAMPLES, "seed": 1}
    asked |= {"temperature": 0.6, "max_tokens": 20, "threshold": "0.6", "force": False} | changes
    target = Target(endpoints=(url,), model=None, dtype=None, concurrency=16, timeout_s=120.0, api_key=None)
    made = session.run(session.read_request("embedded", "branching", **asked), target, folder, Retry())
    assert made == session.Finished(LIMIT * SAMPLES * 5, 0)
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return {(s["arm"], s["problem_id"], s["sample"]): s for s in found}


def test_a_tree_branches_at_a_fork_of_its_root_and_keeps_what_is_before_it(server_url: str, tmp_path: Path) -> None:
    found = run(server_url, tmp_path / "run")
    texts = set()
    for (arm, problem, number), sample in found.items():
        if arm in ("B", "A/A"):
            continue
        root, place = found["A/A", problem, number - number % 4], sample["position"]
        assert root["fork"][place] == (arm != "other")
        if arm == "top-fork":
            assert root["entropy_nats"][place] == max(root["entropy_nats"])
        assert len(root["entropy_nats"]) - len(root["token_ids"]) in (0, 1)
        assert 0 < sample["completion_tokens"] <= 20 - place
        texts.add((arm, problem, root["sample"], sample["text"]))
    assert len(texts) > 3 * LIMIT * SAMPLES // 4  # leaves of one tree differ
    assert all(row.trees == LIMIT * SAMPLES // 4 for row in summarize(tmp_path / "run").branching)


def test_nearly_greedy_every_leaf_is_its_root_again(server_url: str, tmp_path: Path) -> None:
    """At T = 0.01 a response has one way to go on, so ids, places and the text put together are all exact."""
    found = run(server_url, tmp_path / "run", temperature=0.01)
    for (arm, problem, number), sample in found.items():
        if arm not in ("B", "A/A"):
            root = found["A/A", problem, number - number % 4]
            kept = ("text", "grade", "finish_reason")
            assert [sample[name] for name in kept] == [root[name] for name in kept]
            assert sample["position"] + sample["completion_tokens"] == root["completion_tokens"]
    for row in summarize(tmp_path / "run").branching:
        assert {one.diff for one in row.outcomes} == {0.0}

"""How far a run is, in plain lines where there is no terminal."""

from __future__ import annotations

from typing import Any

import pytest

from steerdec.common import progress
from steerdec.common.progress import RunProgress


def sample(arm: str = "B", grade: str = "correct", error: str | None = None) -> dict[str, Any]:
    return {"arm": arm, "grade": grade, "completion_tokens": 10, "error": error}


def shown(capsys: pytest.CaptureFixture[str], samples: list[dict[str, Any]], done: int = 0) -> list[str]:
    with RunProgress(done + len(samples), done) as bar:
        for one in samples:
            bar.count(one)
    return capsys.readouterr().err.splitlines()


def test_the_end_is_told_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown(capsys, [sample()] * 3)) == 1
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)  # a line for every sample: the last one is the end
    lines = shown(capsys, [sample()] * 3)
    assert [line.split(" ")[0] for line in lines] == ["1/3", "2/3", "3/3"]


def test_a_line_has_the_scores_the_failures_and_what_was_there_before(capsys: pytest.CaptureFixture[str]) -> None:
    failed = sample("F-up", "ungraded", "cut off")
    (line,) = shown(capsys, [sample(), sample(grade="incorrect"), sample("F-up"), failed], done=6)
    assert line.startswith("10/10 samples, ")
    assert line.endswith(", 1 failed, B 50.0 F-up 100.0")


def test_a_run_that_had_nothing_left_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, [], done=5) == []

"""How far a run is, in plain lines where there is no terminal."""

from __future__ import annotations

from typing import TypedDict

import pytest

from steerdec.common import progress
from steerdec.common.progress import RunProgress


class Counted(TypedDict):
    arm: str
    tokens: int
    failed: bool
    correct: bool | None


def sample(arm: str = "B", correct: bool | None = True, failed: bool = False) -> Counted:
    return {"arm": arm, "correct": correct, "tokens": 10, "failed": failed}


def shown(
    capsys: pytest.CaptureFixture[str], samples: list[Counted], done: int = 0, left: int = 0, **options: int
) -> list[str]:
    with RunProgress(done + len(samples) + left, done, **options) as bar:  # type: ignore[arg-type]
        for one in samples:
            bar.count(**one)
    return capsys.readouterr().err.splitlines()


def test_the_end_is_told_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown(capsys, [sample()] * 3)) == 1
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)  # a line for every sample: the last one is the end
    lines = shown(capsys, [sample()] * 3)
    assert [line.split(" ")[0] for line in lines] == ["1/3", "2/3", "3/3"]


def test_a_line_has_the_failures_what_was_there_before_and_scores_only_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = [sample(), sample(correct=False), sample("F-up"), sample("F-up", None, failed=True)]
    (line,) = shown(capsys, samples, done=6)
    assert line.startswith("10/10 samples, ")
    assert line.endswith(", 1 failed")
    (line,) = shown(capsys, samples, done=6, show_scores=True)
    assert line.endswith(", 1 failed, B 50.0 F-up 100.0")


def test_no_time_left_is_shown_before_the_speed_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The first of 64 simultaneous samples says nothing about the other 10,000."""
    assert " left" not in shown(capsys, [sample()], left=10_000, at_once=64)[0]
    assert " left" not in shown(capsys, [sample()] * 127, left=10_000, at_once=64)[0]
    assert " left" in shown(capsys, [sample()] * 128, left=10_000, at_once=64)[0]
    assert " left" in shown(capsys, [sample()] * 3)[0]


def test_a_run_that_had_nothing_left_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, [], done=5) == []

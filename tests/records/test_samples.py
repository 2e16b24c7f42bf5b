"""samples.jsonl: one reader and one writer, and what is not a sample is named with its line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from steerdec.common.journal import JournalError
from steerdec.records.samples import Sample, SampleJournal, read_samples, repair_samples, rewrite_samples

GOOD: dict[str, Any] = {"problem_id": "p", "arm": "B", "sample": 0, "grade": "correct"}


def written(path: Path, *samples: Sample) -> Path:
    journal = SampleJournal(path)
    for sample in samples:
        journal.append(sample)
    journal.close()
    return path


def test_every_field_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = Sample(
        problem_id="p \u2028",
        arm="F-up",
        sample=3,
        seed=2**53 - 1,
        text="\\boxed{7}\n",
        answer="7",
        grade="correct",
        grade_path="boxed-int",
        finish_reason="stop",
        completion_tokens=2,
        forks=1,
        mean_entropy_nats=0.5,
        mean_sampled_entropy_nats=0.25,
        guard_token=1,
        endpoint="http://127.0.0.1:1",
        position=4,
        replayed_arm="B",
        replayed_sample=1,
        entropy_nats=[None, 0.5],
        fork=[False, True],
        token_text=["a", "b"],
        token_ids=[0, 49151],
    )
    bare = Sample(problem_id="q", arm="B", sample=0, grade="ungraded", error="timed out")
    path = written(tmp_path / "samples.jsonl", full, bare)
    assert list(read_samples(path)) == [full, bare]
    lines = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
    assert lines[0].keys() == {field.name for field in dataclasses.fields(Sample)}
    contract = ("problem_id arm sample seed text answer grade grade_path finish_reason completion_tokens forks "
                "mean_entropy_nats endpoint error")  # fmt: skip
    assert {*contract.split(), "mean_sampled_entropy_nats"} == lines[1].keys()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grade": "right"}, "line 2 is not a sample: grade: Input should be 'correct', 'incorrect' or 'ungraded'"),
        ({"sample": -1}, "line 2 is not a sample: sample"),
        ({"sample": "0"}, "line 2 is not a sample: sample"),
        ({"seed": 1.5}, "line 2 is not a sample: seed"),
        ({"text": 7}, "line 2 is not a sample: text"),
        ({"mean_entropy_nats": "low"}, "line 2 is not a sample: mean_entropy_nats"),
        ({"entropy_nats": [float("nan")]}, "line 2 is not a sample: entropy_nats.0"),
        ({"fork": [1]}, "line 2 is not a sample: fork.0"),
        ({"grade": None}, "line 2 is not a sample: grade"),
    ],
)
def test_a_line_that_is_not_a_sample_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")  # the last line, and still not torn
    with pytest.raises(JournalError) as e:
        list(read_samples(path))
    assert says in str(e.value)
    assert "\n" not in str(e.value)
    before = path.read_bytes()
    with pytest.raises(JournalError):
        repair_samples(path, lambda sample: None)
    assert path.read_bytes() == before


def test_a_failed_sample_is_dropped_and_a_field_of_a_later_version_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [GOOD | {"later": 1}, GOOD | {"sample": 1, "error": "cut off"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found: list[Sample] = []
    repair_samples(path, found.append)
    assert [sample.key for sample in found] == [("p", "B", 0)]
    rewrite_samples(path, lambda sample: dataclasses.replace(sample, grade="incorrect"))
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["grade"], line["later"]) == ("incorrect", 1)

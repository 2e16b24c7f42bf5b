"""Reading a run folder for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steerdec.benchmarks.report.run_folder import Cell, read_run
from steerdec.common.journal import JournalError
from steerdec.records.run import SettingsError
from steerdec.records.summary import SummaryFileError
from tests.support.make_run import make_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", n_problems=4, k=2, traces=1)


def append(folder: Path, *lines: dict[str, Any] | str) -> None:
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def test_every_sample_is_counted_once_and_ungraded_ones_apart(folder: Path) -> None:
    cells = read_run(folder).cells
    assert len(cells) == 4 * 6
    assert all(cell.graded + cell.ungraded == 2 for cell in cells.values())
    assert sum(cell.ungraded for cell in cells.values()) == 6
    assert cells["embedded-000", "N-down"] == Cell(correct=0, graded=0, ungraded=2)


def test_of_two_lines_for_one_sample_the_later_counts(folder: Path) -> None:
    append(folder, {"problem_id": "embedded-000", "arm": "N-down", "sample": 0, "grade": "correct"})
    assert read_run(folder).cells["embedded-000", "N-down"] == Cell(correct=1, graded=1, ungraded=1)


def test_a_torn_last_line_is_left_out(folder: Path) -> None:
    before = read_run(folder).cells
    append(folder, '{"problem_id": "embedded-000", "arm": "B", "sam')
    assert read_run(folder).cells == before


def test_lists_of_unequal_length_are_dropped_and_counted(folder: Path) -> None:
    line = {"problem_id": "embedded-001", "arm": "A/A", "sample": 1, "grade": "correct", "entropy_nats": [0.1, 0.2]}
    append(folder, line | {"fork": [False]}, line | {"fork": [False, True], "token_text": ["a"]}, line)
    read = read_run(folder)
    assert read.dropped_traces == 3
    assert len(read.traces) == 4  # one problem under the steered arms, N-down failed


def test_an_entropy_that_is_not_known_stays_unknown(folder: Path) -> None:
    line = {"problem_id": "embedded-001", "arm": "A/A", "sample": 1, "grade": "correct", "fork": [True, False]}
    append(folder, line | {"entropy_nats": [None, 0.5]})
    assert read_run(folder).traces[-1].entropy_nats == (None, 0.5)


MISSING = {"run.json": SettingsError, "samples.jsonl": JournalError, "summary.json": SummaryFileError}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MISSING[name], match=name) as raised:
        read_run(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.json", "{", "is not JSON"),
        ("run.json", "{}", "arms"),
        ("summary.json", '{"arms": {}}', "comparisons"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(folder: Path, name: str, text: str, says: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(MISSING[name], match=says) as raised:
        read_run(folder)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_grade_is_named_with_its_line(folder: Path) -> None:
    append(folder, {"problem_id": "p", "arm": "B", "sample": 7, "grade": "wrong"})
    with pytest.raises(JournalError, match=r'samples.jsonl line \d+ is not a sample: grade: .*"wrong"'):
        read_run(folder)

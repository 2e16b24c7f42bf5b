"""summary.json: written and read by one model, with null for what is not known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from steerdec.records.summary import (
    Comparison,
    Summary,
    SummaryFileError,
    read_summary,
    write_summary,
)


def comparison(**more: object) -> Comparison:
    known = {"arm": "F-up", "baseline": "B", "scope": "these problems", "diff": np.float64(0.25), "se": math.nan}
    known |= {"ci95": (math.nan, 1.0), "p": math.inf, "n_problems": 2, "dropped_problems": 0, "note": ""}
    return Comparison.model_validate(known | {"p_holm": None, "p_equivalence": 1.0, "mde": math.nan} | more)


def test_what_is_not_known_is_null_in_the_file_and_none_in_python(tmp_path: Path) -> None:
    summary = Summary(arms={}, comparisons=(comparison(),), claims=(), instrument="unchecked")
    path = write_summary(summary, tmp_path)
    (row,) = json.loads(path.read_text())["comparisons"]
    assert (row["diff"], row["se"], row["ci95"], row["p"], row["mde"]) == (0.25, None, None, None, None)
    assert read_summary(path) == summary
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not a summary: the file: Invalid JSON"),
        ('{"arms": {}}', "is not a summary: comparisons: Field required"),
        (
            '{"arms": {}, "comparisons": [], "claims": [], "instrument": "fine"}',
            "is not a summary: instrument: Input should be 'valid'",
        ),
    ],
)
def test_a_file_that_is_no_summary_is_refused_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(SummaryFileError, match=line) as error:
        read_summary(tmp_path / "summary.json")
    assert "\n" not in str(error.value)


def test_a_missing_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(SummaryFileError, match=r"summary\.json cannot be read \(No such file"):
        read_summary(tmp_path / "summary.json")

"""Problem files with other columns: options after the name, GSM8K's rows, Parquet. All rows are made up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steerdec.problems.sets import Problem, ProblemError, load_problems

GSM8K = [
    {"question": "Ann has 2 bags of 600 nuts. How many?", "answer": "2 * 600 = <<2*600=1200>>1200\n#### 1,200"},
    {"question": "Ben has 3 hats and loses 4.5. How many?", "answer": "3 - 4.5 = -1.5\n#### -1.5"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
def test_rows_of_gsm8k_load_as_they_are(tmp_path: Path, name: str) -> None:
    got = load_problems(str(write(tmp_path / name, GSM8K)))
    assert got.problems == (
        Problem("0", GSM8K[0]["question"], "1200", "number"),
        Problem("1", GSM8K[1]["question"], "-1.5", "number"),
    )
    assert got.prompt == "number"


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
def test_options_after_the_name_say_which_columns_hold_what(tmp_path: Path, name: str) -> None:
    rows = [
        {"prompt": "1 + 1?", "expected answer": "2", "uid": "u1", "subject": "sums"},
        {"prompt": "2 + 2?", "expected answer": "4", "uid": "u2", "subject": "sums"},
    ]
    file = write(tmp_path / name, rows)
    asked = f"{file}?problem=prompt&answer=expected+answer&id=uid&group=subject&kind=math"
    got = load_problems(asked)
    assert got.problems == (
        Problem("u1", "1 + 1?", "2", "math", "sums"),
        Problem("u2", "2 + 2?", "4", "math", "sums"),
    )
    assert got.prompt == "math"
    assert got.source == asked


def test_the_source_loads_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    got = load_problems("p.jsonl?problem=prompt")
    monkeypatch.chdir(tmp_path / "other")
    assert load_problems(got.source).problems == got.problems


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{\frac{1}{2}}, or rather \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        ("First.\n####  1/2 ", "1/2"),
        ("x^2", "x^2"),
    ],
)
def test_an_answer_may_be_a_whole_solution(tmp_path: Path, text: str, answer: str) -> None:
    file = write(tmp_path / "p.jsonl", [{"problem": "?", "solution": text}])
    (problem,) = load_problems(f"{file}?answer=solution").problems
    assert problem.answer == answer


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "p", "answer": "1"}, "", "no column problem or question; there are prompt, answer. Name the columns"),
    ({"prompt": "p", "answer": "1"}, "?problem=promt", "no column promt; there are prompt, answer"),
    ({"question": "p", "result": "1"}, "", "no column answer; there are question, result. Name the columns in"),
    ({"problem": "p", "answer": "1"}, "?id=uid", "no column uid"),
    ({"problem": "p", "answer": "1"}, "?group=topic", "no column topic"),
    ({"problem": "p", "answer": "1"}, "?kind=integral", "kind is 'integral'; allowed are integer, number, math"),
    ({"problem": "p", "answer": "1"}, "?colour=red", "'colour' is not an option; allowed are problem, answer, id"),
    ({"problem": "p", "answer": "1"}, "?id=a&id=b", "id is given twice"),
    ({"problem": "p", "answer": "1"}, "?id=", "id has no value"),
    ({"problem": "p", "answer": "1"}, "?id", "'id' is not of the form key=value"),
    ({"problem": "p", "answer": "word " * 300}, "", "answer has 1500 characters; it has to be a final answer, or a"),
    ({"problem": "p", "answer": "so 5\n####"}, "", "answer has nothing after ####"),
    ({"problem": "p", "answer": "x"}, "?kind=number", "answer is 'x'; kind number needs a plain number"),
    ({f"column-{i}": "x" for i in range(40)}, "", "(40 in all). Name the columns in --problems"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "options", "message"), BAD, ids=[f"{b[1]} {b[2]}"[:50] for b in BAD])
@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, name: str, row: dict[str, Any], options: str, message: str
) -> None:
    file = write(tmp_path / name, [row])
    with pytest.raises(ProblemError) as raised:
        load_problems(f"{file}{options}")
    said = str(raised.value)
    assert message in said
    assert "\n" not in said
    assert len(said) < 400


def test_a_file_whose_own_name_has_a_question_mark_is_that_file(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl?id=uid", [{"problem": "1 + 1?", "answer": "2", "id": "a"}])
    assert load_problems(str(file)).problems[0].id == "a"


def test_what_is_no_parquet_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ProblemError, match=r"p\.parquet: not a Parquet file") as raised:
        load_problems(str(file))
    assert "\n" not in str(raised.value)

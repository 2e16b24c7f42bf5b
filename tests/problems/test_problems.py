"""Problem sets: files, hub rows, the embedded sets, reasoning_gym."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerdec.common.child import python_child
from steerdec.problems import embedded
from steerdec.problems.sets import Problem, ProblemError, ProblemSet, load_problems

SHARED = Path(os.environ.get("STEERDEC_PROBLEM_FILES", "shared/data"))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "problem": "1 + 1?", "answer": "2"} | changes


# files


def test_a_file_gives_its_problems_in_order(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", row(source="me", other=1), "", row(id="b", answer="007"))
    got = load_problems(str(file))
    assert got == ProblemSet(str(file), (Problem("a", "1 + 1?", "2"), Problem("b", "1 + 1?", "007")), "aime")


@pytest.mark.parametrize(
    ("answers", "kind", "prompt"),
    [
        (["0", "999", "025"], "integer", "aime"),
        (["0", "1000"], "number", "number"),
        (["-3", "2"], "number", "number"),
        (["2.20906e+07", "5"], "number", "number"),
        (["\\frac{1}{2}", "5"], "math", "math"),
    ],
)
def test_the_kind_is_the_narrowest_that_all_answers_have(
    tmp_path: Path, answers: list[str], kind: str, prompt: str
) -> None:
    file = write(tmp_path / "p.jsonl", *(row(id=str(i), answer=answer) for i, answer in enumerate(answers)))
    for limit in (None, 1):  # the kind is the whole file's, not the subset's
        got = load_problems(str(file), limit=limit)
        assert {problem.kind for problem in got.problems} == {kind}
        assert got.prompt == prompt


def test_a_line_may_say_its_kind(tmp_path: Path) -> None:
    got = load_problems(str(write(tmp_path / "p.jsonl", row(kind="math"), row(id="b"))))
    assert [problem.kind for problem in got.problems] == ["math", "integer"]
    assert got.prompt == "math"


def test_integers_may_stand_without_quotes_and_text_may_hold_any_line_separator(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", json.dumps(row(id=1, problem="a\u2028b\x85c", answer=2), ensure_ascii=False))
    assert load_problems(str(file)).problems == (Problem("1", "a\u2028b\x85c", "2"),)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n\r\n")
    assert len(load_problems(str(file)).problems) == 1


BAD_LINES: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "[1] is not an object"),
    ("null", "null is not an object"),
    ({"problem": "p", "answer": "1"}, "id is missing"),
    ({"id": "b", "answer": "1"}, "no column problem or question; there are id, answer"),
    ({"id": "b", "problem": "p"}, "no column answer; there are id, problem"),
    (row(id="b", answer=None), "answer is missing"),
    (row(id="b", problem=""), 'problem is ""'),
    (row(id="b", problem=7), "problem is 7; it has to be a text"),
    (row(id="b", answer=" "), 'answer is " "'),
    (row(id="b", answer=True), "answer is true"),
    (row(id="b", answer=True), "answer is true; it has to be a text"),
    (row(id="b", answer=["1"]), "answer is"),
    (row(id="b", kind="intger"), "kind is 'intger'; allowed are integer, number, math"),
    (row(id="b", kind=3), "kind is '3'"),
    (row(id="b", kind="integer", answer="1000"), "answer is '1000'; kind integer needs one from 0 to 999"),
    (row(id="b", kind="integer", answer="-1"), "needs one from 0 to 999"),
    (row(id="b", kind="number", answer="two"), "answer is 'two'; kind number needs a plain number"),
    (row(), "id 'a' is also at"),
    ('{"id": "b", "problem": "\\ud800", "answer": "1"}', "surrogate"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_a_bad_line_is_named_with_its_place_in_one_line(tmp_path: Path, bad: Any, message: str) -> None:
    file = write(tmp_path / "p.jsonl", row(), "", bad, row(id="z"))
    with pytest.raises(ProblemError) as raised:
        load_problems(str(file))
    said = str(raised.value)
    assert said.startswith(f"{file}:3: ")
    assert message in said
    assert "\n" not in said
    assert len(said) < 300


def test_bytes_that_are_no_text_are_named_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(json.dumps(row()).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(ProblemError, match=r"p\.jsonl:2: not UTF-8 .* byte 9 "):
        load_problems(str(file))


def test_what_is_no_set_and_no_file_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        ProblemError, match=r"'aime42' is neither a file nor a problem set; there are aime24, .*embedded"
    ):
        load_problems("aime42")
    with pytest.raises(ProblemError, match="neither a file"):
        load_problems(str(tmp_path))
    with pytest.raises(ProblemError, match="no problems in it"):
        load_problems(str(write(tmp_path / "empty.jsonl", "")))


@given(st.lists(st.text("abc", min_size=1), min_size=1, unique=True), st.randoms())
def test_the_hash_is_the_content_whatever_its_order(ids: list[str], random: Any) -> None:
    problems = [Problem(id, f"about {id}", "1") for id in ids]
    original = ProblemSet("x", tuple(problems), "aime").sha256
    random.shuffle(problems)
    assert ProblemSet("y", tuple(problems), "math").sha256 == original
    for changed in (Problem(ids[0], "other", "1"), Problem(ids[0], f"about {ids[0]}", "2"), Problem("d", "other", "1")):
        others = tuple(problem for problem in problems if problem.id != ids[0])
        assert ProblemSet("x", (*others, changed), "aime").sha256 != original


def test_a_limit_draws_a_stated_subset() -> None:
    whole = load_problems("embedded").problems
    draws = {n: load_problems("embedded", limit=n).problems for n in (1, 5, 20)}
    for n, drawn in draws.items():
        assert len(drawn) == n
        assert [problem for problem in whole if problem in drawn] == list(drawn)  # in the set's order
    assert set(draws[1]) < set(draws[5]) < set(draws[20])
    assert draws[20] != whole[:20]
    assert load_problems("embedded", limit=20, seed=1).problems != draws[20]
    assert load_problems("embedded", limit=1000).problems == whole
    with pytest.raises(ProblemError, match="limit is 0"):
        load_problems("embedded", limit=0)


# the embedded sets


def test_the_embedded_sets_are_what_they_have_been() -> None:
    """A change of generator, prompt or selection changes what old runs can be compared with."""
    assert load_problems("embedded").sha256 == "4ff3cd991b16974208c5b1cb3148c229c92e3c0b12416fc2f9ee7f592976cf73"
    assert (
        load_problems("embedded-calibration").sha256
        == "ff0720f7d5d53b3aeb7e2e48aae3bd22977aa09caacbaa67ca00256869531392"
    )


def test_no_two_embedded_problems_share_text_id_or_operands() -> None:
    test, calibration = load_problems("embedded").problems, load_problems("embedded-calibration").problems
    assert len(test) == 64
    assert len(calibration) >= 40
    both = test + calibration
    assert len({problem.id for problem in both}) == len({problem.problem for problem in both}) == len(both)
    assert len(embedded.candidates()) == len(set(embedded.candidates())) == len(embedded.RIGHT_OF_SIX)


def test_embedded_answers_are_right() -> None:
    for name in ("embedded", "embedded-calibration"):
        for problem in load_problems(name).problems:
            a, b = (int(word) for word in problem.problem.replace(".", "").split() if word.isdigit())
            assert problem.kind == "number"
            assert problem.answer == str(a * b if "-times-" in problem.id else a + b)
            assert sorted((a, b)) == [int(part) for part in problem.id.split("-")[2:]]


# reasoning_gym


def _load_in_child(name: str, hash_seed: str) -> str:
    code = f"from steerdec.problems.sets import load_problems; print(load_problems({name!r}).sha256)"
    command, environment = python_child("-")
    del command[-2:]
    child = subprocess.run(
        [*command, "-c", code],
        env=environment | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout


def test_gym_problems_are_the_same_in_every_process() -> None:
    """ransom_note draws from sets, whose order follows PYTHONHASHSEED."""
    pytest.importorskip("reasoning_gym")
    assert _load_in_child("gym:ransom_note?size=3", "1") == _load_in_child("gym:ransom_note?size=3", "2")


def test_gym_problems_are_different_ones_and_neighboring_seeds_share_none() -> None:
    """chain_sum repeats problems, and reasoning_gym itself makes problem i of seed s from s + i."""
    pytest.importorskip("reasoning_gym")
    sets = [load_problems(f"gym:chain_sum?size=40&seed={seed}&min_digits=1&max_digits=1") for seed in (0, 1)]
    texts = [{problem.problem for problem in one.problems} for one in sets]
    assert [len(one) for one in texts] == [40, 40]
    assert len(texts[0] & texts[1]) < 10
    assert sets[0].prompt == "gym"
    assert all(problem.kind.startswith("gym:chain_sum?") for problem in sets[0].problems)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:chain_sums", "'chain_sums' is not a task of reasoning_gym; the nearest are chain_sum"),
        ("gym:chain_sum?nope=1", "chain_sum has no 'nope'; it takes size, seed, min_terms"),
        ("gym:chain_sum?size=0", "size is 0; it has to be an integer from 1 to 100000"),
        ("gym:chain_sum?size=1000000000000", "size is 1000000000000; it has to be an integer from 1 to 100000"),
        ("gym:chain_sum?size=true", "size is true; it has to be an integer"),
        ("gym:chain_sum?seed=x", 'seed is "x"'),
        ("gym:chain_sum?size", "not of the form key=value"),
        ("gym:chain_sum?min_terms=0", "refuses this configuration (min_terms must be positive)"),
        ("gym:coin_flip?size=9&min_trials=1&max_trials=1", "different problems"),
    ],
)
def test_a_gym_name_that_cannot_be_used_is_one_line(name: str, message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ProblemError) as raised:
        load_problems(name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


# the real files, where they are at hand


@pytest.mark.parametrize(
    ("file", "n", "prompt"),
    [("aime24", 30, "aime"), ("aime25", 30, "aime"), ("gsm8k_test", 1319, "number"), ("svamp", 1000, "number")],
)
def test_the_real_files_load(file: str, n: int, prompt: str) -> None:
    path = SHARED / f"{file}.jsonl"
    if not path.exists():
        pytest.skip("STEERDEC_PROBLEM_FILES does not point to the problem files")
    got = load_problems(str(path))
    assert (len(got.problems), got.prompt) == (n, prompt)


# What real files get wrong


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (r"Compute \frac{1}{2}.", r"a form feed (U+000C) before 'rac{1}{2}.'"),
        (r"Let \beta = 2.", "a backspace (U+0008) before 'eta = 2.'"),
        (r"What is 2 \times 3?", "a tab (U+0009) before 'imes 3?'"),
        (r"Is $\theta$ acute?", "a tab (U+0009) before 'heta$ acute?'"),
        (r"$\left(1 \right)$", "a carriage return (U+000D) before 'ight)$'"),
        (r"$a \neq b$", "a line break (U+000A) before 'eq b$'"),
        (r"$\nabla f$", "a line break (U+000A) before 'abla f$'"),
    ],
)
def test_latex_whose_backslashes_are_not_doubled_is_refused_with_the_cause(
    tmp_path: Path, text: str, cause: str
) -> None:
    """`"\\frac"` is valid JSON: a form feed and `rac`. Read like that, no model can solve the problem."""
    for field in ("problem", "answer"):
        text_as_typed = r'{"id": "a", "problem": "1 + 1?", "answer": "2", "FIELD": "TEXT"}'
        line = text_as_typed.replace("FIELD", field).replace("TEXT", text)
        try:
            json.loads(line)
        except ValueError:
            pytest.skip("not every such backslash is valid JSON")
        file = write(tmp_path / "p.jsonl", line)
        with pytest.raises(ProblemError) as e:
            load_problems(str(file))
        assert f"p.jsonl:1: {field} has {cause}" in str(e.value)
        assert "write two backslashes" in str(e.value)
    good = row(problem=text + "\n\tTwo lines,\r\nand more.", answer=text)
    assert load_problems(str(write(tmp_path / "p.jsonl", good))).problems[0].problem == good["problem"]


def test_other_control_characters_are_refused(tmp_path: Path) -> None:
    for character in ("\x00", "\x1b", "\x7f"):
        with pytest.raises(ProblemError, match=rf"problem has a control character \(U\+00{ord(character):02X}\)"):
            load_problems(str(write(tmp_path / "p.jsonl", row(problem=f"1{character} + 1?"))))


@pytest.mark.parametrize(
    "unit", [r"^\circ", r"^{\circ}", r"\%", "%", " cm", r"\text{ cm}", " degrees", r"\,\mathrm{km}"]
)
def test_a_unit_that_only_some_answers_have_does_not_change_the_whole_file(tmp_path: Path, unit: str) -> None:
    rows = [row(id=str(i), answer=str(i)) for i in range(4)]
    file = write(tmp_path / "p.jsonl", *rows, row(id="u", answer=f"336{unit}"))
    with pytest.raises(ProblemError) as e:
        load_problems(str(file))
    assert str(e.value).startswith(f"{file}:5: answer is ")
    assert 'write 336, or give this line "kind": "math"' in str(e.value)
    kinds = [
        p.kind for p in load_problems(str(write(file, *rows, row(id="u", answer=f"336{unit}", kind="math")))).problems
    ]
    assert kinds == ["integer"] * 4 + ["math"]
    mixed = load_problems(str(write(file, *rows, row(id="u", answer=f"336{unit}"), row(id="v", answer="x^2"))))
    assert {p.kind for p in mixed.problems} == {"math"}, "other answers are not numbers either"


def test_a_gzipped_file_is_read(tmp_path: Path) -> None:
    plain = write(tmp_path / "p.jsonl", row(), row(id="b"))
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_problems(str(packed)).problems == load_problems(str(plain)).problems
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-9])
    with pytest.raises(ProblemError, match=r"p\.jsonl\.gz: cannot be unpacked"):
        load_problems(str(packed))
    packed.write_bytes(plain.read_bytes())
    with pytest.raises(ProblemError, match=r"p\.jsonl\.gz: cannot be unpacked"):
        load_problems(str(packed))


@pytest.mark.parametrize("answer", [51, 51.0, "51", "51.0", "51.00"])
def test_an_integer_may_be_written_as_a_decimal(tmp_path: Path, answer: Any) -> None:
    (problem,) = load_problems(str(write(tmp_path / "p.jsonl", row(answer=answer)))).problems
    assert (problem.answer, problem.kind) == ("51", "integer")


def test_a_decimal_answer_may_stand_without_quotes(tmp_path: Path) -> None:
    (problem,) = load_problems(str(write(tmp_path / "p.jsonl", row(answer=2.5)))).problems
    assert (problem.answer, problem.kind) == ("2.5", "number")
    with pytest.raises(ProblemError, match="answer is NaN"):
        load_problems(str(write(tmp_path / "p.jsonl", '{"id": "a", "problem": "1?", "answer": NaN}')))


def test_a_group_is_kept_and_belongs_to_the_content(tmp_path: Path) -> None:
    rows = [row(id="a", group="story 1"), row(id="b", group=2), row(id="c")]
    grouped = load_problems(str(write(tmp_path / "p.jsonl", *rows)))
    assert [problem.group for problem in grouped.problems] == ["story 1", "2", None]
    for one in rows:
        one.pop("group", None)
    plain = load_problems(str(write(tmp_path / "p.jsonl", *rows)))
    assert {problem.group for problem in plain.problems} == {None}
    assert grouped.sha256 != plain.sha256
    with pytest.raises(ProblemError, match="group is true; it has to be a text that is not empty"):
        load_problems(str(write(tmp_path / "p.jsonl", row(group=True))))


def test_equal_texts_are_found_whatever_their_spaces(tmp_path: Path) -> None:
    rows = [row(id="a"), row(id="b", problem="2 + 2?"), row(id="c", problem=" 1  +\n1? "), row(id="d")]
    found = load_problems(str(write(tmp_path / "p.jsonl", *rows)))
    assert found.repeated_texts == [("a", "c", "d")]
    assert load_problems("embedded").repeated_texts == []

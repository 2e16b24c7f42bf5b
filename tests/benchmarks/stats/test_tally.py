"""The pass over samples.jsonl: what it counts, what it refuses, and that it keeps no text."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from steerdec.benchmarks.stats.tally import SampleError, read_samples
from steerdec.common.journal import JournalError

PROBLEMS, ARMS = ("p0", "p1", "p2"), ("B", "A/A")


def line(problem="p0", arm="B", sample=0, grade="correct", **more):
    return {
        "problem_id": problem,
        "arm": arm,
        "sample": sample,
        "seed": 100 * PROBLEMS.index(problem) + sample,
        "text": f"{problem} {sample}",
        "answer": "7",
        "grade": grade,
        "finish_reason": "stop",
        "completion_tokens": 5,
        "forks": None,
        "mean_entropy_nats": None,
        "error": None,
    } | more


def tally(tmp_path, *lines, end="\n"):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)[:-1] + end)
    return read_samples(path, PROBLEMS, ARMS)


def test_counts_by_problem_and_arm(tmp_path):
    found = tally(
        tmp_path,
        line("p2", sample=1, grade="incorrect"),
        line("p0"),
        line("p0", sample=1, grade="ungraded"),
        line("p2", "A/A"),
        line("p2"),
    )
    assert found.counts("B").correct.tolist() == [1, 0, 1]
    assert found.counts("B").graded.tolist() == [1, 0, 2]
    assert found.counts("A/A").graded.tolist() == [0, 0, 1]
    assert found.counts("B", found.sample == 1).graded.tolist() == [0, 0, 1]
    assert found.by_problem(found.of("B")).tolist() == [2, 0, 2]


def test_rows_are_sorted_by_arm_problem_and_sample(tmp_path):
    lines = [line(p, a, s) for p in PROBLEMS for a in ARMS for s in range(3)]
    np.random.default_rng(0).shuffle(lines)
    found = tally(tmp_path, *lines)
    rows = list(zip(found.arm.tolist(), found.problem.tolist(), found.sample.tolist(), strict=True))
    assert rows == sorted(rows)
    assert len(rows) == 18


def test_a_later_line_replaces_an_earlier_one_of_the_same_sample(tmp_path):
    failed = line("p1", grade="ungraded", text="", error="ReadTimeout after 600 s")
    found = tally(tmp_path, failed, line("p0"), line("p1"), line("p0", grade="incorrect"))
    assert found.repeated == 2
    assert not found.failed.any()
    assert found.counts("B").correct.tolist() == [0, 1, 0]
    assert found.counts("B").graded.tolist() == [1, 1, 0]


def test_columns(tmp_path):
    found = tally(
        tmp_path,
        line(sample=0, answer=None, finish_reason="length", forks=2, mean_entropy_nats=0.25),
        line(sample=1, answer="8", completion_tokens=None, error="refused", grade="ungraded"),
        line(sample=2, answer="9"),
        line(sample=3, answer="8", seed=2**63 - 1),
    )
    assert found.answer[0] == -1
    assert found.answer[1] == found.answer[3] != found.answer[2]
    assert found.truncated.tolist() == [True, False, False, False]
    assert found.failed.tolist() == [False, True, False, False]
    assert found.tokens.tolist() == [5, -1, 5, 5]
    assert found.forks.tolist() == [2, -1, -1, -1]
    assert found.entropy_nats[0] == 0.25
    assert np.isnan(found.entropy_nats[1:]).all()


def test_differing_counts_pairs_of_one_seed_whose_text_differs(tmp_path):
    found = tally(
        tmp_path,
        *(line(p, "B", s) for p in PROBLEMS for s in range(3)),
        line("p0", "A/A", 0),
        line("p0", "A/A", 1, text="other"),
        line("p0", "A/A", 2, completion_tokens=6),
        line("p1", "A/A", 0, seed=999),  # another seed: no pair
        line("p1", "A/A", 1, grade="ungraded"),  # a text that could not be graded is still a text
        line("p1", "A/A", 2, error="refused", text=""),
    )
    differing = found.differing("A/A", "B")
    assert differing.correct.tolist() == [2, 0, 0]
    assert differing.graded.tolist() == [3, 1, 0]


def test_a_line_the_run_was_stopped_in_is_left_out(tmp_path):
    whole = tally(tmp_path, line(), line("p1"))
    torn = tally(tmp_path, line(), line("p1"), json.dumps(line("p2"))[:40], end="")
    assert whole.counts("B").graded.tolist() == torn.counts("B").graded.tolist()


def test_no_samples_yet(tmp_path):
    (tmp_path / "samples.jsonl").write_text("")
    found = read_samples(tmp_path / "samples.jsonl", PROBLEMS, ARMS)
    assert found.counts("B").graded.tolist() == [0, 0, 0]
    assert found.differing("A/A", "B").graded.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"arm": ', "line 2 is not a JSON object"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"problem_id": "p0", "arm": "B", "sample": 0}', "line 2 is not a sample: grade: Field required"),
        (line() | {"problem_id": "p9"}, 'line 2: problem_id "p9" is not of this run; allowed: p0, p1, p2'),
        (line() | {"arm": "C"}, 'line 2: arm "C" is not of this run; allowed: B, A/A'),
        (line() | {"grade": "right"}, "line 2 .* grade: Input should be 'correct', 'incorrect' or 'ungraded'"),
        (line() | {"seed": "first"}, 'line 2 .*"first"'),
        (line() | {"mean_entropy_nats": "low"}, 'line 2 .*"low"'),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path, bad, message):
    with pytest.raises((SampleError, JournalError), match=message) as error:
        tally(tmp_path, line(), bad, line("p1"))
    assert "\n" not in str(error.value)


def test_any_text_can_be_read(tmp_path):
    found = tally(tmp_path, line(text="\u2028 \x00 \U0001f642"), line("p1", text=None))
    assert found.counts("B").graded.tolist() == [1, 1, 0]


def test_texts_are_not_held(tmp_path):
    path = tmp_path / "samples.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps(line("p0", "B", s, text=f"{s} " * 20_000)) + "\n" for s in range(500))
    tracemalloc.start()
    read_samples(path, PROBLEMS, ARMS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 30e6
    assert peak < 4e6

"""Two runs compared: from their samples, problem by problem, with every other difference named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from steerdec.benchmarks.report.compare import NotComparableError, responses, unlike, write_comparison
from steerdec.benchmarks.report.run_folder import RunFolder, read_run
from steerdec.pages import wording
from steerdec.records.folder import load_run
from tests.benchmarks.report.test_report import Page, flat
from tests.support.make_run import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "a", n_problems=8, k=4), make_run(
        folder / "b", arm_set="causal", n_problems=8, k=4, seed=5
    )


def change(source: Path, folder: Path, **changes: Any) -> Path:
    """Return a copy of a run with another run.json and without a summary."""
    folder.mkdir()
    settings = json.loads((source / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    (folder / "samples.jsonl").write_bytes((source / "samples.jsonl").read_bytes())
    return folder


def test_the_page_needs_no_summary_and_shows_both_runs_on_one_axis(runs: tuple[Path, Path], tmp_path: Path) -> None:
    bare = [change(run, tmp_path / run.name) for run in runs]
    page = Page(write_comparison(*bare, tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    text = flat(page.text)
    assert page.unbalanced == []
    assert "script" not in page.tags
    assert "A: Qwen3-0.6B on embedded" in text
    assert "not in this run" in text
    for folder in runs:
        for row in read_run(folder).summary.comparisons:
            if row.scope == "problems like these":
                assert wording.points_interval(row.ci95) in text


def _accuracy(run: RunFolder, problem: str, arm: str) -> float:
    return run.cells[problem, arm].correct / run.cells[problem, arm].graded


def test_the_change_is_that_of_the_same_problems(runs: tuple[Path, Path]) -> None:
    a, b = (read_run(run) for run in runs)
    one = next(found for found in responses(a, b) if found.label == "F-down − B")
    first, second = (
        [_accuracy(run, problem, "F-down") - _accuracy(run, problem, "B") for problem in a.settings.problems.ids]
        for run in (a, b)
    )
    expected = scipy.stats.ttest_rel(second, first)
    assert one.change.p == pytest.approx(expected.pvalue)
    assert one.change.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert one.p_holm >= one.change.p


def test_a_run_compared_with_itself_does_not_differ(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a = read_run(runs[0])
    assert unlike(a.settings, a.settings) == []
    assert {found.change.value for found in responses(a, a)} == {0.0}
    page = write_comparison(runs[0], runs[0], tmp_path / "same.html").read_text(encoding="utf-8")
    assert "Besides the model, no setting differs" in page


def test_whatever_else_differs_is_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    server = {"steerdec": "0.1.0", "vllm": "0.32.0", "runner": "v1", "dtype": "bfloat16", "processor": True}
    other = change(runs[0], tmp_path / "other", server=server, temperature=0.7, max_tokens=99, threshold_nats=0.5)
    text = flat(Page(write_comparison(runs[0], other, tmp_path / "c.html").read_text(encoding="utf-8")).text)
    for row in ("dtype float32 bfloat16", "base temperature 0.6 0.7", "longest answer, tokens 1,024 99", "0.600 0.500"):
        assert row in text


def test_arms_of_one_name_with_other_temperatures_are_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    arms = json.loads((runs[0] / "run.json").read_text(encoding="utf-8"))["arms"]
    next(arm for arm in arms["arms"] if arm["name"] == "F-up")["steering"]["fork_temperature"] = 3.0
    other = change(runs[0], tmp_path / "other", arms=arms)
    assert [what for what, _, _ in unlike(read_run(runs[0]).settings, load_run(other).settings)] == ["arm F-up"]


def test_runs_without_a_common_problem_are_refused_in_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    problems = json.loads((runs[0] / "run.json").read_text(encoding="utf-8"))["problems"]
    other = change(runs[0], tmp_path / "other", problems=problems | {"ids": [f"other-{i}" for i in range(8)]})
    (other / "samples.jsonl").write_text("")
    with pytest.raises(NotComparableError, match="share no problem") as raised:
        write_comparison(runs[0], other, tmp_path / "c.html")
    assert "\n" not in str(raised.value)

"""`steerdec.load_run`: a run as objects and as data frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import steerdec
from steerdec.common.journal import JournalError
from steerdec.records.run import SettingsError
from tests.support.make_run import make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("load") / "run", n_problems=5, k=2, traces=1)


def test_a_run_has_its_settings_samples_and_summary(folder: Path) -> None:
    run = steerdec.load_run(folder)
    assert run.settings.model == "Qwen/Qwen3-0.6B"
    assert len(list(run.samples())) == 5 * 2 * 6
    assert run.summary is not None
    assert set(run.summary.arms) == {arm.name for arm in run.settings.arms.arms}


def test_a_data_frame_has_the_scores_of_the_summary(folder: Path) -> None:
    pytest.importorskip("pandas")
    run = steerdec.load_run(folder)
    frame = run.to_pandas()
    assert len(frame) == 60
    assert "token_text" not in frame
    assert run.summary is not None
    graded = frame.dropna(subset=["correct"]).astype({"correct": float})
    scores = graded.groupby(["arm", "problem_id"]).correct.mean().groupby("arm").mean()
    for name, arm in run.summary.arms.items():
        assert scores[name] == pytest.approx(arm.avg_at_k)


def test_polars_gets_the_same_rows_with_per_token_lists_on_request(folder: Path) -> None:
    pl = pytest.importorskip("polars")
    run = steerdec.load_run(folder)
    frame = run.to_polars(tokens=True)
    assert len(frame) == 60
    kept = frame.filter(pl.col("fork").is_not_null())
    assert (kept["fork"].list.len() == kept["entropy_nats"].list.len()).all()
    assert len(kept) == sum(sample.fork is not None for sample in run.samples())


def test_a_run_is_read_while_it_is_made(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", n_problems=3, k=1)
    (folder / "summary.json").unlink()
    run = steerdec.load_run(folder)
    assert run.summary is None
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"problem_id": "embedded-000", "arm": "B", "sam')
    assert run.to_arrow().num_rows == 18


def test_what_is_not_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"run.json cannot be read"):
        steerdec.load_run(tmp_path)
    folder = make_run(tmp_path / "run", n_problems=3, k=1)
    (folder / "samples.jsonl").unlink()
    with pytest.raises(JournalError, match="nothing was sampled yet"):
        steerdec.load_run(folder).to_arrow()


def test_importing_steerdec_loads_nothing_heavy() -> None:
    code = "import steerdec, sys; print(sorted({'pyarrow', 'pydantic', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

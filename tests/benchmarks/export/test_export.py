"""A run in the formats of other tools: row counts and scores are ours, and the formats' own checks pass."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from steerdec.benchmarks.export import every_eval_ever
from steerdec.benchmarks.export.formats import export
from steerdec.common.errors import InvalidInputError
from steerdec.problems.sets import load_problems
from steerdec.records.folder import load_run
from steerdec.records.run import Settings, SettingsError
from steerdec.records.samples import Sample
from tests.support.make_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("export") / "run", k=3, problems=load_problems("embedded", limit=6))


def graded(run: Path) -> list[Sample]:
    return [sample for sample in load_run(run).samples() if sample.grade != "ungraded"]


def accuracy(run: Path, arm: str) -> float:
    summary = load_run(run).summary
    assert summary is not None
    value = summary.arms[arm].avg_at_k
    assert value is not None
    return value


def test_parquet_has_every_sample_and_the_settings(run: Path, tmp_path: Path) -> None:
    (path,) = export(run, "parquet", tmp_path)
    table = pq.read_table(path)
    samples = list(load_run(run).samples())
    assert table.num_rows == len(samples)
    assert table.column("text").to_pylist() == [sample.text for sample in samples]
    assert table.column("correct").null_count == sum(sample.grade == "ungraded" for sample in samples) > 0
    assert Settings.model_validate_json(table.schema.metadata[b"steerdec_run"]) == load_run(run).settings
    lists = [row for row in table.column("fork").to_pylist() if row is not None]
    assert lists == [sample.fork for sample in samples if sample.fork]


def test_polars_and_pandas_read_parquet_with_the_right_types(run: Path, tmp_path: Path) -> None:
    (path,) = export(run, "parquet", tmp_path)
    table = pl.read_parquet(path)
    frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    polars = {"sample": pl.Int32, "seed": pl.Int64, "forks": pl.Int32, "correct": pl.Boolean}
    assert {name: table.schema[name] for name in polars} == polars
    assert table.schema["fork"] == pl.List(pl.Boolean)
    assert [str(frame.dtypes[name]) for name in polars] == ["Int32", "Int64", "Int32", "boolean"]
    assert len(table) == len(frame) == len(list(load_run(run).samples()))
    for arm, score in frame.groupby("arm")["correct"].mean().items():
        assert score == pytest.approx(accuracy(run, str(arm)))
    assert (load_run(run).to_pandas().dtypes[list(polars)] == frame.dtypes[list(polars)]).all()


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the schemas of Every Eval Ever, from its wheel: the package itself needs Python 3.12."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--python-version", "3.12", "--only-binary", ":all:", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "every-eval-ever==0.3.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the schemas come from a package index: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = ("eval", "instance_level_eval")
        return {name: json.loads(archive.read(f"every_eval_ever/schemas/{name}.schema.json")) for name in names}


def test_every_eval_ever_passes_its_schemas_and_has_our_scores(
    run: Path, tmp_path: Path, schemas: dict[str, Any]
) -> None:
    record_path, rows_path = export(run, "every-eval-ever", tmp_path)
    record = json.loads(record_path.read_text("utf-8"))
    rows = [json.loads(line) for line in rows_path.read_text("utf-8").splitlines()]
    jsonschema.validate(record, schemas["eval"])
    for row in rows:
        jsonschema.validate(row, schemas["instance_level_eval"])
    assert len(rows) == record["detailed_evaluation_results"]["total_rows"] == len(graded(run))
    scores = {one["evaluation_result_id"]: one["score_details"]["score"] for one in record["evaluation_results"]}
    assert {row["evaluation_result_id"] for row in rows} <= scores.keys()
    for arm in ("B", "F-up", "N-down"):
        assert scores[f"{arm}/avg@k"] == accuracy(run, arm)
    assert sum(row["evaluation"]["is_correct"] for row in rows) == sum(s.grade == "correct" for s in graded(run))


def test_every_eval_ever_is_told_where_a_set_of_the_hub_comes_from(run: Path, schemas: dict[str, Any]) -> None:
    source = every_eval_ever.read(run)
    own = source.settings.problems
    for name, repo, split in (("gsm8k@" + "a" * 40, "openai/gsm8k", "test"), ("hub:own/x", "own/x", None)):
        problems = own.model_copy(update={"source": name})
        settings = source.settings.model_copy(update={"problems": problems})
        given = replace(source, run=replace(source.run, settings=settings))
        record = every_eval_ever._record(given)
        jsonschema.validate(record, schemas["eval"])
        data = record["evaluation_results"][0]["source_data"]
        assert (data["source_type"], data["hf_repo"], data.get("hf_split")) == ("hf_dataset", repo, split)


def test_inspect_reads_its_logs_and_finds_our_scores(run: Path, tmp_path: Path) -> None:
    inspect_log = pytest.importorskip("inspect_ai.log", reason="inspect-ai is not among steerdec's dependencies")
    paths = export(run, "inspect", tmp_path)
    settings = load_run(run).settings
    logs = {log.eval.task_args["arm"]: log for log in map(inspect_log.read_eval_log, map(str, paths))}
    assert list(logs) == [arm.name for arm in settings.arms.arms]
    assert sum(len(log.samples) for log in logs.values()) == len(list(load_run(run).samples()))
    for name, log in logs.items():
        assert log.status == "success"
        assert log.results.scores[0].metrics["avg_at_k"].value == accuracy(run, name)
        values = [sample.scores["steerdec"].value for sample in log.samples if sample.scores]
        assert values.count("C") == sum(s.arm == name and s.grade == "correct" for s in graded(run))
    failed = [sample for sample in logs["N-down"].samples if sample.error]
    assert [sample.error.message for sample in failed] == ["ReadTimeout after 600 s"] * 6
    assert logs["A/A"].eval.task == "embedded, arm A_A"
    first = logs["B"].samples[0]
    assert first.input in first.messages[0].content
    assert sum(usage.output_tokens for usage in logs["B"].stats.model_usage.values()) == sum(
        sample.completion_tokens or 0 for sample in load_run(run).samples() if sample.arm == "B"
    )
    assert logs["F-up"].eval.model_generate_config.extra_body["steering"]["fork_temperature"] == 1.0


def test_a_format_that_is_none_and_problems_that_changed_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match='"csv" is not a format; allowed are parquet, inspect, every-eval-ever'):
        export(run, "csv", tmp_path)
    old = load_run(run).settings
    changed = old.problems.model_copy(update={"sha256": "0" * 64})
    folder = tmp_path / "changed"
    folder.mkdir()
    old.model_copy(update={"problems": changed}).write(folder)
    (folder / "samples.jsonl").touch()
    with pytest.raises(SettingsError, match="have changed") as raised:
        export(folder, "every-eval-ever", tmp_path)
    assert "\n" not in str(raised.value)

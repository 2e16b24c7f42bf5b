"""A real run in the tools that its exports are for: `python -m tests.benchmarks.export.whole_export [RUN]`.

Needs the package index, chromium, and several minutes. Without RUN, makes a small one with the real engine first. Then:

1. Parquet: polars and pandas read every row, with the right types;
2. Inspect: its own reader, its data frames, and `inspect view` in a browser show our rows and scores;
3. Every Eval Ever: its validator accepts the files, and rows and scores are ours.

Inspect and Every Eval Ever are installed into environments of their own in build/exports. Prints one line a step; exit
status 1 at the first that fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl

from steerdec.records.folder import Run, load_run
from tests.benchmarks.export.inspect_viewer import check_viewer

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "exports"
INSPECT = "inspect-ai==0.3.285"
EVERY_EVAL_EVER = "every-eval-ever==0.3.0"  # needs Python 3.12
UV = "uv==0.13.9"

READ_LOGS = """
import json, sys
from inspect_ai.analysis import evals_df, samples_df
from inspect_ai.log import read_eval_log

logs = [read_eval_log(path) for path in sys.argv[1:]]
frame, rows = evals_df(sys.argv[1:]), samples_df(sys.argv[1:])
print(json.dumps({
    "arms": {log.eval.task_args["arm"]: {
        "avg_at_k": log.results.scores[0].metrics["avg_at_k"].value,
        "correct": sum(s.scores["steerdec"].value == "C" for s in log.samples if s.scores),
        "rows": len(log.samples),
        "tokens": sum(usage.output_tokens for usage in log.stats.model_usage.values()),
    } for log in logs},
    "tasks": sorted(frame["task_name"]), "scores": sorted(frame["score_headline_value"]), "rows": len(rows),
}))
"""


class StepError(Exception):
    """A step did not do what it should; the message has what was seen."""


def run(*command: Any, statuses: tuple[int, ...] = (0,)) -> str:
    """Return what a command printed. Raises StepError for another exit status."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in statuses:
        raise StepError(
            f"{' '.join(map(str, command))[:200]}: status {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def same(what: str, seen: Any, expected: Any) -> None:
    """Raise StepError unless the two are equal."""
    if seen != expected:
        raise StepError(f"{what}: {seen!r:.1500} instead of {expected!r:.1500}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def inspect_environment() -> Path:
    """Return the bin folder of an environment with Inspect, which also finds steerdec and what it needs here."""
    folder = FOLDER / "inspect"
    if not (folder / "bin" / "inspect").exists():
        venv.create(folder, with_pip=True, clear=True)
        run(folder / "bin" / "pip", "install", "--quiet", INSPECT, UV)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "steerdec-checkout.pth").write_text(f"{ROOT}\n{ours}\n")
    return folder / "bin"


def newer_python() -> str:
    """Return a Python from 3.12 on: one in PATH or of pyenv, else "3.12" for uv to bring."""
    names = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    pyenv = [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python"))]
    for path in [*filter(None, names), *pyenv]:
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:  # else pyenv's shim
            return path
    return "3.12"


def validator(bin_: Path) -> Path:
    """Return the command of Every Eval Ever."""
    folder = FOLDER / "every-eval-ever"
    if not (folder / "bin" / "every_eval_ever").exists():
        run(bin_ / "uv", "venv", "--quiet", "--seed", "--clear", "--python", newer_python(), folder)
        run(folder / "bin" / "pip", "install", "--quiet", EVERY_EVAL_EVER)
    return folder / "bin" / "every_eval_ever"


def small_run() -> Path:
    """Make a run of six problems on the real engine, with its report; return its folder."""
    folder = FOLDER / "run"
    options = "--problems embedded --limit 6 --samples 2 --model SmolLM2-135M-Instruct --arms quick --max-tokens 32"
    run(sys.executable, "-m", "steerdec", "bench", "run", *options.split(), "--out", folder)
    run(sys.executable, "-m", "steerdec", "bench", "report", folder)
    return folder


def scores(run_: Run) -> dict[str, float]:
    """Return avg@k by arm, as the report has it."""
    assert run_.summary is not None, "a report was made"
    return {name: float(arm.avg_at_k or 0) for name, arm in run_.summary.arms.items()}


def check_parquet(run_: Run, out: Path) -> None:
    """Read the file with polars and pandas: types, rows, scores."""
    run(sys.executable, "-m", "steerdec", "bench", "export", run_.folder, "--to", "parquet", "--out", out)
    samples = list(run_.samples())
    frame = pl.read_parquet(out / "samples.parquet")
    expected = {
        "problem_id": pl.String, "sample": pl.Int32, "seed": pl.Int64, "text": pl.String, "grade": pl.String,
        "completion_tokens": pl.Int32, "forks": pl.Int32, "mean_entropy_nats": pl.Float64, "correct": pl.Boolean,
        "entropy_nats": pl.List(pl.Float32), "fork": pl.List(pl.Boolean), "token_text": pl.List(pl.String),
    }  # fmt: skip
    same("polars' types", {name: frame.schema[name] for name in expected}, expected)
    same("polars' rows", frame["text"].to_list(), [sample.text for sample in samples])
    means = dict(frame.group_by("arm").agg(pl.col("correct").mean()).iter_rows())
    same(
        "polars' scores", {k: round(v, 9) for k, v in means.items()}, {k: round(v, 9) for k, v in scores(run_).items()}
    )
    table = pd.read_parquet(out / "samples.parquet", dtype_backend="numpy_nullable")
    types = {name: str(table.dtypes[name]) for name in ("sample", "seed", "completion_tokens", "correct")}
    same("pandas' types", types, dict(zip(types, ("Int32", "Int64", "Int32", "boolean"), strict=True)))
    tokens = [None if pd.isna(count) else count for count in table["completion_tokens"]]
    same("pandas' rows", tokens, [sample.completion_tokens for sample in samples])
    same("pandas' scores", int(table["correct"].sum()), sum(sample.grade == "correct" for sample in samples))
    say(f"parquet: polars and pandas read {len(samples)} rows, with our types and scores")


def check_inspect(run_: Run, out: Path, bin_: Path) -> None:
    """Read the logs with Inspect, and look at them in `inspect view`."""
    run(bin_ / "python", "-m", "steerdec", "bench", "export", run_.folder, "--to", "inspect", "--out", out)
    paths = sorted(out.glob("*.eval"))
    seen = json.loads(run(bin_ / "python", "-c", READ_LOGS, *paths))
    samples, expected = list(run_.samples()), scores(run_)
    of = {arm: [sample for sample in samples if sample.arm == arm] for arm in expected}
    ours = {
        arm: {
            "avg_at_k": expected[arm],
            "correct": sum(sample.grade == "correct" for sample in of[arm]),
            "rows": len(of[arm]),
            "tokens": sum(sample.completion_tokens or 0 for sample in of[arm]),
        }
        for arm in expected
    }
    same("Inspect's arms", seen["arms"], ours)
    same("Inspect's data frames", (len(seen["tasks"]), seen["rows"]), (len(expected), len(samples)))
    same("Inspect's scores", seen["scores"], sorted(expected.values()))
    say(f"inspect: {len(paths)} logs with {len(samples)} samples, by Inspect's reader and data frames; scores are ours")
    shown = check_viewer(bin_ / "inspect", out, FOLDER / "screenshots")
    for arm, path in zip((arm.name for arm in run_.settings.arms.arms), paths, strict=True):
        row = shown[path.name]
        same(f"score of {arm} in the viewer", row.score, round(expected[arm], 3))
        same(
            f"rows of {arm} in the viewer",
            row.grades,
            {"C": ours[arm]["correct"], "I": sum(sample.grade == "incorrect" for sample in of[arm])},
        )
    say(f"  inspect view shows the same in chromium; screenshots are in {FOLDER / 'screenshots'}")


def check_every_eval_ever(run_: Run, out: Path, command: Path) -> None:
    """Validate the files with the official program, and compare rows and scores."""
    run(sys.executable, "-m", "steerdec", "bench", "export", run_.folder, "--to", "every-eval-ever", "--out", out)
    record_path, rows_path = next(out.rglob("*.json")), next(out.rglob("*_samples.jsonl"))
    told = json.loads(
        run(command, "validate", "--format", "json", record_path, rows_path, statuses=(0, 2))
    )  # 2: warnings
    same(
        "valid files",
        [(one["file_type"], one["valid"], one["errors"]) for one in told],
        [("aggregate", True, []), ("instance", True, [])],
    )
    record = json.loads(record_path.read_text("utf-8"))
    rows = [json.loads(line) for line in rows_path.read_text("utf-8").splitlines()]
    graded = [sample for sample in run_.samples() if sample.grade != "ungraded"]
    same("rows", (len(rows), told[1]["line_count"]), (len(graded), len(graded)))
    found = {one["evaluation_result_id"]: one["score_details"]["score"] for one in record["evaluation_results"]}
    same("scores", {arm: found[f"{arm}/avg@k"] for arm in scores(run_)}, scores(run_))
    same("correct", sum(row["evaluation"]["is_correct"] for row in rows), sum(s.grade == "correct" for s in graded))
    warned = sorted({str(warning.get("msg", warning)) for one in told for warning in one["warnings"]})
    say(f"every-eval-ever: {EVERY_EVAL_EVER} accepts the record and {len(rows)} rows; scores are ours")
    for line in warned:
        say(f"  it warns: {line[:300]}")


def main(arguments: list[str]) -> int:
    """Run all steps; return the exit status."""
    try:
        bin_ = inspect_environment()
        command = validator(bin_)
        folder = Path(arguments[0]) if arguments else small_run()
        run_ = load_run(folder)
        say(f"a run of {len(list(run_.samples()))} samples in {folder}")
        out = FOLDER / "out"
        check_parquet(run_, out / "parquet")
        check_every_eval_ever(run_, out / "every-eval-ever", command)
        check_inspect(run_, out / "inspect", bin_)
    except StepError as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

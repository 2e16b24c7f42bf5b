"""Export a run in the schema of Every Eval Ever (0.3.0): a record with a result per arm and metric, a row per sample.

The schema requires text in all `additional_details`, a number as the score of every sample, and `is_correct`. Samples
that failed have no score, so they are counted in the record and left out of the rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from steerdec.common.files import FileError, write_atomically
from steerdec.problems import hub
from steerdec.records.arms import Arm
from steerdec.records.run import Settings
from steerdec.records.samples import Sample
from steerdec.records.summary import ArmSummary

from .source import Source, read

SCHEMA_VERSION: Final = "0.3.0"

Json = dict[str, Any]


def write(folder: Path, out: Path) -> list[Path]:
    """Write the record and the rows to the path of the collection's repository: `data/SET/DEVELOPER/MODEL/UUID.json`.

    Raises:
        SettingsError, ProblemError, JournalError, SummaryError: the run or its problems cannot be read.
        FileError: a file cannot be written.
    """
    source = read(folder)
    place = _place(source.settings)
    record_path, rows_path = out / f"{place}.json", out / f"{place}_samples.jsonl"
    digest, count = hashlib.sha256(), 0
    try:
        rows_path.parent.mkdir(parents=True, exist_ok=True)
        with rows_path.open("wb") as file:
            for row in _rows(source):
                line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
                file.write(line)
                digest.update(line)
                count += 1
    except OSError as e:
        raise FileError(f"{rows_path} cannot be written ({e.strerror})") from None
    record = _record(source) | {
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": f"{place}_samples.jsonl",
            "hash_algorithm": "sha256",
            "checksum": digest.hexdigest(),
            "total_rows": count,
        }
    }
    write_atomically(record_path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return [record_path, rows_path]


def _place(settings: Settings) -> str:
    """Return the path of the record without its suffix; the same run always has the same one."""
    developer, _, model = settings.model.strip("/").rpartition("/")
    folders = (settings.problems.name, developer.rpartition("/")[2] or "unknown", model)
    digest = hashlib.sha256(settings.as_json().encode()).digest()
    safe = [re.sub(r"[^\w.@=-]", "_", folder) for folder in folders]
    return "/".join(["data", *safe, str(UUID(bytes=digest[:16], version=4))])


def _evaluation_id(source: Source) -> str:
    settings = source.settings
    return f"{settings.problems.name}/{settings.model}/{_created_s(source)}"


def _created_s(source: Source) -> str:
    return f"{datetime.fromisoformat(source.settings.created).timestamp():.0f}"


def _record(source: Source) -> Json:
    settings = source.settings
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": _evaluation_id(source),
        "evaluation_timestamp": settings.created,
        "retrieved_timestamp": _created_s(source),
        "source_metadata": {
            "source_name": "steerdec bench run",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {"name": "steerdec", "version": settings.steerdec},
        "model_info": {
            "name": settings.model,
            "id": settings.model,
            "inference_engine": {"name": "vLLM", "version": str(settings.server.get("vllm", "unknown"))},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights",
                "dtype": str(settings.server.get("dtype")),
                "threshold_nats": f"{settings.threshold_nats:g}",
            },
        },
        "evaluation_results": [
            result for arm in settings.arms.arms for result in _results(source, arm, source.summary.arms[arm.name])
        ],
    }


def _results(source: Source, arm: Arm, summary: ArmSummary) -> Iterator[Json]:
    for metric, value in (("avg@k", summary.avg_at_k), ("pass@k", summary.pass_at_k), ("maj@k", summary.maj_at_k)):
        if value is None:
            continue
        counts = {"ungraded": str(summary.ungraded), "missing": str(summary.missing)}
        details: Json = {"score": value, "details": counts}
        if metric == "avg@k" and summary.avg_at_k_ci95 is not None:
            lower, upper = summary.avg_at_k_ci95
            interval = {"lower": lower, "upper": upper, "confidence_level": 0.95, "method": "Student over problems"}
            details["uncertainty"] = {"confidence_interval": interval, "num_samples": summary.n_problems}
        yield {
            "evaluation_result_id": _result_id(arm, metric),
            "evaluation_name": _name(source, arm),
            "source_data": _data(source),
            "metric_config": {
                "metric_id": metric.replace("@k", "_at_k"),
                "metric_name": metric.replace("k", str(summary.k)),
                "metric_kind": "pass_rate" if metric == "pass@k" else "accuracy",
                "metric_unit": "proportion",
                "metric_parameters": {"k": summary.k},
                "lower_is_better": False,
                "score_type": "continuous",
                "min_score": 0,
                "max_score": 1,
            },
            "score_details": details,
            "generation_config": _generation(source, arm),
        }


def _name(source: Source, arm: Arm) -> str:
    return f"{source.settings.problems.name}, arm {arm.name}"


def _result_id(arm: Arm, metric: str) -> str:
    return f"{arm.name}/{metric}"


def _data(source: Source) -> Json:
    problems = source.settings.problems
    details = {"source": problems.source, "sha256": problems.sha256, "problems": str(problems.n)}
    data: Json = {"dataset_name": problems.name, "source_type": "other", "additional_details": details}
    if where := hub.find(problems.source):
        split = {} if where.split is None else {"hf_split": where.split}
        data |= {"source_type": "hf_dataset", "hf_repo": where.repo, "samples_number": problems.n, **split}
        details["revision"] = str(where.revision)
    return data


def _generation(source: Source, arm: Arm) -> Json:
    settings = source.settings
    sampling = {name: value for name, value in settings.sampling.items() if name in ("top_p", "top_k")}
    return {
        "generation_args": {
            "temperature": None if isinstance(arm.temperature, str) else arm.temperature,
            "max_tokens": settings.max_tokens,
            "prompt_template": settings.prompt,
            **sampling,
        },
        "additional_details": {"arm": arm.name, "role": arm.role, "steering": json.dumps(arm.steering)},
    }


def _rows(source: Source) -> Iterator[Json]:
    arms = {arm.name: arm for arm in source.settings.arms.arms}
    for sample in source.run.samples():
        if sample.grade != "ungraded" and sample.text is not None:
            yield _row(source, arms[sample.arm], sample)


def _row(source: Source, arm: Arm, sample: Sample) -> Json:
    problem, prompt = source.problems[sample.problem_id], source.prompt(sample.problem_id)
    correct = sample.grade == "correct"
    answer = {
        "turn_idx": 0,
        "source": "output.raw",
        "extracted_value": sample.answer or "",
        "extraction_method": sample.grade_path or "unknown",
        "is_terminal": True,
    }
    metadata = {
        "sample": str(sample.sample),
        "seed": str(sample.seed),
        "finish_reason": str(sample.finish_reason),
        "completion_tokens": str(sample.completion_tokens),
        "forks": None if sample.forks is None else str(sample.forks),
        "mean_entropy_nats": None if sample.mean_entropy_nats is None else f"{sample.mean_entropy_nats:.6g}",
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": _evaluation_id(source),
        "model_id": source.settings.model,
        "evaluation_name": _name(source, arm),
        "evaluation_result_id": _result_id(arm, "avg@k"),
        "sample_id": sample.problem_id,
        "sample_hash": hashlib.sha256((prompt + problem.answer).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": problem.problem, "formatted": prompt, "reference": [problem.answer]},
        "output": {"raw": [sample.text]},
        "answer_attribution": [answer],
        "evaluation": {"score": float(correct), "is_correct": correct},
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }

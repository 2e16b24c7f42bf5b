"""Export a run as logs of Inspect, one per arm, for `inspect view` and other tools that read them.

Inspect's own package writes the files, so that they match its version. It is not among steerdec's dependencies.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import FileError
from steerdec.records.arms import Arm
from steerdec.records.samples import Sample

from .source import Source, read

SCORER = "steerdec"
_STOP = {"stop": "stop", "length": "max_tokens"}


class MissingPackageError(InvalidInputError):
    """A package that only this export needs is not installed."""


def write(folder: Path, out: Path) -> list[Path]:
    """Write `NUMBER-ARM.eval` for every arm.

    A sample of a problem becomes an epoch of it; failed requests become errors.

    Raises:
        MissingPackageError: inspect-ai is not installed.
        SettingsError, ProblemError, JournalError, SummaryError: the run or its problems cannot be read.
        FileError: a file cannot be written.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise MissingPackageError("--to inspect needs the package inspect-ai: pip install inspect-ai") from None
    source = read(folder)
    paths = []
    for number, arm in enumerate(source.settings.arms.arms, start=1):
        path = out / f"{number:02}-{_plain(arm.name)}.eval"
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_eval_log(_log(source, arm), str(path))
        except OSError as e:
            raise FileError(f"{path} cannot be written ({e.strerror or e})") from None
        paths.append(path)
    return paths


def _plain(name: str) -> str:
    return re.sub(r"[^\w.=-]", "_", name)


def _log(source: Source, arm: Arm) -> Any:
    from inspect_ai.log import EvalLog, EvalStats

    settings, summary = source.settings, source.summary.arms[arm.name]
    samples = list(source.samples_of(arm))
    tokens = sum(sample.completion_tokens or 0 for sample in samples)
    return EvalLog(
        status="cancelled" if summary.missing else "success",
        eval=_spec(source, arm),
        results=_results(source, arm),
        stats=EvalStats(
            started_at=settings.created,
            completed_at=settings.created,  # a run does not record when it ended, and the viewer has no word for that
            model_usage={_model(source): _usage(tokens)},
        ),
        samples=[_sample(source, sample) for sample in samples],
    )


def _model(source: Source) -> str:
    return f"vllm/{source.settings.model}"


def _usage(tokens: int) -> Any:
    from inspect_ai.model import ModelUsage

    return ModelUsage(output_tokens=tokens, total_tokens=tokens)  # those of the prompts are not recorded


def _spec(source: Source, arm: Arm) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalSpec
    from inspect_ai.model import GenerateConfig

    settings = source.settings
    run_id = hashlib.sha256(settings.as_json().encode()).hexdigest()[:22]
    sampling = {name: value for name, value in settings.sampling.items() if name in ("top_p", "top_k")}
    steering = None if arm.steering is None else {"steering": arm.steering}
    return EvalSpec(
        created=settings.created,
        run_id=run_id,
        eval_id=f"{run_id}-{arm.name}",
        # Inspect's data frames drop what stands before a slash in the name of a task.
        task=f"{settings.problems.name.replace('/', '_')}, arm {_plain(arm.name)}",
        task_id=f"{settings.problems.name}-{arm.name}",
        task_args={"arm": arm.name},
        tags=["steerdec", arm.role],
        model=_model(source),
        dataset=EvalDataset(
            name=settings.problems.name,
            location=settings.problems.source,
            samples=settings.problems.n,
            sample_ids=list(settings.problems.ids),
        ),
        model_generate_config=GenerateConfig(
            temperature=None if isinstance(arm.temperature, str) else arm.temperature,
            max_tokens=settings.max_tokens,
            extra_body=steering,
            **sampling,
        ),
        config=EvalConfig(epochs=settings.samples, epochs_reducer=["mean"]),
        packages={"steerdec": settings.steerdec, **settings.versions},
        metadata={
            "role": arm.role,
            "prompt": settings.prompt,
            "seed": settings.seed,
            "threshold_nats": settings.threshold_nats,
            "threshold_origin": settings.threshold_origin,
            "problems_sha256": settings.problems.sha256,
        },
    )


def _results(source: Source, arm: Arm) -> Any:
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    summary = source.summary.arms[arm.name]
    values = {"avg_at_k": summary.avg_at_k, "pass_at_k": summary.pass_at_k, "maj_at_k": summary.maj_at_k}
    metrics = {name: EvalMetric(name=name, value=value) for name, value in values.items() if value is not None}
    graded = summary.samples - summary.ungraded
    score = EvalScore(
        name=SCORER,
        scorer=SCORER,
        reducer="mean",
        scored_samples=graded,
        unscored_samples=summary.ungraded,
        metrics=metrics,
    )
    return EvalResults(
        total_samples=summary.samples + summary.missing,
        completed_samples=summary.samples - summary.failed_requests,
        scores=[score],
    )


def _sample(source: Source, sample: Sample) -> Any:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    problem = source.problems[sample.problem_id]
    question = ChatMessageUser(content=source.prompt(sample.problem_id))
    usage = _usage(sample.completion_tokens or 0)
    extra: dict[str, Any] = {}
    if sample.text is None:
        messages = [question]
        extra["error"] = EvalError(message=str(sample.error), traceback="", traceback_ansi="")
    else:
        messages = [question, ChatMessageAssistant(content=sample.text)]
        stop = _STOP.get(str(sample.finish_reason), "unknown")
        output = ModelOutput.from_content(source.settings.model, sample.text, stop_reason=stop)
        output.usage = usage
        extra |= {"output": output, "model_usage": {_model(source): usage}}
    if sample.grade != "ungraded":
        value = "C" if sample.grade == "correct" else "I"
        extra["scores"] = {SCORER: Score(value=value, answer=sample.answer, explanation=sample.grade_path)}
    kept = {
        "seed": sample.seed,
        "forks": sample.forks,
        "mean_entropy_nats": sample.mean_entropy_nats,
        "mean_sampled_entropy_nats": sample.mean_sampled_entropy_nats,
        "endpoint": sample.endpoint,
    }
    return EvalSample(
        id=sample.problem_id,
        epoch=sample.sample + 1,
        input=problem.problem,  # the messages have the whole prompt
        target=problem.answer,
        messages=messages,
        metadata={name: value for name, value in kept.items() if value is not None},
        **extra,
    )

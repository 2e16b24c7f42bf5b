"""Find or make the traces of an analysis and their scores, and keep them in its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from steerdec.analysis.traces import loading
from steerdec.analysis.traces import trace as traces
from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.scoring import Scores, score_traces
from steerdec.analysis.traces.store import Store, scores_line, scores_of, trace_line, trace_of
from steerdec.analysis.traces.trace import Trace
from steerdec.common.errors import InputError
from steerdec.common.progress import RunProgress
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import ProblemSet, load_problems

SAMPLES: Final = 4
TRACES: Final = "traces"  # file names in the folder, without .jsonl


@dataclass(frozen=True)
class Source:
    """What the command line requested; None means the default."""

    run: Path | None = None
    model: str | None = None
    problems: str | None = None
    arm: str | None = None
    limit: int | None = None
    samples: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    prompt: str | None = None
    thinking: bool | None = None
    grade: str | None = None  # only responses with this grade
    dtype: str | None = None
    device: str | None = None


_OF_PROBLEMS: Final = ("problems", "samples", "seed", "max_tokens", "temperature", "prompt", "thinking")
_OF_RUN: Final = ("arm",)


@dataclass(frozen=True)
class Resolved:
    """A source with every default filled in, and everything checked that needs no model."""

    source: Source
    model: str
    problem_set: ProblemSet | None  # None if the traces come from `source.run`

    def settings(self) -> dict[str, Any]:
        """Return the settings that the folder of the analysis must agree with."""
        kept = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self.source).items()}
        kept |= {"model": self.model}
        if self.problem_set is not None:
            kept |= {"problems_sha256": self.problem_set.sha256}
        return {key: value for key, value in kept.items() if value is not None and key != "device"}


def resolve(source: Source) -> Resolved:
    """Fill in the defaults. Raises InputError, ProblemError, SettingsError: one line, before any work."""
    if (source.run is None) == (source.problems is None):
        raise InputError("give either RUN, the folder of a bench run, or --model with --problems")
    foreign = _OF_PROBLEMS if source.run is not None else _OF_RUN
    for name in foreign:
        if name != "problems" and getattr(source, name) is not None:
            flag, other = f"--{name.replace('_', '-')}", "--problems" if source.run is not None else "RUN"
            raise InputError(f"{flag} goes with {other}")
    if source.run is not None:
        if not source.run.is_dir():
            raise InputError(f"RUN: {source.run} is not a folder")
        run = source.run.resolve()
        name, dtype = traces.run_model(run)
        dtype = dtype if dtype in loading.DTYPES else None
        return Resolved(replace(source, run=run, dtype=source.dtype or dtype), source.model or name, None)
    from steerdec.analysis.traces import sampling  # imports transformers

    if source.model is None:
        raise InputError("--model is required: the model that answers --problems")
    problem_set = load_problems(str(source.problems), limit=source.limit)
    filled = replace(
        source,
        samples=source.samples or SAMPLES,
        seed=source.seed or 0,
        max_tokens=source.max_tokens or sampling.MAX_TOKENS,
        temperature=sampling.base_temperature(problem_set.name) if source.temperature is None else source.temperature,
        prompt=source.prompt or problem_set.prompt,
    )
    for problem in problem_set.problems[:1]:
        request_body(str(filled.prompt), problem, thinking=filled.thinking)  # for its error message
    return Resolved(filled, source.model, problem_set)


def load(resolved: Resolved) -> Loaded:
    """Load the model of the source. Raises ModelError, InputError."""
    return loading.load(resolved.model, dtype=resolved.source.dtype, device=resolved.source.device)


def all_traces(resolved: Resolved, loaded: Loaded, store: Store) -> list[Trace]:
    """Return the traces, in an order that does not depend on how often the analysis was interrupted.

    Raises:
        InputError, AnalysisError, ProblemError, JournalError: see `traces` and `sampling`.
    """
    requested = resolved.source
    if requested.run is not None:
        return traces.read_run(
            requested.run, loaded.tokenizer, arm=requested.arm, grade=requested.grade, limit=requested.limit
        )
    from steerdec.analysis.traces.sampling import Sampling, sample_traces

    problem_set = resolved.problem_set
    assert problem_set is not None, "resolve() gives a run or problems"
    plan = Sampling(
        samples=requested.samples or SAMPLES,
        temperature=1.0 if requested.temperature is None else requested.temperature,
        max_tokens=requested.max_tokens or 1,
        seed=requested.seed or 0,
        prompt=requested.prompt or problem_set.prompt,
        thinking=requested.thinking,
    )
    kept = {key: trace_of(line) for key, line in store.lines(TRACES).items()}
    total = len(problem_set.problems) * plan.samples
    with store.appending(TRACES) as lines, RunProgress(total, len(kept), "samples") as progress:

        def keep(trace: Trace) -> None:
            lines.append(trace_line(trace))
            kept[trace.key] = trace
            progress.advance(1, len(trace.response_ids))

        sample_traces(loaded, problem_set, plan, done=list(kept), on_trace=keep)
    order = {problem.id: i for i, problem in enumerate(problem_set.problems)}
    return sorted(kept.values(), key=lambda trace: (order[trace.problem_id], trace.sample))


def of_grade(found: list[Trace], grade: str | None) -> list[Trace]:
    """Return the traces with a grade, or all of them. Raises InputError: there is none."""
    kept = [trace for trace in found if grade is None or trace.grade == grade]
    if found and not kept:
        raise InputError(f"--grade: none of the {len(found)} responses is {grade}")
    return kept


def all_scores(found: list[Trace], loaded: Loaded, store: Store, name: str = "scores") -> list[Scores]:
    """Return the scores of the traces, in their order; scores that are already in `NAME.jsonl` are not computed again.

    Raises:
        InputError, AnalysisError, JournalError: see `score_traces` and `Store`.
    """
    if not found:
        raise InputError("there is no trace to score")
    kept = {key: scores for key, line in store.lines(name).items() if (scores := scores_of(line)).entropy_nats.size > 0}
    missing = [trace for trace in found if _unscored(trace, kept)]
    with store.appending(name) as lines, RunProgress(len(found), len(found) - len(missing), "traces") as progress:

        def keep(i: int, scores: Scores) -> None:
            lines.append(scores_line(missing[i], scores))
            kept[missing[i].key] = scores
            progress.advance(1, len(missing[i].response_ids))

        if missing:
            score_traces(loaded, missing, on_scores=keep)
    return [kept[trace.key] for trace in found]


def _unscored(trace: Trace, kept: dict[tuple[str, str, int], Scores]) -> bool:
    scores = kept.get(trace.key)
    if scores is None:
        return True
    if len(scores.entropy_nats) != len(trace.response_ids):
        raise InputError(
            f"--out: the scores kept there are of other tokens than {trace.where} has; choose another folder"
        )
    return False

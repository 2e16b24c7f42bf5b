"""Sample chains and apply every lens to one chain per problem; existing results are not computed again.

OUT/traces.jsonl has the samples, OUT/lenses.jsonl one line per problem, and OUT/resamples.jsonl (if requested) one line
per place with rollouts. All are appended as results arrive. `lenses.report` makes the table and the page from these
lines, so they can be made again without running the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from steerdec.analysis.lenses import resampling
from steerdec.analysis.lenses.trace import ARM, Chain, Lenses, LensSettings
from steerdec.analysis.traces import source, store
from steerdec.analysis.traces.endings import FEWEST_TOKENS, Ending, ending, reasoning
from steerdec.analysis.traces.forward import forward
from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.source import Resolved, Source
from steerdec.analysis.traces.trace import Trace, by_problem, prompt_ids, stop_texts
from steerdec.common.errors import InputError
from steerdec.common.progress import RunProgress
from steerdec.problems.sets import Problem, ProblemSet

RECORDS: Final = "lenses"
SAMPLES: Final = 8
FEWEST_SAMPLES: Final = 4  # two per half, for the spread over chains
MAX_TOKENS: Final = 96  # the work for a chain grows with the square of its length


def resolve(requested: Source) -> Resolved:
    """Fill in every default. Raises InputError, ProblemError, PromptError: one line, before any work."""
    if requested.problems is None:
        raise InputError("--problems is required: what --model reasons about")
    if requested.samples is not None and requested.samples < FEWEST_SAMPLES:
        raise InputError(f"--samples: {requested.samples}; the spread of an answer over chains needs {FEWEST_SAMPLES}")
    filled = replace(requested, samples=requested.samples or SAMPLES, max_tokens=requested.max_tokens or MAX_TOKENS)
    resolved = source.resolve(filled)
    answers = {p.answer for p in _set(resolved).problems}
    if len(answers) < 2:
        raise InputError(
            f"--problems: {_set(resolved).name} gives {len(_set(resolved).problems)} with one answer; two different "
            "answers are needed, as each is held against a wrong one"
        )
    return resolved


def settings_of(loaded: Loaded, resolved: Resolved, settings: LensSettings) -> dict[str, Any]:
    """Return the settings that a folder must have been made with to be resumed by a command."""
    dtype = str(loaded.dtype).removeprefix("torch.")
    described = {"analysis": "lenses"} | resolved.settings() | asdict(settings) | {"dtype": dtype}
    return {name: value for name, value in described.items() if name != "resamples" or value}


def look(loaded: Loaded, resolved: Resolved, settings: LensSettings, kept: store.Store) -> list[dict[str, Any]]:
    """Return the records of all problems, in the set's order: from `Lenses.look`, or from `_skipped`.

    With `settings.resamples`, the results of resampling are added to them: see `resampling.added`.

    Raises:
        AnalysisError, ProblemError, GradingError, JournalError: it failed; what was done is kept.
    """
    problems = _set(resolved).problems
    found = source.all_traces(resolved, loaded, kept)
    traces = {problem: [found[i] for i in indices] for problem, indices in by_problem(found)}
    endings = _endings(loaded, resolved)
    records = {key[0]: line for key, line in kept.lines(RECORDS).items()}
    missing = [problem for problem in problems if problem.id not in records]
    if missing:
        lenses = Lenses(loaded, settings)
        with kept.appending(RECORDS) as lines, RunProgress(len(problems), len(records), "problems") as progress:
            for problem in missing:
                chain = _chain(loaded, resolved, endings, problem, traces[problem.id])
                if chain is None:
                    record = _skipped(problem, resolved.source.grade)
                else:
                    again = problems.index(problem) % settings.again_every == 0
                    seed = _seed(resolved.source.seed or 0, problem.id)
                    record = lenses.look(chain, seed, again=again) | {"packed": lenses.packed}
                lines.append(record)
                lines.sync()
                records[problem.id] = record
                progress.advance(1, 0 if chain is None else len(chain.tokens))
    if settings.resamples:
        chains = [(problem, _chain(loaded, resolved, endings, problem, traces[problem.id])) for problem in problems]
        looked_at = [(problem, chain) for problem, chain in chains if chain is not None]
        sampling_settings = resampling.ResamplingSettings(
            rollouts=settings.resamples,
            max_tokens=resolved.source.max_tokens or MAX_TOKENS,
            template=str(resolved.source.prompt),
            seed=resolved.source.seed or 0,
        )
        places = resampling.resample(loaded, looked_at, sampling_settings, kept)
        records |= {problem: resampling.added(records[problem], own) for problem, own in places.items()}
    return [records[problem.id] for problem in problems]


def check(loaded: Loaded, resolved: Resolved, settings: LensSettings) -> None:
    """Check before anything is written that the longest chain with its answer fits, and that the model gives numbers.

    Raises:
        InputError: prompt, chain, and answer, or a rollout, do not fit the model's context.
        AnalysisError: logits or hidden states are not finite.
    """
    requested, problems = resolved.source, _set(resolved).problems
    endings = _endings(loaded, resolved)
    prompts = [prompt_ids(loaded.tokenizer, str(requested.prompt), problem, requested.thinking) for problem in problems]
    longest = max(len(p) + len(endings[q.id].tokens) for p, q in zip(prompts, problems, strict=True))
    if longest + (requested.max_tokens or 0) > loaded.context_tokens:
        raise InputError(
            f"--max-tokens: {requested.max_tokens} with a prompt and an answer of {longest} tokens; {loaded.name} "
            f"takes at most {loaded.context_tokens} (max_position_embeddings)"
        )
    longest = max(map(len, prompts))
    if settings.resamples and longest + 2 * (requested.max_tokens or 0) > loaded.context_tokens:
        raise InputError(
            f"--resamples: rollouts may have twice --max-tokens, {2 * (requested.max_tokens or 0)}, after a prompt of "
            f"{longest} tokens; {loaded.name} takes at most {loaded.context_tokens} (max_position_embeddings)"
        )
    forward(loaded.model, prompts[0], endings[problems[0].id].tokens)


def _set(resolved: Resolved) -> ProblemSet:
    assert resolved.problem_set is not None, "resolve() asks for problems"
    return resolved.problem_set


def _endings(loaded: Loaded, resolved: Resolved) -> dict[str, Ending]:
    return {p.id: ending(loaded.tokenizer, str(resolved.source.prompt), p.answer) for p in _set(resolved).problems}


def _chain(
    loaded: Loaded, resolved: Resolved, endings: dict[str, Ending], problem: Problem, traces: Sequence[Trace]
) -> Chain | None:
    """Return the chain of a problem: from its first sample that reasons for FEWEST_TOKENS before it states an answer.

    With `--grade`, from its first such sample with that grade. The rule is fixed in advance. None if there is no such
    sample. The spread over chains is over all samples, whatever their grades.
    """
    stops = stop_texts(str(resolved.source.prompt))
    cut = [reasoning(loaded.tokenizer, trace.response_ids, stops) for trace in traces]
    for trace, tokens in zip(traces, cut, strict=True):
        if len(tokens) >= FEWEST_TOKENS and resolved.source.grade in (None, trace.grade):
            return Chain(
                problem_id=problem.id,
                sample=trace.sample,
                prompt=trace.prompt_ids,
                tokens=tokens,
                others=tuple(cut),
                ending=endings[problem.id],
                gold=_alone(loaded, endings[problem.id]),
                wrong_gold=_alone(loaded, endings[_other_answer(_set(resolved).problems, problem).id]),
                facts={"gold": problem.answer, "answer": trace.answer, "grade": trace.grade},
            )
    return None


def _skipped(problem: Problem, grade: str | None) -> dict[str, Any]:
    sample = "sample" if grade is None else f"{grade} sample"
    why = f"no {sample} reasons for {FEWEST_TOKENS} tokens before it states an answer"
    return {"problem_id": problem.id, "arm": ARM, "sample": -1, "error": None, "skipped": why}


def _other_answer(problems: Sequence[Problem], problem: Problem) -> Problem:
    """Return the next problem, cyclically, that has another answer."""
    at = problems.index(problem)
    return next(p for p in (*problems[at + 1 :], *problems[:at]) if p.answer != problem.answer)


def _alone(loaded: Loaded, statement: Ending) -> tuple[int, ...]:
    """Tokenize the statement of an answer as a text of its own, with whatever the tokenizer begins a text with."""
    return tuple(loaded.tokenizer(statement.text.strip()).input_ids)


def _seed(seed: int, problem_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"lenses/{seed}/{problem_id}".encode()).digest()[:8], "big")

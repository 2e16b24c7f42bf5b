"""Chains sampled, and each problem's chain looked at under every lens; what is there already is not made again.

OUT/traces.jsonl has the samples, OUT/lenses.jsonl one line a problem, OUT/resamples.jsonl (if asked for) one line for
every place that was gone on from; all are appended as they come. `lens_report` makes the table and the page from these
lines, so that they can be made anew without the model's work.
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
FEWEST_SAMPLES: Final = 4  # two a half, for the spread over chains
MAX_TOKENS: Final = 96  # a chain's work grows with the square of its length


def resolve(asked: Source) -> Resolved:
    """Every default filled in. Raises InputError, ProblemError, PromptError: one line, before any work."""
    if asked.problems is None:
        raise InputError("--problems is missing: what --model is to reason about")
    if asked.samples is not None and asked.samples < FEWEST_SAMPLES:
        raise InputError(f"--samples: {asked.samples}; the spread of an answer over chains needs {FEWEST_SAMPLES}")
    filled = replace(asked, samples=asked.samples or SAMPLES, max_tokens=asked.max_tokens or MAX_TOKENS)
    resolved = source.resolve(filled)
    answers = {p.answer for p in _set(resolved).problems}
    if len(answers) < 2:
        raise InputError(
            f"--problems: {_set(resolved).name} gives {len(_set(resolved).problems)} with one answer; two different "
            "answers are needed, as each is held against a wrong one"
        )
    return resolved


def settings_of(loaded: Loaded, resolved: Resolved, settings: LensSettings) -> dict[str, Any]:
    """What a folder has to have been made with for a command to go on in it."""
    dtype = str(loaded.dtype).removeprefix("torch.")
    told = {"analysis": "lenses"} | resolved.settings() | asdict(settings) | {"dtype": dtype}
    return {name: value for name, value in told.items() if name != "resamples" or value}


def look(loaded: Loaded, resolved: Resolved, settings: LensSettings, kept: store.Store) -> list[dict[str, Any]]:
    """The records of all problems, in the set's order: see `lens_trace.Lenses.look`, or what `_skipped` gives.

    With `settings.resamples`, what was resampled is added to them: see `resampling.added`.

    Raises:
        AnalysisError, ProblemError, GradingError, JournalError: it failed on its way; what was done is kept.
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
                    record = _skipped(problem)
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
        asked = resampling.Asked(
            rollouts=settings.resamples,
            max_tokens=resolved.source.max_tokens or MAX_TOKENS,
            template=str(resolved.source.prompt),
            seed=resolved.source.seed or 0,
        )
        places = resampling.resample(loaded, looked_at, asked, kept)
        records |= {problem: resampling.added(records[problem], own) for problem, own in places.items()}
    return [records[problem.id] for problem in problems]


def check(loaded: Loaded, resolved: Resolved, settings: LensSettings) -> None:
    """The longest chain with its answer fits, and the model gives numbers; before anything is written.

    Raises:
        InputError: prompt, chain and answer, or a rollout, do not fit the model's context.
        AnalysisError: logits or hidden states are not finite.
    """
    asked, problems = resolved.source, _set(resolved).problems
    endings = _endings(loaded, resolved)
    prompts = [prompt_ids(loaded.tokenizer, str(asked.prompt), problem, asked.thinking) for problem in problems]
    longest = max(len(p) + len(endings[q.id].tokens) for p, q in zip(prompts, problems, strict=True))
    if longest + (asked.max_tokens or 0) > loaded.context_tokens:
        raise InputError(
            f"--max-tokens: {asked.max_tokens} with a prompt and an answer of {longest} tokens; {loaded.name} takes at "
            f"most {loaded.context_tokens} (max_position_embeddings)"
        )
    longest = max(map(len, prompts))
    if settings.resamples and longest + 2 * (asked.max_tokens or 0) > loaded.context_tokens:
        raise InputError(
            f"--resamples: rollouts may have twice --max-tokens, {2 * (asked.max_tokens or 0)}, after a prompt of "
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
    """The chain of a problem: of its first sample that reasons for FEWEST_TOKENS before it states an answer.

    A rule fixed beforehand. None if there is no such sample.
    """
    stops = stop_texts(str(resolved.source.prompt))
    cut = [reasoning(loaded.tokenizer, trace.response_ids, stops) for trace in traces]
    for trace, tokens in zip(traces, cut, strict=True):
        if len(tokens) >= FEWEST_TOKENS:
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


def _skipped(problem: Problem) -> dict[str, Any]:
    why = f"no sample reasons for {FEWEST_TOKENS} tokens before it states an answer"
    return {"problem_id": problem.id, "arm": ARM, "sample": -1, "error": None, "skipped": why}


def _other_answer(problems: Sequence[Problem], problem: Problem) -> Problem:
    """The next problem, going round, that has another answer."""
    at = problems.index(problem)
    return next(p for p in (*problems[at + 1 :], *problems[:at]) if p.answer != problem.answer)


def _alone(loaded: Loaded, statement: Ending) -> tuple[int, ...]:
    """The statement of an answer as a text of its own, with whatever the tokenizer begins a text with."""
    return tuple(loaded.tokenizer(statement.text.strip()).input_ids)


def _seed(seed: int, problem_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"lenses/{seed}/{problem_id}".encode()).digest()[:8], "big")

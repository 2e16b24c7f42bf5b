"""Traces: a prompt and a response as token ids, with the grade. Read from a bench run here; see `sampling` for others.

A run stores texts and no token ids, so the ids are made again: the prompt as vLLM makes it (the chat template rendered
to text, then tokenized without special tokens; a plain completion with them), and the response from its text. The model
may have sampled other tokens for the same text ("  " as two spaces, "un" + "like"). Then these ids are not the sampled
ones, and their entropies are not those of the run. `Trace.ids_are` says how far that can be excluded:

    sampled    exactly the sampled ids, from `sampling`
    verified   the sample has the texts of its tokens, and each token made again has the same text
    counted    as many tokens as the server counted, with the token that ended the response: it has no text
    differ     another number of tokens, or other texts

A reasoning parser on the server drops white space around `</think>`, which shows as `differ`. A chat template may print
the date, which cannot be detected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steerdec.common.errors import InputError
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import Problem, ProblemSet, load_problems
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import Settings, read_settings
from steerdec.records.samples import NAME as SAMPLES
from steerdec.records.samples import Sample, read_samples

Origin = Literal["sampled", "verified", "counted", "differ"]


@dataclass(frozen=True)
class Trace:
    """One response as token ids. Immutable; lists have one entry per response token."""

    problem_id: str
    arm: str
    sample: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # with the stop token if it is known, as vLLM counts it
    gold: str
    kind: str  # how `gold` is compared; see `problems.Problem`
    answer: str | None
    grade: str  # "correct", "incorrect", "ungraded"
    finish_reason: str | None
    text: str
    ids_are: Origin
    reported_entropy_nats: tuple[float | None, ...] | None = None  # from the server, if the sample has them

    @property
    def key(self) -> tuple[str, str, int]:
        return self.problem_id, self.arm, self.sample

    @property
    def where(self) -> str:
        """Name the trace in a message."""
        return f"problem {self.problem_id}, arm {self.arm}, sample {self.sample}"


def prompt_ids(tokenizer: Any, template: str, problem: Problem, thinking: bool | None) -> tuple[int, ...]:
    """Return the prompt's token ids as vLLM makes them. Raises PromptError, InputError."""
    _, body = request_body(template, problem, thinking=thinking)
    if "prompt" in body:
        return tuple(tokenizer(body["prompt"]).input_ids)
    if not tokenizer.chat_template:
        raise InputError(f"prompt {template} is a chat, and the model's tokenizer has no chat template; use few-shot")
    keywords = body.get("chat_template_kwargs") or {}
    text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True, **keywords)
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def stop_texts(template: str) -> tuple[str, ...]:
    """Return the texts at which a response to this template ends, in addition to the model's own end tokens."""
    problem = Problem("", "", "")
    return tuple(request_body(template, problem, thinking=None)[1].get("stop", ()))


def run_model(folder: Path) -> tuple[str, str | None]:
    """Return (model, dtype) of a run; the dtype as the server reported it. Raises SettingsError."""
    settings = read_settings(folder / RUN_JSON)
    name = settings.launch.model if settings.launch is not None else settings.model
    return name, settings.server.get("dtype")


def read_run(
    folder: Path, tokenizer: Any, *, arm: str | None = None, grade: str | None = None, limit: int | None = None
) -> list[Trace]:
    """Return the traces of one arm of a bench run, in the order of its file, without failed and empty ones.

    Args:
        tokenizer: of the model that made the run.
        arm: default: the arm that changes nothing (identity, because it has telemetry; else baseline) and that writes
            whole responses.
        grade: only traces with this grade.
        limit: maximum number of traces.

    Raises:
        SettingsError, ProblemError, JournalError: the run or its problems cannot be read.
        InputError: there is no such arm, it is empty, or the problems have changed since.
    """
    settings = read_settings(folder / RUN_JSON)
    arm = arm or _undisturbed(settings)
    if arm not in (names := [a.name for a in settings.arms.arms]):
        raise InputError(f"--arm: {arm!r} is not in {folder}; its arms are {', '.join(names)}")
    problems = {p.id: p for p in _problems(folder, settings).problems}
    prompts = {i: prompt_ids(tokenizer, settings.prompt, p, settings.thinking) for i, p in problems.items()}
    end = _end_id(tokenizer, settings.prompt)
    found = []
    for sample in read_samples(folder / SAMPLES):
        if sample.arm == arm and sample.error is None and sample.text:
            if sample.problem_id not in problems:
                raise InputError(f"{folder / SAMPLES}: problem {sample.problem_id} is not of this run")
            problem = problems[sample.problem_id]
            trace = _trace(sample, sample.text, problem, prompts[problem.id], tokenizer, end)
            if trace.response_ids and grade in (None, trace.grade):
                found.append(trace)
        if limit is not None and len(found) >= limit:
            break
    if not found:
        if grade is not None:
            raise InputError(f"--grade: arm {arm} of {folder} has no {grade} response")
        raise InputError(f"{folder} is empty: arm {arm} has no sample with a text; run `steerdec bench run` first")
    return found


def _problems(folder: Path, settings: Settings) -> ProblemSet:
    """Load the run's problems and check that they are the same. Raises ProblemError, InputError."""
    problem_set = load_problems(settings.problems.source, limit=settings.problems.limit)
    if problem_set.sha256 != settings.problems.sha256:
        raise InputError(
            f"{folder / RUN_JSON}: the problems {settings.problems.source} have changed: sha256 "
            f"{settings.problems.sha256[:12]} -> {problem_set.sha256[:12]}"
        )
    return problem_set


def _undisturbed(settings: Settings) -> str:
    for role in ("identity", "baseline"):
        for arm in settings.arms.arms:
            if arm.role == role and arm.replay is None:
                return arm.name
    return settings.arms.arms[0].name


def _end_id(tokenizer: Any, template: str) -> int | None:
    """Return the token that ends a response, or None where several may."""
    stops = stop_texts(template)
    if not stops:
        return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    ids = tokenizer(stops[0], add_special_tokens=False).input_ids
    return int(ids[0]) if len(stops) == len(ids) == 1 else None


def _trace(
    sample: Sample, text: str, problem: Problem, prompt: tuple[int, ...], tokenizer: Any, end: int | None
) -> Trace:
    ids, origin = _response_ids(sample, text, tokenizer, end)
    reported = sample.entropy_nats if origin == "verified" else None
    return Trace(
        problem_id=problem.id,
        arm=sample.arm,
        sample=sample.sample,
        prompt_ids=prompt,
        response_ids=ids,
        gold=problem.answer,
        kind=problem.kind,
        answer=sample.answer,
        grade=sample.grade,
        finish_reason=sample.finish_reason,
        text=text,
        ids_are=origin,
        reported_entropy_nats=None if reported is None else tuple(reported),
    )


def _response_ids(sample: Sample, text: str, tokenizer: Any, end: int | None) -> tuple[tuple[int, ...], Origin]:
    """Return the response's ids, and how certain it is that they are the sampled ones.

    The token that ended a response is one of them, as in the server's telemetry: it is not in the text, and its
    entropy would be missing.
    """
    pieces = sample.token_text
    if pieces:
        ids = _from_pieces(pieces, tokenizer)
        if ids is not None:
            return ids, "verified"
    ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    missing = (sample.completion_tokens or 0) - len(ids)
    if missing == 1 and sample.finish_reason == "stop":
        ids, missing = ids if end is None else (*ids, end), 0
    return ids, "counted" if missing == 0 and not pieces else "differ"


def _from_pieces(pieces: list[str], tokenizer: Any) -> tuple[int, ...] | None:
    """Find ids whose texts are `pieces`: those of the whole text, or one by one; None if neither has these texts."""
    whole = tuple(tokenizer("".join(pieces), add_special_tokens=False).input_ids)
    if [tokenizer.decode([i]) for i in whole] == pieces:
        return whole
    single = [tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces]
    if all(len(ids) == 1 for ids in single) and [tokenizer.decode(ids) for ids in single] == pieces:
        return tuple(ids[0] for ids in single)
    return None


def by_problem(traces: list[Trace]) -> Iterator[tuple[str, list[int]]]:
    """Yield (problem_id, indices of its traces), problems in order of appearance."""
    groups: dict[str, list[int]] = {}
    for i, trace in enumerate(traces):
        groups.setdefault(trace.problem_id, []).append(i)
    yield from groups.items()

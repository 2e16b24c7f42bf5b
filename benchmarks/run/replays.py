"""Replays: responses that continue a recorded prefix. Their requirements are checked before any work.

Once a response diverges, positions of the recorded one mean nothing in it. So each sample intervenes at one position:
the tokens before it are part of the prompt; the token at it and everything after it are sampled anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerdec.common.errors import InvalidInputError
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import Problem, ProblemSet
from steerdec.records.arms import ArmSet

from ..design.masks import Places, Prefix, ReplayMask, read_mask
from .answers import MalformedAnswerError
from .endpoints import Endpoint, RefusedError
from .sample_requests import Prompting

BYTES_A_TOKEN = 2048  # more than a token's text, or its number, takes


class ReplayError(InvalidInputError):
    """A mask does not fit the planned run."""


def read_replays(
    arm_set: ArmSet, problem_set: ProblemSet, *, prompt: str, max_tokens: int
) -> tuple[ArmSet, dict[str, Places]]:
    """Return the set with a description of its masks, and the positions of each replay.

    Raises:
        MaskError: a mask cannot be read.
        ReplayError: it has changed, is of other problems or another prompt, or selects no position.
    """
    masks: dict[str, ReplayMask] = {}
    places, replays = {}, {}
    for name, replay in arm_set.replays.items():
        if replay.mask not in masks:
            masks[replay.mask] = read_mask(Path(replay.mask))
        mask = masks[replay.mask]
        if replay.sha256 not in (None, mask.sha256):
            raise ReplayError(
                f"mask {mask.name} has changed since the run: sha256 {str(replay.sha256)[:12]} -> {mask.sha256[:12]}"
            )
        places[name] = Places(mask, replay.positions)
        _check(places[name], problem_set, prompt, max_tokens)
        recorded = {"mask": mask.name, "sha256": mask.sha256, "about": mask.kept()}
        replays[name] = replay.model_copy(update=recorded)
    return arm_set.model_copy(update={"replays": replays}), places


def _check(places: Places, problem_set: ProblemSet, prompt: str, max_tokens: int) -> None:
    mask = places.mask
    if mask.about.get("prompt") not in (None, prompt):
        raise ReplayError(
            f"mask {mask.name} is of responses to prompt {mask.about['prompt']}, the run has {prompt}; set --prompt"
        )
    missing = [problem.id for problem in problem_set.problems if problem.id not in mask.traces]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ReplayError(
            f"mask {mask.name} has no response to problem {missing[0]}{more}; it is of {mask.kept()['problems']}"
        )
    what = {"fork": "that is a fork", "other": "that is not a fork", "any": ""}[places.which]
    for problem in problem_set.problems:
        responses = places.of(problem.id)
        if not responses:
            raise ReplayError(f"mask {mask.name} has no token {what} in any response to problem {problem.id}")
        last = max(int(positions[-1]) for _, positions in responses)
        if last >= max_tokens:
            raise ReplayError(
                f"--max-tokens: {max_tokens} ends before position {last}, which mask {mask.name} selects in a "
                f"response to problem {problem.id}; give more than {last}"
            )


def check_server(
    replays: Mapping[str, Places], models: Sequence[str], max_model_len: int | None, max_tokens: int
) -> None:
    """Check that the server has the masks' model and enough context.

    Args:
        models: names of the served model.

    Raises:
        ReplayError: the masks are of another model, or a prefix and an answer exceed the context.
    """
    served = {Path(name).name for name in models}
    for mask in _masks(replays):
        if mask.kept()["model"] not in served:
            raise ReplayError(f"mask {mask.name} is of {mask.kept()['model']}, served is {' or '.join(sorted(served))}")
        longest = max(len(trace.prompt_ids) for traces in mask.traces.values() for trace in traces)
        if max_model_len is not None and longest + max_tokens > max_model_len:
            raise ReplayError(
                f"--max-tokens: {max_tokens} after a prompt of {longest} tokens (mask {mask.name}) do not fit the "
                f"server's context of {max_model_len} tokens"
            )


def _masks(replays: Mapping[str, Places]) -> list[ReplayMask]:
    """Return each mask once."""
    return list({places.mask.sha256: places.mask for places in replays.values()}.values())


async def check_prompts(
    endpoint: Endpoint, replays: Mapping[str, Places], problems: Sequence[Problem], prompting: Prompting
) -> None:
    """Check that the masks' prompts equal the server's prompts of the problems (template and tokenizer).

    Raises:
        ReplayError: one differs, or the server has no /tokenize.
        EndpointError, MalformedAnswerError: the server does not answer.
    """
    masks = _masks(replays)
    slots = asyncio.Semaphore(endpoint.connections)

    async def differs(problem: Problem) -> str | None:
        try:
            async with slots:
                ids = await prompt_ids(endpoint, problem, prompting)
        except RefusedError as e:
            return f"{e} (at /tokenize, which replays need)"
        for mask in masks:
            if any(list(trace.prompt_ids) != ids for trace in mask.traces[problem.id]):
                return (
                    f"mask {mask.name}: the prompt of problem {problem.id} differs from the server's; the mask "
                    "is of other problems, another prompt or another tokenizer"
                )
        return None

    if masks:
        for complaint in filter(None, await asyncio.gather(*(differs(problem) for problem in problems))):
            raise ReplayError(complaint)


async def prompt_ids(endpoint: Endpoint, problem: Problem, prompting: Prompting) -> list[int]:
    """Return the server's own token ids of the prompt of a problem.

    Raises:
        EndpointError, MalformedAnswerError: the server does not answer with token ids.
    """
    _, body = request_body(prompting.template, problem, thinking=prompting.thinking)
    to_tokenize = {key: value for key, value in body.items() if key != "stop"} | {"model": prompting.model}
    ids = await _post(endpoint, "/tokenize", to_tokenize, "tokens", 1 << 24)
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise MalformedAnswerError("/tokenize: tokens is not a list of token ids")
    return ids


async def whole_text(
    endpoint: Endpoint, prefix: Prefix, new_ids: Sequence[int], *, model: str, stops: list[str]
) -> str:
    """Return the whole response, whose last tokens `new_ids` were generated; it ends before a stop text.

    It is decoded from token ids, because a prefix may end in the middle of a character.

    Raises:
        EndpointError, MalformedAnswerError: the server does not answer with a text.
    """
    ids = [*prefix.response_ids, *new_ids]
    if not ids:
        return ""
    body = {"model": model, "tokens": ids}
    text = await _post(endpoint, "/detokenize", body, "prompt", (1 << 20) + BYTES_A_TOKEN * len(ids))
    if not isinstance(text, str):
        raise MalformedAnswerError("/detokenize: prompt is not a text")
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


async def _post(endpoint: Endpoint, path: str, body: dict[str, Any], field: str, max_bytes: int) -> Any:
    raw = await endpoint.post(path, body, max_bytes=max_bytes)
    try:
        return json.loads(raw)[field]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise MalformedAnswerError(f"{path} did not answer with the field {field}") from None

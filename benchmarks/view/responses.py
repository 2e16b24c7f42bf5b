"""One sample of a problem under every arm: the tokens where they were kept, else the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from steerdec.pages import forks
from steerdec.pages.forks import ShownTrace, TokenTrace
from steerdec.records.folder import load_run
from steerdec.records.samples import Sample

from ..report.run_folder import token_trace
from .index import Index

MOST_TOKENS: Final = 1000  # shown of each arm; two arms side by side show more
MOST_CHARACTERS: Final = 20_000
HIDDEN_GRADE: Final = "not shown while the run is under way"


@dataclass(frozen=True)
class Response:
    """What one arm answered; without `trace`, its tokens were not kept."""

    arm: str
    tokens: int | None
    forks: int | None
    mean_entropy_nats: float | None
    ending: str
    grade: str
    answer: str | None
    trace: ShownTrace | None
    text: str | None
    left_out_characters: int
    error: str | None
    first_difference: int | None  # from the reference, a token's index


@dataclass(frozen=True)
class Responses:
    found: list[Response]  # in the order of the arms
    reference: str | None  # the arm that the others are compared with


def responses(folder: Path, index: Index, problem_id: str, number: int, arms: Sequence[str]) -> Responses:
    """Read one sample of a problem under `arms`.

    The first of these that kept its tokens, in the run's order, is the reference of the differences.

    Raises:
        JournalError: the samples cannot be read.
    """
    samples: dict[str, Sample] = {}
    for one in load_run(folder).samples():
        if one.sample == number and one.problem_id == problem_id and one.arm in arms:
            samples[one.arm] = one if index.finished else replace(one, grade="ungraded")
    ordered = [samples[arm] for arm in index.arms if arm in samples]
    traces = {one.arm: trace for one in ordered if (trace := token_trace(one)) is not None and trace.token_text}
    reference = next(iter(traces), None)
    first = None if reference is None else traces[reference]
    return Responses([_response(one, traces.get(one.arm), first, index.finished) for one in ordered], reference)


def _response(sample: Sample, trace: TokenTrace | None, reference: TokenTrace | None, finished: bool) -> Response:
    shown, at = None, None
    if trace is not None and reference is not None:
        pair = forks.side_by_side(reference, None if trace is reference else trace, MOST_TOKENS)
        shown, at = pair.right or pair.left, pair.first_difference
    text = None if shown is not None or sample.text is None else sample.text
    return Response(
        arm=sample.arm,
        tokens=sample.completion_tokens,
        forks=sample.forks,
        mean_entropy_nats=sample.mean_entropy_nats,
        ending={"length": "truncated", "stop": "ended by itself"}.get(sample.finish_reason or "", ""),
        grade=sample.grade if finished else HIDDEN_GRADE,
        answer=sample.answer,
        trace=shown,
        text=None if text is None else text[:MOST_CHARACTERS],
        left_out_characters=max(0, len(text or "") - MOST_CHARACTERS),
        error=sample.error,
        first_difference=at,
    )

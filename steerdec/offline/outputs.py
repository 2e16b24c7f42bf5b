"""vLLM's outputs with telemetry beside each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import escape
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from steerdec.common.token_texts import token_texts
from steerdec.pages.tokens import ColoredTokens
from steerdec.telemetry.loan import Loan, Telemetry


@dataclass(repr=False, eq=False)
class SteeredCompletion(CompletionOutput):  # type: ignore[misc]  # vLLM is untyped to mypy here
    """vLLM's output of one sequence, and what was done to each of its tokens.

    `steering` has one entry per token of `token_ids`: all so far, or with `RequestOutputKind.DELTA` the new ones. It is
    None where the request was not steered, or asked for telemetry "none".
    """

    steering: Telemetry | None = None
    tokenizer: Any = None  # for the texts of single tokens; left out where the output is copied or pickled

    def colored(self) -> ColoredTokens | None:
        """Return the tokens as a notebook shows them; None without telemetry or a tokenizer."""
        if self.steering is None or self.tokenizer is None:
            return None
        lists: dict[str, Any] = self.steering.lists()
        shown = {name: lists[name] for name in ("entropy_nats", "fork", "temperature")}
        return ColoredTokens(token_texts(list(self.token_ids), self.tokenizer), **shown)

    def _repr_html_(self) -> str | None:
        tokens = self.colored()
        return None if tokens is None else tokens._repr_html_()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"tokenizer": None}


class SteeredOutput(RequestOutput):  # type: ignore[misc]
    """vLLM's output of a request, whose sequences have telemetry."""

    outputs: list[SteeredCompletion]

    def _repr_html_(self) -> str | None:
        """Return the prompt and each sequence; None if a sequence has nothing to show."""
        shown = [one._repr_html_() for one in self.outputs]
        if None in shown:
            return None
        prompt = f'<p style="white-space: pre-wrap">{escape(self.prompt or "")}</p>'
        return prompt + "".join(html for html in shown if html)


def annotated(output: RequestOutput, loan: Loan | None, kind: RequestOutputKind, tokenizer: Any) -> SteeredOutput:
    """Return vLLM's output with what the request's lanes hold about the tokens in it."""
    sequences = [
        SteeredCompletion(**vars(completion), steering=_read(completion, loan, kind), tokenizer=tokenizer)
        for completion in output.outputs
    ]
    return SteeredOutput(**(vars(output) | {"outputs": sequences}))


def was_aborted(output: RequestOutput) -> bool:
    """Return whether the engine may still be writing: someone had a sequence of the request aborted."""
    return any(completion.finish_reason == "abort" for completion in output.outputs)


def _read(completion: CompletionOutput, loan: Loan | None, kind: RequestOutputKind) -> Telemetry | None:
    if loan is None or not loan.lanes:
        return None
    if kind == RequestOutputKind.DELTA:
        return loan.following(completion.index, len(completion.token_ids))
    loan.returned_tokens[completion.index] = len(completion.token_ids)
    return loan.returned(completion.index)

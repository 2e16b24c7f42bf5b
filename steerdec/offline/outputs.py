"""vLLM's outputs with telemetry beside each sequence."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from steerdec.telemetry.loan import Loan, Telemetry


@dataclass(repr=False, eq=False)
class SteeredCompletion(CompletionOutput):  # type: ignore[misc]  # vLLM is untyped to mypy here
    """vLLM's output of one sequence, and what was done to each of its tokens.

    `steering` has one entry per token of `token_ids`: all so far, or with `RequestOutputKind.DELTA` the new ones. It is
    None where the request was not steered, or asked for telemetry "none".
    """

    steering: Telemetry | None = None


class SteeredOutput(RequestOutput):  # type: ignore[misc]
    """vLLM's output of a request, whose sequences have telemetry."""

    outputs: list[SteeredCompletion]


def annotated(output: RequestOutput, loan: Loan | None, kind: RequestOutputKind) -> SteeredOutput:
    """Return vLLM's output with what the request's lanes hold about the tokens in it."""
    sequences = [
        SteeredCompletion(**vars(completion), steering=_read(completion, loan, kind)) for completion in output.outputs
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

"""Add `steering` to every choice of the engine's answer."""

from __future__ import annotations

from typing import Any

from steerdec.telemetry.loan import Telemetry

from .body import Prepared


class Annotator:
    """Adds telemetry to one request's answer, whole or in chunks, reading each choice's lane as tokens arrive."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._loan = prepared, prepared.loan
        self.answered = False  # with generated tokens; a stream may begin and contain nothing but an error
        self._open = len(self._loan.lanes)  # sequences whose end was not seen

    def whole(self, answer: dict[str, Any]) -> None:
        """Annotate a complete answer of any path, in place."""
        self.answered = True
        self._hide_token_ids(answer)
        for choice in answer.get("choices") or []:
            i = self._sequence(choice)
            if i is not None:
                self._echo(choice)
                self._close(choice, i, self._taken(choice, i, answer.get("usage")))
        if answer.get("object") == "response" or answer.get("type") == "message":
            self._close_one(answer)

    def chunk(self, chunk: dict[str, Any]) -> bool:
        """Annotate one event of a stream, in place; return False if vLLM would not have sent it to this client."""
        choices = chunk.get("choices") or []
        self.answered |= bool(choices) or "delta" in chunk
        wanted = not choices
        for choice in choices:
            ids = choice.get("token_ids")
            self._echo(choice)
            self._hide_token_ids(choice)
            i = self._sequence(choice)
            if i is not None:
                self._annotate(choice, i, ids)
            wanted |= not self._only_carried_token_ids(choice, ids)
        self._hide_token_ids(chunk)
        response = chunk.get("response")  # of the responses API's closing event
        if isinstance(response, dict) and chunk.get("type") in ("response.completed", "response.incomplete"):
            self.whole(response)
        if chunk.get("type") == "message_delta":  # the only one of a message, just before it ends
            self._close_one(chunk)
        return wanted

    def _annotate(self, choice: dict[str, Any], i: int, ids: list[int] | None) -> None:
        """Add the telemetry of one chunk's tokens to its choice."""
        tokens = len(ids or [])
        closing = choice.get("finish_reason") is not None
        if closing and ids is None:  # vLLM hides the ids of hidden reasoning; the lane still has the records
            tokens = self._loan.lanes[i].recorded_tokens() - self._loan.returned_tokens[i]
        telemetry = self._loan.following(i, tokens)
        self._open -= closing
        if closing and self._prepared.at_end:
            choice["steering"] = self._report(i, self._loan.returned(i), closing)
            if isinstance(choice.get("delta"), dict):
                choice["delta"]["steering"] = choice["steering"]
        elif closing or (tokens and self._prepared.telemetry == "tokens" and not self._prepared.at_end):
            choice["steering"] = self._report(i, telemetry, closing)

    def _echo(self, choice: dict[str, Any]) -> None:
        if self._prepared.echo is not None:
            self._prepared.echo.restore(choice)

    def _hide_token_ids(self, holder: dict[str, Any]) -> None:
        """Replace token ids by null, as vLLM has it for clients that did not request them."""
        if self._prepared.strip_token_ids:
            holder.update({key: None for key in ("token_ids", "prompt_token_ids") if key in holder})

    def _only_carried_token_ids(self, choice: dict[str, Any], ids: list[int] | None) -> bool:
        """Return whether a chat chunk is otherwise empty; with return_token_ids vLLM sends these too."""
        return (
            self._prepared.strip_token_ids
            and bool(ids)
            and choice.get("delta") == {}
            and not any(choice.get(key) for key in ("finish_reason", "logprobs", "steering"))
        )

    @property
    def may_be_generating(self) -> bool:
        """Return whether the engine may have been told to abort a sequence: one prompt failed, and others had begun."""
        return self._prepared.prompts > 1 and self._open > 0

    def returned(self) -> list[Telemetry]:
        """Return the telemetry of every token that was returned, one entry per choice."""
        return [self._loan.returned(i) for i in range(len(self._loan.lanes))]

    def _sequence(self, choice: dict[str, Any]) -> int | None:
        """Return which of the loan's sequences a choice is, None if it has no lane."""
        index = choice.get("index")
        return index if isinstance(index, int) and index < len(self._loan.lanes) else None

    def _taken(self, choice: dict[str, Any], i: int, usage: dict[str, Any] | None) -> int:
        """Return how many tokens a complete choice has."""
        ids = choice.get("token_ids")
        self._hide_token_ids(choice)
        if ids is not None:
            return len(ids)
        if len(self._loan.lanes) == 1 and usage and isinstance(usage.get("completion_tokens"), int):
            return int(usage["completion_tokens"])
        return self._loan.lanes[i].recorded_tokens()

    def _close_one(self, holder: dict[str, Any]) -> None:
        """Add the telemetry of the one sequence of a response or message, as long as its usage says."""
        if self._loan.lanes:
            tokens = (holder.get("usage") or {}).get("output_tokens")
            self._close(holder, 0, self._loan.lanes[0].recorded_tokens() if tokens is None else tokens)

    def _close(self, holder: dict[str, Any], i: int, tokens: int) -> None:
        """Add the telemetry of a complete sequence of `tokens` tokens."""
        self._loan.returned_tokens[i] = tokens
        self._open -= 1
        holder["steering"] = self._report(i, self._loan.returned(i), closing=True)

    def _report(self, i: int, telemetry: Telemetry, closing: bool) -> dict[str, Any]:
        totals = self._loan.returned(i).summary() if closing else {}
        return totals | (telemetry.lists() if self._prepared.telemetry == "tokens" else {})

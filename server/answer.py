"""Add `steering` to every choice of the engine's answer."""

from __future__ import annotations

from typing import Any

from steerdec.telemetry.lanes import Lane, Records

from .body import Prepared


class Annotator:
    """Adds telemetry to one request's answer, whole or in chunks, reading each choice's lane as tokens arrive."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._returned_tokens = [0] * len(prepared.lanes)
        self.answered = False  # with generated tokens; a stream may begin and contain nothing but an error

    def whole(self, answer: dict[str, Any]) -> None:
        """Annotate a complete chat, text or responses answer, in place."""
        self.answered = True
        self._hide_token_ids(answer)
        for choice in answer.get("choices") or []:
            lane = self._lane(choice)
            if lane is not None:
                self._close(choice, lane, self._taken(choice, lane, answer.get("usage")))
        if answer.get("object") == "response" and self._prepared.lanes:
            tokens = (answer.get("usage") or {}).get("output_tokens")
            lane = self._prepared.lanes[0]
            self._returned_tokens[0] = lane.recorded_tokens() if tokens is None else tokens
            answer["steering"] = self._report(0, lane.read(0, self._returned_tokens[0]), closing=True)

    def chunk(self, chunk: dict[str, Any]) -> bool:
        """Annotate one event of a stream, in place; return False if vLLM would not have sent it to this client."""
        choices = chunk.get("choices") or []
        self.answered |= bool(choices) or "delta" in chunk
        wanted = not choices
        for choice in choices:
            ids = choice.get("token_ids")
            self._hide_token_ids(choice)
            lane = self._lane(choice)
            if lane is not None:
                self._annotate(choice, lane, ids)
            wanted |= not self._only_carried_token_ids(choice, ids)
        self._hide_token_ids(chunk)
        response = chunk.get("response")  # of the responses API's closing event
        if isinstance(response, dict) and chunk.get("type") in ("response.completed", "response.incomplete"):
            self.whole(response)
        return wanted

    def _annotate(self, choice: dict[str, Any], lane: Lane, ids: list[int] | None) -> None:
        """Add the telemetry of one chunk's tokens to its choice."""
        i = int(choice["index"])
        start = self._returned_tokens[i]
        self._returned_tokens[i] = start + len(ids or [])
        closing = choice.get("finish_reason") is not None
        if closing and ids is None:  # vLLM hides the ids of hidden reasoning; the lane still has the records
            self._returned_tokens[i] = lane.recorded_tokens()
        if self._prepared.telemetry == "tokens" or closing:
            choice["steering"] = self._report(i, lane.read(start, self._returned_tokens[i]), closing)

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

    def returned(self) -> list[Records]:
        """Return the records of every token that was returned, one entry per choice."""
        return [lane.read(0, tokens) for lane, tokens in zip(self._prepared.lanes, self._returned_tokens, strict=True)]

    def _lane(self, choice: dict[str, Any]) -> Lane | None:
        index = choice.get("index")
        return self._prepared.lanes[index] if isinstance(index, int) and index < len(self._prepared.lanes) else None

    def _taken(self, choice: dict[str, Any], lane: Lane, usage: dict[str, Any] | None) -> int:
        """Return how many tokens a complete choice has."""
        ids = choice.get("token_ids")
        self._hide_token_ids(choice)
        if ids is not None:
            return len(ids)
        if len(self._prepared.lanes) == 1 and usage and isinstance(usage.get("completion_tokens"), int):
            return int(usage["completion_tokens"])
        return lane.recorded_tokens()

    def _close(self, choice: dict[str, Any], lane: Lane, tokens: int) -> None:
        i = int(choice["index"])
        self._returned_tokens[i] = tokens
        choice["steering"] = self._report(i, lane.read(0, tokens), closing=True)

    def _report(self, index: int, records: Records, closing: bool) -> dict[str, Any]:
        report: dict[str, Any] = {}
        if closing:
            whole = self._prepared.lanes[index].read(0, self._returned_tokens[index])
            report |= whole.summary(self._prepared.threshold_nats, probed=self._prepared.probed)
        if self._prepared.telemetry == "tokens":
            report |= records.lists(probed=self._prepared.probed)
        return report

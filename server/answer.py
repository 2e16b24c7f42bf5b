"""The engine's answer -> the same answer with `steering` in every choice."""

from __future__ import annotations

import json
from typing import Any

from steerdec.telemetry.lanes import Lane, Records

from .body import Prepared


class Annotator:
    """Adds telemetry to one request's answer, whole or in chunks, reading each choice's lane as tokens come."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._returned_tokens = [0] * len(prepared.lanes)

    def whole(self, answer: dict[str, Any]) -> None:
        """A complete chat, text or responses answer, in place."""
        if self._prepared.strip_token_ids and "prompt_token_ids" in answer:
            answer["prompt_token_ids"] = None
        for choice in answer.get("choices") or []:
            lane = self._lane(choice)
            if lane is not None:
                self._close(choice, lane, self._taken(choice, lane, answer.get("usage")))
        if answer.get("object") == "response" and self._prepared.lanes:
            tokens = (answer.get("usage") or {}).get("output_tokens")
            lane = self._prepared.lanes[0]
            self._returned_tokens[0] = lane.recorded_tokens() if tokens is None else tokens
            answer["steering"] = self._report(0, lane.read(0, self._returned_tokens[0]), closing=True)

    def chunk(self, chunk: dict[str, Any]) -> None:
        """One event of a stream, in place."""
        for choice in chunk.get("choices") or []:
            lane = self._lane(choice)
            if lane is None:
                continue
            i = int(choice["index"])
            start = self._returned_tokens[i]
            ids = choice.get("token_ids")
            if self._prepared.strip_token_ids:
                choice.pop("token_ids", None)
            self._returned_tokens[i] = start + len(ids or [])
            closing = choice.get("finish_reason") is not None
            if closing and ids is None:  # vLLM hides the ids of hidden reasoning; the lane still knows
                self._returned_tokens[i] = lane.recorded_tokens()
            if self._prepared.telemetry == "tokens" or closing:
                choice["steering"] = self._report(i, lane.read(start, self._returned_tokens[i]), closing)
        if self._prepared.strip_token_ids:
            chunk.pop("prompt_token_ids", None)
        response = chunk.get("response")  # of the responses API's closing event
        if isinstance(response, dict) and chunk.get("type") in ("response.completed", "response.incomplete"):
            self.whole(response)

    def returned(self) -> list[Records]:
        """The records of every token that was returned, one entry a choice."""
        return [lane.read(0, tokens) for lane, tokens in zip(self._prepared.lanes, self._returned_tokens, strict=True)]

    def _lane(self, choice: dict[str, Any]) -> Lane | None:
        index = choice.get("index")
        return self._prepared.lanes[index] if isinstance(index, int) and index < len(self._prepared.lanes) else None

    def _taken(self, choice: dict[str, Any], lane: Lane, usage: dict[str, Any] | None) -> int:
        """How many tokens a complete choice has."""
        ids = choice.get("token_ids")
        if self._prepared.strip_token_ids:
            for key in ("token_ids", "prompt_token_ids"):
                if key in choice:
                    choice[key] = None  # as vLLM answers who did not ask for them
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


class EventStream:
    """Server-sent events, cut at any byte, rewritten one whole event at a time."""

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self._rest = b""

    def feed(self, data: bytes, *, last: bool) -> bytes:
        """The rewritten form of all events that are complete now."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        rewritten = b"".join(self._rewritten(event) + b"\n\n" for event in events)
        if last and self._rest:
            rewritten, self._rest = rewritten + self._rest, b""
        return rewritten

    def _rewritten(self, event: bytes) -> bytes:
        lines = event.split(b"\n")
        for i, line in enumerate(lines):
            payload = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and payload.startswith(b"{"):
                try:
                    content = json.loads(payload)
                except ValueError:
                    return event  # not ours to judge
                self._annotator.chunk(content)
                lines[i] = b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return b"\n".join(lines)

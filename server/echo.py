"""The prompt before a completion's text, which `echo` asks for.

vLLM leaves it out if the request also has `return_token_ids`, which telemetry needs, so it is put back here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Echo:
    """Puts each choice's prompt before its text, once."""

    def __init__(self, prompts: list[str | None], n: int, decode: Callable[[list[int]], str]) -> None:
        """Take the prompts in the order of their choices.

        Args:
            prompts: text as it was sent; None for token ids, which vLLM returns and `decode` turns into text.
            n: choices per prompt.
            decode: from token ids to text, as vLLM does it.
        """
        self._prompts, self._n, self._decode = prompts, n, decode
        self._done: set[int] = set()

    def restore(self, choice: dict[str, Any]) -> None:
        """Put the prompt before the text of a choice, in place, unless an earlier chunk had it."""
        index = choice["index"]
        if index in self._done:
            return
        self._done.add(index)
        prompt = self._prompts[index // self._n]
        if prompt is None:
            prompt = self._decode(choice["prompt_token_ids"])
        choice["text"] = prompt + choice["text"]

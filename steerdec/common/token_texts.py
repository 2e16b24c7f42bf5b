"""Find what each token of a response adds to its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return what each token adds to the text; a character of several tokens belongs to the last of them."""
    texts = []
    for t in range(len(ids)):
        start = max(0, t - 8)  # enough context for the spacing rules of every tokenizer
        before, with_it = tokenizer.decode(ids[start:t]), tokenizer.decode(ids[start : t + 1])
        own = with_it[len(before) :] if with_it.startswith(before) else with_it[len(before.rstrip("\ufffd")) :]
        texts.append("" if own.endswith("\ufffd") else own)
    return texts


def texts_of_logprobs(logprobs: Any, tokens: int) -> list[str] | None:
    """Return the texts of an answer's tokens from its `logprobs` in either form of OpenAI's API.

    None if they are not texts, one per token: nothing from the network is trusted.
    """
    if not isinstance(logprobs, dict):
        return None
    texts = logprobs.get("tokens")
    if texts is None and isinstance(content := logprobs.get("content"), list):
        texts = [entry.get("token") if isinstance(entry, dict) else None for entry in content]
    fits = isinstance(texts, list) and len(texts) == tokens and all(isinstance(text, str) for text in texts)
    return texts if fits else None

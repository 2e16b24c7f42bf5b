"""Find where a response stops reasoning and states its answer, and the words that make a model answer at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from steerdec.analysis.traces.sentences import sentence_spans
from steerdec.common.token_texts import token_texts

FEWEST_TOKENS: Final = 8  # of a chain that can be analyzed

# Closing words, the answer, and what ends it: modeled on how each prompt asks for the answer.
_CLOSINGS: Final = {
    "few-shot": (" The answer is", " {}", "."),
    "gym": ("\n<answer>", "{}", "</answer>"),
}
_BOXED: Final = ("\n\nThe final answer is \\boxed{{", "{}", "}}")
# A response that states its answer has decided; what a lens says about later tokens is about copying.
_STATES_ANSWER: Final = re.compile(r"\\boxed|\\fbox|\banswer\s*(?:is|:)|<answer>|####|\*\*Answer", re.IGNORECASE)


@dataclass(frozen=True)
class Ending:
    """Token ids that close the reasoning and give the reference answer; the last `scored` of them are the answer."""

    text: str
    tokens: tuple[int, ...]
    scored: int  # the answer with what ends it, so that 1 is not mistaken for the start of 18


def ending(tokenizer: Any, template: str, answer: str) -> Ending:
    """Return the ending for a prompt template of :mod:`steerdec.problems.prompts`."""
    closing, value, end = _CLOSINGS.get(template, _BOXED)
    closing, end = closing.format(), end.format()
    text = closing + value.format(answer) + end
    tokens = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    before = tuple(tokenizer(closing, add_special_tokens=False).input_ids)
    shared = 0
    while shared < min(len(tokens) - 1, len(before)) and tokens[shared] == before[shared]:
        shared += 1
    return Ending(text, tokens, len(tokens) - max(1, shared))


def reasoning(tokenizer: Any, ids: Sequence[int], stops: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the tokens of a response before the sentence that first states an answer, without final special tokens.

    Empty if the response begins with its answer.

    Args:
        stops: texts at which the response ended when it was sampled.
    """
    special = set(tokenizer.all_special_ids)
    kept = list(ids)
    while kept and kept[-1] in special:
        kept.pop()
    texts = token_texts(kept, tokenizer)
    cut = next((i for i, text in enumerate(texts) if any(stop in text for stop in stops)), len(texts))
    kept, texts = kept[:cut], texts[:cut]
    found = _STATES_ANSWER.search("".join(texts))
    if found is None:
        return tuple(kept)
    at, token = 0, 0
    while at + len(texts[token]) <= found.start():
        at += len(texts[token])
        token += 1
    begin = max(a for a, _ in sentence_spans(texts) if a <= token)
    return tuple(kept[:begin])

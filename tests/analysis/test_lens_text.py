"""What lenses need of text: sentences of whole tokens, kinds of tokens, endings, and where the reasoning stops."""

from __future__ import annotations

import numpy as np
import pytest

from steerdec.analysis.traces.endings import ending, reasoning
from steerdec.analysis.traces.sentences import lifted, sentence_spans, sentence_starts
from steerdec.analysis.traces.token_classes import token_classes


def cut(text: str) -> list[str]:
    """Words with the space before them, and full stops by themselves."""
    pieces: list[str] = []
    for i, word in enumerate(text.split(" ")):
        own = (" " if i else "") + word
        pieces += [own[:-1], own[-1]] if own[-1:] in (".", "?", "!") else [own]
    return pieces


def test_sentences_are_all_tokens_each_once() -> None:
    texts = cut("There are 3.5 apples here. How many are left? No one knows for sure.")
    spans = sentence_spans(texts)
    assert ["".join(texts[a:b]) for a, b in spans] == [
        "There are 3.5 apples here.",
        " How many are left?",
        " No one knows for sure.",
    ]
    assert sentence_starts(len(texts), spans).tolist() == [float(t in {a for a, _ in spans}) for t in range(len(texts))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So. We have ten apples now.", ["So. We have ten apples now."]),
        ("We have ten apples now. So.", ["We have ten apples now. So."]),
        ("Short.", ["Short."]),
        ("no end at all", ["no end at all"]),
    ],
)
def test_short_pieces_go_with_a_neighbor_and_none_is_dropped(text: str, expected: list[str]) -> None:
    texts = cut(text)
    assert ["".join(texts[a:b]) for a, b in sentence_spans(texts)] == expected


def test_a_blank_line_ends_a_sentence_and_a_token_that_two_share_goes_with_its_beginning() -> None:
    assert sentence_spans(["First of all we add", "\n\n", "Then we take away"]) == [(0, 2), (2, 3)]
    assert sentence_spans(["We have ten apples", ".\n\nThen", " we have none left"]) == [(0, 2), (2, 3)]


def test_random_texts_are_cut_without_gap_or_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        texts = ["".join(rng.choice(list("ab .?\n"), int(rng.integers(0, 9)))) for _ in range(int(rng.integers(1, 30)))]
        spans = sentence_spans(texts)
        assert [t for a, b in spans for t in range(a, b)] == list(range(len(texts)))
        assert all(a < b for a, b in spans)


def test_lifting_takes_the_largest_and_the_mean() -> None:
    highest, mean = lifted([1, 5, 2, 2, 8], [(0, 2), (2, 4), (4, 5)])
    assert highest.tolist() == [5, 2, 8]
    assert mean.tolist() == [3, 2, 8]


def test_token_classes() -> None:
    texts = ["There", " are", " ", "12", " *", "3", "\\times", "pp", "les", ".", "\n", "So", ""]
    assert token_classes(texts) == [
        "word start", "word start", "word start", "digit", "operator", "digit", "operator",
        "continuation", "continuation", "continuation", "word start", "word start", "continuation",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(weights: object) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(weights))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("few-shot", " The answer is 42."),
        ("number", "\n\nThe final answer is \\boxed{42}"),
        ("gym", "\n<answer>42</answer>"),
    ],
)
def test_an_ending_scores_the_answer_and_what_ends_it(tokenizer: object, template: str, text: str) -> None:
    found = ending(tokenizer, template, "42")
    assert found.text == text
    assert tokenizer.decode(found.tokens) == text  # type: ignore[attr-defined]
    scored = tokenizer.decode(found.tokens[-found.scored :])  # type: ignore[attr-defined]
    assert scored.strip().startswith("42") or scored.startswith("{42")
    assert text.endswith(scored)
    assert 2 <= found.scored < len(found.tokens)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("We add 3 and 4 to get seven. The answer is 7.", "We add 3 and 4 to get seven."),
        ("We add 3 and 4 to get seven. So we have \\boxed{7} in all.", "We add 3 and 4 to get seven."),
        ("We add 3 and 4 to get seven.", "We add 3 and 4 to get seven."),
        ("The answer is 7.", ""),
    ],
)
def test_reasoning_stops_before_the_sentence_that_states_an_answer(tokenizer: object, text: str, kept: str) -> None:
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]  # type: ignore[operator,attr-defined]
    assert tokenizer.decode(reasoning(tokenizer, ids)) == kept  # type: ignore[attr-defined]


def test_reasoning_stops_at_a_stop_text(tokenizer: object) -> None:
    ids = tokenizer("We add them up.\nQuestion: next", add_special_tokens=False).input_ids  # type: ignore[operator]
    assert tokenizer.decode(reasoning(tokenizer, ids, ("\n",))) == "We add them up."  # type: ignore[attr-defined]

"""Tokens as a notebook shows them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdec.common.errors import InvalidInputError
from steerdec.pages.tokens import ColoredTokens

STEERING = {"entropy_nats": [0.1, 1.25, None], "fork": [False, True, False], "temperature": [0.6, 1.0, None]}
CHAT = {"logprobs": {"content": [{"token": "a"}, {"token": " b"}, {"token": "<c>"}]}, "steering": STEERING}
COMPLETION = {"logprobs": {"tokens": ["a", " b", "<c>"]}, "steering": STEERING}


class Spans(HTMLParser):
    """The spans of a display: (attributes, text)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "span":
            self.found.append((dict(attrs), ""))
        self.inside = tag == "span"

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            attributes, text = self.found.pop()
            self.found.append((attributes, text + data))


def alpha(attributes: dict[str, str | None]) -> float:
    return float(re.findall(r"rgba\(198, 70, 0, ([\d.]+)\)", attributes["style"] or "")[0])


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.floats(0, 20), st.booleans())))
def test_every_text_is_shown_as_it_is_and_none_is_markup(tokens: list[tuple[str, float, bool]]) -> None:
    texts, nats, fork = ([token[i] for token in tokens] for i in range(3))
    spans = Spans(ColoredTokens(texts, nats, fork, [1.0] * len(tokens))._repr_html_())
    assert spans.tags <= {"div", "p", "span"}
    assert [text for _, text in spans.found] == texts
    underlined = ["underline" in (attributes["style"] or "") for attributes, _ in spans.found]
    assert underlined == fork
    by_entropy = sorted(zip(nats, (alpha(attributes) for attributes, _ in spans.found), strict=True))
    assert [shade for _, shade in by_entropy] == sorted(shade for _, shade in by_entropy)


@pytest.mark.parametrize("choice", [CHAT, COMPLETION])
def test_a_choice_over_http_is_shown_with_its_numbers(choice: dict[str, Any]) -> None:
    tokens = ColoredTokens.of_choice(choice)
    assert repr(tokens) == "a⟦ b⟧<c>"
    html = tokens._repr_html_()
    assert [text for _, text in Spans(html).found] == ["a", " b", "<c>"]
    titles = [attributes["title"] for attributes, _ in Spans(html).found]
    assert titles == ["0.100 nats, temperature 0.60", "1.250 nats, temperature 1.00, fork", "– nats, temperature –"]
    assert "Tokens: 3; forks (underlined): 1; mean entropy: 0.675 nats" in html


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"logprobs": CHAT["logprobs"]}, 'choice: it has no telemetry of tokens; request "telemetry": "tokens"'),
        (CHAT | {"steering": {"tokens": 3}}, 'choice: it has no telemetry of tokens; request "telemetry": "tokens"'),
        (CHAT | {"logprobs": None}, "choice: it has no text of each token; request logprobs"),
        (CHAT | {"logprobs": {"tokens": ["a"]}}, "choice: it has no text of each token; request logprobs"),
        (CHAT | {"steering": STEERING | {"fork": [True]}}, "fork has 1 entries for 3 tokens"),
        (CHAT | {"steering": STEERING | {"fork": "x"}}, 'choice.steering.fork: "x" is not a list'),
        (CHAT | {"steering": STEERING | {"entropy_nats": ["1"]}}, 'choice.steering.entropy_nats: "1" is not a number'),
    ],
)
def test_what_a_choice_lacks_is_said(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as e:
        ColoredTokens.of_choice(choice)
    assert str(e.value) == message

"""Prompts: what stands in a request's body for each template."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerdec.grading.grade import grade
from steerdec.problems.embedded import IN_EXAMPLES
from steerdec.problems.prompts import EXAMPLES, TEMPLATES, PromptError, request_body
from steerdec.problems.sets import PROMPTS, Problem, load_problems

PROBLEM = Problem("p", "What is $1 + {}$?", "70")
CHAT = [template for template in TEMPLATES if template != "few-shot"]


@pytest.mark.parametrize("template", CHAT)
def test_a_chat_prompt_is_the_problem_then_the_instruction(template: str) -> None:
    path, body = request_body(template, PROBLEM, thinking=None)
    assert path == "/v1/chat/completions"
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith(PROBLEM.problem + "\n\n")
    assert list(body) == ["messages"]


def test_the_instruction_asks_for_what_grading_looks_for() -> None:
    def content(template: str) -> str:
        return str(request_body(template, PROBLEM, thinking=None)[1]["messages"][0]["content"])

    assert "\\boxed{}" in content("aime")
    assert "from 0 to 999" in content("aime")
    for template in ("math", "number"):
        assert "\\boxed{}" in content(template)
        assert "999" not in content(template)
    assert "<answer>" in content("gym")


@pytest.mark.parametrize("template", CHAT)
@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_goes_to_the_chat_template(template: str, thinking: bool) -> None:
    _, body = request_body(template, PROBLEM, thinking=thinking)
    assert body["chat_template_kwargs"] == {"enable_thinking": thinking}


def test_few_shot_is_a_completion_that_stops_at_the_end_of_the_line() -> None:
    path, body = request_body("few-shot", PROBLEM, thinking=None)
    assert path == "/v1/completions"
    assert body["prompt"].endswith(f"\n\nQuestion: {PROBLEM.problem}\nAnswer:")
    assert body["prompt"].count("Answer:") == len(EXAMPLES) + 1
    assert body["stop"] == ["\n"]
    assert "messages" not in body


@pytest.mark.parametrize(("question", "answer"), EXAMPLES)
def test_the_examples_are_right_and_have_the_form_that_grading_reads(question: str, answer: str) -> None:
    sums = answer.partition("=")
    a, operation, b = sums[0].split()[-3:]
    right = int(a) + int(b) if operation == "+" else int(a) * int(b)
    assert grade(answer, str(right), "number", "stop").path == "answer-is"
    assert grade(answer, str(right), "number", "stop").grade == "correct"
    assert {a, b} <= set(question.split())


def test_the_examples_give_no_embedded_problem_away() -> None:
    texts = {
        problem.problem for name in ("embedded", "embedded-calibration") for problem in load_problems(name).problems
    }
    ids = {problem.id for name in ("embedded", "embedded-calibration") for problem in load_problems(name).problems}
    assert not texts & {question for question, _ in EXAMPLES}
    assert not ids & {f"embedded-{operation}-{low}-{high}" for operation, low, high in IN_EXAMPLES}


def test_what_cannot_be_asked_is_said_in_one_line() -> None:
    with pytest.raises(PromptError, match="'aimee' does not exist; the prompts are aime, math, number, gym, few-shot"):
        request_body("aimee", PROBLEM, thinking=None)
    with pytest.raises(PromptError, match="few-shot is a plain completion"):
        request_body("few-shot", PROBLEM, thinking=False)


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(TEMPLATES))
def test_every_text_goes_through_unchanged_and_bodies_are_not_shared(text: str, template: str) -> None:
    problem = Problem("p", text, "1")
    path, body = request_body(template, problem, thinking=None)
    assert text in (body["prompt"] if path == "/v1/completions" else body["messages"][0]["content"])
    assert json.loads(json.dumps(body)) == body
    body.clear()
    assert request_body(template, problem, thinking=None)[1]


def test_every_kind_of_problem_has_a_template() -> None:
    assert set(PROMPTS.values()) <= set(TEMPLATES)

"""The request sent to the model for a problem: one template per family of problems.

`aime`, `math`, `number` and `gym` are chat requests: the problem, a blank line, the required form of the answer (the
form :mod:`grading` looks for). The server applies the model's own chat template to them. `few-shot` is a plain
completion for models that do not follow instructions: worked examples, then the problem, ended by the end of a line.
"""

from __future__ import annotations

from typing import Any

from steerdec.common.errors import InvalidInputError
from steerdec.problems.sets import Problem

INSTRUCTIONS = {
    # MathArena asks for these two things on AIME: the box, and the range
    "aime": r"Give your final answer in \boxed{}. It is an integer from 0 to 999.",
    "math": r"Reason step by step and give your final answer in \boxed{}.",
    "number": r"Reason step by step and give your final answer in \boxed{}, as a number without units.",
    "gym": "Give your final answer between <answer> and </answer>, with nothing else between them.",
}

# None of these problems is, or can be, one of the embedded set: other names, other things, smaller numbers.
EXAMPLES = (
    (
        "Tom has 4 pens. Lucy gives Tom 5 more pens. How many pens does Tom have now?",
        "Tom has 4 + 5 = 9 pens. The answer is 9.",
    ),
    (
        "There are 3 bowls with 6 toys in each. How many toys are there in total?",
        "There are 3 * 6 = 18 toys. The answer is 18.",
    ),
    (
        "Mia has 12 rings and Paul has 7 rings. How many rings do they have together?",
        "They have 12 + 7 = 19 rings. The answer is 19.",
    ),
    (
        "Eva buys 5 nets. Each holds 4 balls. How many balls does Eva buy?",
        "Eva buys 5 * 4 = 20 balls. The answer is 20.",
    ),
)

TEMPLATES = (*INSTRUCTIONS, "few-shot")


class PromptError(InvalidInputError):
    """A template does not exist or is incompatible with a problem or an option; one line."""


def request_body(template: str, problem: Problem, *, thinking: bool | None) -> tuple[str, dict[str, Any]]:
    """Return the path and the part of the request's body that depends on the problem; a new dict every time.

    Args:
        template: one of TEMPLATES.
        thinking: whether the chat template opens with a thinking part; None leaves it at the model's default.

    Raises:
        PromptError: no such template, or `thinking` for a template that is not a chat.
    """
    if template == "few-shot":
        if thinking is not None:
            raise PromptError("prompt few-shot is a plain completion, in which thinking cannot be switched on or off")
        shots = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in EXAMPLES)
        return "/v1/completions", {"prompt": f"{shots}Question: {problem.problem}\nAnswer:", "stop": ["\n"]}
    if template not in INSTRUCTIONS:
        raise PromptError(f"prompt {template!r} does not exist; the prompts are {', '.join(TEMPLATES)}")
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{problem.problem}\n\n{INSTRUCTIONS[template]}"}],
    }
    if thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinking}
    return "/v1/chat/completions", body

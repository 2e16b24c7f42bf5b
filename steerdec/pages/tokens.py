"""Tokens colored by entropy, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError

from steerdec.common.errors import InvalidInputError
from steerdec.common.token_texts import texts_of_logprobs
from steerdec.common.validation import said_plainly
from steerdec.pages.html import render


class _Steering(BaseModel, strict=True):
    """The lists in `steering` of an answer over HTTP."""

    entropy_nats: list[FiniteFloat | None]
    fork: list[bool]
    temperature: list[FiniteFloat | None]


@dataclass(frozen=True, repr=False)
class ColoredTokens:
    """The tokens of one text, which a notebook shows colored by entropy, with the forks underlined.

    All lists have one entry per token.
    """

    texts: Sequence[str]
    entropy_nats: Sequence[float | None]
    fork: Sequence[bool]
    temperature: Sequence[float | None]

    def __post_init__(self) -> None:
        """Raise InvalidInputError if the lists differ in length."""
        for name, values in vars(self).items():
            if len(values) != len(self.texts):
                raise InvalidInputError(f"{name} has {len(values)} entries for {len(self.texts)} tokens")

    @classmethod
    def of_choice(cls, choice: Any) -> ColoredTokens:
        """Return the tokens of a choice in an answer of `steerdec serve`, as a dict or as an OpenAI client has it.

        The request needs `"telemetry": "tokens"` in its `steering`, and `logprobs`, which carry the texts.

        Raises:
            InvalidInputError: the choice lacks one of them.
        """
        fields = choice if isinstance(choice, dict) else choice.model_dump()
        given = fields.get("steering")
        if not isinstance(given, dict) or "entropy_nats" not in given:
            raise InvalidInputError('choice: it has no telemetry of tokens; request "telemetry": "tokens"')
        try:
            steering = _Steering.model_validate(given)
        except ValidationError as e:
            error = e.errors()[0]
            raise InvalidInputError(f"choice.steering.{error['loc'][0]}: {said_plainly(error)}") from None
        texts = texts_of_logprobs(fields.get("logprobs"), len(steering.entropy_nats))
        if texts is None:
            raise InvalidInputError("choice: it has no text of each token; request logprobs")
        return cls(texts, steering.entropy_nats, steering.fork, steering.temperature)

    def __repr__(self) -> str:
        """Return the text with the forks in brackets, for a terminal."""
        return "".join(f"⟦{text}⟧" if fork else text for text, fork in zip(self.texts, self.fork, strict=True))

    def _repr_html_(self) -> str:
        tokens = zip(self.texts, self.entropy_nats, self.fork, self.temperature, strict=True)
        known = [nats for nats in self.entropy_nats if nats is not None]
        return render(
            Path(__file__).parent / "tokens.html.j2",
            {
                "tokens": list(tokens),
                "forks": sum(self.fork),
                "mean_entropy_nats": sum(known) / len(known) if known else None,
            },
        )

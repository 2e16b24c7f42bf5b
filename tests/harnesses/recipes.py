"""The recipes: where each stands in the documentation, and what is to be seen when it runs.

A recipe is the fenced blocks below a heading, text for text. Only addresses and ports are replaced.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SERVER = "http://127.0.0.1:8000"  # in every recipe; replaced by the recorder's address


class Block(NamedTuple):
    language: str
    code: str


@dataclass(frozen=True)
class Recipe:
    """What stands below `heading` on `page`."""

    heading: str
    requests: int  # how many steered ones it sends
    shows: bool  # whether the telemetry reaches its user
    page: str = "harnesses.md"
    holding: str = ""  # only the blocks with this text

    def blocks(self) -> list[Block]:
        """The blocks in their order."""
        text = (ROOT / "docs" / self.page).read_text("utf-8")
        _, found, rest = text.partition(f"# {self.heading}\n")
        assert found, f"{self.page} has no heading {self.heading!r}"
        section = re.split(r"^#+ ", _without_code(rest), maxsplit=1, flags=re.MULTILINE)[0]
        fences = re.findall(r"^```(\w+)\n(.*?)^```$", rest[: len(section)], re.DOTALL | re.MULTILINE)
        return [Block(language, code) for language, code in fences if self.holding in code]


def _without_code(text: str) -> str:
    """Blank out what stands in fences, which may have lines that look like headings."""
    return re.sub(r"^```.*?^```$", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL | re.MULTILINE)


RECIPES = {
    "openai": Recipe("OpenAI, Python", requests=3, shows=True, page="api.md"),
    "openai-npm": Recipe("JavaScript", requests=1, shows=True, page="api.md", holding="import OpenAI"),
    "anthropic": Recipe("Anthropic, Python", requests=2, shows=True, page="api.md"),
    "litellm": Recipe("LiteLLM, client", requests=1, shows=True),
    "litellm-proxy": Recipe("LiteLLM, proxy", requests=2, shows=True),
    "langchain": Recipe("LangChain", requests=1, shows=False),
    "inspect": Recipe("Inspect", requests=2, shows=True),
    "evalscope": Recipe("EvalScope", requests=2, shows=False),
    "vllm-bench": Recipe("vllm bench serve", requests=4, shows=False),
    "lm-eval": Recipe("lm-eval", requests=2, shows=False),
}
